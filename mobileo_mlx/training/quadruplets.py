"""Quadruplets: what the model is trained on, whichever file they come from, and what can be wrong with them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import TrainingError
from ..images import load_image

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class ImageRef:
    """Where an image is: a file, or some bytes of a larger one."""

    path: Path
    offset: int = 0
    size: int | None = None  # in bytes; None: the whole file

    def open(self) -> Image.Image:
        """The image as RGB, upright.

        Raises:
            ImageError: it is missing or broken.
        """
        if self.size is None:
            return load_image(self.path)
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return load_image(file.read(self.size), name=f"an image in '{self.path}'")


@dataclass(frozen=True)
class QA:
    """A question about an image, and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Sample:
    """One quadruplet, or a prompt-image pair.

    Attributes:
        name: for messages, such as `line 3` or `shard-0.tar: 000012`.
        prompt: a caption, or for an edit the instruction.
        image: what the model learns to generate.
        source_image: what is edited; None where the image is generated from its caption alone.
        question_image: what the questions are about: `image`, or the one that upstream's shards give for it.
        qa: questions and answers; empty where only images are trained.
    """

    name: str
    prompt: str
    image: ImageRef
    source_image: ImageRef | None
    question_image: ImageRef
    qa: tuple[QA, ...]

    @property
    def images(self) -> list[ImageRef]:
        """All images, each once."""
        all_images = dict.fromkeys((self.image, self.source_image, self.question_image))
        return [image for image in all_images if image is not None]


@dataclass(frozen=True)
class Problem:
    """Why a sample can't be used; the reason continues a sentence that begins with its name."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class Malformed(Exception):
    """Raised by the readers inside of one sample: the reason of its `Problem`."""


class DataError(TrainingError):
    """The data can't be trained on.

    Attributes:
        problems: all of them, in the order of the data.
    """

    def __init__(self, message: str, problems: Iterable[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = list(problems)


@dataclass
class Data:
    """What was read.

    Attributes:
        samples: in the order of the files.
        fingerprint: by which a resumed run knows that the data are the same.
        default_questions: samples without a question of their own, which got upstream's.
    """

    samples: list[Sample] = field(default_factory=list)
    fingerprint: str = ""
    default_questions: int = 0

    @property
    def edits(self) -> int:
        """Samples that edit an image."""
        return sum(sample.source_image is not None for sample in self.samples)

    @property
    def questions(self) -> int:
        """Questions of all samples together."""
        return sum(len(sample.qa) for sample in self.samples)
