"""OpenAI's image routes, field by field, with the bundled model."""

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("multipart")

from benchmarks.shapes.edits import sample_edit
from benchmarks.shapes.scorer import edit_succeeded, read_picture, satisfies
from benchmarks.shapes.text import sample_caption
from benchmarks.shapes.world import render
from mobileo_mlx import MobileO
from mobileo_mlx.image_settings import read_metadata
from mobileo_mlx.images import pixel_hash
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
def tasks(service, monkeypatch):
    """What was put into the queue."""
    put = []
    submit = service.worker.submit
    monkeypatch.setattr(service.worker, "submit", lambda job: (put.append(job.task), submit(job))[1])
    return put


def file_of(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def uri(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(file_of(image)).decode()


def opened(item: dict) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(item["b64_json"])))


def assert_same(picture: Image.Image, other: Image.Image) -> None:
    np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), np.asarray(other))


def generate(client, **fields):
    return client.post("/v1/images/generations", json={"prompt": PROMPT, "steps": 4, **fields})


def edit(client, files, **fields):
    return client.post("/v1/images/edits", files=files, data={"prompt": EDIT.text, "steps": "4", **fields})


def error(response, status: int = 400) -> dict:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


def events(response) -> list[tuple[str, dict]]:
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in response.text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            found.append((lines["event"], json.loads(lines["data"])))
    assert all(name in (data["type"], "error") for name, data in found)
    return found


# Generations


def test_picture_is_the_one_that_its_seed_draws(client, model):
    answer = generate(client, seed=7).json()
    (item,) = answer["data"]
    assert item["seed"] == 7
    assert "url" not in item
    assert (answer["size"], answer["output_format"], answer["background"]) == ("64x64", "png", "opaque")
    expected = model.generate(PROMPT, seed=7, steps=4)
    assert_same(opened(item), expected.images[0])
    assert read_metadata(base64.b64decode(item["b64_json"])) == expected.metadata()


def test_what_is_drawn_is_what_was_asked_for(client):
    caption = sample_caption(np.random.default_rng(4), "single")
    item = client.post("/v1/images/generations", json={"prompt": caption.text, "seed": 1}).json()["data"][0]
    assert satisfies(read_picture(np.asarray(opened(item).convert("RGB"))), caption.spec)


def test_several_pictures_have_seeds_in_a_row(client, model):
    items = generate(client, seed=3, n=3).json()["data"]
    assert [item["seed"] for item in items] == [3, 4, 5]
    for item in items:
        assert_same(opened(item), model.generate(PROMPT, seed=item["seed"], steps=4).images[0])


def test_batch_draws_the_same_up_to_rounding(client, service, tasks, model):
    service.settings = replace(service.settings, batch=2)
    items = generate(client, seed=3, n=3).json()["data"]
    assert tasks[0].turns == 2
    for item in items:
        expected = np.asarray(model.generate(PROMPT, seed=item["seed"], steps=4).images[0], int)
        assert np.abs(np.asarray(opened(item), int) - expected).max() <= 1


def test_without_a_seed_each_request_has_its_own(client):
    seeds = [generate(client).json()["data"][0]["seed"] for _ in range(3)]
    assert len(set(seeds)) == 3
    assert generate(client, seed=seeds[0]).json()["data"][0]["seed"] == seeds[0]


def test_every_option_reaches_the_model(client, model):
    given = {
        "guidance_scale": 2.0,
        "guidance_interval": [0.2, 0.9],
        "scheduler": "euler",
        "flow_shift": 2.5,
        "negative_prompt": "a square",
    }
    item = generate(client, seed=1, size="96x64", **given).json()["data"][0]
    expected = model.generate(PROMPT, seed=1, steps=4, width=96, height=64, **given)
    assert_same(opened(item), expected.images[0])
    assert read_metadata(base64.b64decode(item["b64_json"])) == json.loads(json.dumps(expected.metadata()))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"num_inference_steps": 3, "steps": None}, {"steps": 3}),
        ({"preset": "fast", "steps": None}, {"speed": "fast"}),
        ({"speed": "faster", "steps": None}, {"speed": "faster"}),
        ({"width": 32, "height": 96}, {"steps": 4, "width": 32, "height": 96}),
        ({"size": "auto"}, {"steps": 4}),
        ({"negative_prompt": "", "scheduler": ""}, {"steps": 4}),
    ],
)
def test_other_names_and_forms_of_options(client, tasks, fields, expected):
    assert generate(client, **fields).status_code == 200
    assert tasks[0].options == expected


def test_what_openai_models_understand_is_ignored(client):
    fields = {
        "model": "dall-e-2",
        "user": "somebody",
        "quality": "hd",
        "style": "vivid",
        "background": "transparent",
        "moderation": "low",
        "safety_identifier": "x",
    }
    assert generate(client, seed=7, **fields).json()["data"] == generate(client, seed=7).json()["data"]


@pytest.mark.parametrize(("name", "kind"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP"), ("jpg", "JPEG")])
def test_formats_say_how_they_were_made(client, name, kind):
    answer = generate(client, seed=2, output_format=name).json()
    assert answer["output_format"] == kind.lower()
    assert opened(answer["data"][0]).format == kind
    assert read_metadata(base64.b64decode(answer["data"][0]["b64_json"]))["seed"] == 2


def test_compression_makes_the_file_smaller(client):
    lengths = [
        len(generate(client, seed=2, output_format="jpeg", output_compression=value).json()["data"][0]["b64_json"])
        for value in (100, 50, 0)
    ]
    assert lengths == sorted(lengths, reverse=True)
    assert len(set(lengths)) == 3


def test_url_is_absolute_and_leads_to_the_picture(client, service, model):
    answer = generate(client, seed=5, n=2, response_format="url").json()
    assert all("b64_json" not in item for item in answer["data"])
    for item in answer["data"]:
        assert item["url"].startswith("http://localhost/v1/pictures/")
        data, kind = service.pictures.content(item["url"].split("/")[-2])
        assert kind == "image/png"
        expected = model.generate(PROMPT, seed=item["seed"], steps=4).images[0]
        assert_same(Image.open(io.BytesIO(data)), expected)


def test_nothing_is_kept_unless_an_address_is_asked_for(client, service):
    generate(client)
    assert service.pictures.page(10) == ([], False)
    assert service.jobs.newest(kept=False) == []


def test_usage_counts_prompt_and_latents(client):
    one, three = (generate(client, n=n).json()["usage"] for n in (1, 3))
    assert one["output_tokens"] * 3 == three["output_tokens"]
    assert one["input_tokens"] == three["input_tokens"] == one["input_tokens_details"]["text_tokens"]
    assert one["total_tokens"] == one["input_tokens"] + one["output_tokens"]
    assert one["input_tokens_details"]["image_tokens"] == 0


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"prompt": None}, "prompt", "missing_parameter"),
        ({"prompt": ""}, "prompt", "invalid_value"),
        ({"prompt": 3}, "prompt", "missing_parameter"),
        ({"prompt": "word " * 20_000}, "prompt", "invalid_value"),
        ({"prompt": "an <image> here"}, "prompt", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 11}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_value"),
        ({"n": 2.5}, "n", "invalid_value"),
        ({"size": "big"}, "size", "invalid_value"),
        ({"size": "100x100"}, "size", "invalid_value"),
        ({"size": "9999x64"}, "width", "too_large"),
        ({"height": 4000}, "height", "too_large"),
        ({"steps": 0}, "steps", "invalid_value"),
        ({"steps": 201}, "steps", "too_large"),
        ({"num_inference_steps": "many", "steps": None}, "num_inference_steps", "invalid_value"),
        ({"seed": -1}, "seed", "invalid_value"),
        ({"seed": [1, 2]}, "seed", None),
        ({"seed": 2**64 - 1, "n": 2}, "seed", None),
        ({"guidance_scale": "x"}, "guidance_scale", "invalid_value"),
        ({"guidance_scale": 1, "negative_prompt": "a square"}, "negative_prompt", "invalid_value"),
        ({"scheduler": "ddim"}, "scheduler", "invalid_value"),
        ({"speed": "light"}, "speed", "invalid_value"),
        ({"output_format": "gif"}, "output_format", "invalid_value"),
        (
            {"output_format": "jpeg", "negative_prompt": "\u0001" * 9000},
            "output_format",
            None,
        ),
        ({"output_compression": 101}, "output_compression", "invalid_value"),
        ({"response_format": "file"}, "response_format", "invalid_value"),
        ({"stream": "maybe"}, "stream", "invalid_value"),
        ({"partial_images": 4}, "partial_images", "invalid_value"),
        ({"mask": "data:"}, "mask", "unsupported_parameter"),
        ({"image": "data:"}, "image", "unknown_parameter"),
        ({"stpes": 4}, "stpes", "unknown_parameter"),
        ({"strength": 0.5}, "strength", "unknown_parameter"),
    ],
)
def test_mistakes_are_named_before_anything_is_drawn(client, tasks, fields, param, code):
    found = error(generate(client, **fields))
    assert (found["param"], found["code"]) == (param, code)
    assert found["type"] == "invalid_request_error"
    assert "\n" not in found["message"]
    assert tasks == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"prompt": NaN}', b"\xff"])
def test_body_that_is_no_json_object(client, body):
    assert (
        error(client.post("/v1/images/generations", content=body, headers={"Content-Type": "application/json"}))["code"]
        == "invalid_json"
    )


def test_failure_of_the_server_is_no_mistake_of_the_client(client, monkeypatch):
    def broken(self, model, turn):
        raise RuntimeError("/secret/path")
        yield

    monkeypatch.setattr(Drawing, "run", broken)
    found = error(generate(client), 500)
    assert found["type"] == "server_error"
    assert "secret" not in found["message"]


# Streams


def test_stream_has_previews_and_then_the_picture(client, model):
    found = events(generate(client, seed=7, stream=True, partial_images=3, steps=8))
    assert [name for name, _ in found] == [*["image_generation.partial_image"] * 3, "image_generation.completed"]
    partials, last = [data for _, data in found[:3]], found[3][1]
    assert [data["partial_image_index"] for data in partials] == [0, 1, 2]
    assert [data["step"] for data in partials] == [2, 4, 6]
    for data in (*partials, last):
        assert (data["size"], data["quality"], data["background"], data["output_format"]) == (
            "64x64",
            "auto",
            "opaque",
            "png",
        )
        assert isinstance(data["created_at"], int)
    assert last["seed"] == 7
    assert set(last["usage"]) == {"input_tokens", "input_tokens_details", "output_tokens", "total_tokens"}
    steps = {step.step: step for step in model.stream_generate(PROMPT, seed=7, steps=8) if hasattr(step, "step")}
    for data in partials:
        assert_same(opened(data), model.decode_latents(steps[data["step"]].denoised)[0])
    assert_same(opened(last), model.generate(PROMPT, seed=7, steps=8).images[0])


def test_stream_of_several_pictures(client):
    found = events(generate(client, seed=7, n=2, stream=True, partial_images=1, quality="low", output_format="webp"))
    assert [(name.split(".")[1], data["index"]) for name, data in found] == [
        ("partial_image", 0),
        ("completed", 0),
        ("partial_image", 1),
        ("completed", 1),
    ]
    assert all(data["partial_image_index"] == 0 for name, data in found if "partial" in name)
    assert all((data["quality"], opened(data).format) == ("low", "WEBP") for _, data in found)


def test_stream_without_previews_is_the_picture_alone(client):
    assert [name for name, _ in events(generate(client, stream=True))] == ["image_generation.completed"]


def test_stream_has_both_address_and_bytes(client):
    ((_, data),) = events(generate(client, stream=True, response_format="url"))
    assert data["url"].startswith("http://localhost/")
    assert opened(data).size == (64, 64)


def test_failure_in_the_middle_is_an_event(client, monkeypatch):
    run = Drawing.run

    def broken(self, model, turn):
        yield from (happening for happening, _ in zip(run(self, model, turn), range(2), strict=False))
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(Drawing, "run", broken)
    found = events(generate(client, stream=True))
    assert [name for name, _ in found] == ["error"]
    assert found[0][1]["error"]["type"] == "server_error"


def test_slow_reader_misses_no_preview(loop, tiny_worker):
    job: Job = loop.job(Drawing("generate", PROMPT, [1], {"steps": 8}, {}, previews=3), kept=False)
    tiny_worker.submit(job)

    async def ended():
        await job.ended()

    loop.run(ended())
    assert [event.data["step"] for event in loop.events(job) if event.kind == "preview"] == [2, 4, 6]


# Edits


def test_edit_is_the_one_that_its_seed_draws(client, model):
    answer = edit(client, {"image": ("photos/before.png", file_of(BEFORE))}, seed="7").json()
    (item,) = answer["data"]
    expected = model.edit(BEFORE, EDIT.text, seed=7, steps=4)
    assert_same(opened(item), expected.images[0])
    assert read_metadata(base64.b64decode(item["b64_json"])) == {
        **expected.metadata(),
        "image": "before.png",
        "image_sha256": pixel_hash(BEFORE),
    }
    assert answer["usage"]["input_tokens_details"]["image_tokens"] == model.config.image_tokens


def test_edit_does_what_it_says(client):
    answer = edit(client, {"image": file_of(BEFORE)}, seed="0", steps="20").json()
    assert edit_succeeded(read_picture(np.asarray(opened(answer["data"][0]).convert("RGB"))), EDIT)


def test_numbers_of_a_form_are_texts(client, tasks):
    edit(
        client,
        {"image": file_of(BEFORE)},
        n="2",
        seed="9",
        guidance_scale="2",
        strength="0.8",
        guidance_interval="0.1,0.9",
        size="96x64",
        stream="false",
        output_format="jpeg",
        output_compression="80",
        partial_images="2",
        negative_prompt="",
        background="auto",
        input_fidelity="high",
        model="gpt-image-1",
    )
    (task,) = tasks
    assert task.options == {
        "steps": 4,
        "guidance_scale": 2.0,
        "guidance_interval": (0.1, 0.9),
        "strength": 0.8,
        "width": 96,
        "height": 64,
    }
    assert (task.seeds, task.kind, task.quality) == ([9, 10], "JPEG", 80)


@pytest.mark.parametrize(
    "image",
    [
        uri(BEFORE),
        [uri(BEFORE)],
        {"image_url": uri(BEFORE)},
        {"image_url": {"url": uri(BEFORE)}},
        [{"type": "image_url", "image_url": uri(BEFORE)}],
        uri(BEFORE).partition(",")[2],
    ],
)
@pytest.mark.parametrize("name", ["image", "images"])
def test_edit_in_json(client, model, image, name):
    answer = client.post("/v1/images/edits", json={name: image, "prompt": EDIT.text, "steps": 2, "seed": 7}).json()
    assert_same(opened(answer["data"][0]), model.edit(BEFORE, EDIT.text, seed=7, steps=2).images[0])


def test_picture_of_the_server_is_edited_by_its_id(client, service, model):
    id = generate(client, seed=1, response_format="url").json()["data"][0]["url"].split("/")[-2]
    answer = client.post(
        "/v1/images/edits",
        json={"image": f"picture:{id}", "prompt": EDIT.text, "steps": 2, "seed": 7, "response_format": "url"},
    ).json()
    edited = answer["data"][0]["url"].split("/")[-2]
    assert (service.pictures.get(edited).kind, service.pictures.get(edited).source) == ("edited", id)
    expected = model.edit(service.pictures.image(id), EDIT.text, seed=7, steps=2).images[0]
    assert_same(service.pictures.image(edited), expected)
    found = error(client.post("/v1/images/edits", json={"image": "picture:x", "prompt": EDIT.text}))
    assert (found["param"], found["code"]) == ("image", "picture_not_found")


@pytest.mark.parametrize("names", [("image[]", "image[]"), ("image", "image"), ("image[0]", "image[1]")])
def test_several_images_are_edited_one_by_one(client, model, names):
    other = BEFORE.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    files = [(name, ("a.png", file_of(image))) for name, image in zip(names, (BEFORE, other), strict=True)]
    answer = edit(client, files, n="2", seed="7").json()
    found = [(item["image_index"], item["seed"]) for item in answer["data"]]
    assert found == [(0, 7), (0, 8), (1, 7), (1, 8)]
    for item in answer["data"]:
        image = (BEFORE, other)[item["image_index"]]
        assert_same(opened(item), model.edit(image, EDIT.text, seed=item["seed"], steps=4).images[0])
    assert answer["usage"]["input_tokens_details"]["image_tokens"] == 2 * model.config.image_tokens


def test_stream_of_several_edits(client):
    files = [("image[]", file_of(BEFORE)), ("image[]", file_of(BEFORE))]
    found = events(edit(client, files, stream="true", partial_images="1"))
    assert [(name, data["index"]) for name, data in found] == [
        ("image_edit.partial_image", 0),
        ("image_edit.completed", 0),
        ("image_edit.partial_image", 1),
        ("image_edit.completed", 1),
    ]


def test_photo_with_an_orientation_is_edited_upright(client, model):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = file_of(BEFORE, "JPEG", exif=exif, quality=95)
    answer = edit(client, {"image": data}, seed="7").json()
    assert_same(opened(answer["data"][0]), model.edit(data, EDIT.text, seed=7, steps=4).images[0])


@pytest.mark.parametrize(
    ("files", "fields", "param", "code"),
    [
        ({"prompt": (None, "x")}, {}, "image", "missing_parameter"),
        ({"image": b""}, {}, "image", "invalid_image"),
        ({"image": b"<html>"}, {}, "image", "invalid_image"),
        ({"image": file_of(BEFORE), "mask": file_of(BEFORE)}, {}, "mask", "unsupported_parameter"),
        ({"image": file_of(BEFORE), "other": b"x"}, {}, "other", "unknown_parameter"),
        ({"image": file_of(BEFORE), "size": b"64x64"}, {}, "size", "invalid_value"),
        ({"image": file_of(BEFORE)}, {"strength": "0"}, "strength", "invalid_value"),
        ({"image": file_of(BEFORE)}, {"strength": "0.01"}, "strength", "invalid_value"),
        ({"image": file_of(BEFORE)}, {"steps": "four"}, "steps", "invalid_value"),
        ({"image": file_of(BEFORE)}, {"n": "eleven"}, "n", "invalid_value"),
        ([("image[]", file_of(BEFORE))] * 3, {"n": "4"}, "image", "too_large"),
        ({"image": (None, "/etc/passwd")}, {}, "image", "invalid_image"),
        ({"image": (None, "http://127.0.0.1/x.png")}, {}, "image", "image_url_not_allowed"),
    ],
)
def test_mistakes_in_forms(client, tasks, files, fields, param, code):
    found = error(edit(client, files, **fields))
    assert (found["param"], found["code"]) == (param, code)
    assert tasks == []


def test_form_that_is_cut_short(client):
    response = client.post(
        "/v1/images/edits",
        content=b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nhal',
        headers={"content-type": "multipart/form-data; boundary=x"},
    )
    assert error(response)["type"] == "invalid_request_error"


def test_text_of_a_form_that_is_no_number_is_shown(client):
    found = error(edit(client, {"image": file_of(BEFORE)}, steps="four"))
    assert found["message"] == "steps 'four' is not possible; choose a whole number."


def test_mask_is_refused_with_the_reason(client):
    found = error(edit(client, {"image": file_of(BEFORE), "mask": file_of(BEFORE)}))
    assert "transparent" in found["message"]


# Others


def test_variations_are_refused_in_a_sentence(client):
    found = error(client.post("/v1/images/variations", files={"image": file_of(BEFORE)}), 404)
    assert "/v1/images/edits" in found["message"]


@pytest.mark.parametrize("name", ["generations", "edits", "variations"])
def test_bare_options(client, name):
    assert client.options(f"/v1/images/{name}").status_code == 204


def test_get_is_refused(client):
    error(client.get("/v1/images/generations"), 405)
