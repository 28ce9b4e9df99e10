"""Detectors by name: where their weights are found, and what users can get wrong."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hub_server import Hub
from PIL import Image
from small_clip import write_clip

from mobileo_mlx.errors import CheckpointError, DownloadError, OptionError
from mobileo_mlx.evals.detections import Detection
from mobileo_mlx.evals.detectors import weights_files
from mobileo_mlx.evals.detectors.backends import load_backend
from mobileo_mlx.evals.detectors.weights_files import find_files


def in_cache(cache: Path, name: str, *files: str) -> Path:
    """A repository in the hub's cache."""
    root = cache / f"models--{name.replace('/', '--')}"
    folder = root / "snapshots" / ("a" * 40)
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("a" * 40)
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).write_text("{}")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no way to the hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def test_what_the_cache_holds_is_used_without_the_hub(cache: Path) -> None:
    objects = in_cache(cache, weights_files.OBJECTS, *weights_files.OBJECT_FILES)
    colours = in_cache(cache, weights_files.COLOURS, *weights_files.COLOUR_FILES)
    assert find_files(None) == weights_files.Files(objects, colours)


def test_what_is_incomplete_is_not_used(cache: Path) -> None:
    in_cache(cache, weights_files.OBJECTS, "config.json")
    with pytest.raises(DownloadError, match=r"facebook/mask2former.* HF_HUB_OFFLINE .* \(`--weights DIR`\)"):
        find_files(None)


def test_a_folder_has_both_and_the_hub_what_it_lacks(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    (folder / "clip").mkdir(parents=True)
    objects = folder / "mask2former.safetensors"
    objects.touch()
    assert find_files(folder) == weights_files.Files(objects, folder / "clip")
    (folder / "clip").rmdir()
    colours = in_cache(cache, weights_files.COLOURS, *weights_files.COLOUR_FILES)
    assert find_files(folder) == find_files(objects) == weights_files.Files(objects, colours)
    (folder / "mask2former").mkdir()
    assert find_files(folder).objects == folder / "mask2former"
    with pytest.raises(OptionError, match="read by the backend mlx alone"):
        find_files(objects, folders=True)


def test_what_comes_from_the_hub_is_only_what_is_needed(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    source = tmp_path / "hub"
    source.mkdir()
    for file in (*weights_files.OBJECT_FILES, "pytorch_model.bin", "preprocessor_config.json"):
        (source / file).write_text(f"{{}} {file}")
    hub = Hub(source)
    try:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        folder = weights_files.from_hub("someone/Mobile-O", weights_files.OBJECT_FILES, endpoint=hub.endpoint)
        assert {path.name for path in folder.iterdir()} == {*weights_files.OBJECT_FILES}
        with pytest.raises(CheckpointError, match=r"lacks vocab.json, merges.txt; give a folder"):
            weights_files.from_hub("someone/Mobile-O", weights_files.COLOUR_FILES, endpoint=hub.endpoint)
    finally:
        hub.stop()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("yolo", "choose mlx or transformers"),
        ("nowhere:Detector", "No module named 'nowhere'"),
        ("json:nothing", "no attribute 'nothing'"),
        ("json:__doc__", "can't be called"),
        (":x", "there is no detector ':x'"),
        ("builtins:dict", "needs the methods detect"),
    ],
)
def test_names_that_are_no_detector(name: str, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        load_backend(name)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise OSError('no disk')", r"'mine:D' failed \(OSError: no disk, '.*mine.py', line 1\); correct it"),
        ("x = (", r"'mine:D' failed \(SyntaxError: "),
        ("def D(): raise RuntimeError('two\\nlines')", "RuntimeError: two lines, "),
        ("class D:\n  def detect(self, image): return 1 / 0\n  colours = detect", "ZeroDivisionError"),
        ("class D:\n  def detect(self, image): return None\n  colours = detect", "must give a list of Detection"),
        ("class D:\n  def detect(self, image): return [1]\n  colours = detect", "must give a list of Detection"),
        ("class D:\n  def detect(self, image): return []\n  def colours(*a): return []", "one for each object"),
    ],
)
def test_a_detector_that_fails_is_named(
    source: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    importlib.invalidate_caches()

    def use() -> None:
        image = Image.new("RGB", (8, 8))
        detector = load_backend("mine:D")
        detector.detect(image)
        detector.colours(image, [Detection("star", (0.0, 0.0, 1.0, 1.0), 0.9)])

    with pytest.raises(OptionError, match=words):
        use()
    monkeypatch.delitem(sys.modules, "mine", raising=False)


def test_a_detector_that_was_changed_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdicts are kept, and those of its earlier state are not its own."""
    monkeypatch.syspath_prepend(tmp_path)
    identities = []
    for number in (1, 2):
        source = f"class D:\n  def detect(self, image): return {number}\n  colours = detect\n"
        (tmp_path / f"mine{number}.py").write_text(source)
        identities.append(getattr(load_backend(f"mine{number}:D"), "identity"))  # noqa: B009
    assert all(identities)
    assert identities[0] != identities[1]


def test_folders_that_hold_no_weights(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="there is no file or folder"):
        load_backend("mlx", weights=tmp_path / "nothing")
    with pytest.raises(OptionError, match="holds neither mask2former/ nor clip/"):
        load_backend("mlx", weights=tmp_path)
    with pytest.raises(OptionError, match="takes no weights"):
        load_backend("json:loads", weights=tmp_path)


def test_a_damaged_network_is_named(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip")
    (tmp_path / "mask2former.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"mask2former.safetensors' is cut short or damaged"):
        load_backend("mlx", weights=tmp_path)


def test_transformers_that_is_not_installed_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(OptionError, match=r"needs torch .*: pip install 'mobileo-mlx\[parity\]'"):
        load_backend("transformers")


def test_a_callable_gives_a_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    class Finds:
        def detect(self, image: object) -> list[object]:
            return []

        def colours(self, image: object, found: object) -> list[str]:
            return []

    module = ModuleType("finder")
    module.Finds = Finds  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "finder", module)
    assert load_backend("finder:Finds").detect(Image.new("RGB", (8, 8))) == []
