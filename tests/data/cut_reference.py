"""Cuts a small reference directory out of the whole one: python tests/data/cut_reference.py SOURCE DESTINATION

It keeps what no library has in the original's form, the vision tower and the conditioning projector: their goldens
(but for the largest case), the tensors of the checkpoint that these need, and the configurations.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from safetensors.numpy import load_file, save_file

KEPT = ("model.vision_tower.", "model.mm_projector.", "model.diffusion_connector.")
DROPPED = {"vision": "square", "mcp": None}
COPIED = (
    "tiny/checkpoint/config.json",
    "tiny/diffusion/transformer/config.json",
    "tiny/diffusion/vae/config.json",
    "tiny/diffusion/scheduler/scheduler_config.json",
)


def main(source: Path, destination: Path) -> None:
    for name in COPIED:
        (destination / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, destination / name)
    weights = load_file(source / "tiny/checkpoint/model.safetensors")
    kept = {key: weight for key, weight in weights.items() if key.startswith(KEPT)}
    save_file(kept, destination / "tiny/checkpoint/model.safetensors")
    goldens = destination / "tiny/goldens"
    goldens.mkdir(exist_ok=True)
    for component, dropped in DROPPED.items():
        index = json.loads((source / f"tiny/goldens/{component}.json").read_text())
        index["cases"].pop(dropped, None)
        (goldens / f"{component}.json").write_text(json.dumps(index, indent=1) + "\n")
        tensors = load_file(source / f"tiny/goldens/{component}.safetensors")
        kept = {key: tensor for key, tensor in tensors.items() if key.split("/")[0] != dropped}
        save_file(kept, goldens / f"{component}.safetensors")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
