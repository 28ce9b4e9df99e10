"""Draw, edit and ask as tools of the Model Context Protocol, for programs that let a language model call them.

A language model can name a picture, but can't write one down. So each picture that is made here has a name, such as
"picture-1", by which a later call takes it. What this module imports is installed by the extra `mcp`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import os
import re
import secrets
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from mcp import MCPError, stdio_server
from mcp.server import Server
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ImageContent,
    ListToolsResult,
    TextContent,
    Tool,
    ToolAnnotations,
)

from ._version import __version__
from .capabilities import capabilities
from .errors import ImageError, MobileOError, OptionError
from .files import expand, without_home
from .generation_options import AnswerSettings, Task, check_options
from .image_settings import encode
from .images import load_image, source_of
from .options import shown
from .prompts import check_text
from .results import Answer, AnswerToken, GenerationResult

if TYPE_CHECKING:
    from mcp.server import ServerRequestContext
    from PIL.Image import Image

    from .pipeline import MobileO

Load = Callable[[], "MobileO"]
Save = Callable[["Image", dict[str, Any]], Path]
Report = Callable[[float, float | None, str | None], Awaitable[None]]
Arguments = dict[str, Any]
Value = TypeVar("Value")

_MAX_IMAGES = 10  # that one call draws, or shows
_KEPT = 32  # pictures that have a name, the newest
_DATA_URI = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)

# The task of each tool, its title, and what it says about itself.
_TOOLS = {
    "draw": ("generate", "Draw", "Draw what a prompt says."),
    "edit": ("edit", "Edit a picture", "Change a picture as a prompt says."),
    "ask": ("answer", "Ask about pictures", "Answer a question about pictures."),
}


class Tools:
    """The tools of one model, which is loaded when it is first needed.

    Calls are answered one after the other. One that is cancelled ends with the step, or the token, that is just being
    computed.

    Args:
        load: loads the model.
        folders: an image may also be a path inside of one of these. By default there is none: a language model chooses
            the path, and perhaps because something that it has read says so.
        save: keeps a picture with its settings, and returns where; callers are told.
    """

    def __init__(self, load: Load, *, folders: Sequence[Path] = (), save: Save | None = None) -> None:
        self._load = load
        self._folders = [os.path.realpath(folder) for folder in folders]
        self._save = save
        self._model: MobileO | None = None
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "model")  # where all is computed
        self._pictures: dict[str, bytes] = {}  # PNG files by name, the newest last
        self._made = 0
        self._calls = {"draw": self._draw, "edit": self._edit, "ask": self._ask}

    async def close(self) -> None:
        """Waits for the step that is just being computed; nothing is begun any more."""
        last = self._thread.submit(lambda: None)
        self._thread.shutdown(wait=False)
        await asyncio.wrap_future(last)

    async def describe(self, context: ServerRequestContext[Any], params: Any) -> ListToolsResult:
        """The tools, with JSON Schemas of what they take."""
        hints = ToolAnnotations(read_only_hint=self._save is None, destructive_hint=False, open_world_hint=False)
        return ListToolsResult(
            tools=[
                Tool(name=name, title=title, description=text, input_schema=self._schema(name), annotations=hints)
                for name, (_, title, text) in _TOOLS.items()
            ]
        )

    async def call(self, context: ServerRequestContext[Any], params: CallToolRequestParams) -> CallToolResult:
        """Calls a tool. What the caller can correct is a result that says so, and not an error of the protocol.

        Raises:
            MCPError: there is no such tool.
        """
        if params.name not in self._calls:
            raise MCPError(INVALID_PARAMS, f"there is no tool {shown(params.name)}; there are {', '.join(_TOOLS)}.")
        try:
            arguments = self._checked(params.name, params.arguments or {})
            async with self._turn:
                return await self._calls[params.name](arguments, context.session.report_progress)
        except MobileOError as error:
            return CallToolResult(content=[TextContent(text=without_home(str(error)))], is_error=True)

    # What the tools take

    def _schema(self, name: str) -> dict[str, Any]:
        path = ", or its path" if self._folders else ""
        image: dict[str, Any] = {
            "type": "string",
            "description": f"The name of a picture made here, such as picture-1, or a data URI of base64{path}.",
        }
        takes: dict[str, dict[str, Any]] = {
            "draw": {"prompt": {"type": "string", "description": "What to draw."}},
            "edit": {"image": image, "prompt": {"type": "string", "description": "What to change."}},
            "ask": {
                "images": {"type": "array", "items": image, "maxItems": _MAX_IMAGES},
                "question": {"type": "string", "description": "In words."},
            },
        }
        own = takes[name]
        options = {option["name"]: _option_schema(option) for option in capabilities()["tasks"][_TOOLS[name][0]]}
        return {"type": "object", "properties": own | options, "required": list(own), "additionalProperties": False}

    def _checked(self, name: str, arguments: Mapping[str, Any]) -> Arguments:
        """The arguments, of which each is there that must be, and none that is unknown.

        Raises:
            OptionError: they are others.
        """
        schema = self._schema(name)
        if unknown := [argument for argument in arguments if argument not in schema["properties"]]:
            raise OptionError(f"there is no argument {shown(unknown[0])}; there are {', '.join(schema['properties'])}.")
        for required in schema["required"]:
            value = arguments.get(required)
            if schema["properties"][required]["type"] == "string":
                if not isinstance(value, str):
                    raise OptionError(f"give {required}, a text.")
            elif not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise OptionError(f"give {required}, a list of texts.")
        return dict(arguments)

    def _image(self, text: str) -> tuple[Image, str]:
        """An image, and what it is called.

        Raises:
            ImageError: it is unknown, not allowed, or not an image.
        """
        if text in self._pictures:
            return load_image(self._pictures[text]), text
        if found := _DATA_URI.match(text):
            try:
                return load_image(base64.b64decode(text[found.end() :], validate=True)), "data"
            except (binascii.Error, ValueError):
                raise ImageError("The image's base64 is damaged; send the whole file again.") from None
        if self._folders and "\0" not in text:
            path = os.path.realpath(expand(text))
            if any(os.path.commonpath([path, folder]) == folder for folder in self._folders):
                return load_image(path), os.path.basename(path)
        names = f"one of {', '.join(self._pictures)}" if self._pictures else "a picture that was made here"
        paths = f", or a path inside of {' or '.join(self._folders)}" if self._folders else ""
        raise ImageError(f"There is no image {shown(text)}: give {names}, or a data URI of base64{paths}.")

    # The tools

    async def _draw(self, arguments: Arguments, report: Report) -> CallToolResult:
        return await self._pictures_of("generate", arguments, {}, report)

    async def _edit(self, arguments: Arguments, report: Report) -> CallToolResult:
        image, name = await self._computed(self._image, arguments.pop("image"))
        source = source_of(image, name)
        return await self._pictures_of("edit", arguments, source, report, image)

    async def _ask(self, arguments: Arguments, report: Report) -> CallToolResult:
        names, question = arguments.pop("images"), check_text(arguments.pop("question"), "question")
        AnswerSettings(**arguments)  # mistakes show before the model is loaded
        if len(names) > _MAX_IMAGES:
            raise ImageError(f"{len(names)} images are too many; give at most {_MAX_IMAGES}.")
        images = [(await self._computed(self._image, name))[0] for name in names]
        model = await self._loaded(report)
        tokens: list[AnswerToken] = []
        async with aclosing(self._followed(lambda: model.stream_ask(images, question, **arguments))) as stream:
            async for token in stream:
                tokens.append(token)
                await report(len(tokens), None, None)
        answer = Answer.of(tokens)
        content = [TextContent(text=answer.text)]
        if answer.finish_reason == "length":
            content.append(TextContent(text="The answer was cut off; a larger max_tokens lets it go on."))
        return CallToolResult(content=list(content))

    async def _pictures_of(
        self, task: Task, arguments: Arguments, source: dict[str, str], report: Report, image: Image | None = None
    ) -> CallToolResult:
        """Makes a picture for each seed.

        Raises:
            MobileOError: an option can't be, there is no model, or a picture can't be saved.
        """
        prompt = arguments.pop("prompt")
        values = check_options(task, prompt, arguments)
        seeds, best_of = values["seed"], values["best_of"]
        if arguments.pop("seed", None) is None:
            seeds = [secrets.randbelow(2**32)]
        if len(seeds) > _MAX_IMAGES:
            raise OptionError(f"{len(seeds)} seeds are too many; give at most {_MAX_IMAGES}.")
        if len(seeds) * best_of > _MAX_IMAGES:
            raise OptionError(
                f"best_of {best_of} of {len(seeds)} seeds makes {len(seeds) * best_of} drawings; choose at most "
                f"{_MAX_IMAGES}."
            )
        model = await self._loaded(report)

        start: Callable[..., Iterator[Any]] = model.stream_generate
        if image is not None:
            start = partial(model.stream_edit, image)
        content: list[ImageContent | TextContent] = []
        for index, seed in enumerate(seeds):
            async with aclosing(self._followed(partial(start, prompt, seed=seed, **arguments))) as stream:
                async for item in stream:
                    if isinstance(item, GenerationResult):
                        content += await self._computed(self._kept, item, source)
                    else:
                        await report(index * item.steps + item.step, len(seeds) * item.steps, None)
        return CallToolResult(content=list(content))

    def _kept(self, result: GenerationResult, source: dict[str, str]) -> list[ImageContent | TextContent]:
        """A picture under its new name, and what is said of it."""
        (image,), settings = result.images, {**result.metadata(), **source}
        data = encode(image, "PNG", settings)
        self._made += 1
        name = f"picture-{self._made}"
        self._pictures[name] = data
        while len(self._pictures) > _KEPT:
            del self._pictures[next(iter(self._pictures))]
        said = {"name": name, "seed": settings["seed"], "settings": settings}
        if self._save is not None:
            said["saved"] = str(self._save(image, settings))
        return [
            ImageContent(data=base64.b64encode(data).decode(), mime_type="image/png"),
            TextContent(text=without_home(json.dumps(said))),
        ]

    # Computing, in a thread of its own

    async def _computed(self, function: Callable[..., Value], *arguments: Any) -> Value:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def _loaded(self, report: Report) -> MobileO:
        if self._model is None:
            await report(0, None, "loading the model")
            self._model = await self._computed(self._load)
        return self._model

    async def _followed(self, start: Callable[[], Iterator[Value]]) -> AsyncGenerator[Value, None]:
        """The items of a stream, which is closed where the reader is cancelled: behind the item that is computed."""
        stream = await self._computed(start)
        try:
            while (item := await self._computed(next, stream, None)) is not None:
                yield item
        finally:
            with suppress(RuntimeError):  # the server ends, and takes nothing more
                self._thread.submit(stream.close)  # type: ignore[attr-defined]


def _option_schema(option: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON Schema of an option as `capabilities` describes it."""
    keys = {"minimum": "minimum", "exclusive_minimum": "exclusiveMinimum", "maximum": "maximum", "choices": "enum"}
    schema: dict[str, Any] = {"type": option["type"]}
    if option["type"] == "array":
        schema["items"] = {"type": "number"}
    schema |= {key: option[name] for name, key in keys.items() if name in option}
    if option["name"] == "best_of":
        schema["maximum"] = _MAX_IMAGES
    if option.get("repeatable"):
        several = {"type": "array", "items": schema, "minItems": 1, "maxItems": _MAX_IMAGES}
        return {"anyOf": [schema, several], "description": option["help"]}  # without one it is random
    if "default" in option:
        schema["default"] = option["default"]
    return {**schema, "description": option["help"]}


async def serve(tools: Tools) -> None:
    """Answers on standard input and output until the input ends. What else is written to standard output meanwhile goes
    to standard error.

    Raises:
        BrokenPipeError: nobody reads what is answered.
    """
    server: Server[Any] = Server(
        "mobileo-mlx", version=__version__, on_list_tools=tools.describe, on_call_tool=tools.call
    )
    try:
        async with stdio_server(stdin=cast(Any, _input_lines())) as (incoming, outgoing):
            await server.run(incoming, outgoing, server.create_initialization_options())
    except Exception as error:
        inner = error
        while isinstance(parts := getattr(inner, "exceptions", None), tuple) and len(parts) == 1:
            (inner,) = parts  # `stdio_server` raises what happens in its tasks as groups
        if isinstance(inner, BrokenPipeError):
            raise inner from None
        raise
    finally:
        await tools.close()


async def _input_lines() -> AsyncGenerator[str, None]:
    """The lines of standard input. The thread of `stdio_server` that waits for them would keep the process from ending
    by a signal, until the client closes its end.
    """
    loop, lines = asyncio.get_running_loop(), asyncio.Queue[bytes]()

    def read() -> None:
        with open(0, "rb", closefd=False) as stream, suppress(RuntimeError):  # the loop is closed
            while line := stream.readline():
                loop.call_soon_threadsafe(lines.put_nowait, line)
            loop.call_soon_threadsafe(lines.put_nowait, b"")

    threading.Thread(target=read, daemon=True).start()
    while line := await lines.get():
        yield line.decode("utf-8", "replace")
