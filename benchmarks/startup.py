"""Start-up time: `python -m benchmarks.startup`.

Each measurement is the processor time of a fresh process, which other work on the machine changes little. Compiled
kernels of MLX are on disk after the first run, as they are for a user.
Exit status: 0 all targets are met, 1 some are not, 2 it can't be done.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import common

HEAVY = ("torch", "transformers", "mlx_lm", "diffusers")  # never imported on the way to an image
# Not imported either before there is something to compute.
COMPUTING = ("mlx", "numpy", "PIL", "tokenizers", "huggingface_hub", "safetensors")

# The command, stopped after the first step of denoising; without --first-step it runs to its end.
_PROGRAM = """
import sys
from mobileo_cli.main import main
if "--first-step" in sys.argv:
    sys.argv.remove("--first-step")
    from mobileo_mlx import MobileO
    whole = MobileO.stream_generate
    class Reached(BaseException):
        pass
    def stream_generate(*arguments, **options):
        for step in whole(*arguments, **options):
            raise Reached
    MobileO.stream_generate = stream_generate
    try:
        main(sys.argv[1:])
        sys.exit("there was no step")
    except Reached:
        pass
else:
    assert main(sys.argv[1:]) == 0
"""
_IMPORT = "import mobileo_mlx"
_REPORT = """
import json as _json, sys as _sys, time as _time
_found = {"seconds": _time.process_time(), "modules": [name for name in %r if name in _sys.modules]}
_sys.stderr.write("\\nSTARTUP " + _json.dumps(_found))
"""


@dataclass(frozen=True)
class Start:
    """One way to start.

    Attributes:
        source: a program text.
        arguments: of the program.
        target: seconds of processor time that it may take.
        unwanted: modules that it must not import.
    """

    name: str
    source: str
    arguments: tuple[str, ...]
    target: float
    unwanted: tuple[str, ...]


@dataclass(frozen=True)
class StartUp:
    """A start that was measured.

    Attributes:
        seconds: of processor time, from the process's start; the median of the runs.
        heavy: the unwanted modules that were imported.
    """

    name: str
    seconds: float
    target: float
    heavy: tuple[str, ...]

    @property
    def met(self) -> bool:
        return self.seconds <= self.target and not self.heavy


def starts(model: str, folder: Path) -> tuple[Start, ...]:
    """Import, help, and drawing up to its first step.

    Args:
        model: what the program is to draw with.
        folder: where it may write.
    """
    draw = ("generate", "a red circle", "--model", model, "--output", str(folder / "out.png"), "--first-step")
    return (
        Start("import mobileo_mlx", _IMPORT, (), 0.15, HEAVY + COMPUTING),
        Start("mobileo-mlx --help", _PROGRAM, ("--help",), 0.25, HEAVY + COMPUTING),
        Start("generate, to the first denoising step", _PROGRAM, draw, 1.0, HEAVY),
    )


def started(
    source: str, arguments: Sequence[str] = (), unwanted: Sequence[str] = HEAVY
) -> tuple[float, tuple[str, ...]]:
    """Runs a program text in a new process: its processor time in seconds, and which unwanted modules it imported.

    Raises:
        RuntimeError: it failed.
    """
    environment = os.environ | dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    command = [sys.executable, "-c", source + _REPORT % (tuple(unwanted),), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    found = done.stderr.rpartition("STARTUP ")[2]
    if done.returncode != 0 or not found.startswith("{"):
        raise RuntimeError(f"{' '.join(arguments) or source} failed:\n{done.stderr}")
    result = json.loads(found)
    return result["seconds"], tuple(result["modules"])


def measure(model: str, folder: Path, *, runs: int = 3) -> list[StartUp]:
    """Every one of `starts`, as often as `runs` says."""
    results = []
    for start in starts(model, folder):
        started(start.source, start.arguments)  # byte code and compiled kernels are on disk from now on
        measured = [started(start.source, start.arguments, start.unwanted) for _ in range(runs)]
        seconds, heavy = zip(*measured, strict=True)
        results.append(StartUp(start.name, sorted(seconds)[runs // 2], start.target, heavy[0]))
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=__doc__)
    parser.add_argument("--model", help="what to draw with (default: the bundled model, else a small random one)")
    parser.add_argument("--runs", type=int, default=5, help="of each; the median counts (default: 5)")
    common.add_out(parser, "startup.json")
    options = parser.parse_args(arguments)
    return common.exit_status("startup", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    import tempfile

    from mobileo_weights import bundled

    from mobileo_mlx.checkpoints.random_model import write_random_model
    from mobileo_mlx.errors import OptionError

    if options.runs < 1:
        raise OptionError("at least 1 run is needed.")
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or next(iter(bundled()), None)
        if model is None:
            model = str(Path(folder) / "model")
            write_random_model(model)
        results = measure(model, Path(folder), runs=options.runs)
        named = options.model or next(iter(bundled()), "a small random model")
    rows = [[r.name, f"{r.seconds:.3f} s", f"<= {r.target:g} s", "yes" if r.met else "no"] for r in results]
    for line in common.markdown_table(("start-up, processor time", "measured", "target", "met"), rows):
        print(line)
    machine = common.machine()
    print(f"\n{common.machine_line(machine)}; model: {named}; heavy modules: {_heavy(results)}")
    value = {"machine": machine, "model": named, "rows": [vars(r) | {"met": r.met} for r in results]}
    common.write_json(value, options.out / "startup.json")
    return 0 if all(result.met for result in results) else 1


def _heavy(results: Sequence[StartUp]) -> str:
    return ", ".join(sorted({name for result in results for name in result.heavy})) or "none"


if __name__ == "__main__":
    sys.exit(main())
