"""Finetuning: a handful of quadruplets, a few steps, an adapter. Usage: python examples/finetune.py [FOLDER]"""

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw

from mobileo_mlx import MobileO
from mobileo_mlx.training.options import Options
from mobileo_mlx.training.trainer import FinetuneRun

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs")
folder.mkdir(parents=True, exist_ok=True)

with (folder / "data.jsonl").open("w") as data:
    for index in range(8):
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).ellipse((4 * index, 16, 4 * index + 28, 44), fill="brown")
        image.save(folder / f"circle-{index}.png")
        sample = {"prompt": "a brown circle", "image": f"circle-{index}.png"}
        print(json.dumps(sample | {"question": "what color is the circle?", "answer": "brown"}), file=data)

run = FinetuneRun.prepare(folder / "data.jsonl", "tiny", Options(steps=4, sample_every=4))
for event in run.start(folder / "adapter", resume=True):  # a second call goes on where the first stopped
    print(event)
model = MobileO.load("tiny", adapter=folder / "adapter")
model.generate("a brown circle", seed=1).images[0].save(folder / "brown.png")  # many more steps make it brown
print(folder / "brown.png")
