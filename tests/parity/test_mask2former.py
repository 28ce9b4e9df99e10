"""The detector against transformers' Mask2FormerForUniversalSegmentation, with the same random weights.

The weights go through a file that transformers wrote, and all that has a name on the way is compared.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers.models.mask2former import modeling_mask2former  # noqa: E402

from mobileo_mlx.evals.detectors.instances import instances  # noqa: E402
from mobileo_mlx.evals.detectors.mask2former import Mask2Former, Mask2FormerConfig  # noqa: E402
from mobileo_mlx.evals.detectors.mask2former_weights import load_mask2former  # noqa: E402
from mobileo_mlx.evals.detectors.swin import SwinConfig  # noqa: E402

from .common import assert_close, normal, randomised  # noqa: E402


class Loss(torch.nn.Module):
    """In place of theirs, which needs scipy."""

    def __init__(self, config: Any, weight_dict: Any):
        super().__init__()
        self.num_labels, self.eos_coef = config.num_labels, config.no_object_weight
        self.register_buffer("empty_weight", torch.ones(config.num_labels + 1))


TINY = Mask2FormerConfig(
    backbone=SwinConfig(embed_dim=8, depths=(2, 2, 3, 2), num_heads=(1, 2, 4, 4), window_size=3, mlp_ratio=2.0),
    dim=32,
    mask_dim=16,
    heads=4,
    encoder_layers=2,
    encoder_hidden=24,
    decoder_layers=4,
    decoder_hidden=40,
    queries=7,
    classes=5,
)


def theirs_of(config: Mask2FormerConfig) -> Any:
    backbone = config.backbone
    return transformers.Mask2FormerConfig(
        backbone_config=transformers.SwinConfig(
            embed_dim=backbone.embed_dim,
            depths=list(backbone.depths),
            num_heads=list(backbone.num_heads),
            window_size=backbone.window_size,
            mlp_ratio=backbone.mlp_ratio,
            patch_size=backbone.patch_size,
            image_size=32,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        feature_size=config.dim,
        hidden_dim=config.dim,
        mask_feature_size=config.mask_dim,
        num_attention_heads=config.heads,
        encoder_layers=config.encoder_layers,
        encoder_feedforward_dim=config.encoder_hidden,
        decoder_layers=config.decoder_layers + 1,
        dim_feedforward=config.decoder_hidden,
        num_queries=config.queries,
        num_labels=config.classes,
    )


def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Mask2FormerConfig, seed: int = 0) -> Any:
    monkeypatch.setattr(modeling_mask2former, "Mask2FormerLoss", Loss)
    theirs = randomised(transformers.Mask2FormerForUniversalSegmentation(theirs_of(config)), seed)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "bias_table" in name or "sampling_offsets" in name:
                parameter *= 5  # places between maps' pixels, and outside of the maps
    theirs.save_pretrained(tmp_path / "theirs")
    return theirs, load_mask2former(tmp_path / "theirs", config)


def assert_same(theirs: Any, ours: Mask2Former, pixels: Any) -> dict[str, float]:
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(pixels), output_hidden_states=True, output_auxiliary_logits=True, return_dict=True
        )
    found = ours.outputs(mx.array(pixels.transpose(0, 2, 3, 1)))
    pairs = {"mask features": ([found.mask_features], [expected.pixel_decoder_last_hidden_state])}
    pairs["backbone"] = (found.features, expected.encoder_hidden_states)
    pairs["pixel decoder"] = (found.maps, expected.pixel_decoder_hidden_states)
    maps = {name: [x.transpose(0, 3, 1, 2) for x in mine] for name, (mine, _) in pairs.items()}
    both = {name: (maps[name], wanted) for name, (_, wanted) in pairs.items()}
    layers = expected.auxiliary_logits
    both["class logits"] = (
        found.class_logits,
        [*(layer["class_queries_logits"] for layer in layers), expected.class_queries_logits],
    )
    both["mask logits"] = (
        found.mask_logits,
        [*(layer["masks_queries_logits"] for layer in layers), expected.masks_queries_logits],
    )
    errors = {}
    for name, (mine, wanted) in both.items():
        assert len(mine) == len(wanted)
        for a, b in zip(mine, wanted, strict=True):
            assert_close(a, b)
        errors[name] = max(
            float(np.abs(np.array(a) - b.numpy()).max() / b.abs().max()) for a, b in zip(mine, wanted, strict=True)
        )
    return errors


@pytest.mark.parametrize("size", [(64, 64), (61, 83), (33, 130), (96, 40)])
def test_all_tensors(size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = pair(tmp_path, monkeypatch, TINY)
    print(size, assert_same(theirs, ours, normal(2, 3, *size)))


def test_scores_of_objects() -> None:
    """Theirs in the one size that both agree about: 384x384 in, 384x384 out."""
    classes, masks = normal(100, 81) * 3, normal(100, 96, 96, seed=1) * 3
    outputs = SimpleNamespace(
        class_queries_logits=torch.from_numpy(classes)[None], masks_queries_logits=torch.from_numpy(masks)[None]
    )
    processor = transformers.Mask2FormerImageProcessorPil()
    found = processor.post_process_instance_segmentation(outputs, threshold=0, return_binary_maps=True)[0]
    size = (384, 384)
    ours = instances(classes, masks, padded=size, inside=size, size=size, names=range(80))  # type: ignore[arg-type]
    theirs = sorted(
        (
            (info["score"], info["label_id"], mask)
            for info, mask in zip(found["segments_info"], found["segmentation"], strict=True)
        ),
        key=lambda one: -one[0],
    )
    assert len(theirs) == len(ours) == 100
    for one, (score, label, mask) in zip(ours, theirs, strict=True):
        assert abs(one.score - score) < 2e-6
        assert one.name == label
        assert (one.mask != mask.numpy().astype(bool)).sum() <= 2  # logits that are zero but for rounding
