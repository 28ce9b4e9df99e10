"""Best of several candidates over HTTP: options, limits, turns, and what is said of the candidates."""

import base64
import io
from dataclasses import replace

import pytest
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("multipart")
pytest.importorskip("uvicorn")

from mobileo_mlx.image_settings import encode, read_metadata
from mobileo_mlx.images import pixel_hash
from mobileo_mlx.serving.openapi import make_document
from mobileo_mlx.serving.tasks import Drawing

from .live import live

PROMPT = "a red circle"
FEW = {"prompt": PROMPT, "steps": 2, "seed": 7}
FORM = {"prompt": "add a red circle", "steps": "2", "response_format": "url"}
SEEDS = [7, 7 + 2**32, 7 + 2 * 2**32]  # of three candidates


def png(colour=(255, 255, 255)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(stream, "PNG")
    return stream.getvalue()


def test_an_answer_has_the_kept_candidate_and_all_scores(client, service):
    (item,) = client.post("/v1/images/generations", json={**FEW, "best_of": 3}).json()["data"]
    assert [one["seed"] for one in item["best_of"]["candidates"]] == SEEDS
    candidates = item["best_of"]["candidates"]
    passing = [one for one in candidates if one["passes"]]
    assert item["seed"] == (passing[0] if passing else max(candidates, key=lambda one: one["score"]))["seed"]
    assert all(check["question"] for check in item["best_of"]["checks"])
    data = base64.b64decode(item["b64_json"])
    assert read_metadata(data)["best_of"] == item["best_of"]
    again = service.worker.model.generate(PROMPT, steps=2, seed=item["seed"]).images[0]
    with Image.open(io.BytesIO(data)) as picture:
        assert pixel_hash(picture.convert("RGB")) == pixel_hash(again)


def test_a_form_has_the_options_as_texts(client):
    answer = client.post(
        "/v1/images/edits",
        files={"image": ("a.png", png())},
        data={
            "prompt": "add a red circle",
            "steps": "2",
            "best_of": "2",
            "until_pass": "true",
            "response_format": "url",
        },
    ).json()
    (item,) = answer["data"]
    assert 1 <= len(item["best_of"]["candidates"]) <= 2
    assert client.get(item["url"]).status_code == 200


def test_one_candidate_says_nothing(client):
    (item,) = client.post("/v1/images/generations", json={**FEW, "best_of": 1}).json()["data"]
    assert "best_of" not in item


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"best_of": 11}, "best_of", "too_large"),
        ({"best_of": 4, "n": 3}, "best_of", "too_large"),
        ({"best_of": 0}, "best_of", "invalid_value"),
        ({"best_of": True}, "best_of", "invalid_value"),
        ({"until_pass": True}, "until_pass", "invalid_value"),
        ({"best_of": 2, "until_pass": 1}, "until_pass", "invalid_value"),
    ],
)
def test_what_is_refused(client, fields, param, code):
    for path, task in (("/v1/images/generations", {}), ("/v1/jobs", {"task": "generate"})):
        response = client.post(path, json={**FEW, **task, **fields})
        assert response.status_code == 400, response.text
        assert (response.json()["error"]["param"], response.json()["error"]["code"]) == (param, code)


def test_candidates_of_several_images_count(client):
    files = [("image[]", (f"{i}.png", png((i, i, i)))) for i in range(3)]
    response = client.post("/v1/images/edits", files=files, data={"prompt": "add a star", "best_of": "4"})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == (
        "best_of 4 of 3 pictures makes 12 drawings, and one request may ask for 10; choose less."
    )


def test_a_turn_is_one_picture(service):
    task = Drawing("generate", PROMPT, [1, 2, 3], {"best_of": 2, "steps": 1}, {}, batch=3)
    assert (task.turns, replace(task, options={}).turns) == (3, 1)
    happenings = [one for turn in range(task.turns) for one in task.run(service.model, turn)]
    assert [data.index for kind, data in happenings if kind == "picture"] == [0, 1, 2]
    assert happenings[-1][0] == "completed"
    assert happenings[-1][1]["timings"]["judge"] > 0


def test_progress_says_which_candidate(service):
    def progress(**options):
        task = Drawing("generate", PROMPT, [1], {"best_of": 2, "steps": 2, **options}, {})
        return [data for kind, data in task.run(service.model, 0) if kind == "progress"]

    assert all(data["candidates"] == 2 and "candidate" not in data for data in progress())
    one_by_one = progress(until_pass=True)
    assert [data["candidate"] for data in one_by_one] == [0, 0, 1, 1][: len(one_by_one)]
    assert "candidates" not in progress(best_of=1)[0]


def test_a_job_and_its_picture_have_the_scores(service):
    with live(service) as server:
        job = server.client.post("/v1/jobs", json={**FEW, "task": "generate", "best_of": 3}).json()
        server.client.get(f"/v1/jobs/{job['id']}/events")  # to its end
        (picture,) = server.client.get(f"/v1/jobs/{job['id']}").json()["pictures"]
        assert [one["seed"] for one in picture["settings"]["best_of"]["candidates"]] == SEEDS
        kept = server.client.get(f"/v1/pictures/{picture['id']}").json()
        assert kept["settings"] == picture["settings"]


def test_a_picture_that_a_message_asks_for(service):
    with live(service) as server:
        message = {"role": "user", "content": "draw a red circle"}
        fields = {"task": "answer", "draw": True, "messages": [message], "seed": 7, "best_of": 2}
        job = server.client.post("/v1/jobs", json=fields).json()
        assert (job["task"], job["request"]["best_of"]) == ("generate", 2)
        server.client.delete(f"/v1/jobs/{job['id']}")
        refused = server.client.post("/v1/jobs", json={**fields, "best_of": 11})
        assert refused.json()["error"]["param"] == "best_of"


def test_the_document_has_the_server_s_limit(service):
    schemas = make_document(replace(service.settings, max_pictures=6), 32)["components"]["schemas"]
    for name in ("ImageRequest", "EditJob", "AnswerJob"):
        assert schemas[name]["properties"]["best_of"]["maximum"] == 6
        assert "boolean" in schemas[name]["properties"]["until_pass"]["type"]


GOOD = {
    "candidates": [{"seed": 1, "score": 0.5, "passes": True}],
    "checks": [{"question": "how many?", "expected": "one", "answer": "two", "probability": 0.25}],
}


@pytest.mark.parametrize(
    "damage",
    [
        None,
        3,
        [],
        {"candidates": []},
        {**GOOD, "more": 1},
        {**GOOD, "candidates": 5 * ["a"]},
        {**GOOD, "candidates": 101 * GOOD["candidates"]},
        {**GOOD, "candidates": [{**GOOD["candidates"][0], "score": 2}]},
        {**GOOD, "candidates": [{**GOOD["candidates"][0], "score": "<b>"}]},
        {**GOOD, "candidates": [{**GOOD["candidates"][0], "passes": 1}]},
        {**GOOD, "candidates": [{**GOOD["candidates"][0], "seed": -1}]},
        {**GOOD, "checks": [{**GOOD["checks"][0], "answer": None}]},
    ],
)
def test_forged_scores_of_an_upload_are_left_out(client, damage):
    def settings_of(best_of):
        data = encode(Image.new("RGB", (8, 8)), "PNG", {"task": "generate", "prompt": PROMPT, "best_of": best_of})
        answer = client.post("/v1/pictures", content=data, headers={"Content-Type": "image/png"})
        return answer.json()["settings"]

    assert settings_of(GOOD)["best_of"] == GOOD
    assert settings_of(damage).get("best_of") is None
