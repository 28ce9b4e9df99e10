"""The npm package `openai` draws, streams and edits; it is installed for the test."""

import base64
import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobileo_mlx import MobileO

PROMPT = "a red circle on a blue background"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("npm") is None, reason="there is no Node.js here"),
]


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    """A folder with the package."""
    folder = tmp_path_factory.mktemp("node")
    command = ["npm", "install", "--no-fund", "--no-audit", "--prefix", str(folder), "openai@6"]
    installed = subprocess.run(command, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"npm installs nothing here: {installed.stderr[-200:]}")
    return folder


def test_node(server, packages):
    script = Path(__file__).parent / "images.mjs"
    ran = subprocess.run(["node", str(script), str(packages), server.url], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    model = MobileO.load("tiny")
    for seed, item in zip((7, 8), found["drawn"]["data"], strict=True):
        picture = Image.open(io.BytesIO(base64.b64decode(item["b64_json"])))
        np.testing.assert_array_equal(
            np.asarray(picture), np.asarray(model.generate(PROMPT, seed=seed, steps=2).images[0])
        )
    assert [(event["type"], event.get("partial_image_index")) for event in found["events"]] == [
        ("image_generation.partial_image", 0),
        ("image_generation.partial_image", 1),
        ("image_generation.completed", None),
    ]
    assert [item["image_index"] for item in found["edited"]["data"]] == [0, 1]
    assert found["error"] == {"status": 400, "code": "invalid_value", "param": "n"}
