"""An answer to a conversation, as a task of a job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Generator

    from ..conversations import Conversation
    from ..pipeline import MobileO
    from ..results import AnswerToken
    from .tasks import Happening


@dataclass
class Answering:
    """The next message of a conversation; see `tasks.Task`.

    Attributes:
        conversation: all that was said.
        options: keyword arguments of the pipeline.
        request: see `Task`.
    """

    conversation: Conversation
    options: Mapping[str, Any]
    request: Mapping[str, Any]
    name: str = field(default="answer", init=False)
    turns: int = field(default=1, init=False)

    @property
    def nbytes(self) -> int:
        return sum(3 * image.width * image.height for image in self.conversation.images)

    def release(self) -> None:
        self.conversation.images.clear()

    def run(self, model: MobileO, turn: int) -> Iterator[Happening]:
        tokens = cast("Generator[AnswerToken, None, None]", model.stream_messages(self.conversation, **self.options))
        with closing(tokens):  # here, and not when the garbage collector comes: what was read is kept for the next turn
            for count, token in enumerate(tokens, start=1):
                yield "text", {"delta": token.text}
                if token.finish_reason:
                    yield (
                        "completed",
                        {
                            "finish_reason": token.finish_reason,
                            "timings": token.timings,
                            "peak_memory": token.peak_memory,
                            "usage": usage(token.prompt_tokens + token.cached_tokens, count, token.cached_tokens),
                        },
                    )


def usage(prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    """OpenAI's account of an answer.

    Args:
        prompt: positions of the conversation, those of images among them.
        completion: tokens of the answer.
        cached: those of the prompt that were known from before.
    """
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
