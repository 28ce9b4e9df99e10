"""An answer to a conversation, as a task of a job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

    from ..pipeline import MobileO
    from .tasks import Happening


@dataclass
class Answering:
    """The next message of a conversation; see `tasks.Task`.

    Attributes:
        question: what the user says last.
        images: that are shown with it.
        options: keyword arguments of the pipeline.
        request: see `Task`.
    """

    question: str
    images: Sequence[Image.Image]
    options: Mapping[str, Any]
    request: Mapping[str, Any]
    name: str = field(default="answer", init=False)
    turns: int = field(default=1, init=False)

    @property
    def nbytes(self) -> int:
        return sum(3 * image.width * image.height for image in self.images)

    def release(self) -> None:
        self.images = []

    def run(self, model: MobileO, turn: int) -> Iterator[Happening]:
        for count, token in enumerate(model.stream_ask(list(self.images), self.question, **self.options), start=1):
            if token.text:
                yield "text", {"delta": token.text}
            if token.finish_reason:
                yield (
                    "completed",
                    {
                        "finish_reason": token.finish_reason,
                        "timings": token.timings,
                        "peak_memory": token.peak_memory,
                        "usage": {
                            "prompt_tokens": token.prompt_tokens,
                            "completion_tokens": count,
                            "total_tokens": token.prompt_tokens + count,
                        },
                    },
                )
