"""Mobile-O in MLX: one small model that answers questions on images, draws, edits and chats.

from mobileo_mlx import MobileO

model = MobileO.load("tiny")
model.generate("a red star to the left of a blue square").images[0].save("star.png")
print(model.ask("star.png", "what color is the star?").text)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .errors import MobileOError

if TYPE_CHECKING:
    from .chat import Chat
    from .conversations import Turn
    from .diffusion import GenerationStep
    from .pipeline import MobileO
    from .results import Answer, AnswerToken, GenerationResult, Message

__all__ = [
    "Answer",
    "AnswerToken",
    "Chat",
    "GenerationResult",
    "GenerationStep",
    "Message",
    "MobileO",
    "MobileOError",
    "Turn",
    "__version__",
]

_LAZY_EXPORTS = {
    "MobileO": "pipeline",
    "Chat": "chat",
    "GenerationStep": "diffusion",
    "GenerationResult": "results",
    "Answer": "results",
    "AnswerToken": "results",
    "Message": "results",
    "Turn": "conversations",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY_EXPORTS:
        return getattr(importlib.import_module(f".{_LAZY_EXPORTS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
