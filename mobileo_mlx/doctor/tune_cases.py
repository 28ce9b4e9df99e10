"""What is tuned: the operations of a model that have several forms, with the shapes that they have in it.

Each case runs a layer, or a network, of the production code on random numbers. Weights and maps have the model's sizes,
and a network as few blocks as show what a form does.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn
from mobileo_weights import manifest, upstream_config

from ..checkpoints import precision
from ..checkpoints.modules import preserve_rng_state
from ..checkpoints.quantize import GROUP_SIZE, PRECISIONS, QuantizedLinear
from ..models.dc_ae import Decoder
from ..models.mobileo import MobileOConfig, build
from ..models.sana import SanaTransformer
from ..models.sana_cross_attention import TextInput
from ..models.sana_prepared import PreparedSana
from ..ops import backend, bands, forms
from ..ops.conv import Conv2d, UpsampledConv2d

M = TypeVar("M", bound=nn.Module)

# Rows that meet a quantized layer of the language model: of a prompt, an image, a question about one. A CPU multiplies
# densely from some rows on, and takes minutes for many the other way.
ROWS, CPU_ROWS = (16, 64, 128, 256, 512), (2, 4, 8)
PROMPT_TOKENS = 60
# On a CPU decoders of more elements in the largest map than this take too long.
CPU_MAP = 2**20


@dataclass(frozen=True)
class Case:
    """An operation for one shape.

    Attributes:
        operation: of `ops.forms`.
        title: what it is, for a reader.
        prepare: makes what computes the operation in the form that is forced meanwhile, on the same numbers each time.
        forms: to be compared, the default among them or not.
        tolerance: how many roundings the result may be off, beside one operation.
    """

    operation: str
    title: str
    prepare: Callable[[], Callable[[], mx.array]]
    forms: tuple[str, ...]
    tolerance: float = 1

    def candidates(self, default: str) -> tuple[str, ...]:
        """Whole maps only where memory is enough for them by default."""
        return tuple(form for form in self.forms if form != "whole" or default == "whole")


def standard_cases() -> Iterator[Case]:
    """Those of the 0.5B model at 512 px."""
    return model_cases(MobileOConfig.from_upstream(upstream_config("0.5B"), manifest("0.5B")))


def model_cases(config: MobileOConfig) -> Iterator[Case]:
    """Those of a model at its default size, in the precision that its components take on this device."""
    yield from _convolutions(config)
    yield from _quantized(config)
    yield from _blocks(config)
    yield from _maps(config)


def _convolutions(config: MobileOConfig) -> Iterator[Case]:
    """The decoder's: two in each residual block, one where a map becomes larger."""
    vae, (width, height) = config.vae, config.default_size
    dtype = precision.default_dtype("vae_decoder", mx.bfloat16)
    dims, kinds = vae.decoder_block_out_channels, vae.decoder_block_types
    plain = ("plain", "unfolded", *(("winograd",) if dtype == mx.float32 else ()))
    flipped = ("flipped",) if backend.backend() == "metal" else ()
    for i, dim in enumerate(dims):
        columns, rows = width >> i, height >> i
        layer: Callable[[], Conv2d]
        if kinds[i] == "ResBlock":
            layer = functools.partial(Conv2d, dim, dim, 3, padding=1, bias=False)
            yield _layer("conv3x3", layer, (rows, columns, dim), dtype, plain + flipped)
        if i > 0:
            layer = functools.partial(UpsampledConv2d, dim, dims[i - 1])
            yield _layer("upsample", layer, (rows, columns, dim), dtype, plain)


def _layer(
    operation: str,
    make: Callable[[], nn.Module],
    shape: tuple[int, int, int],
    dtype: mx.Dtype,
    candidates: tuple[str, ...],
) -> Case:
    rows, columns, dim = shape
    if backend.on_cpu():  # it sees bands there
        rows = min(rows, max(bands.ROWS, bands.CPU_BYTES // (columns * dim * dtype.size)))

    def prepare() -> Callable[[], mx.array]:
        apply = _built(make, dtype).window().apply  # what it makes of its weights is made once for all bands
        x = _noise((1, rows, columns, dim), dtype)
        return lambda: apply(x, 1)

    name = forms.dtype_name(dtype)
    return Case(operation, f"{dim} channels, {columns} pixels wide, {name}", prepare, candidates)


def _quantized(config: MobileOConfig) -> Iterator[Case]:
    """The linear layers of the language model and of the transformer's blocks, in the bits of the presets."""
    width, height = config.default_size
    tokens = width * height // config.size_multiple**2
    rows = {"llm": CPU_ROWS} if backend.on_cpu() else {"llm": ROWS, "dit": (tokens, 2 * tokens)}
    for component, counts in rows.items():
        dtype = precision.default_dtype(component, mx.bfloat16)
        with preserve_rng_state():
            layers = build(component, config).named_modules()  # their own weights are never computed
        blocks = ("layers.", "transformer_blocks.")
        shapes = {m.weight.shape for name, m in layers if type(m) is nn.Linear and name.startswith(blocks)}
        for bits in sorted({preset[component] for preset in PRECISIONS.values() if component in preset}):
            for outputs, inputs in sorted(shapes):
                for count in counts if inputs % GROUP_SIZE == 0 else ():
                    yield _product(outputs, inputs, bits, count, dtype)


def _product(outputs: int, width: int, bits: int, rows: int, dtype: mx.Dtype) -> Case:
    def prepare() -> Callable[[], mx.array]:
        linear = functools.partial(nn.Linear, width, outputs, bias=False)
        layer = _built(lambda: QuantizedLinear.from_linear(linear(), GROUP_SIZE, bits), dtype)
        x = _noise((1, rows, width), dtype)
        return lambda: layer(x)

    return Case("quantized", f"{width} to {outputs} channels, {bits} bits, {rows} rows", prepare, ("packed", "dense"))


def _blocks(config: MobileOConfig) -> Iterator[Case]:
    """A step with guidance, of two blocks."""
    dtype = precision.default_dtype("dit", mx.bfloat16)
    small = dataclasses.replace(config.dit, num_layers=2)

    def prepare() -> Callable[[], mx.array]:
        dit = _built(lambda: SanaTransformer(small), dtype)
        states = _noise((1, PROMPT_TOKENS, small.caption_channels), dtype)
        network = PreparedSana(dit, mx.array([900.0]), TextInput(states), TextInput(mx.zeros_like(states), halo=2))
        latents = _noise((1, small.sample_size, small.sample_size, small.in_channels), dtype)
        return lambda: network(0, latents, guided=True)

    yield Case("dit_block", f"a step of two blocks, {small.dim} channels", prepare, ("plain", "compiled"), tolerance=4)


def _maps(config: MobileOConfig) -> Iterator[Case]:
    """The decoder, at the default size and on a GPU at twice that."""
    vae, (width, height) = config.vae, config.default_size
    dtype = precision.default_dtype("vae_decoder", mx.bfloat16)
    if backend.on_cpu() and width * height * vae.decoder_block_out_channels[0] > CPU_MAP:
        return
    candidates = ("bands", "large bands") if backend.on_cpu() else forms.FORMS["map"]
    for times in (1,) if backend.on_cpu() else (1, 2):
        shape = (1, times * height // vae.factor, times * width // vae.factor, vae.latent_channels)

        def prepare(shape: tuple[int, ...] = shape) -> Callable[[], mx.array]:
            decoder = _built(lambda: Decoder(vae), dtype)
            latents = _noise(shape, dtype)
            return lambda: decoder.decode(latents)

        title = f"decoder, {times * width} x {times * height} pixels, {forms.dtype_name(dtype)}"
        yield Case("map", title, prepare, candidates, tolerance=4)


def _built(make: Callable[[], M], dtype: mx.Dtype) -> M:
    """A network in evaluation mode, of the same random weights each time."""
    with preserve_rng_state():
        mx.random.seed(0)
        module = make()
        module.eval()
        module.set_dtype(dtype)
        mx.eval(module.parameters())
    return module


def _noise(shape: tuple[int, ...], dtype: mx.Dtype) -> mx.array:
    x = mx.random.normal(shape, key=mx.random.key(len(shape))).astype(dtype)
    mx.eval(x)
    return x
