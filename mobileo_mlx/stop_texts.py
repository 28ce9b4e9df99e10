"""Texts that end an answer: what may become one of them is held back until it is known."""

from __future__ import annotations

from collections.abc import Sequence


class StopTexts:
    """A filter for an answer whose text comes in segments.

    The text that ends first counts, so that it makes no difference how the answer is cut into segments.

    Attributes:
        found: whether a stop text has come; the answer ends in front of it.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.found = False
        self._stops = stops
        self._held = ""

    def add(self, segment: str) -> str:
        """What can be shown now, given the next segment: all but what may be the beginning of a stop text."""
        if self.found:
            return ""
        text = self._held + segment
        places = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)[1]]
        longest = max(map(len, self._stops), default=1) - 1
        held = (n for n in range(min(longest, len(text)), 0, -1) if self._may_begin(text[-n:]))
        kept = len(text) - next(held, 0)
        self._held = text[kept:]
        return text[:kept]

    def flush(self) -> str:
        """What is held back, when the answer has ended otherwise."""
        held, self._held = self._held, ""
        return held

    def _may_begin(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self._stops)
