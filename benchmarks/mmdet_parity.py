"""Compares Mask2Former with OpenMMLab's own implementation, from its checkpoint to the objects of an image.

    pip install --no-deps mmcv-lite==2.1.0 mmengine mmdet==3.3.0
    pip install addict opencv-python-headless pycocotools rich shapely termcolor terminaltables yapf scipy
    python -m benchmarks.mmdet_parity

mmdet's model is built small and with random weights, is saved as a checkpoint (.pth), and converted by
`benchmarks.convert_detector`; so the names, the order in which patches are merged, and what is split or joined are all
in the comparison. Then come the pixels before the network (OpenCV's resizing) and the objects after it. mmdet 3 is what
still installs; its names are those of mmdet 2 but for a few (see `mask2former_weights`). The names and shapes of the
full model are compared, too.
"""

from __future__ import annotations

import argparse
import copy
import importlib.machinery
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image

from mobileo_mlx.evals.detectors.instances import instances, resize_pixels, resized
from mobileo_mlx.evals.detectors.mask2former import Mask2Former, Mask2FormerConfig
from mobileo_mlx.evals.detectors.mask2former_weights import load_mask2former, ours, shapes, used
from mobileo_mlx.evals.detectors.swin import SwinConfig

from .convert_detector import convert

TINY = Mask2FormerConfig(
    backbone=SwinConfig(embed_dim=8, depths=(2, 2, 3, 2), num_heads=(1, 2, 4, 4), window_size=3, mlp_ratio=2.0),
    dim=32,
    mask_dim=32,
    heads=4,
    encoder_layers=2,
    encoder_hidden=24,
    decoder_layers=4,
    decoder_hidden=40,
    queries=30,
    classes=5,
)
SIZES = ((64, 64), (61, 83), (33, 130))


class _Extension(types.ModuleType):
    """In place of mmcv's compiled operations, which CPUs do without: none of them is called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


def official_config() -> Any:
    """The model of OpenMMLab's configuration for Swin-S and COCO's instances."""
    module = _Extension("mmcv._ext")
    module.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)
    sys.modules["mmcv._ext"] = module
    import mmdet
    from mmdet.utils import register_all_modules
    from mmengine.config import Config

    register_all_modules()
    name = "mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco.py"
    model = Config.fromfile(Path(mmdet.__file__).parent / ".mim" / "configs" / "mask2former" / name).model
    model.backbone.init_cfg = None
    return model


def small_config(model: Any, config: Mask2FormerConfig) -> Any:
    """The same in the sizes of a configuration of ours."""
    model = copy.deepcopy(model)
    backbone, dim = config.backbone, config.dim
    model.backbone.update(
        embed_dims=backbone.embed_dim,
        depths=list(backbone.depths),
        num_heads=list(backbone.num_heads),
        window_size=backbone.window_size,
        mlp_ratio=int(backbone.mlp_ratio),
    )
    head = model.panoptic_head
    head.update(in_channels=list(backbone.widths), feat_channels=dim, out_channels=config.mask_dim)
    head.update(num_queries=config.queries, num_things_classes=config.classes)
    head.loss_cls.class_weight = [1.0] * config.classes + [0.1]
    model.panoptic_fusion_head.num_things_classes = config.classes
    encoder, decoder = head.pixel_decoder.encoder, head.transformer_decoder
    encoder.num_layers, decoder.num_layers = config.encoder_layers, config.decoder_layers
    for layer, hidden in ((encoder.layer_cfg, config.encoder_hidden), (decoder.layer_cfg, config.decoder_hidden)):
        layer.ffn_cfg.update(embed_dims=dim, feedforward_channels=hidden)
        for attention in (layer.self_attn_cfg, layer.get("cross_attn_cfg", {})):
            attention.update(embed_dims=dim, num_heads=config.heads)
    for positions in (head.positional_encoding, head.pixel_decoder.positional_encoding):
        positions.num_feats = dim // 2
    return model


def random_model(model: Any) -> Any:
    """mmdet's model with weights of which each matters."""
    import torch
    from mmdet.registry import MODELS

    torch.manual_seed(0)
    built = MODELS.build(model)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 and "table" not in name else 0.2
            norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(torch.randn(parameter.shape) * scale + float(norm))
            if "bias_table" in name or "sampling_offsets" in name:
                parameter *= 5
    return built.eval()


def error(mine: Any, theirs: Any) -> float:
    a, b = np.array(mine, np.float64), theirs.detach().numpy().astype(np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    return float(np.abs(a - b).max() / np.abs(b).max())


def compare_network(theirs: Any, network: Mask2Former, size: tuple[int, int]) -> str:
    import torch
    from mmdet.structures import DetDataSample

    pixel_values = np.random.default_rng(0).standard_normal((1, *size, 3), dtype=np.float32)
    rows, columns = size
    sample = DetDataSample(metainfo={"batch_input_shape": size, "img_shape": (rows - 4, columns - 7)})
    sample.set_metainfo({"ori_shape": (rows + 11, columns // 2)})
    with torch.no_grad():
        features = theirs.extract_feat(torch.from_numpy(pixel_values.transpose(0, 3, 1, 2)))
        mask_features, maps = theirs.panoptic_head.pixel_decoder(features)
        classes, masks = theirs.panoptic_head(features, [sample])
        answer = theirs.panoptic_head.predict(features, [sample])
        expected = theirs.panoptic_fusion_head.predict(*answer, [sample], rescale=True)[0]["ins_results"]
    found = network.outputs(mx.array(pixel_values))
    images = ([*found.features, *found.maps, found.mask_features], [*features, *maps, mask_features])
    errors = {
        "maps": max(error(a.transpose(0, 3, 1, 2), b) for a, b in zip(*images, strict=True)),
        "classes": max(error(a, b) for a, b in zip(found.class_logits, classes, strict=True)),
        "masks": max(error(a, b) for a, b in zip(found.mask_logits, masks, strict=True)),
    }
    objects = instances(
        np.array(found.class_logits[-1][0]),
        np.array(found.mask_logits[-1][0]),
        padded=size,
        inside=sample.img_shape,
        size=sample.ori_shape,
        names=range(TINY.classes),  # type: ignore[arg-type]
    )
    order = np.argsort(-expected.scores.numpy(), kind="stable")
    scores = max(abs(one.score - float(expected.scores[i])) for one, i in zip(objects, order, strict=True))
    pixels_off, boxes_off = 0, 0.0
    for one in objects:
        # Several may have one class and, but for rounding, one score; it is one of these.
        alike = [
            i
            for i in order
            if int(expected.labels[i]) == one.name and abs(float(expected.scores[i]) - one.score) < 1e-6
        ]
        differences = [
            (int((one.mask != expected.masks[i].numpy()).sum()), np.abs(one.box - expected.bboxes[i].numpy()).max())
            for i in alike
        ]
        pixels, edge = min(differences)
        pixels_off, boxes_off = max(pixels_off, pixels), max(boxes_off, edge)
    shown = ", ".join(f"{name} {value:.1e}" for name, value in errors.items())
    return (
        f"{columns}x{rows}: {shown}; {len(objects)} objects: scores {scores:.1e}, "
        f"{pixels_off} pixels of a mask, {boxes_off:g} of a box"
    )


def compare_pixels() -> str:
    import mmcv

    worst, different, total = 0, 0, 0
    for size in ((512, 512), (480, 640), (1200, 900), (37, 61)):
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        image = np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))
        expected = mmcv.imrescale(image, (1333, 800))
        found = resize_pixels(image, resized(*size))
        assert found.shape == expected.shape, (found.shape, expected.shape)
        off = np.abs(found.astype(int) - expected.astype(int))
        worst, different, total = max(worst, off.max()), different + (off > 0).sum(), total + off.size
    return f"pixels: at most {worst} level of 255 from OpenCV's, in {100 * different / total:.2f} % of the values"


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=formatter).parse_args()

    import torch
    from mmdet.registry import MODELS

    official = official_config()
    state = MODELS.build(copy.deepcopy(official)).state_dict()
    stored = {name: mx.zeros(state[key].shape) for name, key in used(state).items()}
    expected = shapes(Mask2Former(Mask2FormerConfig()))
    weights = ours(stored, expected, Path("mmdet"))
    print(f"full size: {len(stored)} of mmdet's tensors are the {len(weights)} of ours, by name and shape", flush=True)
    theirs = random_model(small_config(official, TINY))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "model.pth"
        torch.save({"meta": {"CLASSES": ("person",), "epoch": 50}, "state_dict": theirs.state_dict()}, checkpoint)
        network = load_mask2former(convert(checkpoint, Path(folder) / "out", TINY), TINY)
        for size in SIZES:
            print(compare_network(theirs, network, size), flush=True)
    print(compare_pixels())


if __name__ == "__main__":
    main()
