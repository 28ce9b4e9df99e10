"""Makes safetensors of OpenMMLab's Mask2Former, the detector of GenEval.

    python -m benchmarks.convert_detector mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth \\
        --out DIR

The file is a pickle. PyTorch opens it with `weights_only=True`, which runs no code of the file; the library itself
never opens one. A safetensors file of the same tensors is taken, too. In DIR come `mask2former.safetensors`, with our
names and layout, and `mask2former.json`, which says what it was made of.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from mobileo_mlx.atomic import atomic_write, check_output, output_error
from mobileo_mlx.checkpoints.tensor_files import write_tensors
from mobileo_mlx.errors import CheckpointError, MobileOError
from mobileo_mlx.evals.detectors.mask2former import Mask2FormerConfig
from mobileo_mlx.evals.detectors.mask2former_weights import FILE, load_mask2former, parameters
from mobileo_mlx.files import open_input


def convert(source: Path, folder: Path, config: Mask2FormerConfig | None = None) -> Path:
    """Writes the file and what it was made of.

    Raises:
        CheckpointError: the source is not the detector's.
        OutputError: it can't be written, or there is one already.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(error, folder) from error
    path = check_output(folder / FILE)
    about = {"source": source.name, "sha256": digest(source)}
    with tempfile.TemporaryDirectory() as temporary:
        tensors = source if source.suffix == ".safetensors" else unpickled(source, Path(temporary) / FILE)
        network = load_mask2former(tensors, config)
        with atomic_write(path) as unfinished:
            write_tensors(unfinished, parameters(network))
    with atomic_write(path.with_suffix(".json"), overwrite=True) as unfinished:
        unfinished.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return path


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    found = hashlib.sha256()
    with open_input(path) as file:
        while piece := file.read(2**20):
            found.update(piece)
    return found.hexdigest()


def unpickled(source: Path, path: Path) -> Path:
    """The tensors of a checkpoint of PyTorch as a safetensors file, with the same names.

    Raises:
        CheckpointError: it is none, or holds more than tensors and plain values.
    """
    import torch
    from safetensors.torch import save_file

    try:
        content: Any = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken pickle makes of PyTorch
        raise CheckpointError(f"'{source}' can't be opened as weights alone ({str(error)[:200]}).") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise CheckpointError(f"'{source}' holds no weights by name; give the checkpoint as it was downloaded.")
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="the checkpoint (.pth), or its tensors as safetensors")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    given = parser.parse_args()
    try:
        print(convert(given.file, given.out))
    except MobileOError as error:
        sys.exit(f"convert_detector: {error}")


if __name__ == "__main__":
    main()
