"""Configurations are dataclasses read from JSON: unknown keys are ignored, missing ones are named."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from .errors import ConfigError

T = TypeVar("T", bound="Config")


class Config:
    """Mixin for configuration dataclasses."""

    @classmethod
    def from_dict(cls: type[T], values: Mapping[str, Any], source: str = "the configuration") -> T:
        """Builds the dataclass from `values`.

        Keys that the dataclass does not have are ignored, so that a published `config.json` just loads.

        Args:
            values: the parsed JSON object.
            source: where it came from; named in the error.

        Raises:
            ConfigError: keys without a default are missing; all of them are listed.
        """
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        missing = [
            f.name
            for f in fields
            if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise ConfigError(f"{source} lacks {', '.join(repr(name) for name in missing)}.")
        return cls(**{f.name: _freeze(values[f.name]) for f in fields if f.name in values})

    def to_dict(self) -> dict[str, Any]:
        """The inverse of `from_dict`, ready for `json.dump`."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]


def _freeze(value: Any) -> Any:
    """JSON lists become tuples, so that configurations are immutable and hashable."""
    return tuple(_freeze(v) for v in value) if isinstance(value, list) else value
