"""CLIP against transformers' `CLIPModel`, tokenizer and image processor, and open_clip's model, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from small_clip import IMAGE_SIZE, write_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

from mobileo_mlx.checkpoints.modules import named_parameters  # noqa: E402
from mobileo_mlx.evals.detectors.clip import CLIP, LEGACY_EOS, VIT_L_14  # noqa: E402
from mobileo_mlx.evals.detectors.clip_images import MEAN, STD, pixel_values  # noqa: E402
from mobileo_mlx.evals.detectors.clip_tokens import LENGTH, ClipTokenizer  # noqa: E402
from mobileo_mlx.evals.detectors.clip_weights import load_clip, sources_for, stored_shapes  # noqa: E402

from .common import assert_close, nhwc, normal, randomised  # noqa: E402

VOCABULARY, LAYERS = 60, 3


def write(folder: Path, theirs: Any) -> CLIP:
    """Their model as a folder, loaded by us."""
    folder.mkdir()
    state = {name: tensor.contiguous() for name, tensor in theirs.state_dict().items()}
    safetensors_torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    theirs.config.save_pretrained(folder)
    return load_clip(folder)


def pair(folder: Path, *, eos: int = VOCABULARY - 1, act: str = "quick_gelu", patch: int = 8) -> tuple[Any, CLIP]:
    text = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 56, "num_attention_heads": 4}
    vision = {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 3, "patch_size": patch}
    more = {"num_hidden_layers": LAYERS, "hidden_act": act}
    config = transformers.CLIPConfig(
        text_config={**text, **more, "max_position_embeddings": 20, "eos_token_id": eos},
        vision_config={**vision, **more, "image_size": IMAGE_SIZE},
        projection_dim=24,
    )
    config._attn_implementation = "eager"
    theirs = randomised(transformers.CLIPModel(config))
    return theirs, write(folder / "clip", theirs)


def texts(*lengths: int, width: int = 20, end: int = VOCABULARY - 1) -> np.ndarray:
    """Rows of random ids, each with its end token, and noise behind it that must make no difference."""
    ids = np.random.default_rng(1).integers(3, VOCABULARY - 2, (len(lengths), width))
    for row, length in zip(ids, lengths, strict=True):
        row[length - 1] = end
    return ids


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("patch", [8, 7])  # 7: what is left over at the edges is not looked at
def test_all_tensors_of_the_image_encoder(tmp_path: Path, act: str, patch: int) -> None:
    theirs, ours = pair(tmp_path, act=act, patch=patch)
    pixels = normal(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    with torch.no_grad():
        expected = theirs.vision_model(torch.from_numpy(pixels), output_hidden_states=True)
        projected = theirs.get_image_features(torch.from_numpy(pixels)).pooler_output
        embedded = theirs.vision_model.embeddings(torch.from_numpy(pixels))
    assert_close(ours.vision_model.embeddings(nhwc(pixels)), embedded)
    states = list(ours.vision_model.states(nhwc(pixels)))
    assert len(states) == len(expected.hidden_states) == LAYERS + 1
    for state, reference in zip(states, expected.hidden_states, strict=True):
        assert_close(state, reference)
    assert_close(ours.vision_model(nhwc(pixels)), expected.pooler_output)
    assert_close(ours.image_features(nhwc(pixels)), projected)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("eos", [VOCABULARY - 1, LEGACY_EOS, 1])
def test_all_tensors_of_the_text_encoder(tmp_path: Path, act: str, eos: int) -> None:
    """With an end token of the largest id, found as such or by its number; and with one of another id."""
    theirs, ours = pair(tmp_path, eos=eos, act=act)
    ids = texts(20, 7, 2, end=1 if eos == 1 else VOCABULARY - 1)
    with torch.no_grad():
        expected = theirs.text_model(torch.from_numpy(ids), output_hidden_states=True)
        projected = theirs.get_text_features(torch.from_numpy(ids)).pooler_output
    states = list(ours.text_model.states(mx.array(ids)))
    assert len(states) == len(expected.hidden_states) == LAYERS + 1
    for state, reference in zip(states, expected.hidden_states, strict=True):
        assert_close(state, reference)
    assert_close(ours.text_model.final_layer_norm(states[-1]), expected.last_hidden_state)
    assert_close(ours.text_model(mx.array(ids)), expected.pooler_output)
    assert_close(ours.text_features(mx.array(ids)), projected)


def test_logits(tmp_path: Path) -> None:
    theirs, ours = pair(tmp_path)
    pixels, ids = normal(3, 3, IMAGE_SIZE, IMAGE_SIZE), texts(20, 7)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids), torch.from_numpy(pixels)).logits_per_image
    assert_close(ours(nhwc(pixels), mx.array(ids)), expected)


def test_open_clips_own_model_with_its_own_names(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    small = VIT_L_14.from_dict(
        {
            "text_config": {
                "vocab_size": VOCABULARY,
                "hidden_size": 32,
                "intermediate_size": 128,
                "num_attention_heads": 4,
                "num_hidden_layers": LAYERS,
                "max_position_embeddings": 20,
                "eos_token_id": LEGACY_EOS,
            },
            "vision_config": {
                "hidden_size": 64,
                "intermediate_size": 256,
                "num_attention_heads": 1,
                "num_hidden_layers": LAYERS,
                "image_size": IMAGE_SIZE,
                "patch_size": 8,
            },
            "projection_dim": 24,
        }
    )
    vision = {"image_size": IMAGE_SIZE, "layers": LAYERS, "width": 64, "patch_size": 8}
    text = {"context_length": 20, "vocab_size": VOCABULARY, "width": 32, "heads": 4, "layers": LAYERS}
    theirs = randomised(open_clip.CLIP(24, vision, text, quick_gelu=True))
    path = tmp_path / "open_clip_model.safetensors"
    safetensors_torch.save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, path)
    ours = load_clip(path, small)
    pixels, ids = normal(2, 3, IMAGE_SIZE, IMAGE_SIZE), texts(20, 7)
    with torch.no_grad():
        assert_close(ours.image_features(nhwc(pixels)), theirs.encode_image(torch.from_numpy(pixels)))
        assert_close(ours.text_features(mx.array(ids)), theirs.encode_text(torch.from_numpy(ids)))


def test_names_and_shapes_at_full_size() -> None:
    """Those of ViT-L/14 are transformers', one for one; nothing is computed on either side."""
    with torch.device("meta"):
        config = transformers.CLIPConfig(
            text_config=VIT_L_14.text_config.to_dict(),
            vision_config=VIT_L_14.vision_config.to_dict(),
            projection_dim=VIT_L_14.projection_dim,
        )
        theirs = {name: tuple(tensor.shape) for name, tensor in transformers.CLIPModel(config).state_dict().items()}
    shapes = {name: tuple(array.shape) for name, array in named_parameters(CLIP(VIT_L_14)).items()}
    assert stored_shapes(shapes, sources_for(shapes, theirs)) == theirs


SENTENCES = [
    "a photo of a red car",
    "A PHOTO of a Red-colored  car",
    "  spaces\tand\nlines  ",
    "it's 42 o'clock, don't!",
    "CAFÉ Ünïcode ﬁ 日本 🙂",
    "",
    "a <|endoftext|> inside",
    "red " * 100,
    "co" + "r" * 30 + "n",
]


def test_tokenizer_gives_the_ids_of_theirs(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    merges = [tuple(line.split()) for line in (tmp_path / "merges.txt").read_text().splitlines()[1:]]
    theirs = transformers.CLIPTokenizer(vocab=vocab, merges=merges)
    expected = theirs(SENTENCES, truncation=True, max_length=LENGTH)["input_ids"]
    rows = ClipTokenizer(tmp_path)(SENTENCES)
    assert len({tuple(row) for row in rows}) == len(SENTENCES)
    for sentence, row, ids in zip(SENTENCES, rows, expected, strict=True):
        assert row[: len(ids)].tolist() == ids, sentence
        assert not row[len(ids) :].any()


SIZES = [(224, 224), (225, 224), (227, 224), (224, 1000), (640, 480), (37, 90), (1, 400), (512, 512)]


@pytest.mark.parametrize("size", SIZES)
def test_pixels_of_their_image_processor(size: tuple[int, int]) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8))
    short, long = sorted(size)
    margin = 224 * long // short - 224
    expected = CLIPImageProcessorPil(image_mean=MEAN, image_std=STD)(image, return_tensors="np")["pixel_values"]
    ours = pixel_values([image]).transpose(0, 3, 1, 2)
    if margin % 4 != 3:  # else torchvision, and so open_clip, cuts one pixel beside: see clip_images.py
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)
    else:
        assert np.abs(ours - expected).max() > 0.1


@pytest.mark.parametrize("size", SIZES)
def test_pixels_of_open_clips_transform(size: tuple[int, int]) -> None:
    """Pixel for pixel, whatever the margins are."""
    open_clip = pytest.importorskip("open_clip")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8))
    expected = open_clip.image_transform(224, is_train=False, mean=MEAN, std=STD)(image).numpy()
    np.testing.assert_allclose(pixel_values([image])[0].transpose(2, 0, 1), expected, rtol=0, atol=1e-6)
