"""The components of one model: loaded when they are needed, freed when nothing is kept."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn

from .array_cache import ArrayCache, image_key
from .checkpoints.adapters import Adapter
from .checkpoints.checkpoint import Checkpoint
from .checkpoints.quantize import QuantizeSpec, resolve_bits
from .models.mobileo import MobileOConfig

if TYPE_CHECKING:
    from PIL import Image


class Components:
    """The networks of a checkpoint, each loaded on first use.

    Args:
        checkpoint: where the weights come from.
        dtype: of the weights; by default what is fast, see `checkpoint.default_dtype`.
        quantize: bits by component.
        adapter: what changes the weights, if anything does.
        keep_loaded: whether components stay in memory when a task has done with them; see `MobileO.load`.

    Attributes:
        config: dimensions of all networks.
        recall: what was computed from images and prompts before; only while components are kept.

    Raises:
        CheckpointError: the adapter is for another model.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: mx.Dtype | None = None,
        quantize: Mapping[str, int] | None = None,
        adapter: Adapter | None = None,
        keep_loaded: bool = True,
    ):
        if adapter is not None:
            adapter.check(checkpoint)
        self.checkpoint = checkpoint
        self.adapter = adapter
        self.config: MobileOConfig = checkpoint.config
        self._dtype = dtype
        self._bits = resolve_bits(quantize)
        self._components: dict[str, nn.Module] = {}
        self._phase: frozenset[str] = frozenset()
        self.keep_loaded = keep_loaded
        self.recall = ArrayCache()

    def require(self, *names: str) -> None:
        """Checks from headers alone that these components can be loaded, so that no work starts that can't end.

        Raises:
            CheckpointError: components are missing or do not fit the configuration; all that is wrong is listed.
        """
        self.checkpoint.check(*(name for name in names if name not in self._components))

    def component(self, name: str) -> Any:
        """The network of that name in `mobileo_mlx.models.mobileo.COMPONENTS`, loaded on first use.

        Raises:
            CheckpointError: it is not in the checkpoint, or does not fit the configuration.
        """
        if name not in self._components:
            bits = self._bits.get(name)
            spec = QuantizeSpec(bits) if bits is not None else None
            self._components[name] = self.checkpoint.load(name, dtype=self._dtype, quantize=spec, adapter=self.adapter)
        return self._components[name]

    def take(self, name: str) -> Any:
        """A component for its last phase: where nothing is kept loaded, who asked for it alone holds it."""
        component = self.component(name)
        if not self.keep_loaded:
            del self._components[name]
        return component

    def release(self, *names: str) -> None:
        """Frees the memory of components, all by default; they load again when they are needed.

        What is recalled of images and prompts goes too. Who changes the weights of a component in place calls this
        (with any name) before the next task.
        """
        for name in names or tuple(self._components):
            self._components.pop(name, None)
        self.recall.clear()
        mx.clear_cache()

    def stage(self, *names: str) -> None:
        """Begins a phase of a task, which needs these components alone.

        Others go, unless they are kept loaded; and so does the scratch of the phase before, which has other sizes.
        """
        if not self.keep_loaded:
            for name in self._components.keys() - set(names):
                del self._components[name]
        if self._phase != frozenset(names):
            self._phase = frozenset(names)
            mx.clear_cache()

    def lm_head(self) -> Callable[[mx.array], mx.array]:
        """The map from hidden states to logits; the transposed embedding where the checkpoint ties them.

        Raises:
            CheckpointError: the checkpoint does not tie them, and what is needed is missing or damaged.
        """
        if self.checkpoint.tied:
            return self.component("llm").embed_tokens.as_linear
        return self.component("lm_head")

    def image_keys(self, images: Sequence[Image.Image]) -> list[str]:
        """What images are recalled by; nothing where nothing is kept."""
        return [image_key(image) if self.keep_loaded else "" for image in images]

    def recalled(self, key: Hashable, compute: Callable[[], Sequence[mx.array]]) -> list[mx.array]:
        """What was kept under the key, or else what `compute` gives, evaluated; that is kept if components are."""
        if self.keep_loaded and (found := self.recall.get(key)) is not None:
            return found
        arrays = list(compute())
        mx.eval(arrays)  # nothing that they were computed from stays in memory
        if self.keep_loaded:
            self.recall.keep(key, arrays)
        return arrays
