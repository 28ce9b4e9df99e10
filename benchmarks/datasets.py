"""What a build of `mobileo-mlx dataset` takes: `python -m benchmarks.datasets`. Processor time, of one thread mostly.

Pictures are of noise that is enlarged, so that neither JPEG nor a difference hash has an easy time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.datasets", description=__doc__)
    parser.add_argument("--size", default="4000x3000", help="of the pictures that are looked at (default: 4000x3000)")
    parser.add_argument("--n", type=int, default=5, help="of them (default: 5)")
    parser.add_argument("--samples", type=int, default=10_000, help="that are compared and shown (default: 10000)")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), width, height, options.n, options.samples)


def measure(folder: Path, width: int, height: int, count: int, samples: int) -> None:
    """Prints a line for each step."""
    from PIL import Image

    from mobileo_mlx.datasets.drafts import Draft
    from mobileo_mlx.datasets.duplicates import find_duplicates
    from mobileo_mlx.datasets.pictures import Picture, look_at
    from mobileo_mlx.datasets.review import write_review
    from mobileo_mlx.datasets.samples import Sample

    rng = np.random.default_rng(0)
    names = [f"{number}.jpg" for number in range(count)]
    for name in names:
        noise = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
        noise.resize((width, height)).save(folder / name, quality=90)
    seen, seconds = timed(lambda: list(look_at(folder, names, folder)))
    print(f"a picture of {width}x{height}, looked at: {seconds / count:.3f} s")
    known, seconds = timed(lambda: list(look_at(folder, names, folder)))
    assert known == seen
    print(f"known from an earlier build: {seconds / count:.5f} s")

    pictures = [
        Picture(
            f"{i}.jpg", f"{i:064x}", width, height, int(rng.integers(2**63)), rng.bytes(48).hex(), seen[0].thumbnail
        )
        for i in range(samples)
    ]
    drafts = [Draft(picture.path, caption="a caption") for picture in pictures]
    _, seconds = timed(lambda: find_duplicates(drafts, {picture.path: picture for picture in pictures}, 3))
    print(f"near duplicates among {samples}: {seconds:.1f} s")
    made = [Sample(picture.digest[-16:], "a caption", picture) for picture in pictures]
    _, seconds = timed(lambda: write_review(made, folder / "review.html", title="data"))
    size = (folder / "review.html").stat().st_size
    print(f"a review page of {samples}: {seconds:.1f} s, {size / 10**6:.0f} MB")


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call gives, and its processor time in seconds."""
    begin = time.process_time()
    value = call()
    return value, time.process_time() - begin


if __name__ == "__main__":
    main()
