import json
import os
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest
from mobileo_cli.main import main

from mobileo_mlx import mlx_library
from mobileo_mlx.doctor import goldens, machine, self_test, tune, verify
from mobileo_mlx.doctor.comparison import Comparison
from mobileo_mlx.doctor.tune import FormTiming
from mobileo_mlx.models.sana_prepared import PreparedSana
from mobileo_mlx.ops import device_settings
from mobileo_mlx.ops.device_settings import DeviceSettings

pytestmark = pytest.mark.usefixtures("settings_file")


def test_a_cpu_from_end_to_end(command, tmp_path: Path) -> None:
    """Without a network, and nothing in it names the user."""
    done = command("doctor", HOME=str(tmp_path / "somebody"), MOBILEO_CACHE=str(tmp_path / "somebody" / "cache"))
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "somebody" not in done.stdout
    lines = done.stdout.splitlines()
    for name in ("mobileo-mlx", "chip", "cores", "memory", "system", "python", "packages", "device", "found by doctor"):
        assert sum(line.startswith(f"{name} ") for line in lines) >= 1, name
    assert "  Amshaker/Mobile-O-0.5B: not here: its first use downloads 3.33 GB" in lines
    assert "~/cache/device.json: nothing for this device" in done.stdout
    assert sum(line.startswith(("  draw     passed", "  ask      passed", "  edit     passed")) for line in lines) == 3
    assert len([line for line in lines if line.startswith("verdict: all is right on ")]) == 2
    begin, end = lines.index("```text"), lines.index("```")
    block = "\n".join(lines[begin + 1 : end])
    assert mx.__version__ in block  # type: ignore[attr-defined]
    assert str(tmp_path) not in block
    assert "~" not in block


def test_json(command) -> None:
    done = command("doctor", "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert found["healthy"]
    assert found["machine"]["backend"] == "cpu"
    assert [check["name"] for check in found["self_test"]] == ["draw", "ask", "edit", "goldens"]
    assert len(found["machine"]["precision"]) == 8


def test_a_cuda_that_is_hidden_is_in_the_verdict(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(mlx_library, "hidden_cuda", lambda: "pip install it")
    for name in ("_draw", "_ask", "_edit", "_goldens"):
        monkeypatch.setattr(self_test, name, lambda model: (True, ""))
    assert main(["doctor"]) == 0
    assert "MLX's library for CPUs hides the one for CUDA: pip install it" in capsys.readouterr().out


def test_what_fails_is_said_and_is_the_exit_status(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    home = os.path.expanduser("~")
    monkeypatch.setattr(self_test, "_ask", lambda model: (False, f"no file {home}/a"))
    monkeypatch.setattr(self_test, "_draw", lambda model: (True, ""))
    monkeypatch.setattr(self_test, "_edit", lambda model: (True, ""))
    monkeypatch.setattr(self_test, "_goldens", lambda model: (True, ""))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "ask      FAILED" in out
    assert "verdict: something is wrong on " in out
    assert "ask failed; run `mobileo-mlx doctor --verify`" in out
    assert home not in out
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["healthy"] is False


def test_a_slow_blas_is_said(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(machine.blas, "loaded", lambda: "")
    for name in ("_ask", "_draw", "_edit", "_goldens"):
        monkeypatch.setattr(self_test, name, lambda model: (True, ""))
    assert main(["doctor"]) == 0
    assert "no fast BLAS was found" in capsys.readouterr().out


def test_verify(command, tmp_path: Path) -> None:
    done = command("doctor", "--verify", "--model", "tiny")
    assert done.returncode == 0, (done.stdout, done.stderr)
    rows = [line for line in done.stdout.splitlines() if line.endswith("passed")]
    assert len(rows) == 8
    assert all(" float32 " in row for row in rows)
    assert "tiny's 17 known results " in done.stdout
    assert "0.0e+00 (" not in done.stdout
    assert "stored" not in done.stdout
    assert not (tmp_path / "cache" / "device.json").exists()


def test_verify_names_what_is_wrong_and_stores_what_to_take(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from mobileo_mlx.checkpoints import precision

    original = PreparedSana.__call__

    def wrong(self: PreparedSana, step: int, latents: mx.array, *, guided: bool) -> mx.array:
        velocity = original(self, step, latents, guided=guided)
        return velocity if velocity.dtype == mx.bfloat16 else velocity * float("nan")

    monkeypatch.setattr(PreparedSana, "__call__", wrong)
    monkeypatch.setattr(precision, "candidates", lambda component, stored: (mx.float32, mx.bfloat16))
    monkeypatch.setattr(goldens, "compare_bundled", lambda dtype: [Comparison("logits", 0.0, 0.0, True)])
    assert main(["doctor", "--verify", "--model", "tiny"]) == 1
    out = capsys.readouterr().out
    assert "dit in float32 is wrong from velocity_of_edit on: a relative error of nan, at most nan." in out
    assert "take bfloat16 for dit instead of float32." in out
    assert "stored for the runs that follow: dit in bfloat16." in out
    assert device_settings.current().precision == {"dit": "bfloat16"}
    assert main(["doctor", "--verify", "--model", "tiny", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["verify"]
    (failed,) = (one for one in found["conclusions"] if one["failure"] is not None)
    assert (failed["component"], failed["instead"], failed["failure"]["rms"]) == ("dit", "bfloat16", None)
    monkeypatch.undo()


def test_a_range_that_is_left_is_stored_although_the_bundled_model_stops_at_it(
    monkeypatch: pytest.MonkeyPatch, capsys, table_defaults: None
) -> None:
    from mobileo_mlx.checkpoints import precision

    original = PreparedSana.__call__

    def overflowing(self: PreparedSana, step: int, latents: mx.array, *, guided: bool) -> mx.array:
        velocity = original(self, step, latents, guided=guided)
        return velocity * 1e5 if velocity.dtype == mx.float16 else velocity

    monkeypatch.setattr(PreparedSana, "__call__", overflowing)
    monkeypatch.setattr(precision, "_device", lambda: "early")
    assert main(["doctor", "--verify", "--model", "tiny"]) == 1
    out = capsys.readouterr().out
    assert "take bfloat16 for dit instead of float16." in out
    assert "tiny does not reach its known results: NotFiniteError: dit in float16 has values" in out
    assert device_settings.current().precision == {"dit": "bfloat16"}
    assert main(["doctor"]) == 0  # the next run takes it
    assert "dit in bfloat16" in capsys.readouterr().out


def test_one_precision_is_tried_and_nothing_stored(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert main(["doctor", "--verify", "--model", "tiny", "--dtype", "bfloat16"]) == 0
    out = capsys.readouterr().out
    assert sum(" bfloat16 " in line and line.endswith("passed") for line in out.splitlines()) == 8
    assert not device_settings.path().exists()


TIMINGS = [
    FormTiming("map", "512 px, float16", {"whole": 0.3, "bands": 0.9}, "bands", "whole", ("large bands",)),
    FormTiming("conv3x3", "64 x 64", {"plain": 0.0021234, "flipped": 0.000042}, "plain", "plain"),
]


def test_tune_shows_each_row_and_saves(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    saved: list[FormTiming] = []
    monkeypatch.setattr(tune, "tune", lambda progress: iter(TIMINGS))
    monkeypatch.setattr(tune, "save", saved.extend)
    assert main(["doctor", "--tune"]) == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["operation", "shape", "kept", "gain", "milliseconds", "of", "each", "form"]
    assert first.split(maxsplit=1)[0] == "map"
    assert first.endswith("  whole         3.00  whole 300, bands 900, large bands wrong")
    assert second.endswith("  plain         1.00  plain 2.12, flipped 0.0420")
    assert saved == TIMINGS
    assert main(["doctor", "--tune", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["tune"][0]["fastest"] == "whole"
    assert "large bands wrong" in shown.err


def test_tune_shows_and_stores_what_it_has_when_it_is_interrupted(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def interrupted(progress: object) -> Iterator[FormTiming]:
        yield TIMINGS[0]
        raise KeyboardInterrupt

    monkeypatch.setattr(tune, "tune", interrupted)
    assert main(["doctor", "--tune"]) == 130
    assert "whole 300" in capsys.readouterr().out
    assert device_settings.current().forms == {"map 512 px, float16": "whole"}


def test_what_cannot_be_stored_is_said_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tune, "tune", lambda progress: pytest.fail("it was timed"))
    monkeypatch.setattr(verify, "verify", lambda source, dtype: pytest.fail("it was compared"))
    monkeypatch.setenv("MOBILEO_CACHE", str(tmp_path / "file"))
    for option in ("--tune", "--verify"):
        assert main(["doctor", option]) == 2
        assert "device.json' can't be written" in capsys.readouterr().err


def test_reset(capsys) -> None:
    device_settings.save(DeviceSettings({"dit": "bfloat16"}))
    assert main(["doctor", "--reset"]) == 0
    assert not device_settings.path().exists()
    assert device_settings.current() == DeviceSettings()
    assert capsys.readouterr().out == "what was found out about devices is forgotten.\n"
    assert main(["doctor", "--reset", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"reset": False}


def test_mistakes(refused) -> None:
    assert "--model goes with --verify" in refused("doctor", "--model", "tiny")
    assert "--dtype goes with --verify" in refused("doctor", "--dtype", "float16")
    assert "float8" in refused("doctor", "--verify", "--dtype", "float8")
    assert "no-such-model" in refused("doctor", "--verify", "--model", "no-such-model")
