"""What the last line of a run says about parity tests that did not run, and how to run them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

NO_DATA = "the reference data are not beside the repository"
_NO_LIBRARY = re.compile(r"could not import '(torch|diffusers|transformers|peft|timm)\b")


def summary(skipped: Iterable[tuple[str, str]]) -> str | None:
    """One sentence, or None where nothing is missing.

    Args:
        skipped: node id and reason of everything that was skipped; the id of a whole file has no "::".
    """
    skipped = list(skipped)
    libraries = [node for node, reason in skipped if _NO_LIBRARY.search(reason)]
    data = [node for node, reason in skipped if NO_DATA in reason]
    ways = ['pip install -e ".[parity]"'] * bool(libraries) + ["the reference data in ../shared/reference"] * bool(data)
    if not ways:
        return None
    tests = sum("::" in node for node in libraries + data)
    files = len({Path(node) for node in libraries + data if "::" not in node})
    counts = [f"{n} {what}{'s' * (n != 1)}" for n, what in ((tests, "test"), (files, "whole file")) if n]
    return f"Parity with the original: {' and '.join(counts)} skipped; to run them: {', and '.join(ways)}."
