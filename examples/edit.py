"""Image editing: generate an image, then change it in words. Usage: python examples/edit.py [FOLDER]"""

import sys
from pathlib import Path

from mobileo_mlx import MobileO

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs")
folder.mkdir(parents=True, exist_ok=True)

model = MobileO.load("tiny")
before = model.generate("a red star", seed=1).images[0]  # or the path of a file
after = model.edit(before, "make the star green", seed=1).images[0]
for name, image in (("before.png", before), ("after.png", after)):
    image.save(folder / name)
    print(folder / name)
