from __future__ import annotations

import pytest
from parity_skips import NO_DATA, summary

TORCH = "Skipped: could not import 'torch': No module named 'torch'"


@pytest.mark.parametrize(
    ("skipped", "said"),
    [
        ([("tests/a.py", TORCH)], '1 whole file skipped; to run them: pip install -e ".[parity]".'),
        (
            [("tests/b.py::test_1", NO_DATA), ("tests/b.py::test_2", f"Skipped: {NO_DATA}")],
            "2 tests skipped; to run them: the reference data in ../shared/reference.",
        ),
        (
            [("tests/a.py", TORCH), ("tests/b.py::test_1", NO_DATA), ("tests/c.py::test", "no /dev/full")],
            '1 test and 1 whole file skipped; to run them: pip install -e ".[parity]", and the reference data in '
            "../shared/reference.",
        ),
    ],
)
def test_what_is_missing_is_counted_with_the_way_to_get_it(skipped: list[tuple[str, str]], said: str) -> None:
    assert summary(skipped) == f"Parity with the original: {said}"


def test_other_skips_say_nothing() -> None:
    assert summary([]) is None
    assert summary([("tests/c.py::test", "there is no /dev/full on this system")]) is None
