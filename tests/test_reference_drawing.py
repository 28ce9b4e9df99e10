"""`MobileO.generate` and `.edit` as users call them, against the original's drawings from the same noise.

`benchmarks.parity` compares every part and every step; what is added here is the way from the call to the parts.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mobileo_mlx import conditioning
from mobileo_mlx.pipeline import MobileO
from mobileo_mlx.prompts import IMAGE_TOKEN_INDEX

CASES = [("generate", "cfg"), ("generate", "nocfg"), ("generate", "custom"), ("edit", "cfg"), ("edit", "nocfg")]


class FixedTokenizer:
    """Gives the ids of a golden whatever the text is; the tiny model of the goldens has no tokenizer of its own."""

    def __init__(self, ids: list[int]):
        groups = itertools.groupby(ids, lambda token: token == IMAGE_TOKEN_INDEX)
        self._pieces = iter([list(group) for is_image, group in groups if not is_image])

    def encode(self, text: str) -> list[int]:
        return next(self._pieces)


@pytest.mark.parametrize(("task", "case"), CASES)
def test_the_call_draws_what_the_original_draws(
    reference: Path, monkeypatch: pytest.MonkeyPatch, task: str, case: str
) -> None:
    folder = reference / "tiny" / "goldens"
    params = json.loads((folder / f"{task}.json").read_text())["cases"][case]["params"]
    tensors: dict[str, mx.array] = mx.load(str(folder / f"{task}.safetensors"))
    golden = {key.split("/")[1]: tensor for key, tensor in tensors.items() if key.startswith(f"{case}/")}

    model = MobileO.load(reference / "tiny" / "checkpoint", dtype="float32")
    model.parts.tokenizer = FixedTokenizer(golden["input_ids"][0].tolist())
    draw: Callable[..., object] = model.generate
    arguments: tuple[object, ...] = ("anything",)
    if task == "edit":
        # The golden starts from pixel values that no picture of 8 bits has.
        pixels = golden["pixel_values"].transpose(0, 2, 3, 1)
        monkeypatch.setattr(conditioning, "preprocess", lambda image, size: pixels)
        draw, arguments = model.edit, (Image.new("RGB", (8, 8)), "anything")
    result = draw(
        *arguments,
        steps=params["steps"],
        guidance_scale=params["guidance_scale"] or 1.0,
        initial_latents=golden["noise"].transpose(0, 2, 3, 1),
    )
    latents = np.array(result.latents.transpose(0, 3, 1, 2))
    expected = np.array(golden["final_latents"])
    assert np.abs(latents - expected).max() / np.abs(expected).max() < 1e-5
    (image,) = result.images
    assert np.abs(np.asarray(image, np.int16) - np.array(golden["image_u8"][0]).astype(np.int16)).max() <= 1
