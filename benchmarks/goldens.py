"""Writes what `mobileo-mlx doctor` and the tests compare the bundled model `tiny` with: `python -m benchmarks.goldens`.

All is computed in float32 on a CPU. Run it again when the bundled model or its inputs change, and only then.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mlx.core as mx
import numpy as np
from mobileo_weights import goldens as file_of
from PIL import Image

from benchmarks.shapes.world import Object, Scene, render
from mobileo_mlx import MobileO
from mobileo_mlx.doctor.goldens import MODEL, Inputs, compute, write

SCENE = Scene((Object("star", "red", 2, 4), Object("square", "blue", 6, 4)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=file_of(MODEL), help="the file. [default: the one in the package]")
    path = parser.parse_args().out
    with mx.stream(mx.cpu):
        model = MobileO.load(MODEL, dtype="float32")
        width, height = (side // model.config.vae.factor for side in model.default_size)
        noise = mx.random.normal((1, height, width, model.config.vae.latent_channels), key=mx.random.key(0))
        given = Inputs(
            image=render(SCENE, model.config.image_size),
            noise=np.asarray(noise),
            question="where is the star relative to the square?",
            answer="to the left",
            prompt="a red star to the left of a blue square",
        )
        results = compute(model, given)
        assert model.ask(Image.fromarray(given.image), given.question).text == given.answer
        path.parent.mkdir(exist_ok=True)
        write(path, given, results)
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
