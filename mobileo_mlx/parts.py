"""The networks of one model: typed, loaded on first use, freed by phase."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar, cast

import mlx.core as mx
import mlx.nn as nn

from .array_cache import ArrayCache
from .checkpoints import precision, turbo
from .checkpoints.adapters import Adapter
from .checkpoints.apply_adapters import Updates, beside_updates, with_updates
from .checkpoints.checkpoint import Checkpoint
from .checkpoints.load import load_component
from .checkpoints.modules import named_parameters
from .checkpoints.quantize import QuantizeSpec, resolve_bits
from .conversation_caches import ConversationCaches
from .ops import memory
from .threads import in_turns

if TYPE_CHECKING:
    from .models.dc_ae import Decoder, Encoder
    from .models.fastvithd import FastViTHD, MMProjector
    from .models.mcp import MobileConditioningProjector
    from .models.mobileo import MobileOConfig
    from .models.qwen2 import Qwen2Model
    from .models.sana import SanaTransformer
    from .tokenizer import Tokenizer

Item = TypeVar("Item")

# The networks that each phase of a task needs. Where parts are not kept, no other network is in memory while it runs.
# `lm_head` comes first: where it is quantized while loading, the whole weight is not added to the language model.
PHASES: dict[str, tuple[str, ...]] = {
    "vision": ("vision_tower", "mm_projector"),  # images -> features for the language model
    "answer": ("lm_head", "llm"),  # a prompt -> tokens
    "condition": ("llm", "diffusion_connector"),  # a prompt -> what the DiT reads
    "encode": ("vae_encoder",),  # an image -> latents, for edits with a strength
    "denoise": ("dit",),  # noise -> latents
    "decode": ("vae_decoder",),  # latents -> images
}


class Parts:
    """The networks of a checkpoint, each loaded on first use.

    Several threads may ask for a network at once: it is loaded once, and evaluated before anyone gets it, so that all
    can use it (see `mobileo_mlx.threads`). Tasks take turns: each holds `lock` while it computes.

    Args:
        checkpoint: where the weights come from.
        dtypes: by component, where it is not `checkpoints.precision.default_dtype`; see `precision.parse_dtypes`.
        bits: by component; see `checkpoints.quantize.resolve_bits`.
        adapters: applied in this order to the components that they change.
        keep_loaded: whether networks stay in memory. If not, `enter` frees those that the next phase does not need.

    Attributes:
        config: dimensions of all networks.
        dtypes: those that were asked for; `dtype` says what a component computes in.
        cache: what was computed from images and prompts before; filled only while networks are kept.
        conversations: the keys and values of conversations that may go on; likewise.
        lock: held by whoever computes with these networks, loads or frees them. A thread may take it several times.
        on_phase: called with the name of a phase when a task enters it, before anything is freed or loaded.

    Raises:
        CheckpointError: an adapter is for another model.
        OptionError: an unknown component, or bits that MLX does not have.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dtypes: Mapping[str, mx.Dtype] | None = None,
        bits: Mapping[str, int] | None = None,
        adapters: Sequence[Adapter] = (),
        keep_loaded: bool = True,
    ):
        for adapter in adapters:
            adapter.check(checkpoint)
        self.checkpoint = checkpoint
        self.config: MobileOConfig = checkpoint.config
        self.dtypes, self.bits = precision.parse_dtypes(dtypes), resolve_bits(bits)
        self.adapters, self.keep_loaded = tuple(adapters), keep_loaded
        self.cache = ArrayCache()
        self.conversations = ConversationCaches(self.config.image_tokens)
        self.on_phase: Callable[[str], None] | None = None
        self._loaded: dict[str, nn.Module] = {}
        self._versions: dict[str, _Version] = {}
        self._turbo: Updates = {}
        self._phase = ""
        self._changed = False  # whether a network was loaded since MLX's buffer cache was emptied
        self.lock = threading.RLock()

    def __getitem__(self, name: str) -> nn.Module:
        """The network of a component (`models.mobileo.COMPONENTS`), loaded on first use.

        Raises:
            CheckpointError: it is not in the checkpoint, or does not fit the configuration.
        """
        with self.lock:
            if name not in self._loaded:
                network = self.load(name)
                mx.eval(network)  # with the arrays that are no parameters
                self._loaded[name] = network
            return self._loaded[name]

    def load(self, name: str, *, adapted: bool = True) -> nn.Module:
        """A network beside those that are kept here, whose weights are read when they are first used.

        Args:
            name: of the component.
            adapted: whether the adapters are applied.
        """
        self._changed = True
        return load_component(
            self.checkpoint,
            name,
            dtype=self.dtype(name),
            quantize=QuantizeSpec(self.bits[name]) if name in self.bits else None,
            adapters=self.adapters if adapted else (),
        )

    def dtype(self, name: str) -> mx.Dtype:
        """What a component computes in: the dtype of its weights, as far as they are not quantized.

        Raises:
            CheckpointError: it is not in the checkpoint.
        """
        if name == "lm_head" and self.checkpoint.tied:
            name = "llm"
        return self.dtypes.get(name) or precision.default_dtype(name, self.checkpoint.stored_dtype(name))

    @property
    def loaded(self) -> frozenset[str]:
        """The names of the networks that are in memory."""
        return frozenset(self._loaded)

    @property
    def vision_tower(self) -> FastViTHD:
        """Images to tokens."""
        return cast("FastViTHD", self["vision_tower"])

    @property
    def mm_projector(self) -> MMProjector:
        """The tower's tokens to features for the language model."""
        return cast("MMProjector", self["mm_projector"])

    @property
    def llm(self) -> Qwen2Model:
        """Embeddings to hidden states."""
        return cast("Qwen2Model", self["llm"])

    @property
    def lm_head(self) -> Callable[[mx.array], mx.array]:
        """From hidden states to logits; the transposed embedding where the checkpoint ties the two."""
        if self.checkpoint.tied:
            return self.llm.embed_tokens.as_linear
        head, dtype = self["lm_head"], self.dtype("lm_head")
        return lambda hidden: head(hidden.astype(dtype))

    @property
    def diffusion_connector(self) -> MobileConditioningProjector:
        """Hidden states to what the DiT reads."""
        return cast("MobileConditioningProjector", self["diffusion_connector"])

    @property
    def dit(self) -> SanaTransformer:
        """The diffusion transformer."""
        return cast("SanaTransformer", self["dit"])

    @property
    def vae_encoder(self) -> Encoder:
        """Images to latents."""
        return cast("Encoder", self["vae_encoder"])

    @property
    def vae_decoder(self) -> Decoder:
        """Latents to images."""
        return cast("Decoder", self["vae_decoder"])

    @cached_property
    def turbo(self) -> Adapter | None:
        """The few-step adapter that the model brings along; None where it has none. Only headers are read.

        Raises:
            CheckpointError: it is damaged, or for another model.
        """
        return turbo.find(self.checkpoint)

    def with_turbo(self, dit: SanaTransformer) -> SanaTransformer:
        """The DiT with `turbo` beside its layers; it shares all its own weights with the one that is given."""
        assert self.turbo is not None
        updates = self._turbo or beside_updates(self.turbo, "dit", self.dtype("dit"))
        if self.keep_loaded:
            self._turbo = updates
        return cast("SanaTransformer", with_updates(dit, updates))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, read on first use."""
        return self.checkpoint.load_tokenizer()

    def require(self, *phases: str) -> None:
        """Checks from headers alone that what these phases need can be loaded, so that no work starts that can't end.

        Raises:
            CheckpointError: components are missing or do not fit the configuration; all that is wrong is listed.
        """
        names = dict.fromkeys(name for phase in phases for name in PHASES[phase])
        if self.checkpoint.tied:
            names.pop("lm_head", None)
        self.checkpoint.check(*(name for name in names if name not in self._loaded))

    def enter(self, phase: str) -> None:
        """Begins a phase of a task. Networks that it does not need are freed, unless they are kept.

        MLX's buffer cache goes too: the phase before worked on arrays of other sizes. Not where all networks are there
        already and stay: the next task needs buffers of these sizes again, and new memory costs page faults. A network
        is freed only if nothing else refers to it, so a task keeps none of them in a variable from one phase to the
        next.
        """
        if self.on_phase is not None:
            self.on_phase(phase)
        with self.lock:
            if not self.keep_loaded:
                for name in self._loaded.keys() - set(PHASES[phase]):
                    del self._loaded[name]
            if self._phase != phase:
                self._phase = phase
                if self._changed or not self.keep_loaded:
                    self._changed = False
                    mx.clear_cache()

    def pop_dit(self) -> SanaTransformer:
        """The diffusion transformer for its last use: it is no longer one of these parts, and the caller's alone.

        Its weights may not be evaluated yet: a drawing frees many of them block by block, and they are never all in
        memory. The caller uses the others before it is suspended.
        """
        with self.lock:
            dit = self._loaded.pop("dit") if "dit" in self._loaded else self.load("dit")
            return cast("SanaTransformer", dit)

    def in_turns(self, task: Generator[Item, None, None]) -> Generator[Item, None, None]:
        """The items of a task, computed one task at a time; see `mobileo_mlx.threads.in_turns`.

        Tasks that are suspended hold nothing that others wait for. Where networks are not kept, each frees what its
        own phase does not need; one that is suspended keeps those that it uses, so that memory adds up.
        """
        return in_turns(self.lock, task, memory.limits(staged=not self.keep_loaded))

    def release(self, *names: str) -> None:
        """Frees the memory of networks, all by default, and of what was cached; they load again when needed."""
        with self.lock:
            for name in names or tuple(self._loaded):
                self._loaded.pop(name, None)
            self._turbo = {}
            self.cache.clear()
            self.conversations.clear()
            mx.clear_cache()

    def cached(self, key: Hashable, names: Sequence[str], compute: Callable[[], Sequence[mx.array]]) -> list[mx.array]:
        """What `compute` gives, evaluated; where networks are kept, what it gave before for this key and these weights.

        Args:
            key: of the inputs.
            names: the networks that `compute` uses.
            compute: called where nothing is known.
        """
        if (found := self.find(key, names)) is not None:
            return found
        arrays = list(compute())
        mx.eval(arrays)  # nothing that they were computed from stays in memory
        if self.keep_loaded:
            self.cache.put((key, self.version(names)), arrays)
        return arrays

    def find(self, key: Hashable, names: Sequence[str]) -> list[mx.array] | None:
        """What `cached` has kept for this key and the present weights of these networks, or None."""
        return self.cache.get((key, self.version(names))) if self.keep_loaded else None

    def version(self, names: Sequence[str]) -> tuple[int, ...]:
        """A number for each network that changes whenever one of its weights is another array than before.

        Training replaces arrays (`nn.Module.update`), and so does loading again. Not noticed is an array that is
        changed in place (`weight[0] = 1`).
        """
        numbers = []
        for name in names:
            version = self._versions.setdefault(name, _Version())
            if name in self._loaded:
                version.look(list(named_parameters(self._loaded[name]).values()))
            numbers.append(version.number)
        return tuple(numbers)


class _Version:
    """Counts how often a network's arrays were found to be others. It keeps none of them in memory."""

    def __init__(self) -> None:
        self.number = 0
        self._seen: list[weakref.ref[mx.array]] = []

    def look(self, arrays: Sequence[mx.array]) -> None:
        same = len(arrays) == len(self._seen) and all(a is ref() for a, ref in zip(arrays, self._seen, strict=True))
        if not same:
            self.number += 1
            self._seen = [weakref.ref(array) for array in arrays]
