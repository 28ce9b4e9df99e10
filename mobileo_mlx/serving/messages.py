"""The messages of a request, as OpenAI's clients write them, and what a model reads of them.

A picture of this server that stands in a message as `![...](.../v1/pictures/<id>/content)`, or one written out there as
a data URI, is an image and no text. The model sees what the assistant or a tool has shown with the user's next turn.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..conversations import Role, Turn
from ..files import JSONError, parse_json
from ..images import square_image
from ..options import shown
from .errors import ApiError
from .image_inputs import hold
from .picture_tools import NAMES
from .references import read_reference
from .service import Service

if TYPE_CHECKING:
    from PIL import Image

_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_TOOLS = ("tool", "function")  # the older name
_TEXTS = ("text", "input_text", "output_text", "refusal")
_IMAGES = ("image_url", "input_image")

_OWN = r"(?:https?://[^/()\[\]\s]{1,300})?/v1/pictures/([0-9a-f-]{1,80})/content"
_OWN_URL = re.compile(_OWN)
# What may follow excludes what it begins with, so that searching takes one pass.
_MARKDOWN = re.compile(rf"!\[[^\[\]\n]{{0,4000}}\]\(({_OWN}|data:image/[^()\[\]\s]+)\)")
_WORD = "(a picture)"  # what the model reads in its place


@dataclass(frozen=True)
class Shown:
    """An image in a message.

    Attributes:
        url: as the message has it.
        param: where it stands in the request, for errors.
        needed: whether the request is refused where the image can't be read; not for one that was drawn long ago.
    """

    url: str
    param: str
    needed: bool = True


@dataclass
class _Message:
    role: Role
    text: str
    images: list[Shown] = field(default_factory=list)


@dataclass(frozen=True)
class Messages:
    """What was said, with the images not read yet.

    Attributes:
        spoken: who said what.
        wish: the text of the last message, where it is the user's; else "".
        pictures: all that were shown, the newest last: what a tool may edit.
        result: what a tool for pictures has answered, where that comes last.
    """

    spoken: list[_Message]
    wish: str
    pictures: list[Shown]
    result: str | None

    async def turns(self, service: Service) -> list[Turn]:
        """What the model reads. Of the images only what its vision tower sees stays in memory.

        Raises:
            ApiError: an image can't be read, or there are more than fit into the context.
        """
        config = service.model.config
        count = sum(len(message.images) for message in self.spoken)
        if count * config.image_tokens >= (context := config.llm.max_position_embeddings):
            raise ApiError(
                400,
                f"{count} images take {count * config.image_tokens} positions and the model's context has {context}; "
                "start a new conversation.",
                param="messages",
                code="context_length_exceeded",
            )
        turns: list[Turn] = []
        waiting: list[Image.Image] = []
        for message in self.spoken:
            images = [image for one in message.images if (image := await self._seen(one, service)) is not None]
            if message.role == "user":
                turns.append(Turn("user", message.text, [*waiting, *images]))
                waiting = []
            else:
                turns.append(Turn(message.role, message.text))
                waiting += images
        return turns

    async def _seen(self, one: Shown, service: Service) -> Image.Image | None:
        try:
            image, _ = await read_reference(reference(one.url), service, one.param)
        except ApiError:
            if one.needed:
                raise
            return None
        return hold(await asyncio.to_thread(square_image, image, service.model.config.image_size))


def reference(url: str) -> str:
    """An address of one of this server's pictures as `references` names it; all else as it is."""
    own = _OWN_URL.fullmatch(url)
    return url if own is None else f"picture:{own[1]}"


def read_messages(value: Any) -> Messages:
    """Reads the field `messages`.

    Raises:
        ApiError: it has another form, or parts that are not supported.
    """
    if not isinstance(value, list) or not value:
        raise _refused("messages", "The request has no messages; send a list of {role, content}.", "missing_parameter")
    spoken: list[_Message] = []
    pictures: list[Shown] = []
    calls: set[str] = set()  # ids of calls of tools for pictures
    result: str | None = None
    for i, message in enumerate(value):
        param = f"messages[{i}]"
        if not isinstance(message, dict):
            raise _refused(param, f"{param} is no object.")
        role, result = message.get("role"), None
        text, images = _read_content(message.get("content"), f"{param}.content")
        if role in _TOOLS:
            if _text(message.get("name")) in NAMES or _text(message.get("tool_call_id")) in calls:
                result = text
                pictures += _in_result(text, param)
                continue
            role = "user"  # of a tool that another model has called: something to read
        if not isinstance(role, str) or role not in _ROLES:
            known = ", ".join([*_ROLES, "tool"])
            raise _refused(f"{param}.role", f"{param} has the role {shown(role)}; there are {known}.")
        if role == "assistant":
            calls |= _calls(message)
        elif message.get("content") is None:
            raise _refused(f"{param}.content", f"{param} has no content.", "missing_parameter")
        text, drawn = _without_pictures(text, f"{param}.content")
        images = [*images, *drawn]
        if images and _ROLES[role] == "system":
            raise _refused(f"{param}.content", "A system message shows no images; send them as the user.")
        spoken.append(_Message(_ROLES[role], text, images))
        pictures += images
    last = value[-1]
    wish = spoken[-1].text if last["role"] == "user" else ""
    return Messages(spoken, wish, pictures, result)


def _read_content(content: Any, param: str) -> tuple[str, list[Shown]]:
    """The text, parts on lines of their own, and the images."""
    if content is None or isinstance(content, str):
        return content or "", []
    if not isinstance(content, list):
        raise _refused(param, f"{param} is neither a text nor a list of parts.")
    texts, images = [], []
    for i, part in enumerate(content):
        where = f"{param}[{i}]"
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in _TEXTS:
            text = part.get("text", part.get("refusal"))
            if not isinstance(text, str):
                raise _refused(where, f"{where} has no text.")
            texts.append(text)
        elif kind in _IMAGES:
            url = part.get("image_url")
            url = url.get("url") if isinstance(url, dict) else url
            if not isinstance(url, str) or not url:
                raise _refused(f"{where}.image_url", f"{where} has no image_url with a data URI.")
            images.append(Shown(url, f"{where}.image_url"))
        else:
            raise _refused(
                where, f"{where} has the type {shown(kind)}; there are text and image_url.", "unsupported_parameter"
            )
    return "\n".join(texts), images


def _without_pictures(text: str, param: str) -> tuple[str, list[Shown]]:
    """A text with a word in the places of pictures, and these."""
    found = [Shown(match[1], param, needed=False) for match in _MARKDOWN.finditer(text)]
    return _MARKDOWN.sub(_WORD, text), found


def _calls(message: Mapping[str, Any]) -> set[str]:
    """The ids of an assistant's calls of tools for pictures."""
    calls = message.get("tool_calls")
    found = set()
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and _text(function.get("name")) in NAMES:
            found.add(_text(call.get("id")))
    return found


def _in_result(text: str, param: str) -> list[Shown]:
    """Pictures of a tool's answer: Open WebUI's has {"images": [{"url": ...}]}."""
    try:
        answer = parse_json(text)
    except JSONError:
        return [Shown(match[0], param, needed=False) for match in _OWN_URL.finditer(text)]
    images = answer.get("images") if isinstance(answer, dict) else None
    urls = [image.get("url") for image in images if isinstance(image, dict)] if isinstance(images, list) else []
    return [Shown(url, param, needed=False) for url in urls if isinstance(url, str) and url]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _refused(param: str, message: str, code: str = "invalid_value") -> ApiError:
    return ApiError(400, message, param=param, code=code)
