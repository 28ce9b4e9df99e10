"""The vision tower against timm's five-stage FastViT, whose layout it shares but for names."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mobileo_mlx.models.fastvithd import FastViTHD, config_from_shapes, sanitize  # noqa: E402

from .common import assert_close, nhwc, ported  # noqa: E402
from .fastvit_reference import UNAVAILABLE  # noqa: E402

# Ours are upstream's names. In our one list, downsamplings and positions stand between the stages.
STAGES = (0, 2, 4, 7, 10)
NAMES = (
    (r"^stem\.", "patch_embed."),
    (r"^final_conv\.", "conv_exp."),
    (r"^stages\.(\d)\.blocks\.", lambda found: f"network.{STAGES[int(found[1])]}."),
    (r"^stages\.(\d)\.pos_emb\.", lambda found: f"network.{STAGES[int(found[1])] - 1}."),
    (r"^stages\.(\d)\.downsample\.", lambda found: f"network.{STAGES[int(found[1]) - 1] + 1}."),
    (r"proj\.0\.reparam_conv\.", "proj.0.lkb_reparam."),
    (r"\.mlp\.", ".convffn."),
    (r"\.gamma$", ""),
    (r"\.se\.fc1\.", ".se.reduce."),
    (r"\.se\.fc2\.", ".se.expand."),
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    for library in ("timm", "torchvision"):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    path = tmp_path_factory.mktemp("fastvit") / "original.npz"
    script = Path(__file__).with_name("fastvit_reference.py")
    done = subprocess.run([sys.executable, str(script), str(path)], capture_output=True, text=True, timeout=120)
    if done.returncode == UNAVAILABLE:
        pytest.skip(f"timm can't be imported: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return dict(np.load(path))


@pytest.mark.parametrize("size", ["128x128", "64x192"])
def test_the_last_feature_map(original: dict[str, np.ndarray], size: str) -> None:
    state = {}
    for key, weight in original.items():
        if key.startswith("weight "):
            name = key.removeprefix("weight ")
            for pattern, replacement in NAMES:
                name = re.sub(pattern, replacement, name)
            state[name] = torch.from_numpy(weight)
    config = config_from_shapes({name: tuple(tensor.shape) for name, tensor in state.items()})
    tower = ported(FastViTHD(config), state, sanitize)
    expected = torch.from_numpy(original[f"output {size}"])  # (B, C, h, w)
    assert_close(tower(nhwc(original[f"input {size}"])), expected.flatten(2).swapaxes(1, 2))
