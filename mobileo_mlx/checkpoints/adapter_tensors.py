"""The tensors of an adapter, in the names and layout of the PEFT library or of mlx-lm, by component and layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx

from ..errors import CheckpointError, format_names
from ..models.mobileo import component_of, upstream_name
from .adapter_config import MlxLmConfig, PeftConfig
from .peft_names import PREFIX, parse_factor, unwrapped_name
from .tensor_files import TensorInfo, read_tensors

_MOST_TENSORS = 50_000  # of an adapter: a model of twenty thousand layers
_LONGEST_NAME = 400
_SEQUENCE = "layers."  # what `sanitize` puts before the names of mm_projector's layers
# mlx-lm's last part of a name, and what PEFT calls it.
_MLX_LM_LEAVES = {"lora_a": "A", "lora_b": "B", "m": "magnitude"}


@dataclass(frozen=True)
class LowRank:
    """The update of one layer, W to W + scale B A; with magnitudes m each row of that has the length in m (DoRA).

    Attributes:
        a: (rank, inputs), or (rank, inputs, 1, 1) of what is a convolution upstream.
        b: (outputs, rank), or with two more dimensions of 1.
        rank: that the configuration says.
        scale: alpha / rank, without the user's scale.
        magnitude: (outputs,), or (1, outputs, 1, 1) of a convolution; None without DoRA.
        transposed: whether a is (inputs, rank) and b (rank, outputs), as in mlx-lm.
    """

    a: TensorInfo
    b: TensorInfo
    rank: int
    scale: float
    magnitude: TensorInfo | None = None
    transposed: bool = False

    def factors(self) -> tuple[mx.array, mx.array]:
        """A (rank, inputs) and B (outputs, rank) in float32, not read yet."""
        loaded = read_tensors({"a": self.a, "b": self.b})
        a, b = (loaded[name].astype(mx.float32) for name in ("a", "b"))
        return (a.T, b.T) if self.transposed else (a.flatten(1), b.flatten(1))

    def magnitudes(self) -> mx.array | None:
        """The lengths of the adapted rows, (outputs,) float32, not read yet; None without DoRA."""
        if self.magnitude is None:
            return None
        return read_tensors({"m": self.magnitude})["m"].astype(mx.float32).reshape(-1)

    @property
    def tensors(self) -> list[TensorInfo]:
        """All that it consists of."""
        return [self.a, self.b] + ([self.magnitude] if self.magnitude is not None else [])

    def wrong_shapes(self, outputs: int, inputs: int) -> list[str]:
        """The tensors that don't fit a layer of these widths, for a message."""
        a, b, m = (self.rank, inputs), (outputs, self.rank), (outputs,)
        expected: list[tuple[TensorInfo, tuple[int, ...], list[tuple[int, ...]]]] = []
        if self.transposed:
            expected += [(self.a, a[::-1], []), (self.b, b[::-1], [])]
        else:
            expected += [(self.a, a, [(*a, 1, 1)]), (self.b, b, [(*b, 1, 1)])]
        if self.magnitude is not None:
            expected.append((self.magnitude, m, [(1, outputs, 1, 1)]))
        return [
            f"{info.key} {info.shape} instead of {shape}"
            for info, shape, others in expected
            if info.shape not in (shape, *others)
        ]


@dataclass
class AdapterTensors:
    """What an adapter changes, by component.

    Attributes:
        low_rank: component to layer path to update, by our names.
        full: component to tensors that take the place of the model's, by upstream's names.
        unknown: tensors that belong to nothing.
    """

    low_rank: dict[str, dict[str, LowRank]] = field(default_factory=dict)
    full: dict[str, dict[str, TensorInfo]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def parse_tensors(stored: Mapping[str, TensorInfo], config: PeftConfig | MlxLmConfig, file: Path) -> AdapterTensors:
    """The tensors of an adapter's file as low-rank updates, whole tensors and what is neither.

    Raises:
        CheckpointError: a layer has one part of its update and lacks another; the configuration has no valid rank or
            alpha for it; there are too many tensors, or updates of embeddings.
    """
    if len(stored) > _MOST_TENSORS:
        raise CheckpointError(f"'{file}' has {len(stored):,} tensors, and {_MOST_TENSORS:,} are the limit.")
    if embeddings := [key for key in stored if ".lora_embedding_" in key[:_LONGEST_NAME]]:
        raise CheckpointError(
            f"'{file}' has low-rank updates of embeddings ({format_names(embeddings)}), which can't be applied."
        )
    found = AdapterTensors()
    parts: dict[str, dict[str, TensorInfo]] = {}
    split = _split_mlx_lm if isinstance(config, MlxLmConfig) else _split_peft
    for key, info in stored.items():
        layer, part = split(key, config.dora) if len(key) <= _LONGEST_NAME else ("", "")
        belongs = component_of(f"{layer}.weight" if part else layer) if layer else None
        if belongs is None:
            found.unknown.append(key)
        elif part:
            parts.setdefault(layer, {})[part] = info
        else:
            found.full.setdefault(belongs[0], {})[belongs[1]] = info
    wanted = {"A", "B"} | ({"magnitude"} if config.dora else set())
    if halves := [layer for layer, found_parts in parts.items() if found_parts.keys() != wanted]:
        names = "lora_A, lora_B and lora_magnitude_vector" if config.dora else "lora_A and lora_B"
        raise CheckpointError(f"'{file}' has only a part of {names} of {format_names(halves)}.")
    if isinstance(config, PeftConfig):
        config.check_work(len(parts))
    for layer, infos in parts.items():
        component, tensor = component_of(f"{layer}.weight") or ("", "")
        path = tensor.rpartition(".")[0]
        if component == "mm_projector":
            path = f"{_SEQUENCE}{path}"
        rank, scale = config.rank_and_scale(layer)
        update = LowRank(
            infos["A"], infos["B"], rank, scale, infos.get("magnitude"), transposed=isinstance(config, MlxLmConfig)
        )
        found.low_rank.setdefault(component, {})[path] = update
    return found


def layer_name(component: str, path: str) -> str:
    """What a layer is called in upstream's checkpoint, by its path in our component."""
    return upstream_name(component, path.removeprefix(_SEQUENCE) if component == "mm_projector" else path)


def _split_peft(key: str, dora: bool) -> tuple[str, str]:
    """The layer and the part of its update, or a whole tensor and ""; two empty texts where it is neither."""
    name = unwrapped_name(key)
    part = parse_factor(name)
    known = part is None or (part.adapter is None and (dora or part.letter != "magnitude"))
    if not key.startswith(PREFIX) or not known or (part is None and ".lora_" in name):
        return "", ""
    return (part.layer, part.letter) if part is not None else (name, "")


def _split_mlx_lm(key: str, dora: bool) -> tuple[str, str]:
    layer, _, leaf = key.rpartition(".")
    part = _MLX_LM_LEAVES.get(leaf, "")
    return (layer, part) if part and (dora or part != "magnitude") else (key, "")
