"""Time and memory of Mask2Former at full size, with random weights, for one image.

python -m benchmarks.detector_cost [--size 512]
"""

from __future__ import annotations

import argparse
import resource
import sys
import time

import mlx.core as mx
import numpy as np
from PIL import Image

from mobileo_mlx.evals.detectors.instances import Mask2FormerDetector
from mobileo_mlx.evals.detectors.mask2former import Mask2Former, Mask2FormerConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="side of the image")
    side = parser.parse_args().size
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    network = Mask2Former(Mask2FormerConfig())
    mx.eval(network.parameters())
    detector = Mask2FormerDetector(network)
    seconds = []
    for _ in range(2):
        mx.reset_peak_memory()
        begin = time.perf_counter()
        found = detector.detect(Image.fromarray(pixels))
        seconds.append(time.perf_counter() - begin)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(
        f"{side}x{side}: {len(found)} objects, first {seconds[0]:.1f} s, then {seconds[1]:.1f} s; "
        f"peak {mx.get_peak_memory() / 1e9:.2f} GB in MLX, {peak / 1e9:.2f} GB of the process"
    )


if __name__ == "__main__":
    main()
