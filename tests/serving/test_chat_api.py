"""OpenAI's chat route answers as the library does, at once and in pieces, and ends with its client."""

import asyncio
import base64
import io
import json
import socket
import threading

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")

import httpx
from starlette.testclient import TestClient

from benchmarks.shapes.edits import sample_edit
from benchmarks.shapes.world import render
from mobileo_mlx import MobileO, Turn
from mobileo_mlx.image_settings import read_metadata
from mobileo_mlx.results import AnswerToken
from mobileo_mlx.serving import image_inputs, sse
from mobileo_mlx.serving.answer_task import Answering
from mobileo_mlx.serving.app import make_app
from mobileo_mlx.serving.chat_requests import read_asked
from mobileo_mlx.serving.service import Service
from mobileo_mlx.serving.settings import ServerSettings

from .live import live

ROUTE = "/v1/chat/completions"
PICTURE = Image.fromarray(render(sample_edit(np.random.default_rng(3), "colour").before))
QUESTION = "what is in the picture?"


@pytest.fixture(scope="module")
def model():
    """The same model without a server."""
    return MobileO.load("tiny")


def uri(image: Image.Image = PICTURE) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def user(content):
    return {"role": "user", "content": content}


def shown(text=QUESTION, *urls):
    return user([*({"type": "image_url", "image_url": {"url": url}} for url in urls), {"type": "text", "text": text}])


def post(client, *messages, **fields):
    response = client.post(ROUTE, json={"messages": list(messages), **fields})
    assert response.status_code == 200, response.text
    return response


def ask(client, *messages, **fields):
    """The body of an answer, and its only choice."""
    body = post(client, *messages, **fields).json()
    (choice,) = body["choices"]
    return body, choice


def pieces(client, *messages, **fields):
    """The chunks of a stream, which ends as streams do."""
    response = post(client, *messages, stream=True, **fields)
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line and not line.startswith(":")]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def text_of(chunks):
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"])


# Answers


def test_an_answer_is_the_librarys(client, model):
    body, choice = ask(client, user("what is a star?"), max_tokens=6)
    expected = model.answer([Turn("user", "what is a star?")], max_tokens=6)
    assert choice["message"]["content"].strip() == expected.text
    assert choice["finish_reason"] == expected.finish_reason
    assert (body["object"], body["model"], choice["message"]["role"]) == ("chat.completion", "tiny", "assistant")
    account = body["usage"]
    assert account["prompt_tokens"] == expected.prompt_tokens + expected.cached_tokens
    assert account["completion_tokens"] == len(expected.tokens)
    assert account["total_tokens"] == account["prompt_tokens"] + account["completion_tokens"]


def test_a_stream_gives_the_same_in_pieces(client):
    _, whole = ask(client, user("what is a star?"))
    chunks = pieces(client, user("what is a star?"))
    assert text_of(chunks) == whole["message"]["content"]
    first, *_, last = chunks
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, whole["finish_reason"])
    assert len({chunk["id"] for chunk in chunks}) == 1
    for chunk in chunks:
        assert (chunk["object"], len(chunk["choices"])) == ("chat.completion.chunk", 1)
        assert "usage" not in chunk
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks[:-1])


def test_usage_comes_once_at_the_end_where_it_is_asked_for(client):
    *others, last = pieces(client, user("what is a star?"), stream_options={"include_usage": True})
    assert last["choices"] == []
    body, _ = ask(client, user("what is a star?"))
    assert {**last["usage"], "prompt_tokens_details": {}} == {**body["usage"], "prompt_tokens_details": {}}
    assert all(len(chunk["choices"]) == 1 and chunk["usage"] is None for chunk in others)


@pytest.mark.parametrize("form", ["object", "text", "base64", "input_image", "picture"])
def test_images(client, model, service, form):
    if form == "picture":
        stream = io.BytesIO()
        PICTURE.save(stream, "PNG")
        url = f"http://localhost:8642/v1/pictures/{service.pictures.upload(stream.getvalue()).id}/content"
    else:
        url = uri().partition(",")[2] if form == "base64" else uri()
    part = {"type": "image_url", "image_url": {"url": url} if form == "object" else url}
    if form == "input_image":
        part = {"type": "input_image", "image_url": url}
    body, choice = ask(client, user([part, {"type": "text", "text": QUESTION}]))
    expected = model.answer([Turn("user", QUESTION, PICTURE)])
    assert choice["message"]["content"].strip() == expected.text
    assert body["usage"]["prompt_tokens"] == expected.prompt_tokens + expected.cached_tokens


def test_several_large_images_at_several_places(client, model):
    large = PICTURE.resize((700, 500))
    turned = PICTURE.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    messages = [
        shown(QUESTION, uri(large), uri()),
        {"role": "assistant", "content": "a star"},
        shown("why?", uri(turned)),
    ]
    body, choice = ask(client, *messages)
    turns = [Turn("user", QUESTION, [large, PICTURE]), Turn("assistant", "a star"), Turn("user", "why?", turned)]
    expected = model.answer(turns)
    assert choice["message"]["content"].strip() == expected.text
    assert body["usage"]["prompt_tokens"] == expected.prompt_tokens + expected.cached_tokens


def test_a_conversation_computes_what_is_new(client):
    messages = [{"role": "developer", "content": "Answer like no other test does."}, shown(QUESTION, uri())]
    first, choice = ask(client, *messages)
    messages += [choice["message"], user("are you sure?")]
    second, _ = ask(client, *messages)
    known = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert known >= first["usage"]["prompt_tokens"]
    assert known < second["usage"]["prompt_tokens"]


def test_options_are_the_models(client, model):
    options = {"temperature": 1.5, "top_p": 0.9, "seed": 3, "repetition_penalty": 1.2}
    _, choice = ask(client, user("tell me"), max_completion_tokens=9, **options)
    expected = model.answer([Turn("user", "tell me")], max_tokens=9, **options)
    assert choice["message"]["content"].strip() == expected.text
    _, cut = ask(client, user("what is a star?"), max_tokens=1)
    assert cut["finish_reason"] == "length"


@pytest.mark.parametrize("several", [False, True])
def test_a_stop_text_ends_the_answer(client, several):
    _, whole = ask(client, user("what is a star?"))
    text = whole["message"]["content"]
    stop = text[1:3]
    for found in (
        ask(client, user("what is a star?"), stop=[stop, "never"] if several else stop)[1]["message"]["content"],
        text_of(pieces(client, user("what is a star?"), stop=[stop] if several else stop)),
    ):
        assert found == text[: text.index(stop)]


def test_sampling_without_a_seed_takes_another_one_each_time():
    fields = {"messages": [user("x")], "temperature": 1}
    seeds = {asyncio.run(read_asked(fields)).options["seed"] for _ in range(4)}
    assert len(seeds) > 1
    assert "seed" not in asyncio.run(read_asked({"messages": [user("x")]})).options
    assert asyncio.run(read_asked({**fields, "seed": 5})).options["seed"] == 5


# What is refused, and what is not


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"n": 2}, "n", "unsupported_parameter"),
        ({"logprobs": True}, "logprobs", "unsupported_parameter"),
        ({"top_logprobs": 3}, "top_logprobs", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format", "unsupported_parameter"),
        ({"audio": {"voice": "x"}}, "audio", "unsupported_parameter"),
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "unsupported_parameter"),
        ({"presence_penalty": -1}, "presence_penalty", "unsupported_parameter"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_parameter"),
        ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
        ({"tools": [{"type": "function", "function": {"name": "weather"}}]}, "tools", "unsupported_parameter"),
        ({"tools": 5}, "tools", "invalid_value"),
        ({"tools": [5]}, "tools", "invalid_value"),
        ({"tempreature": 1}, "tempreature", "unknown_parameter"),
        ({"temperature": -1}, "temperature", "invalid_value"),
        ({"temperature": "warm"}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens", "invalid_value"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"temperature": 1e-320}, "temperature", "invalid_value"),
        ({"temperature": 1e300}, "temperature", "invalid_value"),
        ({"temperature": 0.5, "repetition_penalty": 1e38}, "repetition_penalty", "invalid_value"),
        ({"stop": [5]}, "stop", "invalid_value"),
        ({"stop": ["a"] * 17}, "stop", "invalid_value"),
        ({"stop": ["a" * 3000, "b" * 3000]}, "stop", "invalid_value"),
        ({"x" * 5000: 1}, "x" * 100, "unknown_parameter"),
        ({"stream": "yes"}, "stream", "invalid_value"),
        ({"messages": [user("an <image>")]}, "messages", "invalid_value"),
        ({"messages": [user("")]}, "messages", "invalid_value"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "invalid_value"),
        ({"messages": [user("why? " * 40_000)]}, "messages", "invalid_value"),
        ({"messages": [shown("x", *["data:,"] * 2000)]}, "messages", "context_length_exceeded"),
        ({"messages": [shown("x", "data:image/png;base64,AAAA")]}, "messages[0].content[0].image_url", "invalid_image"),
        ({"messages": [shown("x", "/etc/passwd")]}, "messages[0].content[0].image_url", "invalid_image"),
        ({"messages": [shown("x", "picture:20261126")]}, "messages[0].content[0].image_url", "picture_not_found"),
        (
            {"messages": [shown("x", "http://example.org/a.png")]},
            "messages[0].content[0].image_url",
            "image_url_not_allowed",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_mistakes_are_named(client, fields, param, code, stream):
    response = client.post(ROUTE, json={"messages": [user("hello")], "stream": stream, **fields})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)
    assert error["type"] == "invalid_request_error"
    assert error["message"].endswith(".")


def test_what_makes_no_difference_is_accepted(client):
    harmless = {
        **{"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "n": 1, "logprobs": False},
        **{"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "response_format": {"type": "text"}},
        **{"parallel_tool_calls": True, "tools": [], "tool_choice": "none", "modalities": ["text"], "stop": None},
        **{"reasoning_effort": "low", "seed": None, "stream": None, "stream_options": None, "top_logprobs": None},
    }
    body, _ = ask(client, user("hello"), model="gpt-4o-mini", **harmless)
    assert body["model"] == "tiny"


# Tools


def tool(name="generate_image", required=("prompt",), **parameters):
    parameters = parameters or {"prompt": {"type": "string"}}
    schema = {"type": "object", "properties": parameters, "required": list(required)}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


OTHER = tool("weather", city={"type": "string"}, required=["city"])
EDITOR = tool(
    "edit_image",
    ["prompt", "image_urls"],
    prompt={"type": "string"},
    image_urls={"type": "array", "items": {"type": "string"}},
)


def called(client, *messages, **fields):
    """The name and arguments of the call that answers, at once and in a stream; None where a text does."""
    _, choice = ask(client, *messages, **fields)
    calls = choice["message"].get("tool_calls")
    chunks = pieces(client, *messages, **fields)
    deltas = [delta for chunk in chunks for delta in chunk["choices"][0]["delta"].get("tool_calls", [])]
    if calls is None:
        assert (deltas, choice["finish_reason"] in ("stop", "length")) == ([], True)
        return None
    (call,), (delta,) = calls, deltas
    assert (call["type"], delta["type"], delta["index"]) == ("function", "function", 0)
    assert call["function"] == delta["function"]
    assert call["id"].startswith("call_")
    assert choice["finish_reason"] == chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    return call["function"]["name"], json.loads(call["function"]["arguments"])


def test_a_picture_is_asked_of_the_tool_for_it(client):
    message = user("please draw a red star")
    assert called(client, message, tools=[OTHER, tool()]) == ("generate_image", {"prompt": "a red star"})
    assert called(client, message, tools=[tool(caption={"type": "string"}, required=[])]) == (
        "generate_image",
        {"caption": "a red star"},
    )
    assert called(client, message, tools=[{"type": "function", "function": {"name": "generate_image"}}]) == (
        "generate_image",
        {"prompt": "a red star"},
    )
    size = {"type": "string", "enum": ["512x512", "1024x1024"]}
    assert called(
        client, message, tools=[tool(prompt={}, size=size, n={"default": 1}, required=["prompt", "size", "n"])]
    ) == (
        "generate_image",
        {"prompt": "a red star", "size": "512x512", "n": 1},
    )


def test_a_tool_that_nobody_could_call_is_not_called(client):
    tools = [tool(prompt={"type": "string"}, key={"type": "string"}, required=["prompt", "key"])]
    assert called(client, user("draw a red star"), tools=tools) is None
    forced = {"messages": [user("draw a red star")], "tools": tools, "tool_choice": "required"}
    response = client.post(ROUTE, json=forced)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "tools")


def test_questions_are_answered_beside_tools(client):
    assert called(client, user("what is a star?"), tools=[OTHER, tool(), EDITOR]) is None
    assert called(client, user("make it blue"), tools=[tool(), EDITOR]) is None
    assert called(client, user("draw a star"), tools=[tool()], tool_choice="none") is None
    assert called(client, user("draw a star"), tools=[EDITOR]) is None


def test_the_newest_picture_is_edited(client):
    url = "/api/v1/files/5/content"
    arguments = {"name": "generate_image", "arguments": "{}"}
    history = [
        shown("draw a star like this", uri()),
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": arguments}]},
        {"role": "tool", "tool_call_id": "1", "content": json.dumps({"images": [{"url": url}]})},
        {"role": "assistant", "content": "Here is the picture."},
    ]
    found = called(client, *history, user("make it blue"), tools=[tool(), EDITOR])
    assert found == ("edit_image", {"prompt": "make it blue", "image_urls": [url]})
    single = tool("edit_image", ["prompt", "image"], prompt={"type": "string"}, image={"type": "string"})
    found = called(client, shown("make it blue", uri()), tools=[single])
    assert found == ("edit_image", {"prompt": "make it blue", "image": uri()})


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "generate_image"}}])
def test_a_tool_that_is_asked_for_is_called_whatever_is_said(client, choice):
    found = called(client, user("two red circles"), tools=[tool(), EDITOR], tool_choice=choice)
    assert found == ("generate_image", {"prompt": "two red circles"})


def test_a_choice_that_is_not_offered_is_refused(client):
    choice = {"type": "function", "function": {"name": "edit_image"}}
    response = client.post(ROUTE, json={"messages": [user("x")], "tools": [tool()], "tool_choice": choice})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "tool_choice")


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        ('{"status": "success", "images": []}', "Here is the picture."),
        ("done", "Here is the picture."),
        ('{"error": "no"}', "The picture could not be made."),
        ("Error: no", "The picture could not be made."),
    ],
)
def test_the_result_of_a_tool_is_answered_with_a_sentence(client, result, sentence):
    call = {"id": "call_1", "type": "function", "function": {"name": "generate_image", "arguments": "{}"}}
    messages = [
        user("draw a red star"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": result},
    ]
    _, choice = ask(client, *messages, tools=[tool()])
    assert (choice["message"]["content"], choice["finish_reason"]) == (sentence, "stop")
    chunks = pieces(client, *messages, tools=[tool()], stream_options={"include_usage": True})
    assert text_of(chunks) == sentence
    assert chunks[-1]["choices"] == []


# Pictures in the answer


@pytest.fixture
def drawer(tiny_worker, tmp_path):
    """A client of a server that answers with pictures."""
    service = Service(ServerSettings(pictures=tmp_path / "pictures", inline_images=True), tiny_worker)
    with TestClient(make_app(service), base_url="http://localhost") as client:
        yield client


def picture_in(client, text):
    """The only thing in an answer: its words, and the bytes."""
    words, _, url = text.removeprefix("![").removesuffix(")").partition("](")
    assert url.startswith("http://localhost/v1/pictures/")
    return words, client.get(url).content


def test_a_picture_in_the_answer(drawer, model):
    prompt = "a red circle on a blue background"
    _, choice = ask(drawer, user(f"draw {prompt}"), seed=7)
    words, data = picture_in(drawer, choice["message"]["content"])
    expected = model.generate(prompt, seed=7)
    assert words == prompt
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), expected.images[0])
    assert text_of(pieces(drawer, user(f"draw {prompt}"))).startswith(f"![{prompt}](http://localhost/v1/pictures/")
    assert called(drawer, user(f"draw {prompt}"), tools=[tool()]) == ("generate_image", {"prompt": prompt})


def test_it_is_edited_and_asked_about(drawer, model):
    history = [shown("make it blue", uri())]
    _, choice = ask(drawer, *history, seed=7)
    _, data = picture_in(drawer, choice["message"]["content"])
    expected = model.edit(PICTURE, "make it blue", seed=7).images[0]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), expected)
    history += [choice["message"], user("make it green")]
    _, again = ask(drawer, *history, seed=8)
    _, newer = picture_in(drawer, again["message"]["content"])
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(newer)).convert("RGB")),
        model.edit(expected, "make it green", seed=8).images[0],
    )
    # The newer one says which one it was made of.
    assert read_metadata(newer)["source"] in choice["message"]["content"]
    body, _ = ask(drawer, *history[:-1], user("what color is it?"))
    turns = [
        Turn("user", "make it blue", PICTURE),
        Turn("assistant", "(a picture)"),
        Turn("user", "what color is it?", expected),
    ]
    length = model.answer(turns)
    assert body["usage"]["prompt_tokens"] == length.prompt_tokens + length.cached_tokens


def test_a_picture_that_is_gone_leaves_a_word(drawer):
    text = "![a star](http://localhost/v1/pictures/20261126-120820-788760-225097b4ffe82f48a88aa2d6f280cfdd/content)"
    messages = [user("draw a star"), {"role": "assistant", "content": text}]
    body, _ = ask(drawer, *messages, user("what color is it?"))
    assert body["usage"]["prompt_tokens"] < 60
    response = drawer.post(ROUTE, json={"messages": [*messages, user("make it blue")]})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "picture_not_found")


def test_the_servers_limit_of_steps_holds_for_it(tiny_worker):
    service = Service(ServerSettings(inline_images=True, max_steps=2), tiny_worker)
    with TestClient(make_app(service), base_url="http://localhost") as client:
        _, choice = ask(client, user("draw a red star"))
        assert read_metadata(picture_in(client, choice["message"]["content"])[1])["steps"] == 2


def test_without_the_option_a_text_answers(client):
    _, choice = ask(client, user("draw a red star"), max_tokens=4)
    assert "![" not in choice["message"]["content"]


# Jobs


def test_a_job_answers_as_well(client, model):
    response = client.post("/v1/jobs", json={"task": "answer", "messages": [shown(QUESTION, uri())], "max_tokens": 9})
    assert response.status_code == 202
    job = response.json()
    assert job["request"]["messages"][0]["content"][0]["image_url"] == {"url": "data:image/png;base64,..."}
    events = client.get(f"/v1/jobs/{job['id']}/events").text
    assert "event: completed" in events
    done = client.get(f"/v1/jobs/{job['id']}").json()
    assert done["text"].strip() == model.answer([Turn("user", QUESTION, PICTURE)], max_tokens=9).text
    assert done["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [({}, "messages"), ({"messages": [user("x")], "stream": True}, "stream"), ({"messages": [user("")]}, "messages")],
)
def test_jobs_name_mistakes_too(client, fields, param):
    response = client.post("/v1/jobs", json={"task": "answer", **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


# Streams that do not end as they should


class Held:
    """Takes the place of a model's answers: tokens that a test lets through, one by one.

    Attributes:
        reached: released when a token is asked for.
        closed: set when nobody reads on.
        count: of tokens that were given.
    """

    def __init__(self):
        self.allowed, self.reached = threading.Semaphore(0), threading.Semaphore(0)
        self.closed = threading.Event()
        self.count = 0
        self.error = None

    def stream(self, conversation, **options):
        try:
            while True:
                self.reached.release()
                assert self.allowed.acquire(timeout=60)
                if self.error is not None:
                    raise self.error
                self.count += 1
                yield AnswerToken("a", 1, None, 3)
        finally:
            self.closed.set()

    def wait(self):
        assert self.reached.acquire(timeout=60)


@pytest.fixture
def held(tiny_worker, monkeypatch):
    held = Held()
    monkeypatch.setattr(tiny_worker.model, "stream_messages", held.stream, raising=False)
    yield held
    held.allowed.release(1000)


@pytest.fixture
def server(service):
    with live(service) as running:
        yield running


def test_a_failure_in_the_middle_is_an_event(client, held):
    held.error = RuntimeError("/secret/path")
    held.allowed.release()
    chunks = pieces(client, user("hello"))
    assert chunks[-1] == {
        "error": {
            "message": "The server failed on this request; its log says why.",
            "type": "server_error",
            "param": None,
            "code": None,
        }
    }
    assert "/secret/path" not in json.dumps(chunks)


def test_a_failure_of_a_whole_answer_has_its_status(client, held):
    held.error = RuntimeError("/secret/path")
    held.allowed.release()
    response = client.post(ROUTE, json={"messages": [user("hello")]})
    assert (response.status_code, response.json()["error"]["type"]) == (500, "server_error")


def test_a_stream_is_kept_alive_while_nothing_comes(server, held, monkeypatch):
    monkeypatch.setattr(sse, "KEEPALIVE_SECONDS", 0.01)
    with server.client.stream("POST", ROUTE, json={"messages": [user("x")], "stream": True}) as response:
        lines = response.iter_lines()
        assert json.loads(next(lines).removeprefix("data: "))["choices"][0]["delta"]["role"] == "assistant"
        assert ": keepalive" in lines  # they come for as long as the first token does not


def test_what_was_read_before_a_stop_is_not_read_again(model):
    turns = [Turn("user", "Who stops in the middle of an answer?")]
    run = Answering(model.read_messages(turns), {}, {}).run(model, 0)
    assert next(run)[0] == "text"
    run.close()
    assert model.answer(turns).prompt_tokens == 1


def only_job(server):
    (job,) = server.service.jobs.newest(kept=False)
    return job


def ended(server, job):
    async def wait():
        async for _ in job.events():
            pass

    asyncio.run_coroutine_threadsafe(wait(), job._loop).result(60)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_ends_its_answer_within_a_token(server, held, stream):
    body = {"messages": [user("x")], "stream": stream}
    address = server.client.base_url
    gone = threading.Event()

    def leave():
        """Reads until the test says that it should go."""
        with httpx.Client(base_url=address) as client:
            if stream:
                with client.stream("POST", ROUTE, json=body):
                    assert gone.wait(60)
            else:
                head = f"POST {ROUTE} HTTP/1.1\r\nHost: {address.host}\r\nContent-Type: application/json\r\n"
                request = f"{head}Content-Length: {len(json.dumps(body))}\r\n\r\n{json.dumps(body)}"
                with socket.create_connection((address.host, address.port)) as connection:
                    connection.sendall(request.encode())
                    assert gone.wait(60)

    thread = threading.Thread(target=leave)
    thread.start()
    held.wait()
    job = only_job(server)
    held.allowed.release()
    held.wait()  # the second token is being computed
    gone.set()
    thread.join(60)
    assert job.stop.wait(60)
    held.allowed.release(100)
    assert held.closed.wait(60)
    ended(server, job)
    assert (job.status, held.count) == ("cancelled", 2)
    assert server.service.jobs.newest(kept=False) == []


def test_the_images_of_a_conversation_that_is_read_are_counted(client, model, monkeypatch):
    """Each is tiny as a file, and as large as the vision tower's input once it is read."""
    side = model.config.image_size
    monkeypatch.setattr(image_inputs, "MAX_HELD", 4 * (3 * side * side + 2 * 8 * 8))
    monkeypatch.setattr(image_inputs, "_images", image_inputs._Images())
    small = uri(Image.new("RGB", (8, 8)))
    post(client, shown("what?", *[small] * 3), max_tokens=1)
    answer = client.post(ROUTE, json={"messages": [shown("what?", *[small] * 4)], "max_tokens": 1})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "busy")
