"""What the settings of a picture say of its candidates, checked: a file that is uploaded may say anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..generation_options import MAX_CANDIDATES, check_seed

_MAX_CHECKS = 200


def check_best_of(value: Any) -> None:
    """Checks that a value is as `GenerationResult.best_of` has it for an image.

    Raises:
        OptionError, ValueError: it is not.
    """
    if not isinstance(value, dict) or value.keys() != {"candidates", "checks"}:
        raise ValueError("no candidates and checks")
    _check_all(value["candidates"], _CANDIDATE, MAX_CANDIDATES)
    _check_all(value["checks"], _CHECK, _MAX_CHECKS)


def _check_all(records: Any, checks: Mapping[str, Callable[[Any], Any]], most: int) -> None:
    if not isinstance(records, list) or len(records) > most:
        raise ValueError("no list, or a long one")
    for record in records:
        if not isinstance(record, dict) or record.keys() != checks.keys():
            raise ValueError("other names")
        for name, check in checks.items():
            check(record[name])


def _check_text(value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError("no text")


def _check_share(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError("no number from 0 to 1")


def _check_truth(value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError("neither true nor false")


_CANDIDATE: Mapping[str, Callable[[Any], Any]] = {"seed": check_seed, "score": _check_share, "passes": _check_truth}
_CHECK: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("question", "expected", "answer"), _check_text),
    "probability": _check_share,
}
