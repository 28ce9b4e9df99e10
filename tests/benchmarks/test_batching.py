"""Drawing as one batch, beside one after the other."""

import sys

import numpy as np

from benchmarks import batching
from mobileo_mlx import MobileO


def test_prompts_of_a_batch_are_drawn_as_alone():
    model = MobileO.load("tiny", dtype="float32")
    pictures = batching.draw_prompts(model, batching.PROMPTS, steps=3)
    assert len(pictures) == 3
    for seed, (prompt, picture) in enumerate(zip(batching.PROMPTS, pictures, strict=True)):
        alone = model.generate(prompt, seed=seed, steps=3).images[0]
        assert np.abs(np.asarray(picture, int) - np.asarray(alone, int)).max() <= 1


def test_table(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["batching", "--pairs", "1", "--steps", "1", "--most", "2"])
    batching.main()
    rows = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert rows[2:] == ["2 seeds", "2 prompts"]
