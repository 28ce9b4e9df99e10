"""`mobileo-mlx models`, with a small hub on this machine's loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from hub_server import REPO, REVISION, Hub
from mobileo_weights import bundled

from mobileo_mlx.checkpoints import hub, hub_download, model_cache
from mobileo_mlx.errors import CheckpointError

BUNDLED = tuple(bundled())


@pytest.fixture
def server(tiny_model: Path, tmp_path: Path) -> Iterator[Hub]:
    shutil.copytree(tiny_model, tmp_path / "served")
    server = Hub(tmp_path / "served")
    yield server
    server.stop()


@pytest.fixture
def cache(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, which this process and the hub's client take."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    download = hub_download.download
    monkeypatch.setattr(
        hub_download, "download", lambda *args, **options: download(*args, **{**options, "endpoint": server.endpoint})
    )
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return cache


@pytest.fixture
def folder(server: Hub, cache: Path) -> Path:
    """The cached model."""
    return hub.find(REPO)


def test_what_is_on_this_machine(here: Callable, folder: Path, server: Hub, cache: Path) -> None:
    server.revisions.add("v1")
    shutil.copytree(hub_download.store(REPO, cache), cache / "models--else--text", symlinks=True)
    for config in (cache / "models--else--text").rglob("config.json"):
        config.unlink()
        config.write_text('{"model_type": "llama"}')
    printed = json.loads(here("models", "list", "--json").out)["models"]
    names = [(one["name"], one["state"]) for one in printed]
    assert names == [*((name, "bundled") for name in BUNDLED), (REPO, "cached")]
    assert printed[-1]["revision"] == REVISION
    assert printed[-1]["folder"] == str(folder)
    assert printed[-1]["nbytes"] == sum(path.stat().st_size for path in server.folder.iterdir())
    header, _, *rows = here("models", "list").lines
    assert header.split() == ["model", "revision", "size", "state", "folder"]
    assert rows[-1].split()[:2] == [REPO, REVISION[:12]]


def test_names_of_revisions_are_found_again(folder: Path, server: Hub) -> None:
    shutil.rmtree(folder.parents[1] / "refs")
    for name in (f"{REPO}@{REVISION}", f"{REPO}@v1"):
        assert model_cache.list_models()[-1].name == name
        assert model_cache.locate(name) == folder
        server.revisions.add("v1")
        hub.find(f"{REPO}@v1")


def test_a_download_that_broke_off(here: Callable, cache: Path, server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.cut["dit.safetensors"] = 1000
    assert here("models", "pull", REPO).status == 2
    (found,) = json.loads(here("models", "list", "--json").out)["models"][len(BUNDLED) :]
    assert (found["name"], found["state"]) == (REPO, "incomplete")
    assert here("models", "path", REPO).status == 2
    assert here("models", "remove", REPO, "--yes").status == 0
    assert not hub_download.store(REPO, cache).exists()


def test_pull_and_path(here: Callable, cache: Path, server: Hub) -> None:
    assert "models pull" in here("models", "path", REPO).err
    pulled = here("models", "pull", REPO)
    assert (pulled.status, pulled.err) == (0, "")
    assert here("models", "path", REPO).lines == pulled.lines
    assert json.loads(here("models", "path", f"{REPO}@{REVISION}", "--json").out)["folder"] == pulled.lines[0]
    server.stop()
    assert here("models", "path", REPO).lines == pulled.lines
    assert here("models", "pull", REPO).status == 2


@pytest.mark.parametrize("name", ["config.json", "dit.safetensors"])
def test_verify_finds_a_changed_byte(here: Callable, folder: Path, name: str) -> None:
    found = json.loads(here("models", "verify", REPO, "--json").out)
    assert found["whole"]
    assert {file["compared"] for file in found["files"] if file["name"]} == {"checksum"}
    data = bytearray((folder / name).read_bytes())
    data[-3] ^= 1
    (folder / name).resolve().write_bytes(data)
    result = here("models", "verify", REPO)
    assert result.status == 1
    assert next(line.split()[0] for line in result.lines if "WRONG" in line) == name
    assert f"{name}: is not what the hub has" in result.err
    assert f"models remove {REPO}" in result.err


def test_verify_finds_what_is_gone(here: Callable, folder: Path) -> None:
    (folder / "llm.safetensors").resolve().unlink()
    result = here("models", "verify", REPO)
    assert result.status == 1
    assert "llm.safetensors: its data are gone" in result.err


def test_verify_of_a_folder(here: Callable, tiny_model: Path, work: Path) -> None:
    assert here("models", "verify", tiny_model).status == here("models", "verify", "tiny").status == 0
    shutil.copytree(tiny_model, work / "mine")
    with (work / "mine" / "dit.safetensors").open("r+b") as file:
        file.truncate(5000)
    result = here("models", "verify", "mine")
    assert (result.status, "dit.safetensors" in result.err, "models pull" in result.err) == (1, True, False)


def test_small_files_have_the_checksums_of_git(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"hello\n")
    assert hub_download.checksum(tmp_path / "f", "0" * 40) == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert hub_download.checksum(tmp_path / "f", "something-else") is None


def test_nothing_is_removed_without_a_word(here: Callable, folder: Path) -> None:
    result = here("models", "remove", REPO, stdin=b"y\n")
    assert (result.status, result.out) == (2, "")
    assert "--yes" in result.err
    assert folder.is_dir()


@pytest.mark.parametrize(("answer", "removed"), [("y", True), ("n", False), ("", False)])
def test_the_question(
    here: Callable, folder: Path, monkeypatch: pytest.MonkeyPatch, answer: str, removed: bool
) -> None:
    monkeypatch.setattr("mobileo_cli.models._somebody_answers", lambda: True)
    result = here("models", "remove", REPO, stdin=f"{answer}\n".encode())
    assert "frees" in result.err
    assert (result.status == 0, folder.exists()) == (removed, not removed)


def test_one_revision_is_removed(here: Callable, folder: Path, cache: Path) -> None:
    other = folder.with_name("e" * 40)
    shutil.copytree(folder, other, symlinks=True)
    (other / "own.json").write_text("{}")
    freed = json.loads(here("models", "remove", f"{REPO}@{'e' * 40}", "--yes", "--json").out)
    assert (freed["revisions"], freed["nbytes"]) == (["e" * 40], 2)
    assert not other.exists()
    assert model_cache.locate(REPO) == folder
    assert here("models", "remove", REPO, "--yes").status == 0
    assert not hub_download.store(REPO, cache).exists()


@pytest.mark.parametrize("name", ["tiny", ".", "nobody/nothing", f"{REPO}@v7", "../../x", "a b"])
def test_what_is_not_in_the_cache_is_not_removed(name: str, folder: Path) -> None:
    with pytest.raises(CheckpointError, match="in the cache"):
        model_cache.plan_removal(name)


def test_a_model_that_is_being_downloaded_is_not_removed(folder: Path, cache: Path) -> None:
    with hub_download._turn(REPO, cache), pytest.raises(CheckpointError, match="by another process"):
        model_cache.plan_removal(REPO)


def test_a_damaged_cache_is_removed_as_a_whole(folder: Path, cache: Path) -> None:
    (folder / "config.json").resolve().unlink()
    with pytest.raises(CheckpointError, match=f"remove '{REPO}'"):
        model_cache.plan_removal(f"{REPO}@{REVISION}")
    model_cache.plan_removal(REPO).execute()
    assert not hub_download.store(REPO, cache).exists()


def test_in_a_process_of_its_own(command: Callable, server: Hub) -> None:
    """With what the environment says; a note where the hub is busy."""
    server.answers[("HEAD", "config.json")] = [(429, {"Retry-After": "0"})]
    done: subprocess.CompletedProcess[str] = command("models", "pull", REPO, HF_ENDPOINT=server.endpoint)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "note: the hub answers with status 429; the next attempt is in 1 s.\n"
    assert os.path.isdir(done.stdout.strip())
    assert command("models").stdout.startswith("Usage: mobileo-mlx models")
