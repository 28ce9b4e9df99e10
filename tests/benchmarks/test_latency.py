"""The paper's table on a tiny model: what is written, and that nothing cached makes a row too good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from PIL import Image

from benchmarks import common, latency
from benchmarks.synthetic import synthetic_model, tiny_config


@pytest.fixture(scope="module")
def written(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("latency")
    options = ["--model", str(tiny_model), "--runs", "2", "--warmup", "0", "--steps", "2", "--out", str(out)]
    assert latency.main(options) == 0
    return out


def only_record(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("latency-*.json")
    (record,) = latency.read_records(path)
    return record


def test_every_row_is_measured(written: Path) -> None:
    value = only_record(written)
    assert [row["name"] for row in value["rows"]] == list(latency.ROWS)
    assert all(row["seconds"]["mean"] > 0 and len(row["seconds"]["runs"]) == 2 for row in value["rows"])
    assert all(row["peak_memory_gb"] > 0 for row in value["rows"])
    assert value["machine"]["mlx"]
    assert value["size"] is None
    assert "float" in value["dtype"]
    assert value["command"].startswith("python -m benchmarks.latency --model ")


def test_the_papers_rows_stand_beside_ours(written: Path) -> None:
    lines = next(written.glob("latency-*.md")).read_text().splitlines()
    assert sum(line.startswith("| Mobile-O-0.5B") for line in lines) == 3
    assert any(line.startswith("| mobileo-mlx") for line in lines)
    assert "187 +- 31" in "\n".join(lines)


def test_the_chart(written: Path) -> None:
    pytest.importorskip("matplotlib")
    with Image.open(next(written.glob("latency-*.png"))) as chart:
        assert chart.width == 1000


def test_a_chip_keeps_its_records_and_no_other_chips(
    written: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = written.glob("latency-*.json")
    (tmp_path / file.name).write_text(file.read_text())
    run = ["--model", str(tiny_model), "--only", "decode", "--runs", "1", "--warmup", "0", "--out", str(tmp_path)]
    assert latency.main(run) == 0
    first, second = latency.read_records(tmp_path / file.name)
    assert first == only_record(written)
    assert [row["name"] for row in second["rows"]] == ["decode"]

    kept, here = (tmp_path / file.name).read_text(), common.machine()
    gpu = {"device": "gpu", "gpu": "NVIDIA H100 80GB HBM3"}
    monkeypatch.setattr(common, "machine", lambda: {**here, **gpu})
    assert latency.main(run) == 0
    (record,) = latency.read_records(tmp_path / "latency-nvidia-h100-80gb-hbm3.json")
    assert record["machine"]["gpu"] == gpu["gpu"]
    assert "| NVIDIA H100 80GB HBM3 |" in (tmp_path / "latency-nvidia-h100-80gb-hbm3.md").read_text()
    assert (tmp_path / file.name).read_text() == kept


def test_what_is_no_record_is_left_alone(
    written: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = next(written.glob("latency-*.json")).name
    (tmp_path / name).write_text("{}")
    run = ["--model", str(tiny_model), "--only", "decode", "--runs", "1", "--warmup", "0", "--out", str(tmp_path)]
    assert latency.main(run) == 2
    assert name in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "{}"


def test_random_weights_need_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "get_cache_memory", lambda: 123)
    tasks = latency.Tasks(synthetic_model(tiny_config()), steps=1)
    rows = list(latency.measure(tasks, ["decode", "image"], warmup=0, runs=1))
    assert [row.name for row in rows] == ["decode", "image"]
    assert all(row.timing.mean > 0 and row.cache_memory == 123 for row in rows)


def test_dtypes_that_differ_are_named() -> None:
    model = synthetic_model(tiny_config(), dtype="all=float16,vae=float32")
    assert latency._dtype(model, ["decode"]) == "float16"
    words = "llm float16, diffusion_connector float16, dit float16, vae_decoder float32"
    assert latency._dtype(model, ["image"]) == words


def test_a_rows_memory_is_its_own() -> None:
    """What an earlier row needed is not there any more."""

    def peak(*names: str) -> int:
        tasks = latency.Tasks(synthetic_model(tiny_config()), steps=1)
        return list(latency.measure(tasks, names, warmup=1, runs=1))[-1].peak_memory

    assert peak("edit", "decode") == pytest.approx(peak("decode"), rel=0.05)


def test_each_first_question_is_on_a_new_image(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = latency.Tasks(synthetic_model(tiny_config()))
    seen: list[tuple[bytes, str]] = []
    monkeypatch.setattr(tasks.model, "ask", lambda image, question, **options: seen.append((image.tobytes(), question)))
    for name in ("first_token", "first_token", "second_question"):
        tasks.prepared(name)()
    (first, _), (other, _), (third, question), (again, second) = seen
    assert len({first, other, third}) == 3
    assert (third, question) != (again, second)
    assert third == again


@pytest.mark.parametrize("options", [["--runs", "0"], ["--dtype", "int3"], ["--quantize", "x"], ["--size", "7b"]])
def test_bad_input_is_told_in_a_sentence(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--random-weights"] if options[0] in ("--dtype", "--size") else ["--model", str(tmp_path)]
    assert latency.main([*model, *options, "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert told[0].startswith("latency: error: ")
