"""Throughput of `batch` against the number of workers: `python -m benchmarks.scale`.

Draws the same pictures with the bundled model in a plain loop, in this process as `batch` does it, with one and two
local workers of Dask, and over a server; each with one thread for BLAS. The time begins when the first tenth is done,
so that processes that start and models that load do not count. Rounds alternate, and the fastest of each counts: what
else a machine does makes all of them slower. Processor time, of all processes of a way together, depends on that least.
Exit status: 0 done, 2 it can't be done.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import common

_MODEL = "tiny"
_NOTHING = 3000  # tasks that do nothing, for the scheduler's own speed
_LINES = 100_000  # of a jobs file that is only checked


class _Watched:
    """An engine whose outcomes are timed.

    Attributes:
        times: when each task was done.
        computed: seconds that each took where it was computed.
    """

    def __init__(self, engine: Any, count: int) -> None:
        self.engine, self.count = engine, count
        self.processor: list[float] = []  # when the first tenth was done, and at the end
        self.times: list[float] = []
        self.computed: list[float] = []

    def identity(self) -> dict[str, Any]:
        return dict(self.engine.identity())

    def outcomes(self, source: Any) -> Iterator[Any]:
        from mobileo_mlx.batch.engine import Done

        for outcome in self.engine.outcomes(source):
            if isinstance(outcome, Done):
                self.times.append(time.perf_counter())
                self.computed.append(outcome.seconds)
                if len(self.times) in (self.count // 10, self.count):
                    self.processor.append(_processor_seconds())
            yield outcome


def _processor_seconds() -> float:
    """Of this process and of all that it has started, servers among them."""
    import psutil

    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def measured(make: Callable[[Any], Any], jobs: Path, out: Path, workers: int, count: int) -> dict[str, float]:
    """Runs a jobs file of `count` tasks through an engine.

    Returns:
        "per_second": tasks; "seconds": that one takes where it is computed; "overhead": seconds between two tasks of a
        worker; "processor": seconds of processor time a task, of all processes.
    """
    from mobileo_mlx.batch.engine import Setup
    from mobileo_mlx.batch.folder import Folder, check_manifest
    from mobileo_mlx.batch.jobs import keep_index, open_jobs
    from mobileo_mlx.batch.runner import Run
    from mobileo_mlx.batch.tasks import Common

    out.mkdir()
    watched = _Watched(make(Setup(out, {"model": _MODEL})), count)
    shared = Common(jobs.parent, model=watched.identity())
    opened, _ = open_jobs(jobs, out, shared)
    assert not list(opened.check())
    check_manifest(out, shared)
    keep_index(opened, out, good=True)
    for _ in Run(opened, Folder(out)).events(watched):
        pass
    return _rate(watched.times, watched.computed, watched.processor, workers)


def _rate(
    times: Sequence[float], computed: Sequence[float], processor: Sequence[float], workers: int
) -> dict[str, float]:
    first = len(times) // 10
    each = (processor[1] - processor[0]) / (len(times) - first)
    # Where several tasks are reported at once, those that came with the first of the time do not count either.
    while first < len(times) - 1 and times[first] - times[first - 1] < 1e-3:
        first += 1
    done, elapsed = len(times) - first, times[-1] - times[first - 1]
    seconds = sum(computed[first:]) / done
    overhead = elapsed * workers / done - seconds
    return {"per_second": done / elapsed, "seconds": seconds, "overhead": overhead, "processor": each}


def plain_loop(count: int, steps: int, out: Path) -> dict[str, float]:
    """What a user's own loop takes: draw and save."""
    from mobileo_mlx import MobileO

    out.mkdir()
    model = MobileO.load(_MODEL)
    times, computed, processor = [], [], []
    for index in range(count):
        begin = time.perf_counter()
        model.generate(_prompt(index), seed=index, steps=steps).images[0].save(out / f"{index}.png")
        times.append(time.perf_counter())
        computed.append(times[-1] - begin)
        if index + 1 in (count // 10, count):
            processor.append(_processor_seconds())
    return _rate(times, computed, processor, 1)


def _prompt(index: int) -> str:
    return ("a red circle", "a blue square and a green star", "three yellow triangles")[index % 3]


@contextmanager
def server() -> Iterator[str]:
    """The address of a server of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mobileo_mlx", "serve", "--model", _MODEL, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:[0-9]+", line):
                break
        else:
            raise RuntimeError("the server does not start")
        yield found[0]
    finally:
        process.terminate()
        process.communicate()


def scheduler_speed() -> float:
    """Tasks a second that Dask's scheduler handles with two local workers, where a task does nothing."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, memory_limit=0, host="127.0.0.1", dashboard_address=None
        ) as own,
        Client(own) as client,
    ):
        client.gather(client.map(_nothing, range(100), pure=False))
        begin = time.perf_counter()
        client.gather(client.map(_nothing, range(_NOTHING), pure=False))
        return _NOTHING / (time.perf_counter() - begin)


def _nothing(index: int) -> int:
    return index


def piece_cost(folder: Path, pieces: int = 300) -> float:
    """Processor seconds of the process that dispatches, with Dask's scheduler in it, for one piece of work.

    Nothing is written: the rest of a run, which keeps what is done, is not in it.
    """
    from mobileo_mlx.batch import dask
    from mobileo_mlx.batch.engine import Setup
    from mobileo_mlx.batch.tasks import Task

    class One:
        """Tasks one by one."""

        def __init__(self) -> None:
            self.line = 0

        def take(self) -> list[Task] | None:
            self.line += 1
            options = {"seed": self.line, "steps": 1}
            task = Task(self.line, str(self.line), "generate", _prompt(0), (), options, f"0000/{self.line}.png", "none")
            return [task] if self.line <= pieces else None

    dask.PIECE = 0
    engine = dask.Dask(Setup(folder, {"model": _MODEL}), workers=2)
    engine.identity()
    times = []
    for _ in engine.outcomes(One()):
        times.append(time.process_time())
    return (times[-1] - times[pieces // 10]) / (len(times) - 1 - pieces // 10)


def checked_lines(folder: Path) -> float:
    """Lines of a jobs file that are checked a second."""
    from mobileo_mlx.batch.jobs import open_jobs
    from mobileo_mlx.batch.tasks import Common

    jobs = folder / "many.jsonl"
    _write_jobs(jobs, _LINES, 20)
    (folder / "many").mkdir()
    opened, _ = open_jobs(jobs, folder / "many", Common(folder))
    return _LINES / common.timed(lambda: list(opened.check()))


def _write_jobs(path: Path, count: int, steps: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for index in range(count):
            file.write(json.dumps({"id": f"p{index}", "prompt": _prompt(index), "seed": index, "steps": steps}) + "\n")


def run(tasks: int, steps: int, rounds: int, out: Path) -> None:
    """Measures all, and writes `scale.json` and `scale.md`."""
    from mobileo_mlx.batch import dask
    from mobileo_mlx.batch.dask import Dask
    from mobileo_mlx.batch.local import Local
    from mobileo_mlx.pipeline import MobileO

    def local(setup: Any) -> Any:
        return Local(MobileO.load(_MODEL), setup)

    def workers(count: int, piece: float) -> Callable[[Any], Any]:
        def make(setup: Any) -> Any:
            dask.PIECE = piece
            return Dask(setup, workers=count)

        return make

    def servers(setup: Any) -> Any:
        from mobileo_mlx.batch.http import read_servers
        from mobileo_mlx.batch.servers import Servers

        return Servers(read_servers(address, None), setup)

    one_piece = dask.PIECE
    loads = [os.getloadavg()[0]]
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary, server() as address:
        folder = Path(temporary)
        jobs = folder / "jobs.jsonl"
        _write_jobs(jobs, tasks, steps)
        ways: dict[str, Callable[[Path], dict[str, float]]] = {
            "a plain loop": lambda to: plain_loop(tasks, steps, to),
            "batch, this process": lambda to: measured(local, jobs, to, 1, tasks),
            "--workers 1": lambda to: measured(workers(1, one_piece), jobs, to, 1, tasks),
            "--workers 1, a task a piece": lambda to: measured(workers(1, 0), jobs, to, 1, tasks),
            "--workers 2": lambda to: measured(workers(2, one_piece), jobs, to, 2, tasks),
            "--workers 2, a task a piece": lambda to: measured(workers(2, 0), jobs, to, 2, tasks),
            "--servers, one": lambda to: measured(servers, jobs, to, 1, tasks),
        }
        for number in range(rounds):
            for name, way in ways.items():
                result = way(folder / f"{number} {name}")
                found.setdefault(name, []).append(result)
                loads.append(os.getloadavg()[0])
                common.say(f"round {number + 1}, {name}: {result['per_second']:.2f} a second, load {loads[-1]:.1f}")
        value = {
            "machine": common.machine(),
            "cores": os.cpu_count(),
            "tasks": tasks,
            "steps": steps,
            "load": [min(loads), max(loads)],
            "ways": {name: max(results, key=lambda each: each["per_second"]) for name, results in found.items()},
            "rounds": found,
            "piece_seconds": min(piece_cost(_made(folder / f"pieces {n}")) for n in range(rounds)),
            "scheduler_per_second": max(scheduler_speed() for _ in range(rounds)),
            "checked_lines_per_second": max(checked_lines(_made(folder / f"lines {n}")) for n in range(rounds)),
        }
    common.write_json(value, out / "scale.json")
    common.write_lines(report(value), out / "scale.md")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def report(value: dict[str, Any]) -> Iterator[str]:
    """The results as Markdown."""
    ways = value["ways"]
    plain = ways["a plain loop"]["per_second"]
    yield "# Throughput of `batch`"
    yield ""
    what = f"{value['tasks']} pictures of `tiny`, {value['steps']} steps"
    yield f"{what}, one thread for BLAS; the fastest of {len(value['rounds']['a plain loop'])} rounds."
    yield ""
    rows = [
        (
            name,
            f"{way['per_second']:.2f}",
            f"{way['per_second'] / plain:.2f}",
            f"{1000 * way['seconds']:.1f}",
            # A server is asked for the next one while it computes, which makes no sense of this.
            "" if name.startswith("--servers") else f"{1000 * way['overhead']:.1f}",
            f"{1000 * way['processor']:.1f}",
        )
        for name, way in ways.items()
    ]
    head = ("way", "pictures/s", "to the plain loop", "ms computing", "ms between two", "ms of processor")
    yield from common.markdown_table(head, rows)
    yield ""
    yield (
        f"Dask's scheduler alone: {value['scheduler_per_second']:.0f} tasks/s that do nothing. A piece of work costs "
        f"the process that dispatches, with the scheduler in it, {1000 * value['piece_seconds']:.1f} ms of processor "
        f"time. Lines checked: {value['checked_lines_per_second']:.0f} a second."
    )
    yield ""
    low, high = value["load"]
    yield (
        f"{common.machine_line(value['machine'])}; {value['cores']} cores, shared with other work: a load of "
        f"{low:.1f} to {high:.1f} meanwhile."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=200, metavar="N", help="pictures a run (default: 200)")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="of each (default: 20)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of all ways (default: 3)")
    common.add_out(parser)
    given = parser.parse_args(arguments)
    if given.tasks < 20:
        parser.error("--tasks: 20 or more")
    common.one_thread()
    return common.exit_status("scale", lambda: run(given.tasks, given.steps, given.rounds, given.out))


if __name__ == "__main__":
    sys.exit(main())
