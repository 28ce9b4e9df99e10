"""Which package's library MLX loads, on made-up installations: metadata and files, as an installer leaves them."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest
from mobileo_cli import printing

from mobileo_mlx import mlx_library
from mobileo_mlx.ops import backend

SIZES = {"mlx-cpu": 3, "mlx-cuda-12": 5, "mlx-cuda-13": 7}
REMEDY = 'pip install --force-reinstall --no-deps "{}==1.2"'


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs packages in this order into an environment that has nothing else."""

    def write(*names: str) -> None:
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        library = tmp_path / "mlx" / "lib" / "libmlx.so"
        library.parent.mkdir(parents=True)
        for name in ("mlx", *names):
            folder = tmp_path / f"{name.replace('-', '_')}-1.2.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
            record = f"{folder.name}/METADATA,,\n"
            if name in SIZES:
                library.write_bytes(b"x" * SIZES[name])
                record += f"mlx/lib/libmlx.so,sha256=abc,{SIZES[name]}\n"
            (folder / "RECORD").write_text(record)

    return write


@pytest.mark.parametrize(
    ("names", "computing", "command"),
    [
        ([], "", None),
        (["mlx-cpu"], "mlx-cpu", None),
        (["mlx-cpu", "mlx-cuda-12"], "mlx-cuda-12", None),
        (["mlx-cuda-13"], "mlx-cuda-13", None),
        (["mlx-cuda-12", "mlx-cpu"], "mlx-cpu", REMEDY.format("mlx-cuda-12")),
        (["mlx-cuda-13", "mlx-cpu"], "mlx-cpu", REMEDY.format("mlx-cuda-13")),
    ],
)
def test_the_last_one_computes(install, names: list[str], computing: str, command: str | None) -> None:
    install(*names)
    assert mlx_library.computing() == computing
    assert mlx_library.hidden_cuda() == command


def test_a_library_that_is_gone_is_nobodys(install, tmp_path: Path) -> None:
    """As after mlx-cpu was uninstalled: it takes the file with it."""
    install("mlx-cuda-12")
    (tmp_path / "mlx" / "lib" / "libmlx.so").unlink()
    assert mlx_library.computing() == ""
    assert mlx_library.hidden_cuda() == REMEDY.format("mlx-cuda-12")


def test_a_mac_has_none_of_them(install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("mlx-cuda-12", "mlx-cpu")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert (mlx_library.installed(), mlx_library.computing(), mlx_library.hidden_cuda()) == ({}, "", None)


@pytest.mark.skipif(sys.platform != "linux", reason="only there are these packages")
def test_this_installation() -> None:
    assert mlx_library.computing() in mlx_library.installed()
    assert set(mlx_library.installed().values()) == {metadata.version("mlx")}


def test_a_command_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("MOBILEO_QUIET")
    monkeypatch.setattr(mlx_library, "hidden_cuda", lambda: "pip install it")
    for device, says in (("cpu", True), ("cuda", False)):
        monkeypatch.setattr(backend, "backend", lambda device=device: device)
        printing.note_hidden_cuda.cache_clear()
        printing.note_hidden_cuda()
        assert ("run `pip install it`" in capsys.readouterr().err) == says
