"""The scripts in examples/ run offline with the bundled model, and write what they say."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from mobileo_mlx.images import load_image

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted(path.name for path in FOLDER.glob("*.py"))


def run(name: str, out: Path) -> list[str]:
    """What a script prints, line by line."""
    done = subprocess.run(
        [sys.executable, str(FOLDER / name), str(out)], capture_output=True, text=True, timeout=300, cwd=out.parent
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def images(lines: list[str], out: Path) -> list[str]:
    """The names of the images that the script says it saved; each of them can be read."""
    paths = [Path(line) for line in lines if line.endswith(".png")]
    for path in paths:
        assert path.parent == out
        load_image(path)
    return [path.name for path in paths]


def test_generate(tmp_path):
    assert images(run("generate.py", tmp_path / "out"), tmp_path / "out") == ["star-1.png", "star-2.png"]


def test_edit(tmp_path):
    out = tmp_path / "out"
    assert images(run("edit.py", out), out) == ["before.png", "after.png"]
    assert load_image(out / "before.png").tobytes() != load_image(out / "after.png").tobytes()


def test_ask(tmp_path):
    lines = run("ask.py", tmp_path / "out")
    assert images(lines, tmp_path / "out") == ["question.png"]
    assert lines[1:] == ["what color is the star? red", "is the star above the square? yes"]


def test_chat_reads_the_image_once(tmp_path):
    lines = run("chat.py", tmp_path / "out")
    assert images(lines, tmp_path / "out") == ["chat.png"]
    answers, counts = zip(*(line.removesuffix(" prompt tokens)").split(" (") for line in lines[1:]), strict=True)
    assert answers == ("two", "green")
    assert int(counts[1]) < int(counts[0])


def test_stream_steps(tmp_path):
    names = images(run("stream_steps.py", tmp_path / "out"), tmp_path / "out")
    *steps, final = names
    assert final == "final.png"
    assert steps == [f"step-{step:02}.png" for step in range(1, len(steps) + 1)] != []


def test_finetune(tmp_path):
    out = tmp_path / "out"
    assert images(run("finetune.py", out), out) == ["brown.png"]
    again = run("finetune.py", out)
    assert [line for line in again if line.startswith("StepReport")] == []  # the run had finished


def test_every_example_has_a_test():
    tested = Path(__file__).read_text(encoding="utf-8")
    assert EXAMPLES
    assert [name for name in EXAMPLES if f'run("{name}"' not in tested] == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_is_short_and_takes_public_names(name):
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert len([line for line in text.splitlines() if line.strip()]) <= 30
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    assert all(node.level == 0 for node in imports)
    assert not [alias.name for node in imports for alias in node.names if alias.name.startswith("_")]
    ours = {node.module for node in imports if node.module and node.module.startswith("mobileo")}
    assert ours - {"mobileo_mlx.training.options", "mobileo_mlx.training.trainer"} == {"mobileo_mlx"}
