"""Visual questions: each token is printed as soon as it is decoded. Usage: python examples/ask.py [FOLDER]"""

import sys
from pathlib import Path

from mobileo_mlx import MobileO

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs")
folder.mkdir(parents=True, exist_ok=True)

model = MobileO.load("tiny")
path = folder / "question.png"
model.generate("a red star above a blue square", seed=1).images[0].save(path)
print(path)
for question in ("what color is the star?", "is the star above the square?"):
    print(question, end=" ")
    for token in model.stream_ask(path, question, max_tokens=16):
        print(token.text, end="", flush=True)
    print()
