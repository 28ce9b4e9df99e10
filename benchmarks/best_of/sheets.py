"""Contact sheets of where it helped, and where it did not: the first candidate beside the one that was kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..shapes.sheet import Tile, draw_sheet
from .judging import Judged
from .samples import Drawn

if TYPE_CHECKING:
    from PIL import Image

N = 4  # candidates
_COLUMNS, _ROWS = 5, 3

Pair = tuple[Drawn, Judged]


def helped(pairs: Iterable[Pair]) -> list[Pair]:
    """The first candidate is wrong, and what is kept is right."""
    return [pair for pair in pairs if not pair[1].right[0] and pair[1].outcome("kept", N)]


def failed(pairs: Iterable[Pair]) -> list[Pair]:
    """What is kept is wrong, although one of the candidates is right."""
    return [pair for pair in pairs if not pair[1].outcome("kept", N) and pair[1].outcome("oracle", N)]


def hopeless(pairs: Iterable[Pair]) -> list[Pair]:
    """None of the candidates is right."""
    return [pair for pair in pairs if not pair[1].outcome("oracle", N)]


def sheet(sections: Iterable[tuple[str, list[Pair]]]) -> Image.Image | None:
    """Rows of pairs, first and kept, from as many kinds as there are; None where there is nothing to show."""
    rows = []
    for title, pairs in sections:
        chosen = _varied(pairs)[: _COLUMNS * _ROWS]
        for start in range(0, len(chosen), _COLUMNS):
            label = f"{title} ({len(pairs)}): first candidate, kept of {N}" if start == 0 else ""
            rows.append((label, [_tile(*pair) for pair in chosen[start : start + _COLUMNS]]))
    return draw_sheet(rows) if rows else None


def _varied(pairs: list[Pair]) -> list[Pair]:
    """One of each row in turn, so that the rarest is shown too."""
    lines: dict[str, list[Pair]] = {}
    for pair in pairs:
        lines.setdefault(pair[1].row, []).append(pair)
    longest = max(map(len, lines.values()), default=0)
    return [line[place] for place in range(longest) for line in lines.values() if place < len(line)]


def _tile(drawn: Drawn, judged: Judged) -> Tile:
    kept = judged.kept(N)
    images = [drawn.candidates[0], drawn.candidates[kept]]
    if drawn.sample.before is not None:
        images.insert(0, drawn.sample.before)
    scores = f"score {judged.scores[0]:.2f}, kept {judged.scores[kept]:.2f}"
    return Tile(tuple(images), f"{drawn.sample.text}\n> {scores}", judged.right[kept])
