"""Text to image: two seeds of one prompt, in one batch. Usage: python examples/generate.py [FOLDER]"""

import sys
from pathlib import Path

from mobileo_mlx import MobileO

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs")
folder.mkdir(parents=True, exist_ok=True)

model = MobileO.load("tiny")  # or "Amshaker/Mobile-O-0.5B", or a folder
result = model.generate("a red star to the left of a blue square", seed=[1, 2], steps=10)
for seed, image in zip(result.seeds, result.images, strict=True):
    path = folder / f"star-{seed}.png"
    image.save(path)
    print(path)
