"""What the model and the independent scorer say of each candidate, kept in a file, and what follows for each N."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .samples import CANDIDATES, Drawn, Sample

if TYPE_CHECKING:
    from mobileo_mlx import MobileO

NUMBERS = (1, 2, 4, 8)  # of candidates


@dataclass(frozen=True)
class Judged:
    """A sample's candidates as they were judged.

    Attributes:
        row, index: of the sample.
        right: what the scorer says of each candidate.
        passes, scores: what the model says.
        drawing, judging: processor seconds for all candidates.
    """

    row: str
    index: int
    right: list[bool]
    passes: list[bool]
    scores: list[float]
    drawing: float
    judging: float

    def kept(self, n: int) -> int:
        """Which of the first `n` candidates `best_of` keeps, by the library's own rule."""
        from mobileo_mlx.best_of.candidates import Candidate, best
        from mobileo_mlx.best_of.judge import Judgement

        said = [Judgement(score, passes, ()) for score, passes in zip(self.scores[:n], self.passes[:n], strict=True)]
        return best([Candidate(k, cast(Any, None), cast(Any, None), one) for k, one in enumerate(said)]).seed

    def drawn(self, n: int) -> int:
        """How many are drawn where drawing stops at the first of `n` that passes; it is kept either way."""
        return next((k + 1 for k in range(n) if self.passes[k]), n)

    def outcome(self, way: str, n: int) -> bool:
        """Whether what a way to choose keeps of the first `n` is right.

        Args:
            way: "kept", as the library does; "score", the highest of those that pass; or "oracle", the scorer's choice.
            n: candidates.
        """
        if way == "oracle":
            return any(self.right[:n])
        if way == "score":
            return self.right[max(range(n), key=lambda k: (self.passes[k], self.scores[k], -k))]
        return self.right[self.kept(n)]


def judge(model: MobileO, drawn: Drawn) -> Judged:
    """Judges all candidates of a sample."""
    from mobileo_mlx.best_of.judge import judge_images

    sample = drawn.sample
    begin = time.process_time()
    said = judge_images(model.parts, drawn.candidates, sample.text, source=sample.before)
    seconds = time.process_time() - begin
    return Judged(
        sample.row,
        sample.index,
        [sample.right(image) for image in drawn.candidates],
        [one.passes for one in said],
        [one.score for one in said],
        drawn.seconds,
        seconds,
    )


def kept_judgements(path: Path) -> dict[tuple[str, int], Judged]:
    """Those of an earlier run; a line that was torn when it was stopped is left out."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            one = Judged(**json.loads(line))
        except (ValueError, TypeError):
            continue
        found[one.row, one.index] = one
    return found


def judged(model: MobileO, drawn: Iterator[Drawn], path: Path) -> Iterator[tuple[Sample, Judged]]:
    """Judges what is drawn, or takes what `path` has, and adds to it."""
    known = kept_judgements(path)
    with path.open("a", encoding="utf-8") as lines:
        for one in drawn:
            key = one.sample.row, one.sample.index
            if key not in known:
                known[key] = judge(model, one)
                lines.write(json.dumps(asdict(known[key])) + "\n")
                lines.flush()
            yield one.sample, known[key]


def rule_digest() -> str:
    """Of the sources of the model's questions and verdicts: those of other rules are not taken for these."""
    import hashlib

    import mobileo_mlx.best_of as package

    files = [Path(package.__path__[0]) / f"{name}.py" for name in ("checks", "judge", "phrases")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def best_by_luck(some: Sequence[Judged]) -> float:
    """How often a candidate at random is right: the share of all of them."""
    return sum(sum(one.right) for one in some) / (CANDIDATES * len(some))
