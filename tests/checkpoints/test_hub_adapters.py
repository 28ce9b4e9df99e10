"""Adapters on the hub, with a small one on this machine's loopback."""

from __future__ import annotations

import functools
from pathlib import Path

import huggingface_hub.constants
import pytest
from hub_server import REPO, REVISION, Hub
from random_adapter import write_random_adapter

from mobileo_mlx.checkpoints import hub_adapters
from mobileo_mlx.checkpoints.adapters import CONFIG_FILE, FILES, TRAINED_FILE, WEIGHTS_FILE, Adapter
from mobileo_mlx.errors import CheckpointError, DownloadError
from mobileo_mlx.training.lora import LoRAConfig

from .test_hub import quiet_environment, server  # noqa: F401 - fixtures


@pytest.fixture
def repository(server: Hub, tiny_model: Path, tmp_path: Path) -> Hub:  # noqa: F811
    """A hub with one adapter, and a file that nobody needs."""
    write_random_adapter(tmp_path / "mine", tiny_model, LoRAConfig(rank=2), full=("diffusion_connector",))
    for path in (tmp_path / "mine").iterdir():
        path.rename(server.folder / path.name)
    (server.folder / "README.md").write_text("not needed")
    return server


def fetch(server: Hub, cache: Path, name: str = REPO) -> Path:  # noqa: F811
    return hub_adapters.fetch(name, FILES, endpoint=server.endpoint, cache=cache)


def test_names() -> None:
    assert hub_adapters.split_name("owner/name") == ("owner/name", "main")
    assert hub_adapters.split_name("owner/name@v1.0") == ("owner/name", "v1.0")
    assert hub_adapters.split_name("owner/name@refs/pr/3") == ("owner/name", "refs/pr/3")
    for text in (
        "name",
        "/a/b",
        "a/b/c",
        "a/b@",
        "a/b@../c",
        "../b",
        "~/b",
        "a/b\n",
        "a/" + 97 * "b",
        "a b/c",
        "a--x/b",
    ):
        assert hub_adapters.split_name(text) is None, text


def test_what_is_needed_is_downloaded_once(repository: Hub, tmp_path: Path) -> None:
    folder = fetch(repository, tmp_path / "cache")
    assert {path.name for path in folder.iterdir()} == {CONFIG_FILE, WEIGHTS_FILE, TRAINED_FILE}
    assert Adapter.open(folder).components == {"llm", "diffusion_connector"}
    count = len(repository.log)
    assert fetch(repository, tmp_path / "cache") == folder
    assert fetch(repository, tmp_path / "cache", f"{REPO}@{REVISION}") == folder
    assert len(repository.log) == count


def test_without_a_connection(repository: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch(repository, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert fetch(repository, tmp_path / "cache") == folder
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE forbids"):
        fetch(repository, tmp_path / "empty")


def test_what_another_program_cached_is_completed(repository: Hub, tmp_path: Path) -> None:
    """PEFT knows nothing of the parts that were trained in full."""
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        huggingface_hub.hf_hub_download(REPO, file, endpoint=repository.endpoint, cache_dir=tmp_path / "cache")
    assert hub_adapters.cached(REPO, FILES, cache=tmp_path / "cache") is None
    assert (fetch(repository, tmp_path / "cache") / TRAINED_FILE).is_file()


def test_no_adapter(server: Hub, tmp_path: Path) -> None:  # noqa: F811
    (server.folder / "README.md").write_text("no adapter")
    with pytest.raises(CheckpointError, match=rf"'{REPO}' on the hub holds no adapter"):
        fetch(server, tmp_path / "cache")


def test_opened_by_its_name(repository: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless there is a folder of that name; a path object never means the hub."""
    monkeypatch.chdir(tmp_path)
    local = functools.partial(hub_adapters.fetch, endpoint=repository.endpoint, cache=tmp_path / "cache")
    monkeypatch.setattr(hub_adapters, "fetch", local)
    opened = Adapter.open(REPO)
    assert (opened.name, opened.location) == (REPO, REPO)
    with pytest.raises(CheckpointError, match="holds no adapter"):
        Adapter.open(Path(REPO))
    (tmp_path / REPO).mkdir(parents=True)
    with pytest.raises(CheckpointError, match="holds no adapter"):
        Adapter.open(REPO)
