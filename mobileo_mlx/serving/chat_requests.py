"""What a request for a chat's next message asks for, checked before it waits."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import MobileOError, PromptError
from ..generation_options import AnswerOptions, GenerationOptions
from ..options import shown
from .answer_task import Answering
from .errors import ApiError
from .messages import Messages, read_messages, reference
from .picture_tools import Tools, read_tools
from .picture_wishes import Wish, read_wish
from .references import read_edited, without_images
from .requests import (
    MAX_PREVIEWS,
    allowed_steps,
    check_candidates,
    known_fields,
    read_options,
    read_whole,
    refuse_unknown,
    refused,
)
from .service import Service
from .tasks import Drawing

_READ = {"messages", "model", "stream", "stream_options", "tools", "tool_choice"}

# What says something about the request, or asks for something that this server does in any case.
IGNORED = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "parallel_tool_calls",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_retention",
    "reasoning_effort",
    "safety_identifier",
    "verbosity",
}

# What would change the answer, by the values with which it changes nothing.
REFUSED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "web_search_options": (),
}
_INSTEAD = {
    "n": "; ask several times, with other seeds",
    "frequency_penalty": "; take repetition_penalty",
    "presence_penalty": "; take repetition_penalty",
    "functions": "; take tools",
    "function_call": "; take tool_choice",
}
DRAWING_CHOICES = ("best_of", "until_pass")  # of a picture that a message asks for

_MAX_STOPS = 16
_RANGES = {"temperature": (1e-6, 1e6), "repetition_penalty": (0.01, 100.0)}  # beyond them, logits overflow
_LONGEST_STOPS = 4000  # characters of all together; each is looked for after each token


@dataclass(frozen=True)
class Asked:
    """A checked request.

    Attributes:
        messages: what was said.
        options: of an answer.
        tools: that may be called.
        stream: whether the answer comes in pieces.
        with_usage: whether the last piece is an account.
    """

    messages: Messages
    options: Mapping[str, Any]
    tools: Tools
    stream: bool
    with_usage: bool

    def wish(self) -> Wish | None:
        """The picture that the last message asks for."""
        return read_wish(self.messages.wish, has_picture=bool(self.messages.pictures))


async def read_asked(fields: Mapping[str, Any]) -> Asked:
    """Reads and checks the fields of a request.

    Raises:
        ApiError: a field is missing, out of range, unknown or not supported.
    """
    for name, allowed in REFUSED.items():
        if fields.get(name) is not None and fields[name] not in allowed:
            raise ApiError(
                400,
                f"{name} {shown(fields[name])} is not supported{_INSTEAD.get(name, '; leave it out')}.",
                param=name,
                code="unsupported_parameter",
            )
    refuse_unknown(fields, _READ | IGNORED | REFUSED.keys() | known_fields(AnswerOptions))
    options = _read_options(fields)
    tools = read_tools(fields)
    stream = _flag(fields, "stream", "stream")
    given = fields.get("stream_options")
    with_usage = isinstance(given, dict) and _flag(given, "include_usage", "stream_options")
    # In a thread: the texts may have megabytes.
    messages = await asyncio.to_thread(read_messages, fields.get("messages"))
    return Asked(messages, options, tools, stream, with_usage)


def _read_options(fields: Mapping[str, Any]) -> dict[str, Any]:
    options = read_options(AnswerOptions, fields)
    if len(options.get("stop", ())) > _MAX_STOPS:
        raise ApiError(400, f"There are more than {_MAX_STOPS} stop texts.", param="stop", code="invalid_value")
    if sum(map(len, options.get("stop", ()))) > _LONGEST_STOPS:
        raise ApiError(
            400,
            f"The stop texts have more than {_LONGEST_STOPS} characters; send shorter ones.",
            param="stop",
            code="invalid_value",
        )
    for name, (low, high) in _RANGES.items():
        if (value := options.get(name)) and not low <= value <= high:
            raise ApiError(
                400,
                f"{name} {value:g} is not possible here; choose {low:g} to {high:g}.",
                param=name,
                code="invalid_value",
            )
    if options.get("temperature") and "seed" not in options:
        options["seed"] = secrets.randbelow(2**32)  # who samples wants another answer the next time
    return options


def _flag(fields: Mapping[str, Any], name: str, param: str) -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise ApiError(400, f"{name} {shown(value)} is neither true nor false.", param=param, code="invalid_value")
    return bool(value)


async def answering(asked: Asked, fields: Mapping[str, Any], service: Service) -> Answering:
    """The task that answers.

    Args:
        asked: the checked request.
        fields: the request, as jobs describe it.
        service: whose model answers.

    Raises:
        ApiError: an image can't be read, or the conversation is too long.
    """
    turns = await asked.messages.turns(service)
    try:
        conversation = await asyncio.to_thread(service.model.read_messages, turns)
    except MobileOError as error:
        raise refused(error, "messages") from None
    return Answering(conversation, asked.options, without_images(dict(fields)))


async def drawing(wish: Wish, asked: Asked, service: Service, choices: Mapping[str, Any] | None = None) -> Drawing:
    """The task that draws the picture that a message asks for.

    Args:
        wish: the picture.
        asked: the checked request.
        service: whose model draws.
        choices: options of the drawing, checked one by one.

    Raises:
        ApiError: an image can't be read, or the prompt is too long.
    """
    image, source = None, dict[str, str]()
    if wish.task == "edit":
        edited = asked.messages.pictures[-1]
        image, source = await read_edited(reference(edited.url), service, edited.param)
    seed = asked.options.get("seed", secrets.randbelow(2**32))
    options: dict[str, Any] = {**allowed_steps({}, service.settings, service.model.speeds), **(choices or {})}
    try:
        await asyncio.to_thread(service.model.check, wish.task, wish.prompt, **options)
    except MobileOError as error:
        raise refused(error, "messages" if isinstance(error, PromptError) else None) from None
    return Drawing(
        name=wish.task,
        prompt=wish.prompt,
        seeds=[seed],
        options=options,
        request={"task": wish.task, "prompt": wish.prompt, "seed": seed, **(choices or {})},
        image=image,
        source=source,
        keep=service.keep,
    )


async def read_answering(fields: Mapping[str, Any], service: Service) -> Answering | Drawing:
    """The task of a job: fields as those of a chat, but no tools and no stream.

    With `draw` a message that asks for a picture, as `picture_wishes` reads it, is drawn instead of answered; `best_of`
    and `until_pass` are then those of the picture.

    Raises:
        ApiError: see `read_asked` and `answering`.
    """
    refuse_unknown(fields, {"task", "messages", "draw", "previews", *DRAWING_CHOICES} | known_fields(AnswerOptions))
    options = _read_options(fields)
    choices = read_options(GenerationOptions, {name: fields.get(name) for name in DRAWING_CHOICES})
    check_candidates(choices, 1, service.settings)
    may_draw, previews = _flag(fields, "draw", "draw"), read_whole(fields, "previews", 0, 0, MAX_PREVIEWS)
    messages = await asyncio.to_thread(read_messages, fields.get("messages"))
    asked = Asked(messages, options, Tools({}), False, False)
    if may_draw and (wish := asked.wish()) is not None:
        return replace(await drawing(wish, asked, service, choices), previews=previews)
    return await answering(asked, fields, service)
