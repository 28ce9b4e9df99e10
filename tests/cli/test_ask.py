from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from mobileo_cli.printing import visible

from mobileo_mlx import MobileO

from .conftest import COMMAND, Run


@pytest.fixture
def ask(here, tiny_model: Path):
    """`ask` with the small model and eight tokens."""

    def run(*arguments: object, stdin: bytes = b"") -> str:
        result = here("ask", *arguments, "-m", tiny_model, "--max-tokens", 8, stdin=stdin)
        assert result.status == 0, result.err
        assert result.out.endswith("\n")
        return result.out

    return run


def test_prints_the_answer_of_the_library(ask, photo: Path, tiny_model: Path) -> None:
    answer = MobileO.load(tiny_model).ask(photo, "What is this?", max_tokens=8)
    assert ask(photo, "What is this?") == visible(answer.text) + "\n"


def test_the_installed_command(command: Run, photo: Path, tiny_model: Path, work: Path) -> None:
    done = command("ask", photo, "What is this?", "-m", tiny_model, "--max-tokens", 4)
    assert done.returncode == 0
    assert done.stderr == ""
    assert list(work.iterdir()) == []


def test_several_images(ask, photo: Path, tiny_model: Path) -> None:
    answer = MobileO.load(tiny_model).ask([photo, photo], "Which?", max_tokens=8)
    assert ask(photo, photo, "Which?").strip() == answer.text
    assert ask(photo, photo, "Which?") != ask(photo, "Which?")


def test_image_from_standard_input(ask, photo: Path) -> None:
    assert ask("-", "What?", stdin=photo.read_bytes()) == ask(photo, "What?")


def test_sampling(ask, photo: Path) -> None:
    hot = [ask(photo, "What?", "--temperature", "2", "--seed", seed) for seed in (1, 2, 1)]
    assert hot[0] == hot[2] != hot[1]
    greedy = ask(photo, "What?")
    assert ask(photo, "What?", "--seed", "5") == greedy
    assert ask(photo, "What?", "--temperature", "2", "--top-p", "0.000001") == greedy
    assert ask(photo, "What?", "--repetition-penalty", "1000") != greedy


def test_quantized(ask, photo: Path, tiny_model: Path) -> None:
    answer = MobileO.load(tiny_model, quantize={"llm": 4}).ask(photo, "What?", max_tokens=8)
    assert ask(photo, "What?", "--quantize", "llm=4").strip() == answer.text


def test_verbose(here, photo: Path, tiny_model: Path) -> None:
    result = here("ask", photo, "What?", "-m", tiny_model, "--max-tokens", 4, "-v")
    assert re.search(r"vision [\d.]+ s, prefill [\d.]+ s, decode [\d.]+ s; peak memory", result.err)


def test_tokens_are_printed_as_they_come(
    photo: Path, tiny_model: Path, work: Path, environment: dict[str, str]
) -> None:
    """The first text arrives through a pipe while the rest of a long answer is still to come."""
    arguments = ["ask", str(photo), "What?", "-m", str(tiny_model), "--max-tokens", "200", "--temperature", "2"]
    process = subprocess.Popen([str(COMMAND), *arguments], stdout=subprocess.PIPE, cwd=work, env=environment, bufsize=0)
    assert process.stdout is not None
    chunks = []
    while chunk := process.stdout.read(65536):
        chunks.append(chunk)
    assert process.wait() == 0
    assert len(chunks) > 10


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["What is this?"], "an image and a question"),
        (["-", "-", "What?"], "only one image"),
        (["photo.jpg", "-"], "the question"),
    ],
)
def test_arguments_that_cannot_be(refused, arguments: list[str], named: str) -> None:
    assert named in refused("ask", *arguments)
