"""The package `openai` chats with a real server, and other programs' requests as they send them."""

import asyncio
import base64
import io
import json
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("openai")
pytest.importorskip("httpx")

import httpx
import openai

from benchmarks.shapes.edits import sample_edit
from benchmarks.shapes.world import render
from mobileo_mlx import MobileO, Turn
from mobileo_mlx.serving.answer_task import Answering

PICTURE = Image.fromarray(render(sample_edit(np.random.default_rng(3), "colour").before))
QUESTION = "what color is the shape?"
DRAW = {
    "type": "function",
    "function": {
        "name": "generate_image",
        "description": "Generate an image based on a text prompt.",
        "parameters": {"type": "object", "properties": {"prompt": {"type": "string"}}, "required": ["prompt"]},
    },
}


@pytest.fixture(scope="module")
def model():
    """The same model without a server."""
    return MobileO.load("tiny")


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def uri() -> str:
    stream = io.BytesIO()
    PICTURE.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def user(text, *urls):
    if not urls:
        return {"role": "user", "content": text}
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [{"type": "text", "text": text}, *images]}


def ask(client, *messages, **fields):
    return client.chat.completions.create(model="gpt-4o", messages=list(messages), **fields)


def test_chat(client, model):
    answer = ask(client, {"role": "system", "content": "Be brief."}, user("what is a star?"), max_tokens=8)
    expected = model.answer([Turn("system", "Be brief."), Turn("user", "what is a star?")], max_tokens=8)
    assert answer.choices[0].message.content.strip() == expected.text
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert answer.usage.completion_tokens == len(expected.tokens)
    assert answer.model == "tiny"  # whatever was asked for
    # The package builds its types without a check; here all that they require is looked at.
    type(answer).model_validate(answer.model_dump())


def test_stream(client, model):
    stream = ask(client, user("what is a star?"), stream=True, stream_options={"include_usage": True})
    *chunks, last = list(stream)
    expected = model.answer([Turn("user", "what is a star?")])
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).strip() == expected.text
    assert (last.choices, last.usage.completion_tokens) == ([], len(expected.tokens))
    for chunk in [*chunks, last]:
        type(chunk).model_validate(chunk.model_dump())


def test_no_chunk_without_choices_is_sent_unasked(client):
    for chunk in ask(client, user("hello"), stream=True):
        assert len(chunk.choices) == 1
        assert chunk.usage is None


def test_the_packages_own_reader_of_streams(client, model):
    """It puts the chunks together, and fails where one does not fit."""
    options = {"stream_options": {"include_usage": True}}
    with client.chat.completions.stream(model="x", messages=[user("what is a star?")], **options) as stream:
        whole = stream.get_final_completion()
    assert whole.choices[0].message.content.strip() == model.answer([Turn("user", "what is a star?")]).text
    with client.chat.completions.stream(model="x", messages=[user("draw a red star")], tools=[DRAW]) as stream:
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("generate_image", {"prompt": "a red star"})


def test_images(client, model):
    answer = ask(client, user(QUESTION, uri(), uri()))
    expected = model.answer([Turn("user", QUESTION, [PICTURE, PICTURE])])
    assert answer.choices[0].message.content.strip() == expected.text
    assert answer.usage.prompt_tokens == expected.prompt_tokens + expected.cached_tokens


def test_a_conversation_computes_what_is_new(client):
    messages = [{"role": "system", "content": "Nobody else asks like this."}, user(QUESTION, uri())]
    first = ask(client, *messages)
    messages += [first.choices[0].message, user("are you sure?")]
    second = ask(client, *messages)
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens


def test_a_picture_through_a_tool(client):
    """As a program draws that offers the tool: it runs the call, and tells the model."""
    messages = [user("please draw a red star")]
    answer = ask(client, *messages, tools=[DRAW])
    (call,) = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    arguments = json.loads(call.function.arguments)
    picture = client.images.generate(**arguments, extra_body={"steps": 2})
    Image.open(io.BytesIO(base64.b64decode(picture.data[0].b64_json))).load()
    messages += [answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "done"}]
    answer = ask(client, *messages, tools=[DRAW])
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Here is the picture.", "stop")


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"n": 2}, "n", "unsupported_parameter"),
        ({"logprobs": True}, "logprobs", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"extra_body": {"tempreature": 1}}, "tempreature", "unknown_parameter"),
        ({"messages": []}, "messages", "missing_parameter"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_mistakes(client, fields, param, code, stream):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": "x", "messages": [user("hello")], "stream": stream, **fields})
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.type == "invalid_request_error"


def test_a_failure_in_a_stream_is_raised(client, monkeypatch):
    def broken(self, model, turn):
        yield "text", {"delta": "a"}
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(Answering, "run", broken)
    with pytest.raises(openai.APIError, match="its log says why"):
        list(ask(client, user("hello"), stream=True))
    with pytest.raises(openai.InternalServerError, match="its log says why"):
        ask(client, user("hello"))


# Clients that go away


class Gate:
    """Lets an answer have its tokens only when a test says so; they never end.

    Attributes:
        given: how many the worker has got.
    """

    def __init__(self, service, monkeypatch):
        self._service, self._tokens = service, threading.Semaphore(0)
        self._reached = threading.Semaphore(0)
        self.given = 0

        def held(task, model, turn):
            while True:
                self._reached.release()
                assert self._tokens.acquire(timeout=60)
                self.given += 1
                yield "text", {"delta": "a"}

        monkeypatch.setattr(Answering, "run", held)

    def allow(self, tokens: int) -> None:
        self._tokens.release(tokens)

    def wait(self) -> None:
        """Until the next token is being computed."""
        assert self._reached.acquire(timeout=60)

    def job(self):
        """The only one."""
        (job,) = self._service.jobs.newest(kept=False)
        return job


@pytest.fixture
def gate(server, monkeypatch):
    gate = Gate(server.service, monkeypatch)
    yield gate
    gate.allow(1000)


def check_stopped(server, gate, job) -> None:
    """The client has gone, and the second token is being computed: that is the last."""
    assert job.stop.wait(60)
    gate.allow(100)
    server.wait_for(job)
    assert (job.status, gate.given) == ("cancelled", 2)
    assert server.service.jobs.newest(kept=False) == []


def test_a_stream_that_is_closed_ends_the_answer_at_its_token(server, client, gate):
    stream = ask(client, user("hello"), stream=True)
    gate.wait()
    job = gate.job()
    gate.allow(1)
    gate.wait()
    stream.close()
    check_stopped(server, gate, job)


def test_a_request_that_is_cancelled_ends_the_answer_at_its_token(server, gate):
    async def chat():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            task = asyncio.ensure_future(client.chat.completions.create(model="x", messages=[user("hello")]))
            await asyncio.to_thread(gate.wait)
            job = gate.job()
            gate.allow(1)
            await asyncio.to_thread(gate.wait)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(check_stopped, server, gate, job)

    asyncio.run(chat())


# Other programs' requests, as they were seen on the wire


def post(server, body, **headers):
    response = httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=60)
    assert response.status_code == 200, response.text
    return response


def test_the_program_llm(server):
    """With `-a picture.png`; it asks for the usage, and streams."""
    body = {
        "messages": [user(QUESTION, uri())],
        "model": "tiny",
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"Authorization": "Bearer none", "User-Agent": "OpenAI/Python 2.0.0", "x-stainless-lang": "python"}
    lines = post(server, body, **headers).text.split("\n\n")
    assert lines[-2] == "data: [DONE]"
    assert json.loads(lines[-3].removeprefix("data: "))["usage"]["completion_tokens"] > 0


def test_open_webui(server):
    """A chat, and the titles and follow-ups that it asks for behind the user's back."""
    messages = [{"role": "system", "content": "User Context:\n\n"}, user("what is a star?")]
    text = post(server, {"stream": True, "model": "tiny", "messages": messages}).text
    assert text.endswith("data: [DONE]\n\n")
    title = {
        "role": "user",
        "content": "### Task:\nGenerate a concise title.\n<chat_history>\nUSER: hi\n</chat_history>",
    }
    body = {"model": "tiny", "messages": [title], "stream": False, "max_completion_tokens": 40}
    assert isinstance(post(server, body).json()["choices"][0]["message"]["content"], str)


def test_open_webui_draws_and_edits_in_a_chat(server):
    """Native tools: those that it has built in come with every request, beside others."""
    search = {"type": "function", "function": {"name": "search_web", "parameters": {"type": "object"}}}
    urls = {"type": "array", "items": {"type": "string"}}
    parameters = {"type": "object", "properties": {"prompt": {"type": "string"}, "image_urls": urls}}
    parameters["required"] = ["prompt", "image_urls"]
    edit = {"type": "function", "function": {"name": "edit_image", "parameters": parameters}}
    fields = {"model": "tiny", "stream": False, "tools": [search, DRAW, edit]}
    messages = [user("Can you draw a red star?")]
    choice = post(server, {**fields, "messages": messages}).json()["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"prompt": "a red star"}
    result = {"status": "success", "message": "visible to the user", "images": [{"url": "/api/v1/files/7/content"}]}
    messages += [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": json.dumps(result)},
    ]
    choice = post(server, {**fields, "messages": messages}).json()["choices"][0]
    assert choice["message"]["content"] == "Here is the picture."
    messages += [{"role": "assistant", "content": "Here is the picture."}, user("make it blue")]
    (call,) = post(server, {**fields, "messages": messages}).json()["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "edit_image"
    assert json.loads(call["function"]["arguments"]) == {
        "prompt": "make it blue",
        "image_urls": ["/api/v1/files/7/content"],
    }


# The command


def test_the_command_serve(tmp_path):
    """As a user starts it, in a process of its own."""
    command = [sys.executable, "-m", "mobileo_mlx", "serve", "--model", "tiny", "--port", "0"]
    command += ["--pictures", str(tmp_path / "pictures"), "--inline-images"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            found = re.search(r"http://[^\s]+", process.stdout.readline())
            assert found, process.communicate()
            with openai.OpenAI(base_url=f"{found[0]}/v1", api_key="none", max_retries=0) as client:
                answer = ask(client, user(QUESTION, uri()))
                assert answer.choices[0].message.content
                answer = ask(client, user("draw a red star"), seed=1)
                url = re.fullmatch(r"!\[a red star\]\((http[^)]+)\)", answer.choices[0].message.content)[1]
                Image.open(io.BytesIO(httpx.get(url).content)).load()
            assert len(list((tmp_path / "pictures").glob("*.png"))) == 1
        finally:
            process.terminate()
            process.communicate(timeout=60)
    assert process.returncode == 143
