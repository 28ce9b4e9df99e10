"""From prompts and images to what the diffusion transformer reads. There is one way, for inference and for training.

    images    -- vision_tower, mm_projector -->  image features  (tokens, hidden_size) each
    prompts   -- embed_prompts              -->  embeddings      (B, T, hidden_size), images in their places
              -- llm                        -->  hidden states   the last `num_layers`, each (B, T, hidden_size)
              -- diffusion_connector        -->  TextInput       (B, T, caption_channels)

See Mobile-O (arXiv 2602.20161), section 3.1. The functions take any object that has the networks by these names: the
`Parts` of a model, or the module that is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import mlx.core as mx
import numpy as np

from .array_cache import image_key, prompt_key
from .images import preprocess
from .models.mcp import MobileConditioningProjector
from .models.qwen2 import Qwen2Model
from .models.sana_cross_attention import TextInput
from .not_finite import check_finite
from .ops.finite import all_finite
from .prompts import IMAGE_TOKEN_INDEX

if TYPE_CHECKING:
    from PIL import Image

    from .parts import Parts

IGNORED_LABEL = -100


class TextNetworks(Protocol):
    """What `Parts` and the module that is trained have in common."""

    @property
    def llm(self) -> Qwen2Model: ...

    @property
    def diffusion_connector(self) -> MobileConditioningProjector: ...


@dataclass(frozen=True)
class MultimodalInputs:
    """A batch of embeddings in which every image has its place.

    Attributes:
        inputs_embeds: (B, T, hidden_size); rows shorter than the longest end in zeros.
        attention_mask: (B, T) bool, True where a row has a token.
        labels: (B, T) int, or None where none were given; images and padding are `IGNORED_LABEL`.
    """

    inputs_embeds: mx.array
    attention_mask: np.ndarray
    labels: np.ndarray | None

    @property
    def padding_mask(self) -> mx.array | None:
        """`attention_mask` as MLX's, or None where no row is padded."""
        return None if self.attention_mask.all() else mx.array(self.attention_mask)


def embed_prompts(
    embed_tokens: Callable[[mx.array], mx.array],
    input_ids: Sequence[Sequence[int]] | np.ndarray,
    image_features: Sequence[mx.array] = (),
    *,
    attention_mask: np.ndarray | None = None,
    labels: Sequence[Sequence[int]] | np.ndarray | None = None,
) -> MultimodalInputs:
    """Embeds token ids and puts the features of an image wherever an id is `IMAGE_TOKEN_INDEX`.

    Args:
        embed_tokens: ids (N,) to embeddings (N, hidden_size).
        input_ids: B rows of ids.
        image_features: each (tokens, hidden_size), in the order of their places in all rows.
        attention_mask: (B, T) bool; what is False is padding and is left out before images are put in.
        labels: (B, T), the id to be predicted at each position.

    Raises:
        ValueError: there are more or fewer images than places.
    """
    rows = _without_padding(input_ids, attention_mask)
    ids = np.concatenate(rows)
    is_image = ids == IMAGE_TOKEN_INDEX
    if is_image.sum() != len(image_features):
        raise ValueError(
            f"the prompts have places for {is_image.sum()} images, and there are {len(image_features)} images"
        )
    # Every position is a row of one table: the embeddings of all words, the features of all images, a row of zeros.
    table = mx.concatenate([embed_tokens(mx.array(ids[~is_image])), *image_features])
    table = mx.concatenate([table, mx.zeros((1, table.shape[1]), table.dtype)])
    widths = np.ones(len(ids), int)  # positions of each id
    widths[is_image] = [features.shape[0] for features in image_features]
    first = np.empty(len(ids), int)  # and the first of its rows in the table
    first[~is_image] = np.arange(len(ids) - len(image_features))
    first[is_image] = (~is_image).sum() + np.cumsum(widths[is_image]) - widths[is_image]
    before = np.cumsum(widths) - widths
    flat = np.repeat(first - before, widths) + np.arange(widths.sum())
    lengths = np.array([part.sum() for part in np.split(widths, np.cumsum([len(row) for row in rows])[:-1])])
    mask = np.arange(lengths.max()) < lengths[:, None]

    def padded(values: np.ndarray, padding: int) -> np.ndarray:
        batch = np.full(mask.shape, padding)
        batch[mask] = values
        return batch

    if labels is not None:
        targets = np.concatenate(_without_padding(labels, attention_mask))
        labels = padded(np.repeat(np.where(is_image, IGNORED_LABEL, targets), widths), IGNORED_LABEL)
    return MultimodalInputs(table[mx.array(padded(flat, table.shape[0] - 1))], mask, labels)


def _without_padding(rows: Sequence[Sequence[int]] | np.ndarray, mask: np.ndarray | None) -> list[np.ndarray]:
    arrays = [np.asarray(row) for row in rows]
    return arrays if mask is None else [row[np.asarray(keep, bool)] for row, keep in zip(arrays, mask, strict=True)]


def hidden_states(
    networks: TextNetworks, inputs: MultimodalInputs, *, last: int | None = None, mask_padding: bool = False
) -> list[mx.array]:
    """The language model's last hidden states, oldest first, each (B, T, hidden_size).

    Args:
        last: how many; by default those that the connector mixes.
        mask_padding: hide padding from padding too, as the original does. It makes no difference to the rest:
            attention looks back only.
    """
    count = networks.diffusion_connector.layer_weights.shape[0] if last is None else last
    mask = mx.array(inputs.attention_mask) if mask_padding else None
    return networks.llm.hidden_states(inputs.inputs_embeds, count, attention_mask=mask)


def text_input(
    networks: TextNetworks,
    states: Sequence[mx.array],
    *,
    mask: mx.array | None = None,
    dropped: mx.array | None = None,
    connect_padding: bool = False,
) -> TextInput:
    """What the diffusion transformer reads of hidden states.

    Args:
        states: of `hidden_states`.
        mask: (B, T) bool, False where a row is padded.
        dropped: (B,) bool, True where zero hidden states take the place of a row's.
        connect_padding: whether padding takes part in the connector, as in the original, which has no mask there.
    """
    if dropped is not None:
        keep = mx.logical_not(dropped)[:, None, None]
        states = [state * keep.astype(state.dtype) for state in states]
    return TextInput(networks.diffusion_connector(states, None if connect_padding else mask), mask)


def unconditional_input(networks: TextNetworks, states: Sequence[mx.array]) -> TextInput:
    """The text of guidance's unconditional half, (1, T, caption_channels).

    As in the original it is zero hidden states sent through the connector, which are not zero afterwards.

    Args:
        states: of the conditional half, (B, T, hidden_size): their length counts.
    """
    connector = networks.diffusion_connector
    return TextInput(connector([mx.zeros_like(state[:1]) for state in states]), halo=connector.halo)


# With the networks of a model, phase by phase, and with what was computed before.


def encode_image(parts: Parts, image: Image.Image | mx.array) -> mx.array:
    """An image's features for the language model, (B, image_tokens, hidden_size).

    Args:
        image: a Pillow image, or pixel values (B, image_size, image_size, 3) in [0, 1].
    """
    pixels = image if isinstance(image, mx.array) else preprocess(image, parts.config.image_size)
    return parts.mm_projector(parts.vision_tower.encode(pixels))


def read_images(parts: Parts, images: Sequence[Image.Image]) -> list[mx.array]:
    """The features of each image, (image_tokens, hidden_size), evaluated.

    Raises:
        NotFiniteError: there is NaN or infinity among them.
    """
    if images:
        parts.enter("vision")
    names = ("vision_tower", "mm_projector")
    return [
        parts.cached(("image", key), names, lambda image=image: [_checked_features(parts, image)])[0]  # type: ignore[misc]
        for image, key in zip(images, image_keys(parts, images), strict=True)
    ]


def _checked_features(parts: Parts, image: Image.Image) -> mx.array:
    features = encode_image(parts, image)[0]
    if not all_finite(features).item():
        tokens = parts.vision_tower.encode(preprocess(image, parts.config.image_size))
        check_finite(parts, "vision_tower", tokens)
        check_finite(parts, "mm_projector", features)
    return features


def image_keys(parts: Parts, images: Sequence[Image.Image]) -> list[str]:
    """What images are cached by; empty strings where nothing is kept, as hashing a large image takes time."""
    return [image_key(image) if parts.keep_loaded else "" for image in images]


def read_prompts(
    parts: Parts, prompts: Sequence[list[int]], images: Sequence[Image.Image] = ()
) -> list[list[mx.array]]:
    """The `hidden_states` of each prompt, (1, T, hidden_size), evaluated. Where all are cached, no network is loaded.

    The phase is "condition" afterwards.

    Args:
        prompts: token ids, `IMAGE_TOKEN_INDEX` in the places of the images.
        images: the same for every prompt.

    Raises:
        NotFiniteError: there is NaN or infinity among them, or in the features of an image.
    """
    names = ("llm", *(("vision_tower", "mm_projector") if images else ()))
    keys = [("states", *prompt_key(ids, image_keys(parts, images))) for ids in prompts]
    known = all(parts.find(key, names) is not None for key in keys)
    features = [] if known else read_images(parts, images)
    parts.enter("condition")

    def read(ids: list[int]) -> list[mx.array]:
        states = hidden_states(parts, embed_prompts(parts.llm.embed_tokens, [ids], features))
        check_finite(parts, "llm", *states)
        return states

    return [
        parts.cached(key, names, lambda ids=ids: read(ids))  # type: ignore[misc]
        for key, ids in zip(keys, prompts, strict=True)
    ]
