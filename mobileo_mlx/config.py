"""Configurations are dataclasses read from JSON, of which nothing is taken for granted.

Unknown keys are ignored, missing ones are named. Every value is compared with its field's annotation, which has its
range beside it: `Annotated[int, Range(1, 10)]`. What has to fit together, a configuration checks in `problem`. So what
is built from one can be built, and is not far larger than anything that exists.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import reprlib
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import ConfigError

T = TypeVar("T", bound="Config")

_LONGEST = 100  # elements of a list; the longest that is known has an element for each stage of a network


@dataclass(frozen=True)
class Range:
    """The smallest and the largest value of a number, and whether it is odd, as the side of a kernel is."""

    low: float
    high: float
    odd: bool = False

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and (not self.odd or value % 2 == 1)


# The ranges are generous: they keep out what would not end, not what is unusual.
Count = Annotated[int, Range(1, 1000)]  # of layers, heads and the like
CountOrNone = Annotated[int, Range(0, 1000)]
Width = Annotated[int, Range(1, 2**16)]  # channels
Kernel = Annotated[int, Range(1, 63, odd=True)]
Ratio = Annotated[float, Range(0.01, 100)]
Epsilon = Annotated[float, Range(1e-30, 0.1)]


class Config:
    """Mixin for configuration dataclasses."""

    @classmethod
    def from_dict(cls: type[T], values: Mapping[str, Any], source: str = "the configuration") -> T:
        """Builds the dataclass from `values`.

        Keys that the dataclass does not have are ignored, so that a published `config.json` just loads. Lists become
        tuples, and objects the configurations that the fields are annotated with.

        Args:
            values: the parsed JSON object.
            source: where it came from; named in the error.

        Raises:
            ConfigError: keys without a default are missing, all of which are listed; a value is of another type than
                its field or outside of its range; or values do not fit together.
        """
        kinds = _kinds(cls)  # type: ignore[arg-type]
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        missing = [
            f.name
            for f in fields
            if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise ConfigError(f"{source} lacks {', '.join(repr(name) for name in missing)}.")
        given = [f.name for f in fields if f.name in values]
        config = cls(**{name: _read(values[name], kinds[name], name, source) for name in given})
        config.check(source)
        return config

    def check(self, source: str = "the configuration") -> None:
        """Raises ConfigError where values do not fit together."""
        if problem := self.problem():
            raise ConfigError(f"{source} {problem}.")

    def problem(self) -> str:
        """Which values do not fit together, as the predicate of a sentence; "" where all do."""
        return ""

    def to_dict(self) -> dict[str, Any]:
        """The inverse of `from_dict`, ready for `json.dump`."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]


def shown(value: Any) -> str:
    """A value of JSON for a message, shortened, whatever its size."""
    return json.dumps(value) if value is None or isinstance(value, bool) else reprlib.repr(value)


@functools.cache
def _kinds(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _read(value: Any, kind: Any, name: str, source: str) -> Any:
    nested = [part for part in _alternatives(kind) if isinstance(part, type) and issubclass(part, Config)]
    if nested and isinstance(value, Mapping):
        return nested[0].from_dict(value, f"{name!r} in {source}")
    if not _fits(value, kind):
        raise ConfigError(f"{source} has {name} = {shown(value)}, which is not {_described(kind)}.")
    return _freeze(value)


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _fits(value: Any, kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Annotated:
        return _fits(value, parts[0]) and value in parts[1]
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if origin is tuple:
        return (
            isinstance(value, list | tuple) and len(value) <= _LONGEST and all(_fits(item, parts[0]) for item in value)
        )
    if kind is float:  # NaN is not comparable, and whole numbers may be larger than any float
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return type(value) is kind  # True is no number


def _described(kind: Any) -> str:
    """A value of a kind in words: "a whole number from 1 to 10"."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_described(part) for part in parts)
    if origin is Annotated:
        limits = parts[1]
        number = "an odd number" if limits.odd else _described(parts[0])
        return f"{number} from {limits.low:.12g} to {limits.high:.12g}"
    if origin is Literal:
        return " or ".join(repr(part) for part in parts)
    if origin is tuple:
        return f"a list, each of which is {_described(parts[0])}"
    if isinstance(kind, type) and issubclass(kind, Config):
        return "an object"
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}[kind]


def _freeze(value: Any) -> Any:
    """JSON lists become tuples, so that configurations are immutable and hashable."""
    return tuple(_freeze(v) for v in value) if isinstance(value, list) else value
