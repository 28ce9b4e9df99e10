"""Models at the published sizes with no download: the real configuration, and weights that are made up.

They go through the same loader, pipeline and networks as a checkpoint on disk; so latency, memory and the operations
are those of the real model, and the images and answers mean nothing.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn
from mobileo_weights import SIZES, manifest, upstream_config

from mobileo_mlx import MobileO
from mobileo_mlx.atomic import atomic_folder
from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.checkpoints.convert import write_config
from mobileo_mlx.checkpoints.modules import named_parameters, preserve_rng_state
from mobileo_mlx.checkpoints.precision import Dtypes, parse_dtypes
from mobileo_mlx.checkpoints.random_model import write_random_model
from mobileo_mlx.checkpoints.tensor_files import TensorInfo, write_tensors
from mobileo_mlx.errors import OptionError
from mobileo_mlx.models.mobileo import COMPONENTS, MobileOConfig, build
from mobileo_mlx.parts import Parts
from mobileo_mlx.prompts import IMAGE_TOKEN_INDEX, ask_prompt, encode_prompt, generate_prompt
from mobileo_mlx.tokenizer import Tokenizer

if TYPE_CHECKING:
    from PIL import Image

Weights = dict[str, mx.array]


def official_config(size: str) -> MobileOConfig:
    """The configuration of the official checkpoint "0.5b" or "1.5b".

    Raises:
        OptionError: another size.
    """
    name = size.upper()
    if name not in SIZES:
        raise OptionError(f"there is no size {size!r}; there are {', '.join(s.lower() for s in SIZES)}.")
    return MobileOConfig.from_upstream(upstream_config(name), manifest(name))


def published_size(config: MobileOConfig) -> str | None:
    """Which official checkpoint has networks of these dimensions; None where none has."""
    for size in (name.lower() for name in SIZES):
        official = official_config(size)
        if (official.dit, official.llm.hidden_size) == (config.dit, config.llm.hidden_size):
            return size
    return None


def tiny_config() -> MobileOConfig:
    """The configuration of the small random model, to try a benchmark out."""
    with tempfile.TemporaryDirectory() as folder:
        write_random_model(Path(folder) / "tiny")
        return Checkpoint.open(Path(folder) / "tiny").config


@dataclass(frozen=True)
class SyntheticCheckpoint(Checkpoint):
    """A checkpoint whose tensors come from a function instead of files.

    Attributes:
        read: the weights of a component, by our names; as random as a new network's by default.
    """

    read: Callable[[str], Weights] | None = None

    def load_tokenizer(self) -> Tokenizer:
        """A small byte-level tokenizer: its ids are all within the vocabulary, and `prompt_of` counts its tokens."""
        with tempfile.TemporaryDirectory() as folder:
            write_random_model(Path(folder) / "tiny")
            return Tokenizer.load(Path(folder) / "tiny")

    def _read(self, component: str) -> Weights:
        return (self.read or (lambda name: random_weights(name, self.config)))(component)


class ResidentParts(Parts):
    """Parts whose weights are computed while they load, so that they count as resident from then on."""

    def __getitem__(self, name: str) -> nn.Module:
        new = name not in self.loaded
        module = super().__getitem__(name)
        if new:
            for array in named_parameters(module).values():  # one by one: random bits take memory too
                mx.eval(array)
            mx.clear_cache()
        return module


def random_weights(component: str, config: MobileOConfig) -> Weights:
    """A new network's random weights, not computed yet."""
    with preserve_rng_state():
        return named_parameters(build(component, config))


def synthetic_model(
    config: MobileOConfig,
    *,
    read: Callable[[str], Weights] | None = None,
    evaluate: bool = True,
    dtype: Dtypes | mx.Dtype = None,
    quantize: dict[str, int] | None = None,
) -> MobileO:
    """A model of that configuration with made-up weights; see `SyntheticCheckpoint`.

    They are stored in float16, as far as the default dtype is concerned, and computed while they load, unless
    `evaluate` is False. `dtype` is one for all components, or what `parse_dtypes` takes.
    """
    checkpoint = SyntheticCheckpoint(
        name="random weights",
        location="random weights",
        path=Path("random-weights"),
        layout="mobileo-mlx",
        config=config,
        tied=False,
        _tensors={component: _infos(component, config) for component in COMPONENTS},
        read=read,
    )
    parts = ResidentParts if evaluate else Parts
    dtypes = parse_dtypes({"all": dtype} if isinstance(dtype, mx.Dtype) else dtype)
    return MobileO(parts(checkpoint, dtypes=dtypes, bits=quantize))


def write_checkpoint(config: MobileOConfig, folder: Path) -> None:
    """Writes a model of that configuration with random weights in float16, and the tokenizer of the small one.

    Raises:
        OutputError: the folder exists and is not empty, or can't be written, or the disk is full.
    """
    with atomic_folder(folder) as temporary:
        for component in COMPONENTS:
            arrays = {name: array.astype(mx.float16) for name, array in random_weights(component, config).items()}
            write_tensors(temporary / f"{component}.safetensors", arrays)
            mx.clear_cache()
        small = temporary / "small"
        write_random_model(small)
        (small / "tokenizer.json").rename(temporary / "tokenizer.json")
        shutil.rmtree(small)
        write_config(temporary, config, COMPONENTS)


def with_layers(config: MobileOConfig, layers: int, *, llm: bool = False) -> MobileOConfig:
    """The configuration with fewer blocks in the DiT, or with `llm` in the language model."""
    if llm:
        return dataclasses.replace(config, llm=dataclasses.replace(config.llm, num_hidden_layers=layers))
    return dataclasses.replace(config, dit=dataclasses.replace(config.dit, num_layers=layers))


def prompt_of(tokens: int, tokenizer: Tokenizer, *, first_word: str = "a") -> str:
    """A caption with which the whole request to draw takes that many tokens."""
    return _padded(tokens, first_word, lambda text: len(encode_prompt(tokenizer, generate_prompt(text))))


def question_of(tokens: int, tokenizer: Tokenizer, *, first_word: str = "what") -> str:
    """A question about one image with which that many tokens come after the image."""

    def after_image(text: str) -> int:
        ids = encode_prompt(tokenizer, ask_prompt(text))
        return len(ids) - 1 - ids.index(IMAGE_TOKEN_INDEX)

    return _padded(tokens, first_word, after_image)


def positions_before_image(tokenizer: Tokenizer) -> int:
    """How many tokens of a question's prompt come before the image."""
    return encode_prompt(tokenizer, ask_prompt("x")).index(IMAGE_TOKEN_INDEX)


def random_image(side: int, seed: int = 0) -> Image.Image:
    """A picture of noise, as large as the vision tower sees it."""
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


def _padded(tokens: int, text: str, count: Callable[[str], int]) -> str:
    """`text` with digits after it, each of which is a token of its own in every tokenizer of this family."""
    missing = tokens - count(text)
    if missing > 0:
        text += " " + "".join(str(i % 10) for i in range(missing))
        while count(text) > tokens:  # the space was a token too
            text = text[:-1]
    return text


def _infos(component: str, config: MobileOConfig) -> dict[str, TensorInfo]:
    file = Path(f"{component}.safetensors")
    shapes: dict[str, Sequence[int]] = {name: a.shape for name, a in random_weights(component, config).items()}
    return {name: TensorInfo(name, "F16", tuple(shape), file) for name, shape in shapes.items()}
