"""Weights of Mask2Former from the files that exist, under our names: each of our parameters says where it comes from.

Three layouts are known by a name in them:

- ours, as `python -m benchmarks.convert_detector` writes it;
- that of transformers (`facebook/mask2former-swin-small-coco-instance`);
- that of OpenMMLab's mmdet 2 (the file that GenEval uses, `mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_...pth`), and
  of mmdet 3, which renamed a few layers. Such a file is a pickle, which is never opened here; the command above makes
  safetensors of it.

Beside names, three things differ: which parameters are joined, the order of a convolution's dimensions, and the order
in which patches are merged: the paper's code takes quarter by quarter, mmdet (`nn.Unfold`) channel by channel.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mlx.core as mx

from ...checkpoints.modules import named_parameters, preserve_rng_state
from ...checkpoints.tensor_files import TensorInfo, check_dtypes, read_header, read_headers, read_tensors
from ...errors import CheckpointError, format_names
from ...files import is_file, is_folder
from ...ops.conv import conv_weight
from .mask2former import Mask2Former, Mask2FormerConfig

FILE = "mask2former.safetensors"  # in a folder of detectors' weights

Weights = dict[str, mx.array]


@dataclass(frozen=True)
class Source:
    """Where one of our parameters comes from: the names of a file's tensors, and what makes one of them."""

    names: tuple[str, ...]
    make: Callable[..., mx.array]


def same(weight: mx.array) -> mx.array:
    return weight


def joined(*weights: mx.array) -> mx.array:
    return mx.concatenate([*weights])


def third(part: int, weight: mx.array) -> mx.array:
    """Queries', keys' or values' rows of a joined projection."""
    rows = weight.shape[0] // 3
    return weight[part * rows : (part + 1) * rows]


def quarters(weight: mx.array) -> mx.array:
    """What patches are merged with, for (..., 4 C) inputs that are sorted by channel, to inputs sorted by quarter."""
    by_channel = weight.reshape(*weight.shape[:-1], -1, 4)[..., mx.array([0, 2, 1, 3])]  # ours goes down the columns
    return by_channel.swapaxes(-1, -2).reshape(weight.shape)


# Our names to another layout's: regular expressions with the first that matches, what it becomes (several where the
# file has more tensors), and what is done besides.
_Rule = tuple[str, tuple[str, ...], Callable[..., mx.array]]


def _rule(pattern: str, *names: str, make: Callable[..., mx.array] = same) -> _Rule:
    return pattern, names, make


_HF_BACKBONE = "model.pixel_level_module.encoder"
_HF_PIXELS = "model.pixel_level_module.decoder"
_HF_QUERIES = "model.transformer_module"

TRANSFORMERS: tuple[_Rule, ...] = (
    _rule(r"backbone\.patch_embed\.projection\.(.+)", rf"{_HF_BACKBONE}.embeddings.patch_embeddings.projection.\1"),
    _rule(r"backbone\.patch_embed\.norm\.(.+)", rf"{_HF_BACKBONE}.embeddings.norm.\1"),
    _rule(
        r"backbone\.stages\.(.+)\.attention\.qkv\.(.+)",
        *(rf"{_HF_BACKBONE}.encoder.layers.\1.attention.self.{part}.\2" for part in ("query", "key", "value")),
        make=joined,
    ),
    _rule(
        r"backbone\.stages\.(.+)\.attention\.proj\.(.+)", rf"{_HF_BACKBONE}.encoder.layers.\1.attention.output.dense.\2"
    ),
    _rule(r"backbone\.stages\.(.+\.attention)\.(rel.+)", rf"{_HF_BACKBONE}.encoder.layers.\1.self.\2"),
    _rule(r"backbone\.stages\.(.+)\.norm1\.(.+)", rf"{_HF_BACKBONE}.encoder.layers.\1.layernorm_before.\2"),
    _rule(r"backbone\.stages\.(.+)\.norm2\.(.+)", rf"{_HF_BACKBONE}.encoder.layers.\1.layernorm_after.\2"),
    _rule(r"backbone\.stages\.(.+)\.fc1\.(.+)", rf"{_HF_BACKBONE}.encoder.layers.\1.intermediate.dense.\2"),
    _rule(r"backbone\.stages\.(.+)\.fc2\.(.+)", rf"{_HF_BACKBONE}.encoder.layers.\1.output.dense.\2"),
    _rule(r"backbone\.stages\.(.+\.downsample\..+)", rf"{_HF_BACKBONE}.encoder.layers.\1"),
    *(
        _rule(rf"backbone\.norms\.{stage}\.(.+)", rf"{_HF_BACKBONE}.hidden_states_norms.stage{stage + 1}.\1")
        for stage in range(4)
    ),
    _rule(r"pixel_decoder\.input_projections\.(\d+)\.conv\.(.+)", rf"{_HF_PIXELS}.input_projections.\1.0.\2"),
    _rule(r"pixel_decoder\.input_projections\.(\d+)\.norm\.(.+)", rf"{_HF_PIXELS}.input_projections.\1.1.\2"),
    _rule(r"pixel_decoder\.lateral\.conv\.(.+)", rf"{_HF_PIXELS}.adapter_1.0.\1"),
    _rule(r"pixel_decoder\.lateral\.norm\.(.+)", rf"{_HF_PIXELS}.adapter_1.1.\1"),
    _rule(r"pixel_decoder\.output\.conv\.(.+)", rf"{_HF_PIXELS}.layer_1.0.\1"),
    _rule(r"pixel_decoder\.output\.norm\.(.+)", rf"{_HF_PIXELS}.layer_1.1.\1"),
    _rule(r"pixel_decoder\.layers\.(\d+)\.attention\.(.+)", rf"{_HF_PIXELS}.encoder.layers.\1.self_attn.\2"),
    _rule(r"pixel_decoder\.layers\.(\d+)\.norm1\.(.+)", rf"{_HF_PIXELS}.encoder.layers.\1.self_attn_layer_norm.\2"),
    _rule(r"pixel_decoder\.layers\.(\d+)\.norm2\.(.+)", rf"{_HF_PIXELS}.encoder.layers.\1.final_layer_norm.\2"),
    _rule(r"pixel_decoder\.layers\.(\d+)\.(fc.+)", rf"{_HF_PIXELS}.encoder.layers.\1.\2"),
    _rule(r"pixel_decoder\.(level_embed|mask_projection\..+)", rf"{_HF_PIXELS}.\1"),
    _rule(r"decoder\.query_feat\.(.+)", rf"{_HF_QUERIES}.queries_features.\1"),
    _rule(r"decoder\.query_embed\.(.+)", rf"{_HF_QUERIES}.queries_embedder.\1"),
    _rule(r"decoder\.level_embed\.(.+)", rf"{_HF_QUERIES}.level_embed.\1"),
    *(
        _rule(
            rf"decoder\.layers\.(\d+)\.cross_attention\.{letter}_proj\.(.+)",
            rf"{_HF_QUERIES}.decoder.layers.\1.cross_attn.in_proj_\2",
            make=partial(third, part),
        )
        for part, letter in enumerate("qkv")
    ),
    _rule(r"decoder\.layers\.(\d+)\.cross_attention\.(.+)", rf"{_HF_QUERIES}.decoder.layers.\1.cross_attn.\2"),
    _rule(r"decoder\.layers\.(\d+)\.self_attention\.(.+)", rf"{_HF_QUERIES}.decoder.layers.\1.self_attn.\2"),
    _rule(r"decoder\.layers\.(\d+)\.norm1\.(.+)", rf"{_HF_QUERIES}.decoder.layers.\1.cross_attn_layer_norm.\2"),
    _rule(r"decoder\.layers\.(\d+)\.norm2\.(.+)", rf"{_HF_QUERIES}.decoder.layers.\1.self_attn_layer_norm.\2"),
    _rule(r"decoder\.layers\.(\d+)\.norm3\.(.+)", rf"{_HF_QUERIES}.decoder.layers.\1.final_layer_norm.\2"),
    _rule(r"decoder\.layers\.(\d+)\.(fc.+)", rf"{_HF_QUERIES}.decoder.layers.\1.\2"),
    _rule(r"decoder\.norm\.(.+)", rf"{_HF_QUERIES}.decoder.layernorm.\1"),
    _rule(
        r"decoder\.mask_embed\.(\d)\.(.+)", rf"{_HF_QUERIES}.decoder.mask_predictor.mask_embedder.\1.0.\2"
    ),  # ".0" is the linear layer of a block
    _rule(r"decoder\.class_embed\.(.+)", r"class_predictor.\1"),
)

_MM = "panoptic_head"

OPENMMLAB: tuple[_Rule, ...] = (
    _rule(r"(backbone\.patch_embed\..+)", r"\1"),
    _rule(r"(backbone\.stages\..+)\.attention\.(.+)", r"\1.attn.w_msa.\2"),
    _rule(r"(backbone\.stages\..+\.norm[12]\..+)", r"\1"),
    _rule(r"(backbone\.stages\..+)\.fc1\.(.+)", r"\1.ffn.layers.0.0.\2"),
    _rule(r"(backbone\.stages\..+)\.fc2\.(.+)", r"\1.ffn.layers.1.\2"),
    _rule(r"(backbone\.stages\..+\.downsample\..+)", r"\1", make=quarters),
    _rule(r"backbone\.norms\.(.+)", r"backbone.norm\1"),
    _rule(r"pixel_decoder\.input_projections\.(\d+)\.conv\.(.+)", rf"{_MM}.pixel_decoder.input_convs.\1.conv.\2"),
    _rule(r"pixel_decoder\.input_projections\.(\d+)\.norm\.(.+)", rf"{_MM}.pixel_decoder.input_convs.\1.gn.\2"),
    _rule(r"pixel_decoder\.(lateral|output)\.conv\.(.+)", rf"{_MM}.pixel_decoder.\1_convs.0.conv.\2"),
    _rule(r"pixel_decoder\.(lateral|output)\.norm\.(.+)", rf"{_MM}.pixel_decoder.\1_convs.0.gn.\2"),
    _rule(r"pixel_decoder\.layers\.(\d+)\.attention\.(.+)", rf"{_MM}.pixel_decoder.encoder.layers.\1.attentions.0.\2"),
    _rule(r"pixel_decoder\.layers\.(\d+)\.norm1\.(.+)", rf"{_MM}.pixel_decoder.encoder.layers.\1.norms.0.\2"),
    _rule(r"pixel_decoder\.layers\.(\d+)\.norm2\.(.+)", rf"{_MM}.pixel_decoder.encoder.layers.\1.norms.1.\2"),
    _rule(r"pixel_decoder\.layers\.(\d+)\.fc1\.(.+)", rf"{_MM}.pixel_decoder.encoder.layers.\1.ffns.0.layers.0.0.\2"),
    _rule(r"pixel_decoder\.layers\.(\d+)\.fc2\.(.+)", rf"{_MM}.pixel_decoder.encoder.layers.\1.ffns.0.layers.1.\2"),
    _rule(r"pixel_decoder\.level_embed", rf"{_MM}.pixel_decoder.level_encoding.weight"),
    _rule(r"pixel_decoder\.mask_projection\.(.+)", rf"{_MM}.pixel_decoder.mask_feature.\1"),
    _rule(r"decoder\.(query_feat|query_embed|level_embed)\.(.+)", rf"{_MM}.\1.\2"),
    *(
        _rule(
            rf"decoder\.layers\.(\d+)\.{kind}_attention\.{letter}_proj\.(.+)",
            rf"{_MM}.transformer_decoder.layers.\1.attentions.{place}.attn.in_proj_\2",
            make=partial(third, part),
        )
        for place, kind in enumerate(("cross", "self"))
        for part, letter in enumerate("qkv")
    ),
    *(
        _rule(
            rf"decoder\.layers\.(\d+)\.{kind}_attention\.(.+)",
            rf"{_MM}.transformer_decoder.layers.\1.attentions.{place}.attn.\2",
        )
        for place, kind in enumerate(("cross", "self"))
    ),
    *(
        _rule(
            rf"decoder\.layers\.(\d+)\.norm{place + 1}\.(.+)",
            rf"{_MM}.transformer_decoder.layers.\1.norms.{place}.\2",
        )
        for place in range(3)
    ),
    _rule(r"decoder\.layers\.(\d+)\.fc1\.(.+)", rf"{_MM}.transformer_decoder.layers.\1.ffns.0.layers.0.0.\2"),
    _rule(r"decoder\.layers\.(\d+)\.fc2\.(.+)", rf"{_MM}.transformer_decoder.layers.\1.ffns.0.layers.1.\2"),
    _rule(r"decoder\.norm\.(.+)", rf"{_MM}.transformer_decoder.post_norm.\1"),
    *(_rule(rf"decoder\.mask_embed\.{place}\.(.+)", rf"{_MM}.mask_embed.{2 * place}.\1") for place in range(3)),
    _rule(r"decoder\.class_embed\.(.+)", rf"{_MM}.cls_embed.\1"),
)

# What files hold besides: the losses' class weights, what follows from the window's size, and a norm that no map of a
# backbone goes through.
_NOT_USED = re.compile(
    r".*\.relative_position_index|.*criterion\.empty_weight|.*\.loss_cls\.class_weight|.*encoder\.layernorm\..+"
)
# New names of the same tensors to those of the tables.
_RENAMED = (
    (re.compile(r"(pixel_level_module\.encoder)\.swin\."), r"\1."),  # transformers 5
    (re.compile(r"(pixel_decoder\.encoder\.layers\.\d+)\.self_attn\."), r"\1.attentions.0."),  # mmdet 3, and below
    (re.compile(r"(transformer_decoder\.layers\.\d+)\.cross_attn\."), r"\1.attentions.0."),
    (re.compile(r"(transformer_decoder\.layers\.\d+)\.self_attn\."), r"\1.attentions.1."),
    (re.compile(r"((?:encoder|transformer_decoder)\.layers\.\d+)\.ffn\."), r"\1.ffns.0."),
)
_CONVOLUTION = re.compile(r".*(conv|projection)\.weight")


def load_mask2former(path: str | Path, config: Mask2FormerConfig | None = None) -> Mask2Former:
    """The network with its weights, which are read from disk when they are first used.

    Args:
        path: a safetensors file; or a folder that has FILE, or else upstream's `model.safetensors` or its shards.
        config: by default GenEval's detector, Swin-S for the 80 classes of COCO.

    Raises:
        CheckpointError: there is none, or its tensors are not those of the network; all that are missing, unexpected or
            of another shape are listed.
    """
    path = Path(path)
    with preserve_rng_state():
        network = Mask2Former(config or Mask2FormerConfig())
    infos = find_tensors(path)
    check_dtypes(path, infos)
    weights = ours(read_tensors(infos), shapes(network), path)
    network.load_weights([(name, weight.astype(mx.float32)) for name, weight in weights.items()])
    network.eval()
    return network


def find_tensors(path: Path) -> dict[str, TensorInfo]:
    """The tensors that are used, by the names of the tables; raises as `load_mask2former` does."""
    if path.suffix in (".pth", ".pt", ".bin"):
        raise CheckpointError(
            f"'{path}' is a pickle, which can run code when it is opened; make safetensors of it by "
            f"`python -m benchmarks.convert_detector {path.name} --out DIR`."
        )
    if is_folder(path) and not is_file(path / FILE):
        infos = read_headers(path)
    else:
        infos = read_header(path / FILE if is_folder(path) else path)
    return {name: infos[key] for name, key in used(infos).items()}


def used(names: Iterable[str]) -> dict[str, str]:
    """The names of the tables to those that a file has for them, without what is not used."""
    found = {}
    for key in names:
        name = key
        for pattern, replacement in _RENAMED:
            name = pattern.sub(replacement, name)
        if not _NOT_USED.fullmatch(name):
            found[name] = key
    return found


def parameters(network: Mask2Former) -> Weights:
    """The network's weights by our names, as `FILE` holds them."""
    return named_parameters(network)


def shapes(network: Mask2Former) -> dict[str, tuple[int, ...]]:
    """Our parameters' shapes, by name."""
    return {name: array.shape for name, array in parameters(network).items()}


def ours(stored: Mapping[str, mx.array], expected: Mapping[str, tuple[int, ...]], path: Path) -> Weights:
    """The weights under our names and in our layout, whichever of the three the file has.

    Args:
        stored: what `find_tensors` found.
        expected: what `shapes` says.
        path: where they come from, for the error.

    Raises:
        CheckpointError: see `load_mask2former`.
    """
    weights: Weights = {}
    missing, misshaped, left = set(), [], set(stored)
    for name, source in sources(stored, expected).items():
        left.difference_update(source.names)
        absent = [part for part in source.names if part not in stored]
        missing.update(absent)
        if absent:
            continue
        parts = [stored[part] for part in source.names]
        try:
            weight = source.make(*parts)
        except (ValueError, IndexError):
            weight = None
        if weight is not None and weight.shape == expected[name]:
            weights[name] = weight
        else:
            misshaped += [f"{part} {stored[part].shape} for {name} {expected[name]}" for part in source.names]
    problems = (("missing", missing), ("unexpected", left), ("of the wrong shape", misshaped))
    if any(names for _, names in problems):
        listed = "; ".join(f"{kind}: {format_names(names)}" for kind, names in problems if names)
        raise CheckpointError(f"'{path}' is no Mask2Former with Swin-S for COCO's instances ({listed}).")
    return weights


def sources(stored: Iterable[str], names: Iterable[str]) -> dict[str, Source]:
    """Where each of our parameters comes from, in a file with the names `stored`."""
    stored = list(stored)
    if any(name.startswith(f"{_MM}.") for name in stored):
        return {name: source(name, OPENMMLAB) for name in names}
    if any(name.startswith("model.") for name in stored):
        return {name: source(name, TRANSFORMERS) for name in names}
    return {name: Source((name,), same) for name in names}


def source(name: str, rules: Iterable[_Rule]) -> Source:
    """Where one of our parameters comes from, by the table of a layout."""
    for pattern, names, make in rules:
        if match := re.fullmatch(pattern, name):
            make = conv_weight if _CONVOLUTION.fullmatch(name) else make
            return Source(tuple(match.expand(part) for part in names), make)
    raise AssertionError(f"{name} has no source")
