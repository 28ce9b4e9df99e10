"""How the PEFT library names tensors.

It wraps a model, so that all names get a prefix. Where it wraps a layer, the layer's own tensors move one level down,
to `base_layer`, and the two factors of the update stand beside them: `lora_A` and `lora_B`; with DoRA also
`lora_magnitude_vector`. In memory, and in what is saved of the whole model, the name of the adapter follows them
(`lora_A.default.weight`); in an adapter's file it doesn't.
"""

from __future__ import annotations

import re
from typing import NamedTuple

PREFIX = "base_model.model."

_FACTOR = re.compile(r"(.+)\.lora_([AB])(?:\.(\w+))?\.weight")
_MAGNITUDE = re.compile(r"(.+)\.lora_(magnitude)_vector(?:(?:\.(\w+))?\.weight)?")


class Factor(NamedTuple):
    """One of the two matrices of a layer's low-rank update B A, or the lengths of the rows that it leads to."""

    layer: str
    letter: str  # "A", "B" or "magnitude"
    adapter: str | None = None  # its name where the tensor's name holds it

    @property
    def name(self) -> str:
        """Of its tensor in an adapter's file."""
        end = "magnitude_vector" if self.letter == "magnitude" else f"{self.letter}.weight"
        return f"{PREFIX}{self.layer}.lora_{end}"


def unwrapped_name(name: str) -> str:
    """What a tensor is called in the model that was not wrapped; of a factor, its name without the prefix."""
    return name.removeprefix(PREFIX).replace(".base_layer.", ".")


def parse_factor(name: str) -> Factor | None:
    """The factor that a name without the prefix means; None where it means something else."""
    found = _FACTOR.fullmatch(name) or _MAGNITUDE.fullmatch(name)
    return Factor(*found.groups()) if found else None
