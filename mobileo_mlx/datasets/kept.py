"""The list that a review page writes: which samples stay, and what has become of their texts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import OptionError
from ..files import read_json

FORMAT = "mobileo-mlx kept 1"
_MAX_FILE = 2**28  # bytes


@dataclass
class Kept:
    """A review.

    Attributes:
        path: of its file.
        prompts: what the texts of samples that stay were changed to, by id; "" where they are as they were.
        left_out: ids of those that do not stay.
    """

    path: Path
    prompts: dict[str, str] = field(default_factory=dict)
    left_out: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, path: Path) -> Kept:
        """Reads what the page has written.

        Raises:
            OptionError: it can't be read, or is something else.
        """
        value = read_json(path, error=OptionError, remedy="download it from the review page again", limit=_MAX_FILE)
        samples = value.get("samples")
        if value.get("format") != FORMAT or not isinstance(samples, dict):
            raise OptionError(f"'{path}' is not a list of a review page; download it from the page again.")
        kept = cls(path)
        for id, one in samples.items():
            if not isinstance(one, dict) or not isinstance(one.get("keep"), bool):
                raise OptionError(f"'{path}' is damaged at {id[:20]!r}; download it from the review page again.")
            prompt = one.get("prompt", "")
            if not isinstance(prompt, str):
                raise OptionError(f"'{path}' is damaged at {id[:20]!r}; download it from the review page again.")
            if one["keep"]:
                kept.prompts[id] = " ".join(prompt.split())
            else:
                kept.left_out.add(id)
        return kept
