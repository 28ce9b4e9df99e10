"""Pictures over HTTP."""

import io
import shutil

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")
pytest.importorskip("python_multipart")

from PIL import Image
from starlette.testclient import TestClient

from mobileo_mlx.image_settings import encode
from mobileo_mlx.serving.app import make_app
from mobileo_mlx.serving.service import Service
from mobileo_mlx.serving.settings import ServerSettings

SETTINGS = {"task": "generate", "prompt": "a red circle", "seed": 7}


def data(size: tuple[int, int] = (640, 64)) -> bytes:
    return encode(Image.new("RGB", size, (255, 0, 0)), "PNG", SETTINGS)


PNG = {"Content-Type": "image/png"}


def upload(client: TestClient, content: bytes | None = None):
    return client.post("/v1/pictures", content=content or data(), headers=PNG)


@pytest.fixture
def service(worker, tmp_path):
    return Service(ServerSettings(pictures=tmp_path / "pictures", max_pixels=100_000), worker)


def test_raw_and_form_uploads(client):
    raw = upload(client)
    form = client.post("/v1/pictures", files={"image": ("a b.png", data(), "image/png")})
    for answer in (raw, form):
        picture = answer.json()
        assert answer.status_code == 201
        assert answer.headers["location"] == f"/v1/pictures/{picture['id']}"
        assert (picture["width"], picture["height"], picture["kind"], picture["seed"]) == (640, 64, "uploaded", 7)
        assert picture["settings"] == SETTINGS
        assert client.get(f"/v1/pictures/{picture['id']}").json() == picture
    assert [one["id"] for one in client.get("/v1/pictures").json()["data"]] == [form.json()["id"], raw.json()["id"]]


def test_files_and_thumbnails(client):
    picture = upload(client).json()
    content = client.get(picture["url"])
    assert content.headers["content-type"] == "image/png"
    assert "immutable" in content.headers["cache-control"]
    assert content.headers["content-disposition"] == f'inline; filename="{picture["id"]}.png"'
    assert Image.open(io.BytesIO(content.content)).size == (640, 64)
    thumbnail = client.get(picture["thumbnail_url"])
    assert thumbnail.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(thumbnail.content)).size == (320, 32)
    assert client.head(picture["url"]).headers["content-length"] == str(len(content.content))


def test_pages(client):
    ids = [upload(client, data((8, 8))).json()["id"] for _ in range(3)]
    first = client.get("/v1/pictures", params={"limit": 2}).json()
    assert ([one["id"] for one in first["data"]], first["has_more"]) == (ids[:0:-1], True)
    rest = client.get("/v1/pictures", params={"limit": 2, "before": ids[1]}).json()
    assert ([one["id"] for one in rest["data"]], rest["has_more"]) == (ids[:1], False)
    for parameters in ({"limit": 0}, {"limit": 101}, {"limit": "x"}, {"before": "x"}):
        answer = client.get("/v1/pictures", params=parameters)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(parameters)))


def test_deleted_and_restored(client):
    picture = upload(client).json()
    assert client.delete(f"/v1/pictures/{picture['id']}").json() == {
        "id": picture["id"],
        "object": "picture",
        "deleted": True,
    }
    for method, path in (("GET", ""), ("GET", "/content"), ("GET", "/thumbnail"), ("DELETE", "")):
        answer = client.request(method, f"/v1/pictures/{picture['id']}{path}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "picture_not_found")
    assert client.post(f"/v1/pictures/{picture['id']}/restore").json() == picture
    assert client.get("/v1/pictures").json()["data"] == [picture]


@pytest.mark.parametrize("id", ["..", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "..%2f..%2fetc%2fpasswd", "%00", "a" * 5000])
def test_ids_lead_nowhere(client, id):
    for path in ("", "/content", "/thumbnail"):
        assert client.get(f"/v1/pictures/{id}{path}").status_code == 404


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ({"content": b""}, "empty"),
        ({"content": b"no image", "headers": PNG}, "not an image"),
        ({"content": data((400, 300)), "headers": PNG}, "at most 0.1 million are accepted"),
        ({"files": {"picture": data()}}, "no file 'image'"),
        ({"data": {"image": "x"}, "files": {"other": b"x"}}, "no file 'image'"),
        ({"content": b"--x", "headers": {"Content-Type": "multipart/form-data"}}, "boundary"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=y"}}, ""),
    ],
)
def test_uploads_that_are_refused(client, sent, words):
    answer = client.post("/v1/pictures", **sent)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]
    assert client.get("/v1/pictures").json()["data"] == []


def test_a_folder_that_was_removed_is_told_without_its_path(client, service, tmp_path):
    picture = upload(client).json()
    shutil.rmtree(tmp_path / "pictures")
    for path in ("", f"/{picture['id']}", f"/{picture['id']}/content"):
        answer = client.get(f"/v1/pictures{path}")
        assert answer.status_code == 500
        assert "can't be read" in answer.json()["error"]["message"]
        assert str(tmp_path) not in answer.text
    kept = upload(client).json()
    assert "kept in memory" in kept["warning"]
    assert client.get(kept["url"]).status_code == 200


def test_without_a_folder(worker):
    with TestClient(make_app(Service(ServerSettings(), worker)), base_url="http://localhost") as client:
        picture = upload(client).json()
        assert client.get("/v1/pictures").json()["data"] == [picture]
        assert "warning" not in picture
