"""Jobs over HTTP: clients that leave, come back, and cancel."""

import base64
import io
import json
import threading
from collections.abc import Iterator

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")

from PIL import Image

from mobileo_mlx.image_settings import encode, read_metadata
from mobileo_mlx.images import load_image, pixel_hash
from mobileo_mlx.serving import requests
from mobileo_mlx.serving.references import without_images
from mobileo_mlx.serving.service import Service
from mobileo_mlx.serving.settings import ServerSettings

from .live import Live, live


class Script:
    """A task whose happenings come one by one, as a test allows them."""

    name, turns, nbytes = "answer", 1, 0

    def __init__(self, *happenings, held: bool = True):
        self.happenings, self.request = happenings, {"task": "answer"}
        self.allowed = threading.Semaphore(0 if held else 10**6)
        self.running = threading.Event()

    def allow(self, count: int = 10**6) -> None:
        self.allowed.release(count)

    def release(self) -> None:
        pass

    def run(self, model, turn: int) -> Iterator:
        for happening in self.happenings:
            self.running.set()
            self.allowed.acquire()
            yield happening


def says(*words: str):
    return [("text", {"delta": word}) for word in words]


DONE = ("completed", {"timings": {}, "peak_memory": 1})


@pytest.fixture
def server(worker, tmp_path) -> Iterator[Live]:
    """With a worker that computes nothing."""
    with live(Service(ServerSettings(pictures=tmp_path / "pictures"), worker)) as running:
        yield running


@pytest.fixture
def tiny(service) -> Iterator[Live]:
    """With the bundled model."""
    with live(service) as running:
        yield running


def upload(server: Live, image: Image.Image):
    data = encode(image, "PNG", None)
    return server.client.post("/v1/pictures", content=data, headers={"Content-Type": "image/png"})


def begin(server: Live, task: Script):
    """A job that has begun: no more events follow but those that the test allows."""
    job = server.submit(task)
    assert task.running.wait(60)
    return job


def take(events: Iterator, count: int) -> list:
    return [next(events) for _ in range(count)]


def test_reader_who_comes_back_gets_exactly_the_rest(server):
    task = Script(*says("a ", "red ", "circle ", "on ", "white"), DONE)
    job = begin(server, task)
    first = server.events(job.id)
    task.allow(2)
    read = take(first, 3)  # its status, and two words
    assert [event["event"] for event in read] == ["status", "text", "text"]
    first.close()  # the page is loaded again
    task.allow()
    for options in ({"header": read[-1]["id"]}, {"after": read[-1]["id"]}, {"header": read[-1]["id"], "after": 0}):
        rest = list(server.events(job.id, **options))
        assert [event["event"] for event in rest] == ["text", "text", "text", "completed"]
        assert [event["id"] for event in rest] == list(range(read[-1]["id"] + 1, read[-1]["id"] + 5))
        words = [event["data"]["delta"] for event in read + rest if event["event"] == "text"]
        assert "".join(words) == rest[-1]["data"]["text"] == "a red circle on white"
    assert list(server.events(job.id, after=rest[-1]["id"])) == []


def test_two_readers_hear_the_same(server):
    task = Script(*says("a ", "b "), ("progress", {"step": 1, "steps": 1, "index": 0, "n": 1, "seconds_left": 0}), DONE)
    job = begin(server, task)
    readers = [server.events(job.id) for _ in range(2)]
    assert next(readers[0])["data"]["id"] == next(readers[1])["data"]["id"] == job.id
    task.allow()
    heard = [list(reader) for reader in readers]
    assert heard[0] == heard[1]
    assert [event["event"] for event in heard[0]] == ["text", "text", "progress", "completed"]


def test_events_without_bytes_of_pictures_in_the_job(server):
    preview = {"index": 0, "step": 2, "steps": 4, "data": b"jpeg"}
    task = Script(("preview", preview), *says("x"), DONE)
    job = begin(server, task)
    reader = server.events(job.id)
    task.allow(1)
    _, shown = take(reader, 2)
    encoded = base64.b64encode(b"jpeg").decode()
    assert shown["event"] == "preview"
    assert shown["data"] == {"index": 0, "step": 2, "steps": 4, "b64_json": encoded, "output_format": "jpeg"}
    task.allow()
    assert encoded not in str(server.ended(job.id))


def test_a_waiting_job_is_cancelled_at_once(server):
    running, waiting = Script(*says("a"), DONE), Script(*says("b"), DONE)
    first, second = server.submit(running), server.submit(waiting)
    running.running.wait(60)
    assert server.client.get(f"/v1/jobs/{second.id}").json()["queue_position"] == 0
    found = server.client.delete(f"/v1/jobs/{second.id}")
    assert (found.status_code, found.json()["status"]) == (200, "cancelled")
    assert [event["event"] for event in server.events(second.id)][-1] == "cancelled"
    running.allow()
    assert server.ended(first.id)["text"] == "a"
    assert not waiting.running.is_set()


def test_a_running_job_is_cancelled_at_its_next_step(server):
    task = Script(*says("a", "b", "c"), DONE)
    job = begin(server, task)
    reader = server.events(job.id)
    task.allow(1)
    take(reader, 2)
    found = server.client.delete(f"/v1/jobs/{job.id}").json()
    assert found["status"] == "generating"  # it ends at its next step
    task.allow()
    assert [event["event"] for event in reader] == ["cancelled"]
    assert server.client.get(f"/v1/jobs/{job.id}").json()["text"] == "a"


def test_a_finished_job_is_forgotten(server):
    job = server.submit(Script(*says("a"), DONE, held=False))
    server.ended(job.id)
    assert server.client.delete(f"/v1/jobs/{job.id}").json()["status"] == "completed"
    for method, path in (("GET", ""), ("GET", "/events"), ("DELETE", "")):
        answer = server.client.request(method, f"/v1/jobs/{job.id}{path}")
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "job_not_found"
    assert server.client.get("/v1/jobs").json()["data"] == []


def test_newest_first(server):
    jobs = [server.submit(Script(DONE, held=False)).id for _ in range(3)]
    for id in jobs:
        server.ended(id)
    found = server.client.get("/v1/jobs", params={"limit": 2}).json()
    assert [job["id"] for job in found["data"]] == jobs[:0:-1]
    assert found["has_more"]
    for limit in ("", "0", "201", "x"):
        assert server.client.get("/v1/jobs", params={"limit": limit}).status_code == 400


def test_a_failure_is_told(server):
    def fail():
        yield "text", {"delta": "a"}
        raise ValueError("a bug, with a secret")

    task = Script()
    task.run = lambda model, turn: fail()
    job = server.submit(task)
    ended = server.ended(job.id)
    assert ended["status"] == "failed"
    assert ended["error"]["type"] == "server_error"
    assert "secret" not in str(ended)


def test_a_full_queue_says_when_to_come_again(tiny):
    task = Script(DONE)
    running = tiny.submit(task)
    task.running.wait(60)
    waiting = [tiny.submit(Script(DONE)) for _ in range(64)]  # the worker's limit
    answer = tiny.client.post("/v1/jobs", json={"task": "generate", "prompt": "a circle"})
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "queue_full"
    assert int(answer.headers["retry-after"]) >= 1
    for job in waiting:
        tiny.client.delete(f"/v1/jobs/{job.id}")
    task.allow()
    tiny.ended(running.id)


def test_a_job_whose_client_left_goes_on_and_a_restart_keeps_its_pictures(tiny, tiny_worker):
    body = {"task": "generate", "prompt": "a red circle", "n": 2, "seed": 5, "steps": 4, "previews": 2}
    made = tiny.client.post("/v1/jobs", json=body)
    job = made.json()
    assert made.status_code == 202
    assert made.headers["location"] == f"/v1/jobs/{job['id']}"
    assert job["request"] == body
    leaving = tiny.events(job["id"])
    next(leaving)
    leaving.close()
    ended = tiny.ended(job["id"])
    assert ended["status"] == "completed"
    assert [picture["seed"] for picture in ended["pictures"]] == [5, 6]
    assert ended["timings"]
    assert [drawn.data for drawn in tiny.service.jobs.get(job["id"]).drawn] == [b"", b""]  # they take no memory
    shelf = tiny.client.get("/v1/pictures").json()["data"]
    assert [picture["id"] for picture in shelf] == [picture["id"] for picture in reversed(ended["pictures"])]
    assert shelf[0]["settings"]["steps"] == 4
    content = tiny.client.get(shelf[0]["url"]).content
    tiny.client.delete(f"/v1/jobs/{job['id']}")
    with live(Service(tiny.service.settings, tiny_worker)) as again:
        assert again.client.get("/v1/pictures").json()["data"] == shelf
        assert again.client.get(shelf[0]["url"]).content == content
        assert again.client.get(f"/v1/jobs/{job['id']}").status_code == 404


def test_pictures_and_previews_come_in_order(tiny):
    body = {"task": "generate", "prompt": "a blue square", "seed": 1, "steps": 4, "previews": 2, "size": "64x64"}
    job = tiny.client.post("/v1/jobs", json=body).json()
    # Whoever reads from the beginning may have missed a preview, but never the picture.
    events = list(tiny.events(job["id"]))
    for event in events:
        if event["event"] == "preview":
            image = Image.open(io.BytesIO(base64.b64decode(event["data"]["b64_json"])))
            assert (image.format, image.size) == ("JPEG", (64, 64))
    (picture,) = [event["data"] for event in events if event["event"] == "picture"]
    assert (picture["width"], picture["kind"], picture["seed"]) == (64, "generated", 1)
    assert events[-1]["data"]["pictures"] == [picture]


def test_an_edit_of_a_picture_on_the_shelf(tiny):
    image = Image.new("RGB", (64, 64), (255, 0, 0))
    source = upload(tiny, image).json()
    body = {"task": "edit", "prompt": "make it blue", "image": f"picture:{source['id']}", "seed": 3, "steps": 2}
    (edited,) = tiny.ended(tiny.client.post("/v1/jobs", json=body).json()["id"])["pictures"]
    assert (edited["kind"], edited["source"]) == ("edited", source["id"])
    metadata = read_metadata(tiny.client.get(edited["url"]).content)
    assert metadata["image_sha256"] == pixel_hash(image)
    assert metadata["source"] == source["id"]
    # The same image in the request itself gives the same picture.
    uri = "data:image/png;base64," + base64.b64encode(encode(image, "PNG", None)).decode()
    job = tiny.client.post("/v1/jobs", json={**body, "image": uri}).json()
    assert job["request"]["image"] == "data:image/png;base64,..."
    (again,) = tiny.ended(job["id"])["pictures"]
    assert again["source"] is None
    pixels = [load_image(tiny.client.get(one["url"]).content).tobytes() for one in (edited, again)]
    assert pixels[0] == pixels[1]


def test_an_answer_about_a_picture_on_the_shelf(tiny):
    image = Image.new("RGB", (64, 64), (255, 0, 0))
    id = upload(tiny, image).json()["id"]

    def ask(url: str) -> dict:
        parts = [{"type": "text", "text": "What is here?"}, {"type": "image_url", "image_url": {"url": url}}]
        body = {"task": "answer", "messages": [{"role": "user", "content": parts}], "max_tokens": 8}
        made = tiny.client.post("/v1/jobs", json=body)
        assert made.status_code == 202, made.text
        return made.json()

    job = ask(f"picture:{id}")
    assert job["request"]["messages"][0]["content"][1]["image_url"]["url"] == f"picture:{id}"
    events = list(tiny.events(job["id"]))
    ended = events[-1]["data"]
    assert ended["text"] == "".join(event["data"]["delta"] for event in events if event["event"] == "text") != ""
    assert ended["finish_reason"] in ("stop", "length")
    assert ended["usage"]["completion_tokens"] <= 8
    again = ask("data:image/png;base64," + base64.b64encode(encode(image, "PNG", None)).decode())
    assert tiny.ended(again["id"])["text"] == ended["text"]


def test_a_message_that_asks_for_a_picture_is_drawn_where_that_is_wanted(tiny):
    def said(text: str, **fields) -> dict:
        body = {"task": "answer", "messages": [{"role": "user", "content": text}], "max_tokens": 4, **fields}
        return tiny.client.post("/v1/jobs", json=body).json()

    drawn = said("please draw a red star", draw=True, previews=2, seed=5)
    assert (drawn["task"], drawn["request"]["prompt"]) == ("generate", "a red star")
    (picture,) = tiny.ended(drawn["id"])["pictures"]
    assert (picture["settings"]["prompt"], picture["seed"]) == ("a red star", 5)
    assert said("please draw a red star")["task"] == "answer"
    assert said("what is a star?", draw=True)["task"] == "answer"


DRAW = {"task": "generate", "prompt": "a circle"}


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "task", "generate, edit, answer"),
        ({"task": ["generate"]}, "task", "generate, edit, answer"),
        ({"task": "generate"}, "prompt", "no text 'prompt'"),
        ({**DRAW, "prompt": " "}, "prompt", "empty"),
        ({**DRAW, "step": 5}, "step", "no parameter 'step'"),
        ({**DRAW, "image": "picture:x"}, "image", "no parameter 'image'"),
        ({**DRAW, "steps": 0}, "steps", "steps 0 is not possible"),
        ({**DRAW, "steps": 201}, "steps", "more than this server allows"),
        ({**DRAW, "guidance_scale": 1e30}, "guidance_scale", "more than this server allows, 100"),
        ({**DRAW, "n": 11}, "n", "choose 1 to 10"),
        ({**DRAW, "previews": 51}, "previews", "choose 0 to 50"),
        ({**DRAW, "previews": True}, "previews", "choose 0 to 50"),
        ({**DRAW, "size": "big"}, "size", "WIDTHxHEIGHT"),
        ({**DRAW, "size": "65x64"}, "size", "multiples of"),
        ({**DRAW, "prompt": "word " * 5000}, "prompt", "context"),
        ({**DRAW, "negative_prompt": "x", "guidance_scale": 1}, "negative_prompt", "needs guidance"),
        ({"task": "answer"}, "messages", "no messages"),
        ({"task": "answer", "messages": [{"role": "user", "content": "x"}], "stream": True}, "stream", "no parameter"),
        ({"task": "edit", "prompt": "x"}, "image", "no image"),
        ({"task": "edit", "prompt": "x", "image": 5}, "image", "no image"),
        ({"task": "edit", "prompt": "x", "image": "picture:../../x"}, "image", "there is no picture"),
        ({"task": "edit", "prompt": "x", "image": "/etc/passwd"}, "image", "not an image"),
        ({"task": "edit", "prompt": "x", "image": "data:image/png;base64,AAAA"}, "image", "not an image"),
    ],
)
def test_requests_that_are_refused(client, body, param, words):
    answer = client.post("/v1/jobs", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert words in error["message"]
    assert client.get("/v1/jobs").json()["data"] == []


@pytest.mark.parametrize("after", ["", "-1", "x", "1.5", "9" * 20])
def test_events_after_no_number(server, after):
    job = server.submit(Script(DONE, held=False))
    server.ended(job.id)
    for options in ({"params": {"after": after}}, {"headers": {"Last-Event-ID": after}}):
        answer = server.client.get(f"/v1/jobs/{job.id}/events", **options)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "after"


def test_the_description_of_a_job_has_a_limit():
    messages = [{"role": "user", "content": "?", "name": "n" * 15_000} for _ in range(1000)]
    described = without_images({"task": "answer", "messages": messages})
    assert described["messages"][:50] == messages[:50]
    assert 2**19 < len(json.dumps(described)) < 2**21


def test_json_of_more_values_than_anybody_needs_is_not_parsed(client, monkeypatch):
    monkeypatch.setattr(requests, "parse_json", None)
    for body in (b"[0" + 200_000 * b",0" + b"]", b"[" * 200_001, b'{"a":' * 200_001):
        answer = client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
