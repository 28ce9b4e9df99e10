"""Chat: the second turn computes only its own tokens, not the image again. Usage: python examples/chat.py [FOLDER]"""

import sys
from pathlib import Path

from mobileo_mlx import MobileO

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs")
folder.mkdir(parents=True, exist_ok=True)

model = MobileO.load("tiny")
path = folder / "chat.png"
model.generate("two green circles", seed=1).images[0].save(path)
print(path)
chat = model.chat()
first = chat.send("how many circles are there?", images=path, max_tokens=16)
print(f"{first.text} ({first.prompt_tokens} prompt tokens)")
second = chat.send("what color are the circles?", max_tokens=16)
print(f"{second.text} ({second.prompt_tokens} prompt tokens)")
