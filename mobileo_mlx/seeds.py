"""Seeds of random keys: Python's whole numbers and NumPy's."""

from __future__ import annotations

import operator
from typing import Any

from .errors import OptionError


def checked_seed(seed: Any) -> int:
    """The seed as an int.

    Raises:
        OptionError: it is no whole number, or out of range.
    """
    try:
        # True is 1 to Python, but who writes it has mistaken the option.
        number = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = -1
    if not 0 <= number < 2**64:
        raise OptionError(f"seed {seed!r} is not possible; choose a whole number from 0 to 2**64 - 1.")
    return number
