"""Networks to verify: those of a checkpoint, or of the published size with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mobileo_weights import manifest, upstream_config

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.load import load_component
from ..checkpoints.modules import named_parameters, preserve_rng_state
from ..checkpoints.random_model import random_parameter
from ..checkpoints.weights_fault import stored_fault
from ..models.mobileo import COMPONENTS, MobileOConfig, build
from ..prompts import encode_prompt, generate_prompt

_PROMPT = "a photo of a red bicycle that leans against a white wall, in the light of the evening"
_PROMPT_TOKENS = 60  # of a prompt of random tokens


class Source(Protocol):
    """Where networks come from.

    Attributes:
        name: what the user knows it by.
        config: dimensions of all networks.
        components: those that there are.
        trained: whether one network's results are fit inputs for the next.
    """

    @property
    def name(self) -> str: ...
    @property
    def config(self) -> MobileOConfig: ...
    @property
    def components(self) -> Sequence[str]: ...
    @property
    def trained(self) -> bool: ...

    def stored_dtype(self, component: str) -> mx.Dtype:
        """The dtype of a component's weights on disk."""
        ...

    def network(self, component: str, dtype: mx.Dtype) -> nn.Module:
        """A component in evaluation mode, its weights computed; for each dtype they are the same before rounding."""
        ...

    def fault(self, component: str) -> str:
        """Why a component's weights make values that are not finite, and the remedy; "" where they do not tell."""
        ...

    def prompt(self) -> list[int]:
        """The tokens of a request to draw."""
        ...


class CheckpointSource:
    """The networks of a model; see `Source`.

    Args:
        model: as `Checkpoint.open` takes it.

    Raises:
        MobileOError: it can't be opened, or lacks weights.
    """

    trained = True

    def __init__(self, model: str | Path, *, progress: bool = False):
        self._checkpoint = Checkpoint.open(model, progress=progress)
        self.name = self._checkpoint.name
        self.config = self._checkpoint.config
        self.components = [name for name in COMPONENTS if not (name == "lm_head" and self._checkpoint.tied)]
        self._checkpoint.check(*self.components)

    def stored_dtype(self, component: str) -> mx.Dtype:
        return self._checkpoint.stored_dtype(component)

    def network(self, component: str, dtype: mx.Dtype) -> nn.Module:
        network = load_component(self._checkpoint, component, dtype=dtype)
        mx.eval(network.parameters())
        return network

    def fault(self, component: str) -> str:
        return stored_fault(self._checkpoint, component)

    def prompt(self) -> list[int]:
        return encode_prompt(self._checkpoint.load_tokenizer(), generate_prompt(_PROMPT))


class RandomSource:
    """Networks of a published size with random weights that are no more exact than bfloat16; see `Source`.

    So float32 and bfloat16 have the same weights, and float16 all but the smallest.
    """

    trained = False

    def __init__(self, size: str = "0.5B"):
        self.name = f"random weights of the size {size}"
        self.config = MobileOConfig.from_upstream(upstream_config(size), manifest(size))
        self.components = list(COMPONENTS)

    def stored_dtype(self, component: str) -> mx.Dtype:
        return mx.bfloat16

    def network(self, component: str, dtype: mx.Dtype) -> nn.Module:
        with preserve_rng_state():
            network = build(component, self.config)  # its own weights are never computed
        weights = {}
        for name, array in named_parameters(network).items():
            weight = random_parameter(0, component, name, array.shape, published=True)
            weights[name] = weight.astype(mx.bfloat16).astype(dtype)
            mx.eval(weights[name])  # one by one: what they are made of takes memory, too
        network.load_weights(list(weights.items()))
        return network

    def fault(self, component: str) -> str:
        return ""

    def prompt(self) -> list[int]:
        return np.random.default_rng(0).integers(0, self.config.llm.vocab_size, _PROMPT_TOKENS).tolist()


def picture(width: int, height: int) -> mx.array:
    """A picture with smooth parts, edges and noise, (1, height, width, 3) float32 in [0, 1]."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    channels = [0.5 + 0.4 * np.sin(5 * x + 3 * y + phase) for phase in range(3)]
    image = np.stack(channels, axis=-1)
    image[(x - 0.35) ** 2 + (y - 0.4) ** 2 < 0.04] = (0.9, 0.1, 0.1)
    image[(abs(x - 0.7) < 0.15) & (abs(y - 0.6) < 0.2)] = (0.1, 0.2, 0.8)
    image += np.random.default_rng(0).normal(0, 0.02, image.shape)
    return mx.array(image.clip(0, 1).astype(np.float32))[None]
