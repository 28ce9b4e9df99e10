"""`mobileo-mlx finetune` in processes of its own: killed, stopped, several of them, and with bad input."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mobileo_mlx import locks

from .conftest import COMMAND, Result, Run

# Kills its own process when the nth file of a checkpoint is half written.
KILLED_WHILE_SAVING = """
import os, signal, sys
from mobileo_mlx.training import run_state
save, count = run_state.write_tensors, [0]
def kill(path, arrays, **how):
    count[0] += 1
    if count[0] == int(sys.argv[1]):
        open(path, "wb").write(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    save(path, arrays, **how)
run_state.write_tensors = kill
from mobileo_cli.main import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of eight samples, two of them edits."""
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for i, colour in enumerate(("red", "green", "blue", "white") * 2):
        Image.new("RGB", (40, 32), colour).save(folder / f"{colour}.png")
        line = {"prompt": f"a {colour} picture", "image": f"{colour}.png", "question": "colour?", "answer": colour}
        if i % 4 == 3:
            line |= {"prompt": "make it white", "source_image": "red.png"}
        lines.append(json.dumps(line) + "\n")
    path = folder / "data.jsonl"
    path.write_text("".join(lines))
    return path


@pytest.fixture
def arguments(data: Path, tiny_model: Path) -> list[str]:
    """A run of six steps with a checkpoint after every second."""
    text = f"finetune --quadruplets {data} --model {tiny_model} --steps 6 --batch-size 2 --learning-rate 1e-3"
    return [*text.split(), "--save-every", "2", "--held-out", "0"]


def losses(folder: Path) -> list[tuple[int, float, float]]:
    """Step, loss and gradient norm of every line of the metrics that is whole."""
    path = folder / "metrics.jsonl"
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if "loss" in entry:
                found.append((entry["step"], entry["loss"], entry["grad_norm"]))
    return found


def when(condition: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    """Waits for something that a process does."""
    limit = time.monotonic() + 100
    while not condition():
        assert process.poll() is None, "the process has ended"
        assert time.monotonic() < limit
        time.sleep(0.002)


def test_killed_and_resumed_is_the_same_run(
    arguments: list[str], command: Run, work: Path, environment: dict[str, str]
) -> None:
    # In processes of their own, all of which find the same BLAS.
    assert command(*arguments, "--out", "whole").returncode == 0
    expected = losses(work / "whole")
    assert [step for step, _, _ in expected] == [1, 2, 3, 4, 5, 6]

    # Killed from outside, after a step that no checkpoint holds.
    quiet: dict[str, Any] = {
        "cwd": work,
        "env": environment,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }
    process = subprocess.Popen([str(COMMAND), *arguments, "--out", "killed"], **quiet)
    when(lambda: len(losses(work / "killed")) >= 3, process)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    assert losses(work / "killed") == expected[: len(losses(work / "killed"))]

    # Killed in the middle of writing its next checkpoint but one file.
    again = [*arguments, "--out", "killed", "--resume"]
    kept = sorted(path.name for path in (work / "killed").glob("step-*"))
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_SAVING, "2", *again], **quiet)
    if done.returncode != 0:  # a slow kill above may have left nothing to save
        assert done.returncode == -signal.SIGKILL
        assert sorted(path.name for path in (work / "killed").glob("step-*")) == kept
        assert list((work / "killed").glob(".mobileo-unfinished-*"))

    assert command(*again).returncode == 0
    assert losses(work / "killed") == expected
    for name in ("adapter_model.safetensors", "trained.safetensors"):
        assert (work / "killed" / name).read_bytes() == (work / "whole" / name).read_bytes()
    assert not list((work / "killed").glob(".mobileo-unfinished-*"))


def test_two_processes_train_as_one(
    arguments: list[str], here: Callable[..., Result], work: Path, environment: dict[str, str]
) -> None:
    # Each process draws a mask of its own for its adapters' dropout, and here there are none.
    arguments = [*arguments, *["--llm", "frozen", "--dit", "full", "--steps", "3", "--dtype", "float32"]]
    assert here(*arguments, "--out", "one").status == 0
    launch = [str(COMMAND.with_name("mlx.launch")), "-n", "2", str(COMMAND), *arguments, "--out", "two"]
    done = subprocess.run(launch, cwd=work, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    one, two = losses(work / "one"), losses(work / "two")
    assert len(one) == len(two) == 3
    for ours, theirs in zip(one, two, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5)
    # Only the first one speaks.
    assert done.stdout.splitlines().count("two") == 1
    assert len(re.findall(r"^step 3/3", done.stdout + done.stderr, re.MULTILINE)) == 1


@pytest.mark.parametrize(
    ("number", "status", "how"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "ended by SIGTERM"),
        (signal.SIGHUP, 129, "ended by SIGHUP"),
    ],
)
def test_a_signal_writes_a_checkpoint(
    arguments: list[str], work: Path, environment: dict[str, str], number: signal.Signals, status: int, how: str
) -> None:
    long = [*arguments, "--steps", "500", "--save-every", "100", "--out", "out"]
    process = subprocess.Popen(
        [str(COMMAND), *long], cwd=work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    when(lambda: len(losses(work / "out")) >= 2, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (status, "")
    steps = len(losses(work / "out"))
    assert f"stopped at step {steps} of 500; --resume continues" in err
    assert err.splitlines()[-1] == f"mobileo-mlx: {how}"
    assert "Traceback" not in err
    assert [path.name for path in (work / "out").glob("step-*")] == [f"step-{steps:07d}"]
    assert (work / "out" / "adapter_model.safetensors").exists()


# Sends a second Ctrl-C to its own process in the middle of a step.
INTERRUPTED_TWICE = """
import os, signal, sys
from mobileo_mlx.training.loop import TrainingLoop
mean, count = TrainingLoop._mean_gradient, [0]
def interrupt(*arguments):
    count[0] += 1
    if count[0] == 4:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    return mean(*arguments)
TrainingLoop._mean_gradient = interrupt
from mobileo_cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_second_ctrl_c_leaves_the_adapter(arguments: list[str], work: Path, environment: dict[str, str]) -> None:
    again = [*arguments, "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_TWICE, *again], cwd=work, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.splitlines()[-1] == "mobileo-mlx: interrupted"
    assert [step for step, _, _ in losses(work / "out")] == [1, 2, 3]
    assert (work / "out" / "adapter_model.safetensors").exists()


def test_nohup_is_obeyed(arguments: list[str], work: Path, environment: dict[str, str]) -> None:
    nohup = ["nohup", str(COMMAND), *arguments, "--out", "out"]
    process = subprocess.Popen(nohup, cwd=work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    when(lambda: len(losses(work / "out")) >= 2, process)
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=60)[0] == b"out\n"
    assert len(losses(work / "out")) == 6


@pytest.mark.parametrize("plotting", [True, False])
def test_progress_and_pictures(
    arguments: list[str], here: Callable[..., Result], work: Path, plotting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if plotting:
        pytest.importorskip("matplotlib")
    else:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = here(*arguments, *["--steps", "1", "--held-out", "0.2", "--out", "out", "--train", "align"])
    assert (done.status, done.out) == (0, "out\n")
    lines = done.err.splitlines()
    assert lines[0].startswith("reading ")
    assert re.fullmatch(r"step 1/1: loss [\d.]+ \(diffusion_loss [\d.]+\), [\d.]+ samples/s, .* left", lines[1])
    assert re.fullmatch(r"step 1: held out loss [\d.]+, diffusion_loss [\d.]+", lines[2])
    assert lines[3] == "step 1: pictures and answers in out/samples/0000001.png"
    written = {path.name for path in (work / "out").iterdir()}
    assert written >= {"metrics.jsonl", "trained.safetensors"}
    assert ("loss.png" in written) == plotting
    assert len(lines) == (4 if plotting else 5)
    assert plotting or lines[4].endswith("for a plot of them, pip install 'mobileo-mlx[bench]'")


def test_a_dry_run(arguments: list[str], here: Callable[..., Result], work: Path) -> None:
    done = here(*arguments, "--dry-run")
    assert done.status == 0
    assert done.lines[0] == "8 samples: 6 drawings, 2 edits, 8 questions; 0 held out"
    assert done.lines[1] == "6 steps of 2 samples, lora, inference layout"
    assert "--- edit, line 4" in done.lines
    assert "⟦red<|im_end|>⟧" in done.out
    assert not list(work.iterdir())


# Bad input


def test_every_bad_line_is_listed(data: Path, tiny_model: Path, here: Callable[..., Result], work: Path) -> None:
    bad = work / "bad.jsonl"
    bad.write_text('{"prompt": "a"\n{"prompt": "a"}\n' + json.dumps({"prompt": "a", "image": "no.png"}) + "\n")
    done = here("finetune", "--quadruplets", bad, "--model", tiny_model, "--out", "out")
    assert (done.status, done.out) == (2, "")
    lines = done.err.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"reading {bad}", "line 1", "line 2", "line 3", "mobileo-mlx"]
    assert lines[-1] == f"mobileo-mlx: error: '{bad}' can't be trained on: there are 3 problems."
    assert not (work / "out").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--train best", "there is no stage 'best'"),
        ("--layout best", "layout 'best' is unknown"),
        ("--dit none", "dit can be full, lora, frozen"),
        ("--steps 0", "steps 0 makes no sense"),
        ("--batch-size 4 --accumulate 3", "can't be divided into 3 parts"),
        ("--rank 0", "the rank of an adapter is 0"),
        ("--rank 1000000000", "has to be 1 to 4096"),
        ("--alpha inf", "the alpha of an adapter is inf"),
        ("--alpha 1e300", "the alpha of an adapter is 1e+300"),
        ("--alpha nan", "the alpha of an adapter is nan"),
        ("--learning-rate inf", "learning_rate inf makes no sense"),
        ("--learning-rate nan", "learning_rate nan makes no sense"),
        ("--learning-rate 1e300", "learning_rate 1e+300 makes no sense"),
        ("--learning-rate 0", "learning_rate 0.0 makes no sense"),
        (f"--steps {10**100}", "steps with so many digits makes no sense"),
        (f"--save-every {10**100}", "save_every with so many digits makes no sense"),
        (f"--epochs {10**12}", "epochs 1000000000000 makes no sense"),
        (f"--batch-size {10**9}", "batch_size 1000000000 makes no sense"),
        (f"--seed {10**100}", "seed with so many digits is out of range"),
        ("--warmup nan", "warmup nan makes no sense"),
        ("--flow-shift nan", "flow_shift nan makes no sense"),
        ("--adapter missing", "'missing' holds no adapter"),
        ("--adapter .", "'.' holds no adapter"),
        ("--dropout 1", "the dropout of an adapter is 1"),
        ("--cond-dropout 2", "it is a share"),
        ("--layout upstream --cond-dropout 0.1", "neither flow_shift nor cond_dropout"),
        ("--dtype float16", "training in float16 is not possible"),
        ("--quadruplets missing.jsonl", "'missing.jsonl' does not exist"),
        ("--quadruplets empty.jsonl", "holds no samples"),
        ("--quadruplets .", "holds no shards"),
        ("--model missing", "missing"),
        ("--out missing/out", "there is no folder"),
        ("--out taken", "exists already and is not empty"),
        (f"--out {'a' * 300}", "can't be read (File name too long)"),
        ("--out ~nobody-here/out", "there is no folder"),
        ("--out taken/a.txt", "is a file"),
        ("--out taken/a.txt/out", "there is no folder"),
        ("--out ran", "holds a run already; continue it with --resume"),
        ("--out taken --resume", "exists already and is not empty"),
    ],
)
def test_mistakes(options: str, sentence: str, arguments: list[str], here: Callable[..., Result], work: Path) -> None:
    (work / "empty.jsonl").write_text("\n")
    for name, file in (("taken", "a.txt"), ("ran", "metrics.jsonl")):
        (work / name).mkdir()
        (work / name / file).write_text("")
    before = set(work.rglob("*"))
    done = here(*arguments, "--out", "out", *options.split())
    assert (done.status, done.out) == (2, "")
    assert done.err.splitlines()[-1].startswith("mobileo-mlx: error: ")
    assert sentence in done.err.splitlines()[-1]
    assert set(work.rglob("*")) == before


def test_a_run_goes_on_with_the_same_division(arguments: list[str], here: Callable[..., Result], work: Path) -> None:
    assert here(*arguments, "--steps", "1", "--out", "out").status == 0
    done = here(*arguments, "--steps", "1", "--out", "out", "--resume", "--accumulate", "2")
    assert done.status == 2
    assert done.err.splitlines()[-1].endswith(
        "belongs to a run with other settings (accumulate 1 there, 2 here); continue with those, or choose another "
        "folder."
    )


def test_a_home_folder_is_expanded(
    arguments: list[str], here: Callable[..., Result], work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(work))
    done = here(*arguments, "--steps", "1", "--out", "~/out")
    assert (done.status, done.out) == (0, f"{work / 'out'}\n")
    assert not (work / "~").exists()
    done = here(*arguments, "--steps", "1", "--adapter", "~/out/step-0000001", "--out", "~/second")
    assert done.status == 0


def test_more_steps(arguments: list[str], here: Callable[..., Result], work: Path) -> None:
    assert here(*arguments, "--steps", "1", "--out", "out").status == 0
    done = here(*arguments, "--steps", "2", "--out", "out", "--resume")
    assert done.status == 0
    assert "going on after step 1 of 2; from step 1 on the learning rate rises and falls once more" in done.err
    done = here(*arguments, "--steps", "1", "--out", "out", "--resume")
    assert done.status == 2
    assert done.err.splitlines()[-1].endswith(
        "error: --steps 1 is less than the 2 steps of this run; choose as many or more."
    )


def test_a_file_system_without_locks(
    arguments: list[str], here: Callable[..., Result], work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    done = here(*arguments, "--steps", "1", "--out", "out")
    assert (done.status, done.out) == (0, "out\n")
    assert "'out' is on a file system without locks: take care that no other run writes there" in done.err.splitlines()


@pytest.mark.parametrize("mode", [0o755, 0o000, 0o444])
def test_a_folder_of_somebody_else(arguments: list[str], work: Path, environment: dict[str, str], mode: int) -> None:
    (work / "out").mkdir()
    (work / "out" / "metrics.jsonl").write_text("")
    try:
        os.chown(work / "out", 65534, 65534)
        (work / "out").chmod(mode)
        # Without the rights that let root pass.
        closed = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", str(COMMAND), *arguments]
        done = subprocess.run(
            [*closed, "--out", "out", "--resume"], cwd=work, env=environment, capture_output=True, text=True
        )
    except (PermissionError, FileNotFoundError) as error:
        pytest.skip(f"nobody else's folder can be made here, or no rights be dropped: {error}")
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert re.match(r"mobileo-mlx: error: .*'out(/\S+)?'.* (can't be|is not) ", done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr


def test_out_is_needed(arguments: list[str], here: Callable[..., Result]) -> None:
    done = here(*arguments)
    assert done.status == 2
    assert "--out is missing" in done.err


def test_a_folder_in_use(arguments: list[str], here: Callable[..., Result], work: Path) -> None:
    from mobileo_mlx.training.run_state import locked

    (work / "out").mkdir()
    with locked(work / "out"):
        done = here(*arguments, "--out", "out", "--resume")
    assert done.status == 2
    assert done.err.splitlines()[-1].endswith("'out' is in use by another training; wait, or choose another folder.")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with space for one checkpoint and not for two."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3500k", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_in_the_middle_of_a_checkpoint(
    arguments: list[str], here: Callable[..., Result], disk: Path
) -> None:
    done = here(*arguments, "--save-every", "1", "--out", disk / "out")
    assert (done.status, done.out) == (2, "")
    last = done.err.splitlines()[-1]
    assert "can't be written: the disk is full; free some space, or choose another disk" in last
    kept = [path.name for path in (disk / "out").glob("step-*")]
    assert len(kept) >= 1
    assert not list((disk / "out").glob(".mobileo-unfinished-*"))
    assert os.path.getsize(disk / "out" / kept[-1] / "state.json") > 0
