"""Quadruplets: what the model is trained on, whichever file they come from, and what can be wrong with them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..errors import ImageError, TrainingError
from ..files import kind_of, open_input, read_limited
from ..images import load_image

if TYPE_CHECKING:
    from PIL import Image


MAX_IMAGE_BYTES = 2**29  # more than the largest image that is read takes without compression


@dataclass(frozen=True)
class ImageRef:
    """Where an image is: a file, or some bytes of a larger one.

    Attributes:
        path: of the file.
        offset: of the first byte.
        size: in bytes; None for the whole file.
        unpacked: where `path` is compressed, the open file that `offset` is in.
    """

    path: Path
    offset: int = 0
    size: int | None = None
    unpacked: BinaryIO | None = field(default=None, repr=False)

    def read(self) -> bytes:
        """The bytes of the image's file.

        Raises:
            ImageError: there is none, it is no regular file, can't be read, or is too large.
        """
        try:
            if self.unpacked is not None:
                return read_range(self.unpacked, self.offset, self.size or 0)
            kind = kind_of(self.path, error=ImageError)
            if not kind:
                raise ImageError(f"'{self.path}' does not exist; check the name of the image.")
            if kind == "folder":
                raise ImageError(f"'{self.path}' is a folder; name an image in it.")
            with open_input(self.path, error=ImageError) as file:
                if self.size is None:
                    return read_limited(file, MAX_IMAGE_BYTES, f"'{self.path}'", error=ImageError)
                return read_range(file, self.offset, self.size)
        except OSError as error:
            raise ImageError(f"'{self.path}' can't be read ({error.strerror or error}); check its disk.") from error

    def open(self) -> Image.Image:
        """The image as RGB, upright.

        Raises:
            ImageError: it is missing or broken.
        """
        return self.decode(self.read())

    def decode(self, data: bytes) -> Image.Image:
        """The image that `read` has read."""
        return load_image(data, name=f"'{self.path}'" if self.size is None else f"an image in '{self.path}'")


def read_range(file: BinaryIO, offset: int, size: int) -> bytes:
    """Some bytes of a file, wherever it stands, which it keeps; fewer where the file ends before."""
    parts = []
    while size > 0 and (data := os.pread(file.fileno(), min(size, 2**30), offset)):
        parts.append(data)
        offset, size = offset + len(data), size - len(data)
    return b"".join(parts)


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
        fingerprint: by which a resumed run knows that the data are the same: prompts, questions, answers and what the
            images' files hold, whatever their names.
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
