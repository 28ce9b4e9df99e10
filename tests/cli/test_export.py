"""`mobileo-mlx export`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from mobileo_mlx.checkpoints.checkpoint import Checkpoint


def test_a_folder_is_written(command, work: Path) -> None:
    done = command("export", "lm", "--format", "mlx-lm", "--model", "tiny", "--bits", 8)
    assert (done.returncode, done.stdout, done.stderr) == (0, "lm\n", "")
    assert json.loads((work / "lm" / "config.json").read_text())["quantization"]["bits"] == 8
    assert "mobileo-mlx export lm --format mlx-lm --model tiny --bits 8" in (work / "lm" / "README.md").read_text()


def test_as_json(command, work: Path, tiny_model: Path) -> None:
    done = command("export", "theirs", "--format", "upstream", "--model", tiny_model, "--json")
    report = json.loads(done.stdout)
    assert (report["path"], report["format"], report["bits"]) == ("theirs", "upstream", None)
    assert report["dtypes"] == ["float32"]
    assert set(report["files"]) == {str(f.relative_to(work / "theirs")) for f in (work / "theirs").rglob("*.*")}
    assert Checkpoint.open(work / "theirs").layout == "upstream"


def test_what_can_not_be_written(refused: Callable[..., str], tiny_model: Path) -> None:
    assert "Missing option '--format'" in refused("export", "new", "--model", "tiny")
    assert "choose app or mlx-lm" in refused("export", "new", "--format", "mlx-vlm", "--model", "tiny")
    assert "there are app, mlx-lm, mlx-vlm, upstream" in refused("export", "new", "--format", "onnx", "--model", "tiny")
    assert "is no folder" in refused("export", "new", "--format", "app", "--model", "/does/not/exist")
    assert "give --adapter DIR, too" in refused(
        "export", "new", "--format", "app", "--model", "tiny", "--adapter-scale", 2
    )


def test_a_missing_tokenizer(command, work: Path, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, work / "mute")
    (work / "mute" / "tokenizer.json").unlink()
    done = command("export", "llm", "--format", "app", "--model", "mute")
    assert (done.returncode, done.stdout) == (0, "llm\n")
    assert done.stderr == "note: the model has no tokenizer; add its files to 'llm' before you use it.\n"
