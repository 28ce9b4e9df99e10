"""What a job does, turn by turn, with the model: the only place of the server that calls the pipeline.

A task is made of a checked request. It runs in the worker's thread, and yields what happens as pairs of an event's kind
and its data, so that the worker can stop it between any two.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from ..image_settings import encode
from ..results import GenerationResult

if TYPE_CHECKING:
    from PIL import Image

    from ..diffusion import GenerationStep
    from ..pipeline import MobileO

Happening = tuple[str, Any]


class Task(Protocol):
    """Something that a job does.

    Attributes:
        name: "generate", "edit" or "answer".
        request: what was asked for, as JSON can hold it, without the bytes of images.
        turns: how many parts it has, between which others may have theirs.
        nbytes: memory that it holds while it waits.
    """

    @property
    def name(self) -> str: ...
    @property
    def request(self) -> Mapping[str, Any]: ...
    @property
    def turns(self) -> int: ...
    @property
    def nbytes(self) -> int: ...

    def run(self, model: MobileO, turn: int) -> Iterator[Happening]:
        """Does one turn; the last one ends with ("completed", a dict that `Job.outcome` describes)."""
        ...

    def release(self) -> None:
        """Frees the images; called when the job has ended."""
        ...


@dataclass(frozen=True)
class Drawn:
    """A finished picture.

    Attributes:
        index: its number among those of the request, from 0.
        seed: of its noise.
        data: the bytes of the file.
        settings: the metadata in it.
        width, height: in pixels.
        record: what the picture folder says of it, where it was kept.
    """

    index: int
    seed: int
    data: bytes = field(repr=False)
    settings: dict[str, Any]
    width: int
    height: int
    record: dict[str, Any] | None = None


@dataclass
class Drawing:
    """Pictures of one prompt, of `seeds[i]` each.

    Attributes:
        name: "generate" or "edit".
        prompt: the text, or the instruction.
        seeds: one for each picture.
        options: keyword arguments of the pipeline but the seed.
        request: see `Task`.
        image: that is edited.
        source: what is recorded of it, beside the settings.
        previews: how many of the steps of each picture are shown.
        kind: the format of the pictures, of `image_settings.FORMATS`; `quality` is that of JPEG and WebP.
        preview_kind: of the previews.
        batch: seeds that are drawn at once, in one turn. Where each has several candidates, which are drawn together
            and compared, a turn is one seed.
        keep: puts a picture into the picture folder and returns its record.
    """

    name: str
    prompt: str
    seeds: Sequence[int]
    options: Mapping[str, Any]
    request: Mapping[str, Any]
    image: Image.Image | None = None
    source: Mapping[str, Any] = field(default_factory=dict)
    previews: int = 0
    kind: str = "PNG"
    quality: int | None = None
    preview_kind: str = "JPEG"
    batch: int = 1
    keep: Callable[[Drawn], dict[str, Any]] | None = None
    _timings: dict[str, float] = field(default_factory=dict)

    @property
    def best_of(self) -> int:
        """Candidates of each picture."""
        return int(self.options.get("best_of", 1))

    @property
    def _per_turn(self) -> int:
        return self.batch if self.best_of == 1 else 1

    @property
    def turns(self) -> int:
        return -(-len(self.seeds) // self._per_turn)

    @property
    def nbytes(self) -> int:
        return 0 if self.image is None else 3 * self.image.width * self.image.height

    def release(self) -> None:
        self.image = None

    def run(self, model: MobileO, turn: int) -> Iterator[Happening]:
        first = turn * self._per_turn
        seeds = list(self.seeds[first : first + self._per_turn])
        begun = time.monotonic()
        for item in self._stream(model, seeds):
            if isinstance(item, GenerationResult):
                yield from self._finish(item, first)
                if turn == self.turns - 1:
                    yield "completed", {"timings": self._timings, "peak_memory": item.peak_memory}
                return
            if item.step in preview_steps(item.steps, self.previews):
                for offset, image in enumerate(model.decode_latents(item.denoised)):
                    data = {"index": first + offset, "step": item.step, "steps": item.steps}
                    yield "preview", {**data, "data": encode(image, self.preview_kind)}
            yield "progress", self._progress(item, first, len(seeds), time.monotonic() - begun)

    def _stream(self, model: MobileO, seeds: list[int]) -> Iterator[GenerationStep | GenerationResult]:
        if self.image is not None:
            return model.stream_edit(self.image, self.prompt, seed=seeds, **self.options)
        return model.stream_generate(self.prompt, seed=seeds, **self.options)

    def _finish(self, result: GenerationResult, first: int) -> Iterator[Happening]:
        for name, seconds in result.timings.items():
            self._timings[name] = self._timings.get(name, 0.0) + seconds
        for offset, image in enumerate(result.images):
            settings = without_folders({**result.metadata(offset), **self.source})
            data = encode(image, self.kind, settings, quality=self.quality)
            drawn = Drawn(first + offset, result.seeds[offset], data, settings, image.width, image.height)
            if self.keep is not None:
                drawn = replace(drawn, record=self.keep(drawn))
            yield "picture", drawn

    def _progress(self, step: GenerationStep, first: int, count: int, seconds: float) -> dict[str, Any]:
        """Where a drawing is, with a guess of the seconds that all its pictures still take."""
        rest = (step.steps - step.step) + step.steps * (len(self.seeds) - first - count) / count
        candidates: dict[str, int] = {}
        if self.best_of > 1:
            candidates["candidates"] = self.best_of
            if self.options.get("until_pass"):  # one after the other; else they are drawn together
                candidates["candidate"] = (step.step - 1) // (step.steps // self.best_of)
        return {
            "step": step.step,
            "steps": step.steps,
            "index": first,
            "n": len(self.seeds),
            "seconds_left": round(seconds / step.step * rest, 2),
            **candidates,
        }


def preview_steps(steps: int, count: int) -> set[int]:
    """`count` of the steps 1 to `steps` - 1, evenly spread; all of them where there are fewer."""
    count = min(count, steps - 1)
    return {round(steps * (i + 1) / (count + 1)) for i in range(count)}


def without_folders(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a picture without the path of a model's or adapter's folder, of which the name stays.

    Where something lies on the server's disk is nothing to its clients.
    """
    return {name: folder_name(value) if name in ("model", "adapter") else value for name, value in settings.items()}


def folder_name(value: Any) -> Any:
    """The last part of an absolute path, or of each in a list; all else as it is."""
    if isinstance(value, list):
        return [folder_name(one) for one in value]
    return os.path.basename(os.path.normpath(value)) if isinstance(value, str) and os.path.isabs(value) else value
