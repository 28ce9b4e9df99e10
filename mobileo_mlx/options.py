"""How an option is declared: once, in a `TypedDict`, with everything that is to be known about it.

class GenerationOptions(TypedDict, total=False):
    steps: Annotated[int | None, Option("Denoising steps.", 20, metavar="N", low=1)]

Type checkers and editors read names and types from there. Checks, defaults, the parameters of the commands, metadata
and replay are derived from `declared(GenerationOptions)`. Nothing heavy is imported here: `--help` needs it.
"""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, get_args, get_origin

from .errors import OptionError

_LARGEST = (2**63 - 1, 3.4e38)  # of int64 and of float32, in which MLX computes
_KINDS: dict[type, tuple[type, str]] = {
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "a text"),
    bool: (bool, "true or false"),
}
_FLAGS = {"true": True, "false": False}  # as JSON spells them
_SHOWN = 60  # characters of a value in a message


def shown(value: Any) -> str:
    """A value for a message: as Python writes it, and only the beginning where that is long."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print whole numbers of thousands of digits
        return "of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


@dataclass(frozen=True)
class Option:
    """An option that a task takes.

    Attributes:
        help: what it does.
        default: None where there is none, or where it depends on the model.
        metavar: what stands for the value in a command's help.
        low, high: the range of a number; `above` leaves `low` itself out.
        range: the range in words, for an error: "choose ...".
        choices: all values of a text.
        check: returns a value as it is kept, or raises an OptionError.
        read: makes a value of a text, where its type does not say how, or raises a ValueError.
        example: of such a text.
        default_help: what help shows for the default, where the value itself says too little.
        on_command: False for what has no text, or another form, on the command line.
        recorded: whether the settings of a task, its metadata and their replay hold the value.
        name, kind: set by `declared`: the name, and int, float, str, bool or list, or None for any other type.
        several: set by `declared`: a sequence of such values is understood, too.
    """

    help: str
    default: Any = None
    metavar: str | None = None
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    range: str = ""
    choices: Collection[str] = ()
    check: Callable[[Any], Any] | None = None
    read: Callable[[str], Any] | None = None
    example: str = ""
    default_help: str = ""
    on_command: bool = True
    recorded: bool = True
    name: str = ""
    kind: type | None = None
    several: bool = False

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def json_types(self) -> tuple[type, ...]:
        """The types of the value in JSON."""
        return (int, float) if self.kind is float else () if self.kind is None else (self.kind,)

    def of_text(self, text: str) -> Any:
        """The value that a text stands for, not checked yet.

        Raises:
            ValueError: the text is malformed.
        """
        if self.kind is bool:
            if text.lower() not in _FLAGS:
                raise ValueError(f"{text!r} is neither true nor false")
            return _FLAGS[text.lower()]
        return (self.read or self.kind or str)(text)

    def parse(self, text: str) -> Any:
        """The value that a text stands for, not checked yet.

        Raises:
            OptionError: the text is malformed.
        """
        try:
            return self.of_text(text)
        except ValueError:
            form = self.metavar or "a value"
            example = f", for example {self.example}" if self.example else ""
            raise OptionError(f"{self.flag} {text}: write {form}{example}.") from None

    def checked(self, value: Any) -> Any:
        """The value as it is kept.

        Raises:
            OptionError: it is out of range.
        """
        words = self.name.replace("top_p", "top-p").replace("_", " ")
        value = python_number(value)
        typed = self.kind in _KINDS and not self.several and not (self.kind is int and self.check)
        if self.kind is not None and typed:
            kind, kind_words = _KINDS[self.kind]
            # True is 1 to Python, but who writes it has mistaken the option.
            if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
                raise OptionError(f"{words} {shown(value)} is not possible; choose {kind_words}.")
        if self.choices and value not in self.choices:
            raise OptionError(f"there is no {words} {shown(value)}; there are {', '.join(self.choices)}.")
        if (self.low, self.high) != (-math.inf, math.inf):
            above_low = self.low < value if self.above else self.low <= value
            # Whole numbers may be of any size in Python and in JSON, in which some can't even be printed.
            if _LARGEST[self.kind is float] < abs(value) < math.inf:
                near = self.range if self.default is None else f"one nearer to {self.default:g}"
                raise OptionError(f"{words} is too large; choose {near}.")
            if not (abs(value) < math.inf and above_low and value <= self.high):
                raise OptionError(f"{words} {shown(value)} is not possible; choose {self.range}.")
        if self.kind in (int, float) and typed:
            value = self.kind(value)
        return value if self.check is None else self.check(value)


def python_number(value: Any) -> Any:
    """A single number of NumPy, MLX or PyTorch as Python's own, which JSON can hold; all else as it is."""
    single = getattr(value, "ndim", None) == 0 and callable(getattr(value, "item", None))
    return value.item() if single else value


@functools.cache  # it is asked for each of a million lines
def declared(options: type) -> Mapping[str, Option]:
    """The options of a TypedDict whose annotations hold an `Option`, by name."""
    found = {}
    for name, annotation in options.__annotations__.items():
        (option,) = annotation.__metadata__
        kinds = [kind for kind in get_args(annotation.__origin__) or (annotation.__origin__,) if kind is not type(None)]
        plain = [kind for kind in kinds if kind in (int, float, str, bool)]
        several = any(get_origin(kind) is Sequence for kind in kinds)
        kind = plain[0] if plain else list if several else None
        found[name] = replace(option, name=name, kind=kind, several=bool(plain) and several)
    return MappingProxyType(found)


def resolve_options(
    options: type, given: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """All options by name, checked one by one: what is given and not None, else the default.

    Args:
        options: the TypedDict that declares them.
        given: by name.
        defaults: of single options, instead of those that are declared.

    Raises:
        OptionError: a value is out of range.
        TypeError: there is no option of a name.
    """
    known = declared(options)
    if unknown := [name for name in given if name not in known]:
        raise TypeError(f"there is no option {unknown[0]!r}; there are {', '.join(known)}")
    values = {}
    for name, option in known.items():
        value = given.get(name)
        if value is None:
            value = (defaults or {}).get(name, option.default)
        values[name] = None if value is None else option.checked(value)
    return values
