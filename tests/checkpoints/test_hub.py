"""Finding models, with a small hub on this machine's loopback."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub.constants
import mobileo_weights
import pytest
from few_steps import DRAWING, write_student
from hub_server import REPO, REVISION, Hub, file_of
from upstream import write_upstream

from mobileo_mlx.checkpoints import hub, hub_download, turbo
from mobileo_mlx.checkpoints.adapters import CONFIG_FILE, WEIGHTS_FILE
from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.checkpoints.convert import convert
from mobileo_mlx.checkpoints.random_model import write_random_model
from mobileo_mlx.errors import CheckpointError, DownloadError


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


def test_a_few_step_adapter_comes_along(at_root, ours, tmp_path):
    write_student(at_root.folder / "turbo", ours)
    (at_root.folder / "turbo" / "README.md").write_text("not needed")
    folder = find(at_root, tmp_path / "cache")
    assert {path.name for path in (folder / "turbo").iterdir()} == {CONFIG_FILE, WEIGHTS_FILE}
    assert turbo.find(Checkpoint.open(folder)).drawing == DRAWING


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


def wait_for(condition) -> None:
    while not condition():
        time.sleep(0.01)


def test_a_second_download_waits_for_the_first(at_root, tmp_path, monkeypatch, caplog):
    asked, goes_on = threading.Event(), threading.Event()
    fetch = hub_download._fetch

    def slow(*arguments, **options):
        asked.set()
        assert goes_on.wait(60)
        return fetch(*arguments, **options)

    monkeypatch.setattr(hub_download, "_fetch", slow)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(find, at_root, tmp_path / "cache")
        assert asked.wait(60)
        second = pool.submit(find, at_root, tmp_path / "cache")
        wait_for(lambda: caplog.messages or second.done())
        assert caplog.messages == [f"'{REPO}' is being downloaded by another process; waiting for it."]
        assert hub_download.is_busy(REPO, tmp_path / "cache")
        goes_on.set()
        assert first.result() == second.result()
    assert [file_of(path) for method, path, _ in at_root.log if method == "GET"].count("config.json") == 1


def test_a_file_system_without_locks_or_links(at_root, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_download, "lock", lambda descriptor, wait=False: None)

    def no_links(path, target):
        raise PermissionError("no links here")

    monkeypatch.setattr(Path, "symlink_to", no_links)
    folder = find(at_root, tmp_path / "cache")
    assert Checkpoint.open(folder).layout == "upstream"
    assert not (folder / "config.json").is_symlink()
    at_root.stop()
    assert find(at_root, tmp_path / "cache") == folder


# Revisions


def test_a_revision_is_one_of_its_own(at_root, tmp_path):
    at_root.revisions.add("v1.0")
    cache = tmp_path / "cache"
    folder = hub.find(f"{REPO}@v1.0", endpoint=at_root.endpoint, cache=cache)
    assert folder.name == REVISION
    at_root.stop()
    for revision in ("v1.0", REVISION):
        assert hub.find(f"{REPO}@{revision}", cache=cache) == folder
        assert hub.cached_state(f"{REPO}@{revision}", cache) == ("cached", folder)
    with pytest.raises(DownloadError):  # of main nobody has asked what it is
        find(at_root, cache)


def test_a_commit_that_another_program_cached_serves_without_a_connection(at_root, tmp_path, monkeypatch):
    folder = find(at_root, tmp_path / "cache")
    shutil.rmtree(folder.parents[1] / "refs")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert hub.find(f"{REPO}@{REVISION}", cache=tmp_path / "cache") == folder
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert Checkpoint.open(f"{REPO}@{REVISION}").name == f"{REPO}@{REVISION}"
    assert hub.is_here(f"{REPO}@{REVISION}")
    assert not hub.is_here(f"{REPO}@v2")


def test_a_revision_that_is_not_there(at_root, tmp_path):
    with pytest.raises(DownloadError, match=f"'{REPO}@v9' names a revision that is not on the hub"):
        hub.find(f"{REPO}@v9", endpoint=at_root.endpoint, cache=tmp_path / "cache")


def test_a_folder_with_an_at_in_its_name_wins(ours, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ours, "someone/model@v1")
    assert hub.find("someone/model@v1") == Path("someone/model@v1")
    assert hub.location("someone/model@v1") == str(tmp_path / "someone/model@v1")


def test_a_later_commit_is_downloaded_if_asked_for(at_root, tmp_path):
    folder = find(at_root, tmp_path / "cache")
    (folder.parents[1] / "refs" / "main").write_text("f" * 40)
    folder.rename(folder.with_name("f" * 40))
    assert find(at_root, tmp_path / "cache").name == "f" * 40
    new = hub.find(REPO, endpoint=at_root.endpoint, cache=tmp_path / "cache", refresh=True)
    assert new.name == REVISION
    assert find(at_root, tmp_path / "cache") == new
    at_root.stop()
    with pytest.raises(DownloadError):
        hub.find(REPO, endpoint=at_root.endpoint, cache=tmp_path / "cache", refresh=True)


# Names that a repository gives


@pytest.mark.parametrize("name", ["../x.json", "diffusion/../../x.json", "/tmp/x.json", "a/../config.json", "x\0.json"])
def test_a_repository_that_names_files_outside_of_itself(at_root, tmp_path, name):
    at_root.listed.append(name)
    with pytest.raises(CheckpointError, match="names a file outside of itself"):
        find(at_root, tmp_path / "cache")
    assert at_root.fetched() == set()


@pytest.mark.parametrize("etag", ["../../../../x", "/tmp/x", ".x", ""])
def test_a_checksum_that_is_a_path(at_root, tmp_path, etag):
    at_root.answers[("HEAD", "diffusion/vae/config.json")] = [(200, {"ETag": f'"{etag}"', "X-Repo-Commit": REVISION})]
    with pytest.raises(DownloadError, match="does not say which"):
        find(at_root, tmp_path / "cache")


# A hub that is busy


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """The seconds that were waited, in no time."""
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.parametrize(("status", "headers"), [(429, {"Retry-After": "7"}), (503, {}), (500, {}), (429, {})])
def test_what_passes_is_waited_for(at_root, tmp_path, pauses, method, status, headers):
    at_root.answers[(method, "tokenizer.json")] = 2 * [(status, headers)]
    assert (find(at_root, tmp_path / "cache") / "tokenizer.json").is_file()
    assert pauses == ([8, 8] if headers else [1, 2])


def test_a_list_of_files_is_waited_for(at_root, tmp_path, pauses, caplog):
    at_root.answers[("GET", "")] = [(429, {"Retry-After": "3"})]
    assert find(at_root, tmp_path / "cache").is_dir()
    assert pauses == [4]
    assert caplog.messages == ["the hub answers with status 429; the next attempt is in 4 s."]


def test_nobody_waits_for_ever(at_root, tmp_path, pauses):
    at_root.status, at_root.headers = 503, {}
    with pytest.raises(DownloadError, match="could not be downloaded"):
        find(at_root, tmp_path / "cache")
    assert pauses == [1, 2, 4, 8, 8]
    at_root.status, at_root.headers = 429, {"Retry-After": "86400"}
    with pytest.raises(DownloadError, match="could not be downloaded"):
        find(at_root, tmp_path / "cache")
    assert len(pauses) == 5


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
def test_answers_that_are_refusals(at_root, tmp_path, pauses, status, headers, expected):
    at_root.status, at_root.headers = status, headers
    with pytest.raises(DownloadError, match=expected) as error:
        find(at_root, tmp_path / "cache")
    assert_helpful(error.value)


@pytest.mark.parametrize("code", ["", "RepoNotFound"])
def test_a_token_that_is_refused_is_named(at_root, tmp_path, monkeypatch, code):
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    if code:
        at_root.status, at_root.headers = 401, {"X-Error-Code": code}
    else:
        at_root.tokens = False
    with pytest.raises(DownloadError, match="your token is not accepted: run `hf auth login`, or unset HF_TOKEN"):
        find(at_root, tmp_path / "cache")


def test_a_licence_is_asked_for_with_a_token_too(at_root, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_valid")
    at_root.status, at_root.headers = 401, {"X-Error-Code": "GatedRepo"}
    with pytest.raises(DownloadError, match="asks for a licence"):
        find(at_root, tmp_path / "cache")


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


def test_a_cache_that_is_closed_to_this_user(at_root, tmp_path, monkeypatch):
    """Named as such, and only where something is missing in it."""
    folder = find(at_root, tmp_path / "cache")

    def closed(path, *arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "write_text", closed)
    monkeypatch.setattr(Path, "mkdir", closed)
    assert hub.find(REPO, endpoint=at_root.endpoint, cache=tmp_path / "cache", refresh=True) == folder
    with pytest.raises(DownloadError, match=r"is closed to this user \(Permission denied\): set HF_HOME"):
        find(at_root, tmp_path / "another")
    monkeypatch.setattr(Path, "glob", closed)
    assert hub.cached_state("a/b", tmp_path / "cache") == ("absent", None)
