"""CLIP's weights, tokens and images, and colours by it, with a small network. Parity: tests/parity/test_clip.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image
from small_clip import IMAGE_SIZE, small_clip, small_config, vocabulary, write_clip, write_tokenizer

from mobileo_mlx.checkpoints.modules import named_parameters
from mobileo_mlx.errors import CheckpointError, ConfigError
from mobileo_mlx.evals.detections import Detection
from mobileo_mlx.evals.detectors.clip import CLIP, VIT_L_14
from mobileo_mlx.evals.detectors.clip_images import MEAN, STD, pixel_values
from mobileo_mlx.evals.detectors.clip_tokens import ClipTokenizer
from mobileo_mlx.evals.detectors.clip_weights import load_clip, official_source, sources_for, stored_shapes
from mobileo_mlx.evals.detectors.colours import BACKGROUND, ColourClassifier, crop
from mobileo_mlx.evals.geneval_rules import COLOURS

MANIFEST = Path(__file__).parents[1] / "data" / "clip" / "open_clip_vit_l_14.txt"


def write_official(path: Path) -> None:
    """The small network under OpenAI's names, made here by hand and not by the map."""
    weights = named_parameters(small_clip())
    stored = {}
    for ours, theirs in (("text_model", ""), ("vision_model", "visual.")):
        for layer in range(2):
            old, new = f"{ours}.encoder.layers.{layer}", f"{theirs}transformer.resblocks.{layer}"
            for leaf in ("weight", "bias"):
                parts = [weights.pop(f"{old}.self_attn.{letter}_proj.{leaf}") for letter in "qkv"]
                stored[f"{new}.attn.in_proj_{leaf}"] = mx.concatenate(parts)
                for a, b in (
                    ("self_attn.out_proj", "attn.out_proj"),
                    ("layer_norm1", "ln_1"),
                    ("layer_norm2", "ln_2"),
                    ("mlp.fc1", "mlp.c_fc"),
                    ("mlp.fc2", "mlp.c_proj"),
                ):
                    stored[f"{new}.{b}.{leaf}"] = weights.pop(f"{old}.{a}.{leaf}")
    for a, b in (("visual_projection.weight", "visual.proj"), ("text_projection.weight", "text_projection")):
        stored[b] = mx.contiguous(weights.pop(a).T)
    patches = weights.pop("vision_model.embeddings.patch_embedding.weight")
    stored["visual.conv1.weight"] = mx.contiguous(patches.transpose(0, 3, 1, 2))
    for a, b in (
        ("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
        ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
        ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
        ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
        ("text_model.final_layer_norm.weight", "ln_final.weight"),
        ("text_model.final_layer_norm.bias", "ln_final.bias"),
        ("vision_model.pre_layrnorm.weight", "visual.ln_pre.weight"),
        ("vision_model.pre_layrnorm.bias", "visual.ln_pre.bias"),
        ("vision_model.post_layernorm.weight", "visual.ln_post.weight"),
        ("vision_model.post_layernorm.bias", "visual.ln_post.bias"),
        ("logit_scale", "logit_scale"),
    ):
        stored[b] = weights.pop(a)
    assert not weights
    stored["context_length"] = mx.array(77)
    mx.save_safetensors(str(path), stored)


def features(network: CLIP) -> list[np.ndarray]:
    pixels = mx.array(np.random.default_rng(0).standard_normal((2, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.float32))
    ids = mx.array([[1, 5, 7, len(vocabulary()) - 1, 0, 0]])
    return [np.array(network.image_features(pixels)), np.array(network.text_features(ids))]


def test_both_sets_of_names_give_the_same_network(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip")
    write_official(tmp_path / "official.safetensors")
    expected = features(small_clip())
    for found in (load_clip(tmp_path / "clip"), load_clip(tmp_path / "official.safetensors", small_config())):
        for a, b in zip(features(found), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)  # the order of a sum follows a matrix's layout


def test_the_official_names_and_shapes_at_full_size() -> None:
    """Those of open_clip's ViT-L/14 (open_clip_torch 3.3.0), one for one; nothing is computed."""
    lines = (line.split() for line in MANIFEST.read_text().splitlines())
    theirs = {line[0]: tuple(map(int, "".join(line[1:]).split("x"))) if line[1:] else () for line in lines}
    shapes = {name: tuple(array.shape) for name, array in named_parameters(CLIP(VIT_L_14)).items()}
    assert stored_shapes(shapes, sources_for(shapes, theirs)) == theirs
    assert len({official_source(name) for name in shapes}) == len(shapes)


def test_all_that_does_not_fit_is_listed(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip")
    path = tmp_path / "clip" / "model.safetensors"
    tensors = dict(mx.load(str(path)))
    del tensors["text_model.final_layer_norm.bias"], tensors["visual_projection.weight"]
    tensors["other"] = mx.zeros(3)
    tensors["logit_scale"] = mx.zeros(1)
    tensors["text_model.embeddings.position_ids"] = mx.zeros((1, 77), mx.int64)  # which is not used
    mx.save_safetensors(str(path), tensors)
    with pytest.raises(CheckpointError) as caught:
        load_clip(tmp_path / "clip")
    sentence = str(caught.value)
    assert "missing: text_model.final_layer_norm.bias, visual_projection.weight;" in sentence
    assert "unexpected: other;" in sentence
    assert "of another shape: logit_scale ((1,) instead of ())" in sentence
    assert "position_ids" not in sentence


def test_constants_that_are_stored_are_not_used(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip")
    path = tmp_path / "clip" / "model.safetensors"
    tensors = dict(mx.load(str(path)))
    mx.save_safetensors(str(path), tensors | {"vision_model.embeddings.position_ids": mx.zeros((1, 17), mx.int64)})
    load_clip(tmp_path / "clip")


def test_configurations_that_make_no_sense(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip")
    path = tmp_path / "clip" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"vision_config": config["vision_config"] | {"hidden_act": "relu"}}))
    with pytest.raises(ConfigError, match="'quick_gelu' or 'gelu'"):
        load_clip(tmp_path / "clip")


def test_tokens(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    ids = vocabulary()
    (row, long) = ClipTokenizer(tmp_path)(["A  Photo\nof CAR'S", "red " * 100])
    words = ["<|startoftext|>", "a</w>", "photo</w>", "of</w>", "car</w>", "'s</w>", "<|endoftext|>"]
    assert row.tolist() == [ids[word] for word in words] + [0] * 70
    assert long.tolist() == [ids["<|startoftext|>"], *[ids["red</w>"]] * 75, ids["<|endoftext|>"]]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("vocab.json", "{}"),
        ("vocab.json", '{"<|startoftext|>": 0, "<|endoftext|>": 2}'),
        ("merges.txt", "#version\na zzz\n"),
        ("merges.txt", "#version\nabc\n"),
        ("vocab.json", "no JSON"),
    ],
)
def test_damaged_tokenizers_are_one_sentence(tmp_path: Path, file: str, text: str) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(CheckpointError, match="download"):
        ClipTokenizer(tmp_path)


def test_the_middle_of_an_image_is_seen() -> None:
    image = Image.new("RGB", (8, 4), (255, 0, 0))
    image.paste((0, 255, 0), (2, 0, 6, 4))
    pixels = pixel_values([image], 4) * np.array(STD, np.float32) + np.array(MEAN, np.float32)
    np.testing.assert_allclose(pixels[0, :, :, 1], np.ones((4, 4)), atol=1e-6)
    assert pixel_values([Image.new("L", (3, 50))], 4).shape == (1, 4, 4, 3)


def test_crops_are_the_box_with_grey_where_the_mask_is_not() -> None:
    image = Image.new("RGB", (10, 8), (200, 10, 10))
    mask = np.zeros((8, 10), bool)
    mask[2:6, 3:5] = True
    found = crop(image, Detection("car", (2.4, 1.5, 6.5, 7.6), 1.0, mask))
    assert found.size == (4, 6)  # halves are rounded to even: 2 to 6, and 2 to 8
    assert found.getpixel((0, 0)) == BACKGROUND == (153, 153, 153)
    assert found.getpixel((1, 0)) == (200, 10, 10)
    without = crop(image, Detection("car", (2.4, 1.5, 6.5, 7.6), 1.0))
    assert without.getcolors() == [(24, (200, 10, 10))]


def test_empty_boxes_are_a_pixel() -> None:
    assert crop(Image.new("RGB", (10, 8)), Detection("car", (0.0, 0.0, 0.0, 0.0), 0.0)).size == (1, 1)


DIRECTIONS = {"red": (1, -1, -1), "green": (-1, 1, -1), "blue": (-1, -1, 1)}


class Eyes:
    """Encoders that know the mean colour of an image, and the colour that a text names."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.batches: list[int] = []

    def images(self, pixels: np.ndarray) -> np.ndarray:
        self.batches.append(len(pixels))
        return pixels.mean(axis=(1, 2))

    def words(self, texts: Sequence[str]) -> np.ndarray:
        self.texts += texts
        rows = [next((d for c, d in DIRECTIONS.items() if f" {c}" in text), (-1, -1, -1)) for text in texts]
        return np.array(rows, np.float32)


def test_colours() -> None:
    eyes = Eyes()
    classifier = ColourClassifier(eyes.images, eyes.words, 8)
    image = Image.new("RGB", (40, 10), (255, 0, 0))
    image.paste((0, 0, 255), (10, 0, 20, 10))
    image.paste((0, 255, 0), (20, 0, 40, 10))
    boxes = [(0, 0, 10, 10), (10, 0, 20, 10), (20, 0, 40, 10)]
    found = [Detection("traffic light", box, 1.0) for box in boxes]
    assert classifier.colours(image, found) == ["red", "blue", "green"]
    assert eyes.texts[:3] == [
        "a photo of a red traffic light",
        "a photo of a red-colored traffic light",
        "a photo of a red object",
    ]
    assert len(eyes.texts) == 3 * len(COLOURS)
    assert classifier.colours(image, found * 6) == ["red", "blue", "green"] * 6
    assert len(eyes.texts) == 3 * len(COLOURS)  # asked once a class
    assert eyes.batches == [3, 16, 2]
    assert classifier.colours(image, []) == []


def test_a_colour_is_the_direction_of_its_mean() -> None:
    """Each prompt counts alike, whatever the length of its vector; and so does each colour."""
    lengths = iter([1.0, 10.0, 100.0] * len(COLOURS))
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((30, 5), dtype=np.float32)
    scaled = [row / np.linalg.norm(row) for row in rows]
    classifier = ColourClassifier(
        lambda pixels: np.ones((len(pixels), 5), np.float32),
        lambda texts: np.array([row * next(lengths) for row in scaled]),
        8,
    )
    (logits,) = classifier.logits(Image.new("RGB", (4, 4)), [Detection("car", (0, 0, 4, 4), 1.0)])
    for colour in range(10):
        mean = np.mean(scaled[3 * colour : 3 * colour + 3], axis=0)
        expected = 100 * mean.sum() / np.linalg.norm(mean) / 5**0.5
        assert logits[colour] == pytest.approx(expected, abs=1e-4)
