"""Tools of a request that make pictures: a chat that is asked for one calls them, as it can't draw by itself.

The names are those of Open WebUI's own tools. Any client may offer tools of these names; the prompt and the image go
into the parameters that they declare.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..generation_options import Task
from ..options import shown
from .errors import ApiError

NAMES: dict[str, Task] = {"generate_image": "generate", "edit_image": "edit"}

_PROMPTS = ("prompt", "instruction", "description", "caption", "text", "query")


@dataclass(frozen=True)
class Tool:
    """A tool that a request offers.

    Attributes:
        name: of its function.
        parameters: their JSON schemas by name.
        required: of these.
    """

    name: str
    parameters: Mapping[str, Any]
    required: list[str]

    def arguments(self, prompt: str, image: str | None) -> str | None:
        """The JSON of a call, or None where it has parameters that nobody knows a value for.

        Args:
            prompt: what to draw or change.
            image: address or data URI of the picture that is to be edited.
        """
        texts = [name for name in self.parameters if self._type(name) in (None, "string") and "image" not in name]
        named = [name for name in _PROMPTS if name in self.parameters]
        target = next(iter([*named, *(name for name in texts if name in self.required), *texts]), None)
        if target is None:
            return None
        found: dict[str, Any] = {target: prompt}
        pictures = [name for name in self.parameters if "image" in name.lower() and name != target]
        if image is not None and pictures:
            name = next((name for name in pictures if name in self.required), pictures[0])
            found[name] = [image] if self._type(name) == "array" else image
        for name in self.required:
            schema = self.parameters.get(name)
            schema = schema if isinstance(schema, dict) else {}
            choices = schema.get("enum")
            if name in found:
                continue
            if "default" in schema:
                found[name] = schema["default"]
            elif isinstance(choices, list) and choices:
                found[name] = choices[0]
            else:
                return None
        return json.dumps(found, ensure_ascii=False)

    def _type(self, name: str) -> Any:
        schema = self.parameters[name]
        return schema.get("type") if isinstance(schema, dict) else None


@dataclass(frozen=True)
class Tools:
    """What a request offers.

    Attributes:
        by_task: tools for pictures.
        forced: whether one of them is to be called in any case, and which, where that is said.
    """

    by_task: Mapping[Task, Tool]
    forced: bool = False
    named: Task | None = None


def read_tools(fields: Mapping[str, Any]) -> Tools:
    """The tools for pictures among `tools`; others beside them are never called.

    Raises:
        ApiError: there are only others, or `tool_choice` asks for one of them.
    """
    choice = fields.get("tool_choice")
    offered = fields.get("tools")
    if choice == "none" or not offered:
        return Tools({})
    if not isinstance(offered, list):
        raise _refused("tools", "tools is no list.")
    found: dict[Task, Tool] = {}
    for i, tool in enumerate(offered):
        function = tool.get("function") if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str):
            raise _refused("tools", f"tools[{i}] has no function with a name.")
        if name in NAMES:
            found[NAMES[name]] = _tool(name, function)
    if not found:
        raise _refused(
            "tools",
            f"This model calls no tools but {' and '.join(NAMES)}; send the request without tools.",
            code="unsupported_parameter",
        )
    if choice in (None, "auto"):
        return Tools(found)
    if choice == "required":
        return Tools(found, forced=True)
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or NAMES.get(name) not in found:
        raise _refused("tool_choice", f"tool_choice {shown(choice)} names none of {', '.join(NAMES)} among the tools.")
    return Tools(found, forced=True, named=NAMES[name])


def _tool(name: str, function: Mapping[str, Any]) -> Tool:
    schema = function.get("parameters")
    schema = schema if isinstance(schema, dict) else {}
    parameters, required = schema.get("properties"), schema.get("required")
    if not isinstance(parameters, dict) or not parameters:
        parameters = {"prompt": {"type": "string"}}  # a tool that declares nothing
    names = [one for one in parameters if one in required] if isinstance(required, list) else []
    return Tool(name, parameters, names)


def _refused(param: str, message: str, *, code: str = "invalid_value") -> ApiError:
    return ApiError(400, message, param=param, code=code)
