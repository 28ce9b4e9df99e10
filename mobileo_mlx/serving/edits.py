"""Edits of several images, as one task: the model edits one at a time, each in turns of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from .tasks import Drawing

if TYPE_CHECKING:
    from collections.abc import Generator

    from ..pipeline import MobileO
    from .tasks import Happening


@dataclass
class Edits:
    """One drawing after the other; see `tasks.Task`. Their pictures are numbered as those of one.

    Attributes:
        drawings: one for each image.
        request: see `Task`.
    """

    drawings: Sequence[Drawing]
    request: Mapping[str, Any]
    name: str = field(default="edit", init=False)
    _timings: dict[str, float] = field(default_factory=dict, init=False)

    @property
    def turns(self) -> int:
        return sum(drawing.turns for drawing in self.drawings)

    @property
    def nbytes(self) -> int:
        return sum(drawing.nbytes for drawing in self.drawings)

    def release(self) -> None:
        for drawing in self.drawings:
            drawing.release()

    def run(self, model: MobileO, turn: int) -> Iterator[Happening]:
        before = 0  # pictures of the drawings before
        for drawing in self.drawings:
            if turn < drawing.turns:
                break
            turn -= drawing.turns
            before += len(drawing.seeds)
        last = drawing is self.drawings[-1]
        with closing(cast("Generator[Happening, None, None]", drawing.run(model, turn))) as happenings:
            for kind, data in happenings:
                if kind == "picture":
                    yield kind, replace(data, index=before + data.index)
                elif kind == "preview":
                    yield kind, {**data, "index": before + data["index"]}
                elif kind == "progress":
                    count = sum(len(drawing.seeds) for drawing in self.drawings)
                    seconds = data["seconds_left"] if last else None  # how long other images take is not known
                    yield kind, {**data, "index": before + data["index"], "n": count, "seconds_left": seconds}
                else:
                    for name, seconds in data["timings"].items():
                        self._timings[name] = self._timings.get(name, 0.0) + seconds
                    if last:
                        yield kind, {**data, "timings": self._timings}
