"""Runs timm's five-stage FastViT with random weights: python fastvit_reference.py OUTPUT.npz

In a process of its own, because timm needs torchvision, whose wheels for CUDA can be imported beside a torch for CPUs
only after their operators have been declared, and which then disturbs other libraries.

The tower computes in its training form, with all branches, and is reparameterised after that; so what is written are
the folded weights and what the unfolded ones gave.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

UNAVAILABLE = 77  # exit status: timm can't be imported here


def main(path: Path) -> int:
    library = torch.library.Library("torchvision", "DEF")
    try:
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        from timm.layers import LayerNorm2d
        from timm.models.fastvit import FastVit, RepConditionalPosEnc
        from timm.utils import reparameterize_model
    except Exception as error:
        print(error, file=sys.stderr)
        return UNAVAILABLE
    position = partial(RepConditionalPosEnc, spatial_shape=(7, 7))
    tower = FastVit(
        layers=(1, 2, 1, 1, 2),
        embed_dims=(8, 16, 32, 64, 128),
        mlp_ratios=(4,) * 5,
        se_downsamples=(False,) * 5,
        downsamples=(False, True, True, True, True),
        pos_embs=(None, None, None, position, position),
        token_mixers=("repmixer",) * 3 + ("attention",) * 2,
        lkc_use_act=True,
        norm_layer=partial(LayerNorm2d, eps=1e-5),
        stem_use_scale_branch=False,
        num_classes=0,
    ).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in (*tower.named_parameters(), *tower.named_buffers()):
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif "gamma" in name:
                tensor.uniform_(0.2, 0.8)
            elif tensor.ndim == 1:
                tensor.normal_(0, 0.1)
                if name.endswith("weight"):
                    tensor += 1
        outputs = {}
        for height, width in ((128, 128), (64, 192)):
            image = torch.rand(2, 3, height, width)
            outputs[f"input {height}x{width}"] = image.numpy()
            features = tower.forward_features(image)
            outputs[f"output {height}x{width}"] = features.numpy()
        folded = reparameterize_model(tower)
    weights = {f"weight {name}": tensor.numpy() for name, tensor in folded.state_dict().items()}
    np.savez(path, **weights, **outputs)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
