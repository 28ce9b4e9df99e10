"""The packages litellm and langchain-openai, and the program llm, with a real server."""

import base64
import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks.shapes.edits import sample_edit
from benchmarks.shapes.world import render
from mobileo_mlx import MobileO, Turn

pytestmark = pytest.mark.slow

QUESTION = "what color is the shape?"
PICTURE = Image.fromarray(render(sample_edit(np.random.default_rng(3), "colour").before))
PARAMETERS = {"type": "object", "properties": {"prompt": {"type": "string"}}, "required": ["prompt"]}
DRAW = {"type": "function", "function": {"name": "generate_image", "parameters": PARAMETERS}}


@pytest.fixture(scope="module")
def model():
    """The same model without a server."""
    return MobileO.load("tiny")


def png() -> bytes:
    stream = io.BytesIO()
    PICTURE.save(stream, "PNG")
    return stream.getvalue()


def uri() -> str:
    return f"data:image/png;base64,{base64.b64encode(png()).decode()}"


def shown():
    image = {"type": "image_url", "image_url": {"url": uri()}}
    return {"role": "user", "content": [{"type": "text", "text": QUESTION}, image]}


@pytest.fixture
def litellm(monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it downloads the prices of all models otherwise
    return pytest.importorskip("litellm")


def test_litellm(server, litellm, model):
    to = {"model": "openai/tiny", "api_base": f"{server.url}/v1", "api_key": "none"}
    answer = litellm.completion(messages=[shown()], **to)
    expected = model.answer([Turn("user", QUESTION, PICTURE)])
    assert answer.choices[0].message.content.strip() == expected.text
    assert answer.usage.completion_tokens == len(expected.tokens)
    chunks = list(litellm.completion(messages=[shown()], stream=True, stream_options={"include_usage": True}, **to))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices).strip() == expected.text
    answer = litellm.completion(messages=[{"role": "user", "content": "draw a red star"}], tools=[DRAW], **to)
    assert answer.choices[0].message.tool_calls[0].function.arguments == '{"prompt": "a red star"}'
    with pytest.raises(litellm.BadRequestError, match="n 2 is not supported"):
        litellm.completion(messages=[shown()], n=2, **to)
    picture = litellm.image_generation(prompt="a red star", **to)
    Image.open(io.BytesIO(base64.b64decode(picture.data[0].b64_json))).load()


def test_langchain(server, model):
    langchain_openai = pytest.importorskip("langchain_openai")
    chat = langchain_openai.ChatOpenAI(base_url=f"{server.url}/v1", api_key="none", model="tiny", max_retries=0)
    expected = model.answer([Turn("user", QUESTION, PICTURE)])
    answer = chat.invoke([shown()], temperature=0)
    assert answer.content.strip() == expected.text
    assert answer.usage_metadata["output_tokens"] == len(expected.tokens)
    pieces = list(chat.stream([shown()], temperature=0, stream_usage=True))
    assert "".join(piece.content for piece in pieces).strip() == expected.text
    assert sum((piece.usage_metadata or {}).get("output_tokens", 0) for piece in pieces) == len(expected.tokens)
    (call,) = chat.bind_tools([DRAW]).invoke("draw a red star").tool_calls
    assert (call["name"], call["args"]) == ("generate_image", {"prompt": "a red star"})


def test_llm(server, model, tmp_path):
    """Simon Willison's program, with a file that says where the model is, as its users write it."""
    pytest.importorskip("llm")
    lines = ["- model_id: mobileo", "  model_name: tiny", f"  api_base: {server.url}/v1", "  vision: true"]
    (tmp_path / "extra-openai-models.yaml").write_text("\n".join(lines))
    (tmp_path / "picture.png").write_bytes(png())
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
    expected = model.answer([Turn("user", QUESTION, PICTURE)]).text
    for options in ([], ["--no-stream"]):
        command = [sys.executable, "-m", "llm", "-m", "mobileo", QUESTION, "-a", "picture.png", *options]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
        assert (done.returncode, done.stdout.strip()) == (0, expected), done.stderr
    again = subprocess.run(
        [sys.executable, "-m", "llm", "-m", "mobileo", "-c", "are you sure?", "-o", "max_tokens", "8"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=300,
    )
    turns = [Turn("user", QUESTION, PICTURE), Turn("assistant", expected), Turn("user", "are you sure?")]
    assert (again.returncode, again.stdout.strip()) == (0, model.answer(turns, max_tokens=8).text), again.stderr
