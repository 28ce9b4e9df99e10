from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mobileo_cli import main

from .conftest import COMMAND, Run

COMMANDS = ("generate", "edit", "ask", "chat", "convert", "info", "random-model")

# Modules that take their time to import, and that --help has no need of.
HEAVY = ("mlx", "mlx_lm", "numpy", "PIL", "tokenizers", "huggingface_hub", "transformers", "torch", "rich")


def modules_after(*arguments: str, cwd: Path) -> set[str]:
    """The modules that are loaded in a fresh process after the command ran there."""
    code = (
        "import json, sys\nfrom mobileo_cli.main import main\n"
        f"status = main({list(arguments)!r})\nassert status == 0, status\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=cwd)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.timing
def test_help_answers_at_once() -> None:
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([str(COMMAND), "--help"], check=True, capture_output=True)
        return time.perf_counter() - start

    # The quickest of several: the others say how busy the machine was.
    assert min(seconds() for _ in range(6)) < 0.3


def test_help_imports_nothing_heavy(work: Path) -> None:
    assert not modules_after("--help", cwd=work) & {*HEAVY}


def test_generate_needs_no_language_model_library(tiny_model: Path, work: Path) -> None:
    modules = modules_after("generate", "a cat", "-m", str(tiny_model), "--steps", "1", cwd=work)
    assert "mlx" in modules
    assert not modules & {"mlx_lm", "transformers", "torch", "huggingface_hub", "rich"}


@pytest.mark.parametrize("option", ["--help", "-h", ""])
def test_help_names_all_commands(command: Run, option: str) -> None:
    done = command(*([option] if option else []))
    assert done.returncode == 0
    assert done.stderr == ""
    assert all(f"  {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(here, name: str) -> None:
    result = here(name, "--help")
    assert result.status == 0
    assert result.out.startswith(f"Usage: mobileo-mlx {name} ")


def test_version(command: Run) -> None:
    import mobileo_mlx

    assert command("--version").stdout == f"mobileo-mlx {mobileo_mlx.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["paint"], "paint"),
        (["--sped"], "--sped"),
        (["generate", "a cat", "--sed", "1"], "--sed"),
        (["generate", "a cat", "--steps", "many"], "--steps"),
        (["generate", "a", "cat"], "cat"),
        (["edit"], "IMAGE"),
        (["ask"], "QUESTION"),
        (["convert", "here"], "DST"),
        (["info"], "MODEL"),
    ],
)
def test_usage_errors_are_one_sentence(refused, arguments: list[str], named: str) -> None:
    sentence = refused(*arguments)
    assert named in sentence
    assert "--help" in sentence


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch, here) -> None:
    from mobileo_mlx.checkpoints import convert

    def describe(model: str, **options: object) -> None:
        raise KeyError(model)

    monkeypatch.setattr(convert, "describe", describe)
    with pytest.raises(KeyError, match="somewhere"):
        here("info", "somewhere")


def test_a_folder_for_temporary_files_that_is_missing(tiny_model: Path, photo: Path, work: Path) -> None:
    arguments = ["ask", str(photo), "x", "--model", str(tiny_model), "--max-tokens", "1"]
    environment = {**os.environ, "TMPDIR": str(work / "nothing")}
    done = subprocess.run([COMMAND, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode in (0, 2)  # 0 where nothing is compiled
    if done.returncode:
        assert re.fullmatch(r"mobileo-mlx: error: MLX can't write .*; set TMPDIR to a folder of yours\.\n", done.stderr)


def test_reader_that_goes_away(tiny_model: Path, work: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([str(COMMAND), "info", str(tiny_model)], stdout=writing, stderr=subprocess.PIPE, cwd=work)
    os.close(writing)
    assert done.returncode == 141
    assert done.stderr == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full on this system")
def test_standard_output_on_a_full_disk(tiny_model: Path, work: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([str(COMMAND), "info", str(tiny_model)], stdout=full, stderr=subprocess.PIPE, cwd=work)
    assert done.returncode == 2
    assert done.stderr.decode().splitlines() == [
        "mobileo-mlx: error: standard output can't be written: No space left on device."
    ]


def test_text_that_the_terminal_cannot_show(command: Run, photo: Path, tiny_model: Path) -> None:
    done = command("ask", photo, "¿qué es?", "-m", tiny_model, "--max-tokens", "64", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr


def test_python_m(work: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "mobileo_mlx", *arguments], cwd=work, capture_output=True, text=True
        )

    assert run("generate", "--help").stdout.startswith("Usage: mobileo-mlx generate ")
    refused = run("paint")
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)


def test_closed_streams(tiny_model: Path, work: Path) -> None:
    """As `<&-` and `>&-` of a shell leave them."""
    line = f"exec '{COMMAND}' generate 'a cat' -m '{tiny_model}' --steps 1 -o cat.png <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", line], cwd=work).returncode == 0
    assert (work / "cat.png").exists()
    line = f"exec '{COMMAND}' generate 'a cat' -m '{tiny_model}' --steps 1 -o - >&-"
    done = subprocess.run(["sh", "-c", line], cwd=work, capture_output=True, text=True)
    assert (done.returncode, "--output -: standard output is closed" in done.stderr) == (2, True)
    line = f"exec '{COMMAND}' generate - <&-"
    done = subprocess.run(["sh", "-c", line], cwd=work, capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_interruption_has_its_own_status(monkeypatch: pytest.MonkeyPatch, here) -> None:
    def interrupt(*arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "_run", interrupt)
    result = here("info", "somewhere")
    assert (result.status, result.out, result.err) == (130, "", "mobileo-mlx: interrupted\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full on this system")
@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["--version"], []])
def test_help_on_a_full_disk(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([str(COMMAND), *arguments], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stderr == b"mobileo-mlx: error: standard output can't be written: No space left on device.\n"


def test_a_bug_is_no_fault_of_the_output(monkeypatch: pytest.MonkeyPatch, here) -> None:
    def fail(*arguments: object) -> int:
        raise OSError("another one")

    monkeypatch.setattr(main, "_run", fail)
    with pytest.raises(OSError, match="another one"):
        here("info", "somewhere")


@pytest.mark.parametrize(
    ("arguments", "hint"), [(["generate", "a"], True), (["info", "someone/something"], False), (["info", "tiny"], None)]
)
def test_where_nothing_can_be_downloaded(command: Run, arguments: list[str], hint: bool | None) -> None:
    done = command(*arguments)
    assert done.returncode == (0 if hint is None else 2)
    assert ("--model tiny" in done.stderr) == bool(hint)
    assert len(done.stderr.splitlines()) == (hint is not None)
