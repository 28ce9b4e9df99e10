"""Options that have a value for each component: their text, `name=value,...`, and the names that stand for several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from ..errors import OptionError
from ..models.mobileo import COMPONENTS

ALIASES = {"all": COMPONENTS, "vae": ("vae_encoder", "vae_decoder")}

Value = TypeVar("Value")


def parse(text: str, what: str, form: str) -> dict[str, str]:
    """The values of `name=value,...` by name, both as they are written.

    Args:
        what, form: what the text is and how it is written, for errors.

    Raises:
        OptionError: it is of another form, or names something twice.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not value:
            raise OptionError(f"{what} {text!r} is not of the form {form}.")
        if name in found:
            raise OptionError(f"{what} {text!r} names {name!r} twice.")
        found[name] = value
    return found


def resolve(requested: Mapping[str, Value], purpose: str) -> dict[str, Value]:
    """The same with each of `ALIASES` replaced by the components that it stands for.

    What is named more closely counts: {"all": 4, "dit": 8} is 8 for the DiT and 4 for the others.

    Args:
        purpose: what a component would be named for, for errors.

    Raises:
        OptionError: an unknown component.
    """
    if unknown := [name for name in requested if name not in COMPONENTS and name not in ALIASES]:
        known = ", ".join((*COMPONENTS, *ALIASES))
        raise OptionError(f"there is no component {unknown[0]!r} {purpose}; there are {known}.")
    resolved: dict[str, Value] = {}
    for alias, members in ALIASES.items():
        resolved |= dict.fromkeys(members, requested[alias]) if alias in requested else {}
    return resolved | {name: value for name, value in requested.items() if name in COMPONENTS}
