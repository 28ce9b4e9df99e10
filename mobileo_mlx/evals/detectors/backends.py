"""Detectors by name: what `mobileo-mlx eval geneval-score --backend` takes.

`mlx` and `transformers` compute the same two networks, from the same weights: Mask2Former finds objects, and CLIP names
their colours. What stands before and behind the networks is shared: pixels, thresholds, prompts.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...errors import OptionError
from ...files import is_folder
from ..detections import Detection, Detector
from .foreign import load_foreign

if TYPE_CHECKING:
    from PIL import Image

    from .colours import ColourClassifier
    from .mask2former import Mask2FormerConfig
    from .weights_files import Files

_UNOFFICIAL = (
    "these are not the official weights of GenEval's Mask2Former, but those of facebook/mask2former-swin-small-coco-"
    "instance, another training of the same network; docs/evals.md says how to convert the official file"
)
_EXTRA = ("torch", "transformers", "scipy")


class _Finds(Protocol):
    identity: str

    def detect(self, image: Image.Image) -> list[Detection]: ...


@dataclass(frozen=True)
class BothNetworks:
    """A detector of one network for objects and one for colours.

    Attributes:
        objects: finds them.
        classifier: names colours.
        identity: tells one set of weights from another.
        notes: sentences that a report must say.
    """

    objects: _Finds
    classifier: ColourClassifier
    identity: str = ""
    notes: tuple[str, ...] = ()

    def detect(self, image: Image.Image) -> list[Detection]:
        return self.objects.detect(image)

    def colours(self, image: Image.Image, found: Sequence[Detection]) -> list[str]:
        return self.classifier.colours(image, found)


def load_backend(name: str, *, weights: Path | None = None) -> Detector:
    """A detector.

    Args:
        name: `mlx`; `transformers`, the same by PyTorch; or `package.module:name`, a callable without arguments that
            gives a detector.
        weights: where the networks' weights are, see `weights_files.find_files`; by default the hub.

    Raises:
        OptionError: there is no such detector, what it needs is not installed, or `weights` holds none.
        DownloadError: weights are neither cached nor reachable.
        CheckpointError: weights are damaged, or not those of the networks.
    """
    if name == "mlx":
        return mlx_backend(_files(weights))
    if name == "transformers":
        lacking = [package for package in _EXTRA if importlib.util.find_spec(package) is None]
        if lacking:
            raise OptionError(
                f"the backend transformers needs {' and '.join(lacking)}: pip install 'mobileo-mlx[parity]'."
            )
        return transformers_backend(_files(weights, folders=True))
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise OptionError(
            f"there is no detector '{name}'; choose mlx or transformers, or give one as package.module:name."
        )
    if weights is not None:
        raise OptionError(f"'{name}' takes no weights; leave them out.")
    return load_foreign(name, module, attribute)


def mlx_backend(files: Files, config: Mask2FormerConfig | None = None) -> BothNetworks:
    """The networks in MLX.

    Args:
        files: see `weights_files.find_files`.
        config: of Mask2Former; by default that of GenEval's.
    """
    import mlx.core as mx

    from .clip_tokens import ClipTokenizer
    from .clip_weights import load_clip
    from .colours import ColourClassifier
    from .instances import Mask2FormerDetector
    from .mask2former_weights import load_mask2former

    clip = load_clip(files.colours)
    tokenizer = ClipTokenizer(
        files.colours if is_folder(files.colours) else files.colours.parent,
        length=clip.config.text_config.max_position_embeddings,
    )
    classifier = ColourClassifier(
        lambda pixels: np.array(clip.image_features(mx.array(pixels))),
        lambda texts: np.array(clip.text_features(mx.array(tokenizer(texts)))),
        clip.config.vision_config.image_size,
    )
    objects = Mask2FormerDetector(load_mask2former(files.objects, config))
    return BothNetworks(objects, classifier, _identity(files), _notes(files))


def transformers_backend(files: Files) -> BothNetworks:
    """The networks of transformers, on the CPU in float32; `files` are folders in its layout."""
    import mlx.core as mx
    import torch
    import transformers

    from .colours import ColourClassifier
    from .instances import Mask2FormerDetector

    local: Any = {"local_files_only": True}
    mask2former = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(files.objects, **local).eval()
    clip: Any = transformers.CLIPModel.from_pretrained(files.colours, **local).eval()
    tokenizer: Any = transformers.CLIPTokenizer.from_pretrained(files.colours, **local)
    length = clip.config.text_config.max_position_embeddings

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def find(pixels: mx.array) -> tuple[np.ndarray, np.ndarray]:
        found: Any = mask2former(torch.from_numpy(_nchw(np.array(pixels))))
        return found.class_queries_logits.numpy(), found.masks_queries_logits.numpy()

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def encode_images(pixels: np.ndarray) -> np.ndarray:
        return _features(clip.get_image_features(torch.from_numpy(_nchw(pixels))))

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def encode_texts(texts: Sequence[str]) -> np.ndarray:
        inputs = tokenizer(list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return _features(clip.get_text_features(inputs["input_ids"]))

    classifier = ColourClassifier(encode_images, encode_texts, clip.config.vision_config.image_size)
    objects = Mask2FormerDetector(find)  # type: ignore[arg-type]
    return BothNetworks(objects, classifier, _identity(files), _notes(files))


def _files(weights: Path | None, *, folders: bool = False) -> Files:
    from .weights_files import find_files

    return find_files(weights, folders=folders)


def _identity(files: Files) -> str:
    from ...checkpoints.digests import weights_digest
    from ...checkpoints.tensor_files import weight_files

    both = (weight_files(path) if is_folder(path) else [path] for path in (files.objects, files.colours))
    return " ".join(weights_digest(one)[:16] for one in both)


def _notes(files: Files) -> tuple[str, ...]:
    from .mask2former_weights import find_tensors

    of_transformers = any(name.startswith("model.") for name in find_tensors(files.objects))
    return (_UNOFFICIAL,) if of_transformers else ()


def _features(output: Any) -> np.ndarray:
    """transformers 5 gives an object, and 4 the features themselves."""
    return np.asarray(getattr(output, "pooler_output", output).numpy())


def _nchw(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
