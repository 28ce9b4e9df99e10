"""Finding models, with a small hub on this machine's loopback."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import mobileo_weights
import pytest
from upstream import write_upstream

from mobileo_mlx.checkpoints import hub, hub_download
from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.checkpoints.convert import convert
from mobileo_mlx.checkpoints.random_model import write_random_model
from mobileo_mlx.errors import CheckpointError, DownloadError

REPO = "someone/Mobile-O"
REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """As much of the hub as a download needs. Files lie in `folder`; `log` has (method, path, headers)."""

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.log: list[tuple[str, str, dict[str, str]]] = []
        self.status = 200  # of all answers, unless it is 200
        self.headers: dict[str, str] = {}
        self.cut: dict[str, int] = {}  # file: bytes after which the line goes dead, for good
        self.elsewhere = False  # whether data come from another host
        self.damage: set[str] = set()
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self) -> set[str]:
        return {str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.is_file()}

    def fetched(self) -> set[str]:
        """The files whose data were asked for."""
        return {name for method, path, _ in self.log if method == "GET" and (name := file_of(path))}

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


def file_of(path: str) -> str | None:
    for marker in (f"/{REPO}/resolve/{REVISION}/", f"/{REPO}/resolve/main/", "/elsewhere/"):
        if path.startswith(marker):
            return path.removeprefix(marker)
    return None


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.server.log.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        if self.server.status != 200:
            self.reply(self.server.status, b"", self.server.headers)
        elif self.path.split("?")[0] in (f"/api/models/{REPO}", f"/api/models/{REPO}/revision/main"):
            siblings = [{"rfilename": name} for name in sorted(self.server.files())]
            content = {"id": REPO, "modelId": REPO, "sha": REVISION, "siblings": siblings, "tags": []}
            self.reply(200, json.dumps(content).encode(), {"Content-Type": "application/json"})
        elif (name := file_of(self.path)) is not None and (self.server.folder / name).is_file():
            self.file(name)
        else:
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": REVISION})

    def file(self, name: str) -> None:
        content = (self.server.folder / name).read_bytes()
        headers = {"X-Repo-Commit": REVISION, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        if self.server.elsewhere and not self.path.startswith("/elsewhere/"):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
            headers["Location"] = f"http://localhost:{self.server.server_port}/elsewhere/{name}"
            return self.reply(302, b"", headers)
        if name in self.server.damage:
            content = bytes(len(content))
        begin = 0
        if span := self.headers.get("Range"):
            begin = int(span.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        if self.command == "GET" and (end := self.server.cut.get(name)) is not None:
            if begin < end:
                self.reply(206 if begin else 200, content[begin:], headers, upto=end - begin)
            self.close_connection = True
            return None
        return self.reply(206 if begin else 200, content[begin:], headers)

    def reply(self, status: int, body: bytes, headers: dict[str, str], upto: int | None = None) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:upto])


@pytest.fixture(autouse=True)
def quiet_environment(monkeypatch, tmp_path):
    """No proxies, no token, no offline mode, and no cache of the user's."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "default-cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ours") / "model"
    write_random_model(folder)
    return folder


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    server = Hub(tmp_path / "served")
    yield server
    server.stop()


@pytest.fixture
def at_root(server, ours) -> Hub:
    """A repository with the model at its root, in upstream's layout, and things that nobody needs."""
    write_upstream(server.folder, ours, files=2)
    for name in ("README.md", "training_args.bin", "images/photo.png", "diffusion/vae/weights.safetensors"):
        (server.folder / name).parent.mkdir(exist_ok=True)
        (server.folder / name).write_bytes(b"not needed")
    return server


def find(server: Hub, cache: Path) -> Path:
    return hub.find(REPO, endpoint=server.endpoint, cache=cache)


# Without the hub


def test_bundled_names_come_first(ours, tmp_path, monkeypatch):
    monkeypatch.setattr(mobileo_weights, "bundled", lambda: {"tiny": ours})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert hub.find("tiny") == ours


def test_folders(ours, tmp_path, monkeypatch):
    assert hub.find(ours) == hub.find(str(ours)) == ours
    monkeypatch.chdir(ours.parent)
    assert hub.find("model") == Path("model")
    monkeypatch.setenv("HOME", str(ours.parent))
    assert hub.find("~/model") == ours


@pytest.mark.parametrize("name", ["missing", "./a/b", "/a/b", "a/b/c", "~/a", "a b/c", "", "a/-b", "a/b\n"])
def test_what_can_not_be_a_repository_is_no_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name == "":  # the current folder, which holds nothing
        with pytest.raises(CheckpointError, match="holds no model"):
            hub.find(name)
        return
    with pytest.raises(CheckpointError, match="is no folder") as error:
        hub.find(name)
    assert not isinstance(error.value, DownloadError)
    with pytest.raises(CheckpointError, match="is no folder"):
        hub.find(Path("a/b"))


def test_bundled_models_are_listed_where_a_name_is_wrong(monkeypatch, ours):
    monkeypatch.setattr(mobileo_weights, "bundled", lambda: {"tiny": ours})
    with pytest.raises(CheckpointError, match=r"no bundled model \(tiny\)"):
        hub.find("tyni")


def test_something_else_than_a_model(tmp_path):
    with pytest.raises(CheckpointError, match="holds no model"):
        hub.find(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds no model"):
        hub.find(tmp_path)
    with pytest.raises(CheckpointError, match="is a file; give the folder"):
        hub.find(tmp_path / "config.json")


# Downloads


def test_only_what_is_needed_is_downloaded(at_root, ours, tmp_path):
    folder = find(at_root, tmp_path / "cache")
    needed = {
        "config.json",
        "tokenizer.json",
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "diffusion/transformer/config.json",
        "diffusion/vae/config.json",
        "diffusion/scheduler/scheduler_config.json",
    }
    assert at_root.fetched() == needed
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == needed
    assert Checkpoint.open(folder).config == Checkpoint.open(ours).config
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_a_complete_snapshot_needs_no_network(at_root, tmp_path):
    folder = find(at_root, tmp_path / "cache")
    at_root.log.clear()
    assert find(at_root, tmp_path / "cache") == folder
    assert at_root.log == []
    at_root.stop()
    assert find(at_root, tmp_path / "cache") == folder


@pytest.mark.parametrize("taken", ["model-00002-of-00002.safetensors", "tokenizer.json", "config.json"])
def test_an_incomplete_snapshot_is_completed(at_root, tmp_path, taken):
    folder = find(at_root, tmp_path / "cache")
    blob = (folder / taken).resolve()
    (folder / taken).unlink()
    blob.unlink()
    at_root.log.clear()
    assert find(at_root, tmp_path / "cache") == folder
    assert at_root.fetched() == {taken}
    assert (folder / taken).is_file()


def test_weights_without_a_tokenizer_serve_where_there_is_no_network(at_root, tmp_path):
    folder = find(at_root, tmp_path / "cache")
    (folder / "tokenizer.json").unlink()
    at_root.stop()
    assert find(at_root, tmp_path / "cache") == folder
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(DownloadError):
        find(at_root, tmp_path / "cache")


def test_the_model_in_a_subfolder(server, ours, tmp_path):
    write_upstream(server.folder / "final_merged_model_7", ours)
    shutil.move(server.folder / "final_merged_model_7" / "diffusion", server.folder / "diffusion")
    write_upstream(server.folder / "checkpoint-100", ours)
    folder = find(server, tmp_path / "cache")
    assert folder.name == "final_merged_model_7"
    assert not any(name.startswith("checkpoint-100") for name in server.fetched())
    assert Checkpoint.open(folder).config == Checkpoint.open(ours).config
    server.stop()
    assert find(server, tmp_path / "cache") == folder


def test_several_subfolders_are_not_guessed_from(server, ours, tmp_path):
    for number in (1, 2):
        write_upstream(server.folder / f"final_merged_model_{number}", ours)
    with pytest.raises(CheckpointError, match="final_merged_model_1, final_merged_model_2"):
        find(server, tmp_path / "cache")
    assert server.fetched() == set()


def test_a_repository_without_a_model(server, tmp_path):
    (server.folder / "README.md").write_text("nothing here")
    with pytest.raises(CheckpointError, match=f"'{REPO}' on the hub holds no model"):
        find(server, tmp_path / "cache")


def test_our_layout_on_the_hub(server, ours, tmp_path):
    shutil.copytree(ours, server.folder, dirs_exist_ok=True)
    folder = find(server, tmp_path / "cache")
    assert Checkpoint.open(folder).layout == "mobileo-mlx"
    at_hand = find(server, tmp_path / "cache")
    (folder / "dit.safetensors").unlink()
    server.log.clear()
    assert find(server, tmp_path / "cache") == at_hand
    assert any("dit.safetensors" in path for _, path, _ in server.log)


def test_a_download_goes_on_where_it_broke_off(at_root, tmp_path, monkeypatch):
    """Across calls, as after Ctrl-C: the second one asks for the rest alone."""
    name = "model-00002-of-00002.safetensors"
    at_root.cut[name] = 400_000
    # huggingface_hub writes in pieces of this size; the last, incomplete one is lost.
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between its attempts
    with pytest.raises(DownloadError, match="could not be downloaded"):
        find(at_root, tmp_path / "cache")
    (partial,) = (tmp_path / "cache").rglob("*.part")
    assert partial.stat().st_size == 400_000
    at_root.cut.clear()
    at_root.log.clear()
    folder = find(at_root, tmp_path / "cache")
    ranges = [h.get("range") for method, path, h in at_root.log if method == "GET" and file_of(path) == name]
    assert ranges == ["bytes=400000-"]
    assert (folder / name).read_bytes() == (at_root.folder / name).read_bytes()
    assert not partial.exists()


def test_what_arrives_damaged_is_not_kept(at_root, tmp_path):
    name = "model-00001-of-00002.safetensors"
    at_root.damage.add(name)
    with pytest.raises(DownloadError, match=f"'{name}' of '{REPO}' arrived damaged; try again"):
        find(at_root, tmp_path / "cache")
    at_root.damage.clear()
    folder = find(at_root, tmp_path / "cache")
    assert (folder / name).read_bytes() == (at_root.folder / name).read_bytes()


def test_a_token_goes_to_the_hub_alone(at_root, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    at_root.elsewhere = True
    find(at_root, tmp_path / "cache")
    tokens = {path.startswith("/elsewhere/"): h.get("authorization") for _, path, h in at_root.log}
    assert tokens == {False: "Bearer hf_secret", True: None}


def test_two_downloads_of_one_file_do_not_mix(at_root, tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    name = "model-00001-of-00002.safetensors"
    digest = hashlib.sha256((at_root.folder / name).read_bytes()).hexdigest()
    blobs = tmp_path / "cache" / f"models--{REPO.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    with (blobs / f"{digest}.mobileo-mlx.part").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match="by another process"):
            find(at_root, tmp_path / "cache")
    find(at_root, tmp_path / "cache")


# Failures


ALTERNATIVES = ("--model FOLDER", "mobileo-mlx random-model DIR")


def assert_helpful(error: DownloadError) -> None:
    message = str(error)
    assert REPO in message
    assert all(way in message for way in ALTERNATIVES)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (404, {"X-Error-Code": "RepoNotFound"}, "neither a folder nor a model on the hub"),
        (401, {"X-Error-Code": "RepoNotFound"}, "neither a folder nor a model on the hub"),
        (403, {"X-Error-Code": "GatedRepo"}, "asks for a licence"),
        (500, {}, "could not be downloaded"),
    ],
)
def test_answers_that_are_refusals(at_root, tmp_path, status, headers, expected):
    at_root.status, at_root.headers = status, headers
    with pytest.raises(DownloadError, match=expected) as error:
        find(at_root, tmp_path / "cache")
    assert_helpful(error.value)


def test_a_hub_that_can_not_be_reached(at_root, tmp_path, monkeypatch):
    at_root.stop()
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waits for another attempt"))
    with pytest.raises(DownloadError, match="is not cached and could not be downloaded") as error:
        find(at_root, tmp_path / "cache")
    assert_helpful(error.value)


def test_offline_mode_is_respected(at_root, tmp_path, monkeypatch):
    folder = find(at_root, tmp_path / "cache")
    at_root.log.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE") as error:
        find(at_root, tmp_path / "another-cache")
    assert_helpful(error.value)
    assert find(at_root, tmp_path / "cache") == folder
    assert at_root.log == []


def test_bars_are_drawn_only_if_asked_for():
    from huggingface_hub.utils import are_progress_bars_disabled

    with hub_download._bars(False):
        assert are_progress_bars_disabled()
    with hub_download._bars(True):
        assert not are_progress_bars_disabled()
    assert not are_progress_bars_disabled()


def test_the_environment_of_huggingface_hub_counts(at_root, tmp_path):
    """As a user has it: HF_ENDPOINT and HF_HOME, read by a fresh process; and nothing on the output."""
    code = f"""
import sys
from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.errors import DownloadError
assert "huggingface_hub" not in sys.modules
try:
    print(Checkpoint.open({REPO!r}).layout)
except DownloadError as error:
    print(error)
"""
    env = {**os.environ, "HF_ENDPOINT": at_root.endpoint, "HF_HOME": str(tmp_path / "home")}
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        env.pop(name, None)

    def run(**more: str) -> tuple[str, str]:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**env, **more}
        )
        return done.stdout, done.stderr

    assert run(HF_HUB_OFFLINE="1")[0].startswith(f"'{REPO}' is not cached, and HF_HUB_OFFLINE forbids")
    assert run() == ("upstream\n", "")
    assert (tmp_path / "home" / "hub" / f"models--{REPO.replace('/', '--')}").is_dir()
    assert run(HF_HUB_OFFLINE="1") == ("upstream\n", "")


def test_a_repository_converts(at_root, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    find(at_root, cache)
    at_root.stop()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    assert convert(REPO, tmp_path / "made").layout == "mobileo-mlx"
