"""The packages `openai` and `ai` of npm with a real server, where node is there and npm can install them."""

import base64
import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.shapes.edits import sample_edit
from benchmarks.shapes.world import render

pytestmark = pytest.mark.slow

VERSIONS = {"openai": "openai@^6.49", "ai_sdk": "ai@^6.0.326 @ai-sdk/openai-compatible@^2"}
FOLDER = Path(__file__).parent
START_OF_PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()[:8]


@pytest.fixture(scope="module", params=list(VERSIONS))
def script(request) -> Path:
    """A script of this folder, beside the packages that it needs."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("there is no node")
    place = Path(request.config.cache.mkdir("mobileo-node")) / request.param
    place.mkdir(exist_ok=True)
    if not (place / "node_modules").is_dir():
        (place / "package.json").write_text('{"private": true}')
        command = ["npm", "install", "--no-audit", "--no-fund", *VERSIONS[request.param].split()]
        done = subprocess.run(command, cwd=place, capture_output=True, text=True)
        if done.returncode:
            shutil.rmtree(place)
            pytest.skip(f"npm can't install the packages: {done.stderr.strip().splitlines()[-1:]}")
    return Path(shutil.copy(FOLDER / f"{request.param}.mjs", place))


def test_package(server, script):
    stream = io.BytesIO()
    Image.fromarray(render(sample_edit(np.random.default_rng(3), "colour").before)).save(stream, "PNG")
    command = ["node", script, server.url, base64.b64encode(stream.getvalue()).decode()]
    environment = {**os.environ, "AI_SDK_LOG_WARNINGS": "false"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["stream"] == found["chat"] != ""
    if script.stem == "ai_sdk":
        assert found["usage"] == found["streamUsage"] > 0
        assert found["call"] == {"prompt": "a red star"}
        assert found["seen"]
        assert found["drawn"] == START_OF_PNG
        return
    assert found["model"] == "tiny"
    assert (found["withoutChoices"], found["usage"]["completion_tokens"] > 0) == (1, True)
    assert found["call"] == {"name": "generate_image", "arguments": '{"prompt": "a red star"}'}
    assert found["events"] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert found["edited"] == START_OF_PNG
    unsupported = {"status": 400, "param": "n", "code": "unsupported_parameter", "type": "invalid_request_error"}
    assert found["error"] == unsupported
