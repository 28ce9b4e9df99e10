"""The package `openai` draws and edits with a real server, and other programs' requests as they send them."""

import asyncio
import base64
import io
import threading
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("openai")
pytest.importorskip("httpx")
pytest.importorskip("uvicorn")

import httpx
import openai

from benchmarks.shapes.edits import sample_edit
from benchmarks.shapes.scorer import read_picture, satisfies
from benchmarks.shapes.text import sample_caption
from benchmarks.shapes.world import render
from mobileo_mlx import MobileO
from mobileo_mlx.image_settings import read_metadata
from mobileo_mlx.serving.jobs import Job
from mobileo_mlx.serving.tasks import Drawing

PROMPT = "a red circle on a blue background"
EDIT = sample_edit(np.random.default_rng(3), "colour")
BEFORE = Image.fromarray(render(EDIT.before))


@pytest.fixture(scope="module")
def model():
    """The same model without a server."""
    return MobileO.load("tiny")


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def opened(item) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(item.b64_json)))


def assert_same(picture: Image.Image, other: Image.Image) -> None:
    np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), np.asarray(other))


def file_of(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


# Drawing


def test_generate(client, model):
    answer = client.images.generate(prompt=PROMPT, model="dall-e-2", extra_body={"seed": 7, "steps": 4})
    expected = model.generate(PROMPT, seed=7, steps=4)
    assert_same(opened(answer.data[0]), expected.images[0])
    assert read_metadata(base64.b64decode(answer.data[0].b64_json)) == expected.metadata()
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


def test_what_is_drawn_is_what_was_asked_for(client):
    caption = sample_caption(np.random.default_rng(4), "single")
    answer = client.images.generate(prompt=caption.text, extra_body={"seed": 1})
    assert satisfies(read_picture(np.asarray(opened(answer.data[0]).convert("RGB"))), caption.spec)


def test_several_pictures(client, model):
    answer = client.images.generate(prompt=PROMPT, n=3, size="96x64", extra_body={"seed": 3, "steps": 2})
    assert [item.seed for item in answer.data] == [3, 4, 5]
    assert answer.size == "96x64"
    for item in answer.data:
        expected = model.generate(PROMPT, seed=item.seed, steps=2, width=96, height=64)
        assert_same(opened(item), expected.images[0])


def test_every_option_in_extra_body(client, model):
    options = {"scheduler": "euler", "guidance_scale": 2.0, "negative_prompt": "a square", "flow_shift": 2.0}
    answer = client.images.generate(prompt=PROMPT, extra_body={"seed": 1, "num_inference_steps": 3, **options})
    assert_same(opened(answer.data[0]), model.generate(PROMPT, seed=1, steps=3, **options).images[0])


def test_url(client, model):
    answer = client.images.generate(prompt=PROMPT, response_format="url", extra_body={"seed": 5, "steps": 2})
    (item,) = answer.data
    assert item.b64_json is None
    picture = httpx.get(item.url)  # with no key: programs that show a picture have none
    assert picture.headers["content-type"] == "image/png"
    assert_same(Image.open(io.BytesIO(picture.content)), model.generate(PROMPT, seed=5, steps=2).images[0])


@pytest.mark.parametrize(("name", "kind"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_formats(client, name, kind):
    answer = client.images.generate(
        prompt=PROMPT, output_format=name, output_compression=80, quality="high", extra_body={"steps": 2}
    )
    assert (opened(answer.data[0]).format, answer.output_format, answer.quality) == (kind, name, "high")


# Streams


def check_events(events, model, prefix="image_generation"):
    *partials, last = events
    assert [event.type for event in partials] == [f"{prefix}.partial_image"] * 2
    assert [event.partial_image_index for event in partials] == [0, 1]
    assert last.type == f"{prefix}.completed"
    for event in events:
        # The package builds its types without a check; here all that they require is looked at.
        type(event).model_validate(event.model_dump())
    assert last.usage.total_tokens > 0
    return partials, last


def test_stream_with_previews(client, model):
    stream = client.images.generate(prompt=PROMPT, stream=True, partial_images=2, extra_body={"seed": 7, "steps": 6})
    partials, last = check_events(list(stream), model)
    steps = [item for item in model.stream_generate(PROMPT, seed=7, steps=6) if hasattr(item, "denoised")]
    for event in partials:
        assert_same(opened(event), model.decode_latents(steps[event.step - 1].denoised)[0])
    assert_same(opened(last), model.generate(PROMPT, seed=7, steps=6).images[0])


def test_stream_with_previews_async(server, model):
    async def draw():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            options = {"seed": 7, "steps": 6}
            stream = await client.images.generate(prompt=PROMPT, stream=True, partial_images=2, extra_body=options)
            return [event async for event in stream]

    _, last = check_events(asyncio.run(draw()), model)
    assert_same(opened(last), model.generate(PROMPT, seed=7, steps=6).images[0])


def test_stream_of_an_edit(client, model):
    stream = client.images.edit(
        image=("a.png", file_of(BEFORE)),
        prompt=EDIT.text,
        stream=True,
        partial_images=2,
        extra_body={"seed": 7, "steps": 6},
    )
    _, last = check_events(list(stream), model, "image_edit")
    assert_same(opened(last), model.edit(BEFORE, EDIT.text, seed=7, steps=6).images[0])


def test_failure_in_a_stream_is_raised(client, monkeypatch):
    def broken(self, model, turn):
        yield "progress", {"step": 1, "steps": 2}
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(Drawing, "run", broken)
    with pytest.raises(openai.APIError, match="its log says why"):
        list(client.images.generate(prompt=PROMPT, stream=True))


# Edits


def test_edit_of_one_picture(client, model, tmp_path):
    path = tmp_path / "before.png"
    path.write_bytes(file_of(BEFORE))
    for image in (path, path.open("rb"), ("x.png", path.read_bytes(), "image/png")):
        answer = client.images.edit(
            image=image, prompt=EDIT.text, size="64x64", extra_body={"seed": 7, "steps": 4, "strength": 0.9}
        )
        expected = model.edit(BEFORE, EDIT.text, seed=7, steps=4, strength=0.9)
        assert_same(opened(answer.data[0]), expected.images[0])


def test_edit_of_several_pictures_edits_each(client, model):
    other = BEFORE.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    answer = client.images.edit(
        image=[("a.png", file_of(BEFORE)), ("b.png", file_of(other))],
        prompt=EDIT.text,
        n=2,
        extra_body={"seed": 7, "steps": 2},
    )
    assert [(item.image_index, item.seed) for item in answer.data] == [(0, 7), (0, 8), (1, 7), (1, 8)]
    for item in answer.data:
        expected = model.edit((BEFORE, other)[item.image_index], EDIT.text, seed=item.seed, steps=2)
        assert_same(opened(item), expected.images[0])


# Errors


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"n": 11}, "n", "invalid_value"),
        ({"size": "100x100"}, "size", "invalid_value"),
        ({"extra_body": {"scheduler": "ddim"}}, "scheduler", "invalid_value"),
        ({"extra_body": {"stpes": 4}}, "stpes", "unknown_parameter"),
    ],
)
def test_mistakes(client, fields, param, code):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(**{"prompt": PROMPT, **fields})
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.type == "invalid_request_error"


def test_mask_is_refused_by_name(client):
    data = ("a.png", file_of(BEFORE))
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(image=data, mask=data, prompt=EDIT.text)
    assert (caught.value.param, caught.value.code) == ("mask", "unsupported_parameter")


def test_variations_are_refused(client):
    with (
        pytest.raises(openai.NotFoundError, match="no variations"),
        pytest.warns(DeprecationWarning, match="deprecated"),
    ):
        client.images.create_variation(image=("a.png", file_of(BEFORE)))


class Gate:
    """Lets a drawing take its steps only when a test says so.

    Attributes:
        reached: released at each step.
        jobs: those that draw.
    """

    def __init__(self, service, monkeypatch):
        self._service, self._steps = service, threading.Semaphore(0)
        self.reached = threading.Semaphore(0)
        self.open = False
        run = Drawing.run

        def held(drawing, model, turn):
            for kind, data in run(drawing, model, turn):
                if kind == "progress":
                    self.reached.release()
                    if not self.open:
                        assert self._steps.acquire(timeout=60)
                yield kind, data

        monkeypatch.setattr(Drawing, "run", held)

    def allow(self, steps: int) -> None:
        self._steps.release(steps)

    def allow_all(self) -> None:
        self.open = True
        self._steps.release(1000)

    def job(self) -> Job:
        """The only one."""
        (job,) = self._service.jobs.newest(kept=False)
        return job

    def wait(self) -> None:
        assert self.reached.acquire(timeout=60)


@pytest.fixture
def gate(server, monkeypatch):
    gate = Gate(server.service, monkeypatch)
    yield gate
    gate.allow_all()


def check_stopped(server, gate, job: Job) -> None:
    """The client has gone, and the drawing is in the middle of its second step: that is the last."""
    assert job.stop.wait(60)
    gate.allow_all()
    server.wait_for(job)
    assert job.status == "cancelled"
    assert job.progress["step"] == 1
    assert server.service.jobs.newest(kept=False) == []


def test_stream_that_is_closed_stops_the_drawing_at_its_step(server, client, gate):
    stream = client.images.generate(prompt=PROMPT, stream=True, partial_images=3, extra_body={"steps": 20})
    gate.wait()
    job = gate.job()
    gate.allow(1)
    gate.wait()
    stream.close()
    check_stopped(server, gate, job)


def test_request_that_is_cancelled_stops_the_drawing_at_its_step(server, gate):
    async def draw():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            task = asyncio.ensure_future(client.images.generate(prompt=PROMPT, extra_body={"steps": 20}))
            await asyncio.to_thread(gate.wait)
            job = gate.job()
            gate.allow(1)
            await asyncio.to_thread(gate.wait)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(check_stopped, server, gate, job)

    asyncio.run(draw())


def test_request_that_is_cancelled_while_it_waits_leaves_the_queue(server, client, gate):
    """The drawing that is on the way goes on."""
    first = client.images.generate(prompt=PROMPT, stream=True, extra_body={"seed": 7, "steps": 2})
    gate.wait()
    second = client.images.generate(prompt=PROMPT, stream=True)
    (job,) = server.service.worker.waiting()
    second.close()
    server.wait_for(job)
    assert (job.status, job.started_at) == ("cancelled", None)
    assert server.service.worker.waiting() == []
    gate.allow_all()
    assert [event.type for event in first] == ["image_generation.completed"]


def test_full_queue_says_when_to_come_again_and_the_package_does(server, gate, monkeypatch):
    """One drawing is on the way, one waits, and the queue is full for a third until the package has waited."""
    monkeypatch.setattr(server.service.worker, "_limit", 1)
    waited, here, sleep = [], threading.get_ident(), time.sleep

    def sleep_here(seconds):
        if threading.get_ident() != here:
            return sleep(seconds)
        waited.append(seconds)
        gate.allow_all()
        for thread in others:
            thread.join(60)
        return None

    answers = []
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=1) as client:

        def draw():
            answers.append(client.images.generate(prompt=PROMPT, extra_body={"steps": 2}))

        others = [threading.Thread(target=draw) for _ in range(2)]
        others[0].start()
        gate.wait()
        others[1].start()
        server.run(until_waiting(server.service))
        with pytest.raises(openai.RateLimitError) as caught:
            client.with_options(max_retries=0).images.generate(prompt=PROMPT)
        assert caught.value.code == "queue_full"
        seconds = int(caught.value.response.headers["retry-after"])
        assert seconds >= 1
        monkeypatch.setattr(time, "sleep", sleep_here)
        draw()
    assert waited == [seconds]
    assert len(answers) == 3


async def until_waiting(service) -> None:
    while not service.worker.waiting():
        await asyncio.sleep(0)


# As others send them


def test_open_webui_draws(server):
    """`model` is what it has by default, and it reads `url` first."""
    body = {"model": "dall-e-2", "prompt": PROMPT, "n": 1, "size": "64x64", "response_format": "b64_json", "steps": 2}
    item = httpx.post(f"{server.url}/v1/images/generations", json=body).json()["data"][0]
    assert item.get("url") is None
    assert Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))).size == (64, 64)
    del body["response_format"]  # as for models whose name matches its pattern
    assert "b64_json" in httpx.post(f"{server.url}/v1/images/generations", json=body).json()["data"][0]


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_open_webui_edits(server, name):
    count = 1 if name == "image" else 2
    files = [(name, (f"image-{i}.png", file_of(BEFORE), "image/png")) for i in range(count)]
    fields = {"model": "dall-e-2", "prompt": EDIT.text, "n": "1", "size": "64x64", "background": "auto"}
    answer = httpx.post(
        f"{server.url}/v1/images/edits", files=files, data={**fields, "response_format": "b64_json", "steps": "2"}
    )
    assert len(answer.json()["data"]) == count


def test_sillytavern_asks_whether_a_server_is_there(server):
    assert httpx.options(f"{server.url}/v1/images/generations").status_code == 204


@pytest.mark.slow
def test_litellm(server, model, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # instead of asking the network
    litellm = pytest.importorskip("litellm")
    where = {"model": "openai/dall-e-2", "api_base": f"{server.url}/v1", "api_key": "none"}
    answer = litellm.image_generation(prompt=PROMPT, n=2, extra_body={"seed": 7, "steps": 2}, **where)
    for seed, item in zip((7, 8), answer.data, strict=True):
        data = base64.b64decode(item["b64_json"] if isinstance(item, dict) else item.b64_json)
        assert_same(Image.open(io.BytesIO(data)), model.generate(PROMPT, seed=seed, steps=2).images[0])
