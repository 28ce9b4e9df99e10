"""Fields of requests, from JSON or from forms, as checked options of tasks, which follow from their declarations."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Collection, Mapping
from typing import Any

from starlette.requests import Request

from ..errors import MobileOError, OptionError, PromptError
from ..files import JSONError, parse_json
from ..generation_options import OPTIONS, GenerationOptions, ModelSpeeds, Task
from ..options import Option, declared, shown
from ..prompts import check_text
from .errors import ApiError
from .settings import ServerSettings

MAX_PREVIEWS = 50  # of each picture of a job

# Other programs' names of our options.
ALIASES = {
    "num_inference_steps": "steps",
    "preset": "speed",
    "cfg_scale": "guidance_scale",
    "guidance": "guidance_scale",
    "max_completion_tokens": "max_tokens",
}

MAX_GUIDANCE = 100.0  # far above what draws anything; still higher, numbers overflow in the middle of a drawing
_MAX_RANDOM_SEED = 2**32
_MAX_VALUES = 200_000  # of JSON, by its commas and brackets; the parser holds up all other requests meanwhile
_SHOWN = 100  # characters of a name that a client made up


async def read_json(request: Request) -> dict[str, Any]:
    """The JSON object that is a request's body.

    Raises:
        ApiError: it is none.
    """
    data = await request.body()
    if sum(map(data.count, (b",", b"[", b"{"))) > _MAX_VALUES:
        raise ApiError(
            400, f"The request's body holds more than {_MAX_VALUES:,} values; send fewer.", code="invalid_json"
        )
    try:
        body = parse_json(data)
    except JSONError as error:
        raise ApiError(400, f"The request's body {error}; send a JSON object.", code="invalid_json") from None
    if not isinstance(body, dict):
        raise ApiError(400, "The request's body is no JSON object.", code="invalid_json")
    return body


def read_options(
    declaration: type, fields: Mapping[str, Any], *, skip: Collection[str] = (), texts: bool = False
) -> dict[str, Any]:
    """The options of a task among the fields of a request, checked one by one; null and "" stand for the default.

    Args:
        declaration: the TypedDict that declares them.
        fields: by name; what is no option is left to the caller.
        skip: options that are read in another way.
        texts: whether values are texts, as in a form.

    Raises:
        ApiError: a value is out of range.
    """
    found: dict[str, Any] = {}
    for name, option in declared(declaration).items():
        if name in skip or name in ALIASES or option.kind is None:
            continue
        for given in [name, *(alias for alias, ours in ALIASES.items() if ours == name)]:
            if given in found or (value := fields.get(given)) is None or value == "":
                continue
            found[name] = _checked(option, given, value, texts)
    return found


def _checked(option: Option, name: str, value: Any, texts: bool) -> Any:
    if isinstance(value, str) and (texts or option.read):
        with contextlib.suppress(ValueError):  # what can't be read is refused as what it is, a text
            value = option.of_text(value)
    try:
        return option.checked(value)
    except OptionError as error:
        raise ApiError(400, str(error), param=name, code="invalid_value") from None


def known_fields(declaration: type) -> set[str]:
    """The names that `read_options` reads."""
    names = {name for name, option in declared(declaration).items() if option.kind is not None}
    return names | {alias for alias, ours in ALIASES.items() if ours in names}


def refuse_unknown(fields: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuses fields that nobody reads: a mistyped option would be left out in silence.

    Raises:
        ApiError: it names the first.
    """
    for name, value in fields.items():
        if name not in known and value is not None:
            raise ApiError(
                400, f"There is no parameter {shown(name)} here.", param=name[:_SHOWN], code="unknown_parameter"
            )


def read_text(fields: Mapping[str, Any], name: str, what: str = "prompt") -> str:
    """A text that there has to be.

    Raises:
        ApiError: it is missing, empty, or no text.
    """
    value = fields.get(name)
    if not isinstance(value, str):
        raise ApiError(400, f"The request has no text '{name}'.", param=name, code="missing_parameter")
    try:
        return check_text(value, what)
    except PromptError as error:
        raise ApiError(400, str(error), param=name, code="invalid_value") from None


def read_whole(fields: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    """A whole number of a range, from JSON or a form's text.

    Raises:
        ApiError: it is another value.
    """
    value = fields.get(name)
    if value is None or value == "":
        return default
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ApiError(
            400, f"{name} {shown(value)} is not possible; choose {low} to {high}.", param=name, code="invalid_value"
        )
    return value


def read_query(query: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    """A whole number of an address.

    Raises:
        ApiError: it is another value, or empty.
    """
    if query.get(name) == "":
        raise ApiError(400, f"{name} is empty; choose {low} to {high}.", param=name, code="invalid_value")
    return read_whole(query, name, default, low, high)


def read_size(fields: Mapping[str, Any]) -> dict[str, int]:
    """OpenAI's `size`, "512x512" or "auto", as width and height.

    Raises:
        ApiError: it has another form.
    """
    value = fields.get("size")
    if value is None or value in ("", "auto"):
        return {}
    match = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", value) if isinstance(value, str) else None
    if match is None:
        raise ApiError(
            400,
            f"size {shown(value)} is not possible; write WIDTHxHEIGHT, or auto.",
            param="size",
            code="invalid_value",
        )
    return {"width": int(match[1]), "height": int(match[2])}


def read_drawing(
    task: Task, fields: Mapping[str, Any], settings: ServerSettings, speeds: ModelSpeeds, *, texts: bool = False
) -> tuple[dict[str, Any], list[int]]:
    """The options of a drawing but its seed, and the seeds: `n` in a row from the one that is given, or a random one.

    Args:
        task: which one.
        fields: of the request, by name.
        settings: whose limits hold.
        speeds: of the model.
        texts: whether values are texts, as in a form.

    Raises:
        ApiError: a value is out of range, or beyond what this server allows.
    """
    options = read_options(OPTIONS[task], fields, skip=("seed",), texts=texts)
    options = read_size(fields) | options
    limits: dict[str, float] = {"width": settings.max_side, "height": settings.max_side, "steps": settings.max_steps}
    limits["guidance_scale"] = MAX_GUIDANCE
    for name, limit in limits.items():
        if options.get(name, 0) > limit:
            raise ApiError(
                400, f"{name} {options[name]} is more than this server allows, {limit:g}.", param=name, code="too_large"
            )
    options |= allowed_steps(options, settings, speeds)
    count = read_whole(fields, "n", 1, 1, settings.max_pictures)
    check_candidates(options, count, settings)
    seeds = read_options(OPTIONS[task], {"seed": fields.get("seed")}, texts=texts).get("seed")
    first = secrets.randbelow(_MAX_RANDOM_SEED) if seeds is None else seeds[0]
    if seeds is not None and (len(seeds) > 1 or first > 2**64 - count):
        raise ApiError(400, f"seed {shown(fields['seed'])} is not possible; give one number.", param="seed")
    return options, [first + i for i in range(count)]


def check_candidates(options: Mapping[str, Any], count: int, settings: ServerSettings) -> None:
    """Whether a request may have so many candidates: each is drawn as a picture is, and counts as one.

    Args:
        options: of the drawing.
        count: of pictures.
        settings: whose limit of pictures holds.

    Raises:
        ApiError: they are more than this server allows.
    """
    drawn = count * (best_of := options.get("best_of", 1))
    if best_of > 1 and drawn > settings.max_pictures:
        pictures = "a picture" if count == 1 else f"{count} pictures"
        raise ApiError(
            400,
            f"best_of {best_of} of {pictures} makes {drawn} drawings, and one request may ask for "
            f"{settings.max_pictures}; choose less.",
            param="best_of",
            code="too_large",
        )


def allowed_steps(options: Mapping[str, Any], settings: ServerSettings, speeds: ModelSpeeds) -> dict[str, int]:
    """The option `steps`, where the default or that of a speed is more than this server allows.

    Raises:
        ApiError: the model does not have the speed.
    """
    if "steps" in options:
        return {}
    try:
        values = speeds.values(options.get("speed"))
    except OptionError as error:
        raise ApiError(400, str(error), param="speed", code="invalid_value") from None
    usual = values.get("steps", declared(GenerationOptions)["steps"].default)
    return {"steps": settings.max_steps} if usual > settings.max_steps else {}


def refused(error: MobileOError, param: str | None = None) -> ApiError:
    """What a request's own mistake is answered with."""
    return ApiError(400, str(error), param=param, code="invalid_value")
