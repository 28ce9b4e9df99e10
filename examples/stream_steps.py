"""A preview of every denoising step. Usage: python examples/stream_steps.py [FOLDER]"""

import sys
from pathlib import Path

from mobileo_mlx import GenerationStep, MobileO

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs")
folder.mkdir(parents=True, exist_ok=True)

model = MobileO.load("tiny")
for event in model.stream_generate("three yellow triangles", seed=1, steps=10):
    if isinstance(event, GenerationStep):
        path = folder / f"step-{event.step:02}.png"
        model.decode_latents(event.denoised)[0].save(path)  # the final image, as predicted after this step
    else:
        path = folder / "final.png"
        event.images[0].save(path)
    print(path)
