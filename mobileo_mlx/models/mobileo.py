"""Mobile-O (arXiv 2602.20161) put together: its networks, their configurations, and which tensor belongs to which.

The networks are eight components, each of which can be stored, loaded and dropped by itself: asking needs neither
`dit` nor `vae_*`; drawing needs neither `vision_tower` nor `lm_head` nor `vae_encoder`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import mlx.core as mx
import mlx.nn as nn

from ..config import Config, CountOrNone, Range, shown
from ..errors import ConfigError
from . import dc_ae, fastvithd, mcp, qwen2, sana
from .dc_ae import DCAEConfig, Decoder, Encoder
from .fastvithd import FastViTHD, FastViTHDConfig, MMProjector, MMProjectorConfig
from .mcp import MCPConfig, MobileConditioningProjector
from .qwen2 import Qwen2Config, Qwen2Model
from .sana import SanaConfig, SanaTransformer

# Each component with the start of its tensors' names in upstream's checkpoint.
_PREFIXES = {
    "vision_tower": "model.vision_tower.vision_tower.model.",
    "mm_projector": "model.mm_projector.",
    "diffusion_connector": "model.diffusion_connector.fusion.",
    "dit": "model.dit.",
    "vae_encoder": "model.vae.encoder.",
    "vae_decoder": "model.vae.decoder.",
    "lm_head": "lm_head.",
    "llm": "model.",
}
_LLM_PARTS = ("embed_tokens.", "layers.", "norm.")

COMPONENTS = (
    "vision_tower",
    "mm_projector",
    "llm",
    "lm_head",
    "diffusion_connector",
    "dit",
    "vae_encoder",
    "vae_decoder",
)

# The DiT's configuration is not in upstream's checkpoint, which only names a repository. These are the two that
# the published checkpoints name.
_PUBLISHED_DITS = {
    "Sana_600M_512px_diffusers": SanaConfig(
        num_layers=28,
        num_attention_heads=36,
        attention_head_dim=32,
        num_cross_attention_heads=16,
        cross_attention_head_dim=72,
        caption_channels=2304,
    ),
    "Sana_1600M_512px_diffusers": SanaConfig(
        num_layers=20,
        num_attention_heads=70,
        attention_head_dim=32,
        num_cross_attention_heads=20,
        cross_attention_head_dim=112,
        caption_channels=2304,
    ),
}


_IMAGE_TOKENS = 4096  # of an image; the published models make 256, and attention grows with the square

TokenId = Annotated[int, Range(0, 2**31 - 1)]
FlowShift = Annotated[float, Range(1e-3, 1e3)]
Timesteps = Annotated[int, Range(1, 100_000)]


@dataclass(frozen=True)
class MobileOConfig(Config):
    """The dimensions of all networks, and what the tasks need to know beside them."""

    vision_tower: FastViTHDConfig
    mm_projector: MMProjectorConfig
    llm: Qwen2Config
    diffusion_connector: MCPConfig
    dit: SanaConfig
    vae: DCAEConfig
    image_size: Annotated[int, Range(1, 4096)]  # side in pixels of the square that the vision tower sees
    eos_token_ids: tuple[TokenId, ...]
    flow_shift: FlowShift = 3.0
    num_train_timesteps: Timesteps = 1000

    @property
    def default_size(self) -> tuple[int, int]:
        """Width and height in pixels of a drawing, where no size is asked for."""
        side = self.dit.sample_size * self.vae.factor
        return side, side

    @property
    def size_multiple(self) -> int:
        """Width and height of a drawing are multiples of this."""
        return self.vae.factor * self.dit.patch_size

    @property
    def image_tokens(self) -> int:
        """Positions that one image takes in the language model's context."""
        return (self.image_size // self.vision_tower.patch_size) ** 2

    def problem(self) -> str:
        tower, llm, connector, dit = self.vision_tower, self.llm, self.diffusion_connector, self.dit
        # What a network is given has the width that it takes.
        for name, width, other, wanted in (
            ("mm_projector.input_dim", self.mm_projector.input_dim, "vision_tower's", tower.output_dim),
            ("mm_projector.output_dim", self.mm_projector.output_dim, "llm.hidden_size", llm.hidden_size),
            ("diffusion_connector.hidden_size", connector.hidden_size, "llm.hidden_size", llm.hidden_size),
            ("dit.caption_channels", dit.caption_channels, "diffusion_connector.output_dim", connector.output_dim),
            ("vae.latent_channels", self.vae.latent_channels, "dit.in_channels", dit.in_channels),
            ("dit.out_channels", dit.out_channels or dit.in_channels, "dit.in_channels", dit.in_channels),
        ):
            if width != wanted:
                return f"has {name} = {width} where {other} is {wanted}"
        if connector.num_layers > llm.num_hidden_layers + 1:
            return f"has diffusion_connector.num_layers = {connector.num_layers}, more than llm has hidden states"
        if self.image_size % tower.patch_size:
            return f"has image_size = {self.image_size}, no multiple of the vision tower's {tower.patch_size} pixels"
        if self.image_tokens > _IMAGE_TOKENS:
            return f"has image_size = {self.image_size}, which makes more than {_IMAGE_TOKENS} tokens of an image"
        if any(token >= llm.vocab_size for token in self.eos_token_ids):
            return f"has eos_token_ids = {list(self.eos_token_ids)}, beyond llm.vocab_size = {llm.vocab_size}"
        return ""

    @classmethod
    def from_upstream(
        cls,
        config: Mapping[str, Any],
        shapes: Mapping[str, tuple[int, ...]],
        *,
        dit: Mapping[str, Any] | None = None,
        vae: Mapping[str, Any] | None = None,
        scheduler: Mapping[str, Any] | None = None,
        generation_config: Mapping[str, Any] | None = None,
        source: str = "config.json",
        sources: Mapping[str, str] | None = None,
    ) -> MobileOConfig:
        """Puts the configuration together from what upstream's checkpoint has.

        Args:
            config: its `config.json`, which describes the language model and little else.
            shapes: tensor name to shape; widths that upstream fixes in its source are read from here.
            dit, vae, scheduler: diffusers' configurations where the checkpoint brings them; by default those of
                the repository that the checkpoint names.
            generation_config: for the tokens that end an answer.
            source: the file, for errors.
            sources: those of `dit`, `vae`, `scheduler` and `generation_config`, by these names.

        Raises:
            ConfigError: a key is missing, or a value makes no sense; or the DiT's configuration is neither there nor
                known.
        """
        sources = {name: name for name in ("dit", "vae", "scheduler", "generation_config")} | dict(sources or {})
        by_component: dict[str, dict[str, tuple[int, ...]]] = {name: {} for name in COMPONENTS}
        for name, shape in shapes.items():
            if (found := component_of(name)) is not None:
                by_component[found[0]][found[1]] = tuple(shape)
        vision, projector = by_component["vision_tower"], by_component["mm_projector"]
        main = _UpstreamConfig.from_dict(config, source)
        vocab_size = by_component["llm"].get("embed_tokens.weight", (config.get("vocab_size", 0),))[0]
        llm = qwen2.config_from_upstream(config, vocab_size, source)
        tower = fastvithd.config_from_shapes(vision) if vision else FastViTHDConfig()
        states = main.vlm_num_layers or 4
        connector = by_component["diffusion_connector"]
        dit_config = _dit_config(main, source) if dit is None else SanaConfig.from_dict(dit, sources["dit"])
        schedule = _SchedulerConfig.from_dict(scheduler or {}, sources["scheduler"])
        ends = _GenerationConfig.from_dict(generation_config or {}, sources["generation_config"]).eos_token_id
        result = cls(
            vision_tower=tower,
            mm_projector=(
                MMProjectorConfig.from_dict(
                    {
                        "input_dim": projector["0.weight"][1],
                        "hidden_dim": projector["0.weight"][0],
                        "output_dim": projector["2.weight"][0],
                    },
                    "the configuration that the tensors of mm_projector tell",
                )
                if projector
                else MMProjectorConfig(tower.output_dim, llm.hidden_size, llm.hidden_size)
            ),
            llm=llm,
            diffusion_connector=(
                mcp.config_from_shapes(connector, states)
                if connector
                else MCPConfig(llm.hidden_size, output_dim=dit_config.caption_channels, num_layers=states)
            ),
            dit=dit_config,
            vae=DCAEConfig.from_dict(vae or {}, sources["vae"]),
            image_size=_image_size(main, source),
            eos_token_ids=_token_ids(main.eos_token_id if ends is None else ends),
            flow_shift=3.0 if schedule.flow_shift is None else schedule.flow_shift,
            num_train_timesteps=schedule.num_train_timesteps,
        )
        if vision or not projector:  # else the tower, which a part of a model lacks, is a guess
            result.check(source)
        return result


@dataclass(frozen=True)
class _UpstreamConfig(Config):
    """What we read of upstream's `config.json` beside the language model's dimensions."""

    vlm_num_layers: CountOrNone | None = None
    eos_token_id: TokenId | tuple[TokenId, ...] | None = None
    mm_vision_tower: str | None = None
    diffusion_name_or_path: str | None = None


@dataclass(frozen=True)
class _GenerationConfig(Config):
    eos_token_id: TokenId | tuple[TokenId, ...] | None = None


@dataclass(frozen=True)
class _SchedulerConfig(Config):
    flow_shift: FlowShift | None = None
    num_train_timesteps: Timesteps = 1000


def _dit_config(config: _UpstreamConfig, source: str) -> SanaConfig:
    repository = config.diffusion_name_or_path or ""
    published = _PUBLISHED_DITS.get(repository.rstrip("/").rsplit("/", 1)[-1])
    if published is None:
        raise ConfigError(
            f"{source} names {shown(repository)} for the DiT's configuration, which is not known here; put its "
            "'transformer', 'vae' and 'scheduler' configurations in a folder 'diffusion' beside it."
        )
    return published


def _image_size(config: _UpstreamConfig, source: str) -> int:
    """The tower's resolution is the number at the end of its name: mobileclip_l_1024."""
    found = re.search(r"_([1-9][0-9]{1,3})$", config.mm_vision_tower or "")
    if found is None:
        raise ConfigError(f"{source} lacks a 'mm_vision_tower' that ends in the image size, so it is not Mobile-O's.")
    return int(found[1])


def _token_ids(value: int | tuple[int, ...] | None) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else () if value is None else (value,)


def block_counts(component: str, config: MobileOConfig) -> dict[str, tuple[str, int]]:
    """How many blocks each list of a component has.

    Returns:
        by the start of their tensors' names: what decides on the number, as "num_layers = 3", and the number.
    """
    if component == "vision_tower":
        return config.vision_tower.blocks()
    if component.startswith("vae_"):
        return config.vae.blocks(component.removeprefix("vae_"))
    lists = {
        "llm": ("layers.", "num_hidden_layers", config.llm.num_hidden_layers),
        "diffusion_connector": (
            "sequence_refiners.",
            "num_refinement_blocks",
            config.diffusion_connector.num_refinement_blocks,
        ),
        "dit": ("transformer_blocks.", "num_layers", config.dit.num_layers),
    }
    if component not in lists:
        return {}
    start, key, count = lists[component]
    return {start: (f"{key} = {count}", count)}


def component_of(name: str) -> tuple[str, str] | None:
    """The component of a tensor of upstream's checkpoint and its name there; None where it belongs to none."""
    for component, prefix in _PREFIXES.items():
        if name.startswith(prefix):
            rest = name[len(prefix) :]
            return (component, rest) if component != "llm" or rest.startswith(_LLM_PARTS) else None
    return None


def upstream_name(component: str, name: str) -> str:
    """What a tensor or layer of a component is called in upstream's checkpoint; `component_of` the other way round."""
    return f"{_PREFIXES[component]}{name}".rstrip(".")


def build(component: str, config: MobileOConfig) -> nn.Module:
    """The network of a component in evaluation mode, with random weights that are not computed yet."""
    llm = config.llm
    module: nn.Module = {
        "vision_tower": lambda: FastViTHD(config.vision_tower),
        "mm_projector": lambda: MMProjector(config.mm_projector),
        "llm": lambda: Qwen2Model(llm),
        "lm_head": lambda: nn.Linear(llm.hidden_size, llm.vocab_size, bias=False),
        "diffusion_connector": lambda: MobileConditioningProjector(config.diffusion_connector),
        "dit": lambda: SanaTransformer(config.dit),
        "vae_encoder": lambda: Encoder(config.vae),
        "vae_decoder": lambda: Decoder(config.vae),
    }[component]()
    return module.eval()


def sanitize(component: str, weights: dict[str, mx.array], config: MobileOConfig) -> dict[str, mx.array]:
    """Upstream's tensors of a component, by the names of `component_of`, as our module names and lays them out."""
    if component.startswith("vae_"):
        return dc_ae.sanitize(weights, config.vae.attention_head_dim)
    if component == "lm_head":
        return weights
    return {
        "vision_tower": fastvithd.sanitize,
        "mm_projector": fastvithd.sanitize_projector,
        "llm": qwen2.sanitize,
        "diffusion_connector": mcp.sanitize,
        "dit": sana.sanitize,
    }[component](weights)


def to_upstream(component: str, weights: dict[str, mx.array], config: MobileOConfig) -> dict[str, mx.array]:
    """`sanitize` undone: our tensors of a component as upstream names and lays them out, without its prefix.

    What `sanitize` drops is not there; see `fastvithd.unused`.
    """
    if component.startswith("vae_"):
        return dc_ae.to_upstream(weights)
    if component == "dit":
        return sana.to_upstream(weights, config.dit.patch_size)
    if component in ("llm", "lm_head"):
        return weights
    return {
        "vision_tower": fastvithd.to_upstream,
        "mm_projector": fastvithd.projector_to_upstream,
        "diffusion_connector": mcp.to_upstream,
    }[component](weights)
