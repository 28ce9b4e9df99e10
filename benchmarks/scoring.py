"""What scoring a model on a small world takes, whichever world it is: samples drawn and asked, rows, and the record."""

from __future__ import annotations

import sys
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

from .shapes.report import Score, ScoreReport, most_frequent, table, write_json
from .shapes.sheet import Tile, draw_sheet

if TYPE_CHECKING:
    from PIL import Image

    from mobileo_mlx import MobileO

BATCH = 16  # drawings at once, of the same prompt
MAX_TOKENS = 48  # the longest description has fewer words
SHOWN = 8  # samples of each row on the contact sheet: the first ones, whatever their verdicts
OUTPUTS = ("score.json", "sheet.png")
_BLANK = (128, 128, 128)


class AnyQuestion(Protocol):
    """A question of a world."""

    @property
    def text(self) -> str: ...

    @property
    def answer(self) -> str: ...

    @property
    def accepted(self) -> frozenset[str]: ...


Q = TypeVar("Q", bound=AnyQuestion)


@dataclass(frozen=True)
class Scored:
    """Rows of a category, and its first samples for a contact sheet."""

    rows: list[Score]
    label: str
    tiles: list[Tile]


@dataclass(frozen=True)
class Asked(Generic[Q]):
    """A question with the answers to it about its image, and about a blank one, in lower case."""

    question: Q
    image: Image.Image
    answer: str
    blank_answer: str

    @property
    def right(self) -> bool:
        return self._accepts(self.answer)

    @property
    def right_on_blank(self) -> bool:
        return self._accepts(self.blank_answer)

    def _accepts(self, answer: str) -> bool:
        return answer in {each.lower() for each in self.question.accepted}

    @property
    def tile(self) -> Tile:
        return Tile((self.image,), f"{self.question.text}\n> {self.answer}", self.right)


def draw(
    model: MobileO, prompts: Sequence[str], rng: np.random.Generator, options: dict[str, Any]
) -> list[Image.Image]:
    """One image of each prompt; equal ones share batches, each with a seed of its own."""
    seeds = [image_seed(rng) for _ in prompts]
    places: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        places.setdefault(prompt, []).append(index)
    images: dict[int, Image.Image] = {}
    for text, indices in places.items():
        for start in range(0, len(indices), BATCH):
            some = indices[start : start + BATCH]
            result = model.generate(text, seed=[seeds[i] for i in some], **options)
            images.update(zip(some, result.images, strict=True))
    return [images[i] for i in range(len(prompts))]


class Questioner:
    """Asks a model about images, and once about a blank one, which has no answer of its own."""

    def __init__(self, model: MobileO) -> None:
        self._model = model
        self._on_blank: dict[str, str] = {}

    def ask(self, question: Q, image: Image.Image) -> Asked[Q]:
        from PIL import Image

        text = question.text
        if text not in self._on_blank:
            self._on_blank[text] = self._answer(Image.new("RGB", image.size, _BLANK), text)
        return Asked(question, image, self._answer(image, text), self._on_blank[text])

    def _answer(self, image: Image.Image, question: str) -> str:
        return self._model.ask(image, question, max_tokens=MAX_TOKENS).text.lower().strip().rstrip(".")


def row(task: str, name: str, verdicts: Sequence[bool]) -> Score:
    return Score(task, name, sum(verdicts), len(verdicts))


def asked_row(name: str, asked: Sequence[Asked[Any]]) -> Score:
    return Score(
        "ask",
        name,
        right=sum(one.right for one in asked),
        total=len(asked),
        blank=sum(one.right_on_blank for one in asked),
        prior=most_frequent([one.question.answer for one in asked]),
    )


def generator(seed: int, *names: str) -> np.random.Generator:
    """Randomness of a category, the same whatever other categories are scored."""
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


def image_seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**32))


def record(report: ScoreReport, parts: Iterable[Scored], out: Path | None, show: Callable[[str], None] = print) -> None:
    """Takes the rows into the report, printing each, and the table at the end; `out` gets `OUTPUTS`, the sheet too.

    Raises:
        OutputError: a file can't be written.
    """
    from mobileo_mlx.images import save_png

    sheet = []
    begin = time.perf_counter()
    try:
        for part in parts:
            report.rows += part.rows
            if part.tiles:
                sheet.append((part.label, part.tiles))
            for one in part.rows:
                print(f"{one.task} {one.name}: {one.accuracy:.3f}", file=sys.stderr, flush=True)
    finally:
        # Ctrl-C after an hour must not lose what is known by then.
        report.seconds = time.perf_counter() - begin
        for line in table(report):
            show(line)
    if out is not None:
        write_json(report, out / OUTPUTS[0])
        save_png(draw_sheet(sheet), out / OUTPUTS[1], None)
