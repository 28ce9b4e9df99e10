"""Speed turbo in requests: offered and taken where the model has it, refused where it has not."""

import base64
import io
import shutil

import pytest
from few_steps import DRAWING, write_student
from PIL import Image

pytest.importorskip("starlette")

from starlette.testclient import TestClient

from mobileo_mlx import MobileO
from mobileo_mlx.image_settings import read_metadata
from mobileo_mlx.images import pixel_hash
from mobileo_mlx.serving.app import make_app
from mobileo_mlx.serving.service import Service
from mobileo_mlx.serving.settings import ServerSettings
from mobileo_mlx.serving.worker import Worker


def client_of(folder, **options):
    """A client of a server that allows ten steps."""
    worker = Worker(lambda: MobileO.load(folder, **options), limit=4, max_bytes=2**30)
    worker.start()
    service = Service(ServerSettings(max_steps=10), worker)
    return TestClient(make_app(service), base_url="http://localhost"), worker


@pytest.fixture(scope="module")
def turbo_model(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("turbo") / "secret" / "model"
    shutil.copytree(tiny_model, folder)
    write_student(folder / "turbo", folder)
    return folder


@pytest.fixture
def client(turbo_model):
    client, worker = client_of(turbo_model)
    with client:
        yield client
    assert worker.stop(60)


def draw(client, **fields):
    found = client.post("/v1/images/generations", json={"prompt": "a cat", "seed": 3, **fields})
    assert found.status_code == 200, found.text
    data = base64.b64decode(found.json()["data"][0]["b64_json"])
    return pixel_hash(Image.open(io.BytesIO(data))), read_metadata(data)


def test_requests_with_it_and_without_in_turn(client, turbo_model):
    plain, settings = draw(client)
    assert (settings["steps"], "speed" in settings) == (10, False)
    quick, settings = draw(client, speed="turbo")
    assert {name: settings[name] for name in DRAWING} == DRAWING  # which the limit of steps leaves as they are
    assert settings["speed"] == "turbo"
    assert draw(client) == (plain, draw(client)[1])
    model = MobileO.load(turbo_model)
    assert quick == pixel_hash(model.generate("a cat", seed=3, speed="turbo").images[0])
    assert plain == pixel_hash(model.generate("a cat", seed=3, steps=10).images[0])


def test_a_page_is_offered_what_the_model_has(client, tiny_model, turbo_model):
    offered = client.get("/v1/info").json()
    assert offered["capabilities"]["speeds"]["turbo"] == DRAWING
    assert len(offered["identity"]["turbo"]) == 32
    other, worker = client_of(tiny_model)
    with other:
        assert "turbo" not in other.get("/v1/info").json()["capabilities"]["speeds"]
        for path, more in (("/v1/images/generations", {}), ("/v1/jobs", {"task": "generate"})):
            found = other.post(path, json={"prompt": "a cat", "speed": "turbo", **more}).json()["error"]
            assert (found["param"], found["code"]) == ("speed", "invalid_value")
            assert "this model brings none along" in found["message"]
    assert worker.stop(60)
    student, worker = client_of(tiny_model, adapter=turbo_model / "turbo")
    with student:
        assert student.get("/v1/info").json()["capabilities"]["speeds"] == {}
        assert draw(student)[1]["steps"] == 4
        found = student.post("/v1/images/generations", json={"prompt": "a cat", "speed": "fast"})
        assert found.status_code == 400
        assert "an adapter is loaded that draws in few" in found.text
        assert "secret" not in found.text
    assert worker.stop(60)
