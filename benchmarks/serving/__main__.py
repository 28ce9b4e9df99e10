"""A server under load, and under clients that misbehave: `python -m benchmarks.serving`.

It starts `mobileo-mlx serve`, asks each request alone, then all of them by many clients at a time, and compares every
answer with the one that was given alone. Then come clients that leave, read slowly or send half a body. The result is
written to serving-CHIP.json, its tables to serving-CHIP.md.
Exit status: 0 every answer was right, 1 some were dropped or mixed up, 2 it can't be done, 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import common

from . import report
from .faults import provoke, settled
from .load import alone, load, mixed, watching
from .process import Server
from .requests import STEPS, Answer, Request, make_requests
from .wire import Connection


async def measure(
    server: Server, requests: Sequence[Request], *, clients: int, count: int, faults: int
) -> dict[str, Any]:
    """Both phases, and the server after them."""
    expected = await alone(server.port, requests)
    common.say(f"{len(expected)} requests, asked alone: the same answers twice")
    with watching(server) as seen:
        found = await load(server.port, mixed(requests, count), expected, clients=clients)
    value = {"load": report.load_result(found, seen)}
    common.say(f"{found.answered} answered by {clients} clients in {found.duration:.0f} s")
    files = server.open_files()
    with watching(server) as seen:
        begin = asyncio.get_running_loop().time()
        honest = mixed(requests, faults, seed=1)
        tried, kept = await provoke(server.port, requests, expected, count=faults, clients=clients, honest=honest)
        queue = await settled(server.port)
        kept.duration = asyncio.get_running_loop().time() - begin
    value["faults"] = {**report.load_result(kept, seen), "tried": dict(tried)}
    common.say(f"{sum(tried.values())} faults tried, {kept.answered} honest requests answered beside them")
    again = await asked_again(server.port, requests, expected)
    value["after"] = {
        "waiting": queue["waiting"],
        "running": queue["running"],
        "compared": len(requests),
        "same": again,
        "open_files_before_faults": files,
        "open_files": server.open_files(),
    }
    return value


async def asked_again(port: int, requests: Sequence[Request], expected: Mapping[str, Answer]) -> int:
    """How many of the requests still get the answer that they got at first."""
    async with Connection(port) as connection:
        return sum([await request.ask(connection) == expected[request.name] for request in requests])


TERMINATED = 128 + signal.SIGTERM


def right(value: Mapping[str, Any]) -> bool:
    """Whether nothing was dropped or mixed up, and the server answers after the faults as before."""
    wrong = [of[what] for of in (value["load"], value["faults"]) for what in ("dropped", "mixed_up")]
    after = value["after"]
    return (
        not any(wrong)
        and after["same"] == after["compared"]
        and not after["tracebacks"]
        and after["exit_status"] == TERMINATED
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--model", default="tiny", help="a bundled name, a folder, or a repository (default: tiny)")
    parser.add_argument("--clients", type=int, default=64, help="at a time (default: 64)")
    parser.add_argument("--requests", type=int, default=2000, help="of the load (default: 2000)")
    parser.add_argument("--faults", type=int, default=400, help="clients that misbehave (default: 400)")
    parser.add_argument("--variants", type=int, default=6, help="of each kind of request (default: 6)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of a drawing (default: {STEPS})")
    common.add_out(parser)
    options = parser.parse_args(arguments)
    command = shlex.join(["python", "-m", "benchmarks.serving", *(sys.argv[1:] if arguments is None else arguments)])
    return common.exit_status("serving", lambda: _run(options, command))


def _run(options: argparse.Namespace, command: str) -> int:
    from mobileo_mlx.errors import OptionError

    for name in ("clients", "requests", "faults", "variants", "steps"):
        if getattr(options, name) < 1:
            raise OptionError(f"--{name} {getattr(options, name)} is not possible; choose 1 or more.")
    requests = make_requests(options.variants, steps=options.steps)
    with tempfile.TemporaryDirectory() as folder, Server(Path(folder) / "pictures", model=options.model) as server:
        run = measure(server, requests, clients=options.clients, count=options.requests, faults=options.faults)
        found = asyncio.run(run)
        found["after"]["exit_status"] = server.stop()
        found["after"]["tracebacks"] = sum(line.startswith("Traceback") for line in server.output)
    value = {
        "machine": common.machine(),
        "command": command,
        "model": options.model,
        "clients": options.clients,
        "steps": options.steps,
        **found,
    }
    lines = list(report.markdown(value))
    print("\n".join(lines))
    path = common.chip_file(options.out, "serving", value["machine"])
    common.write_json(value, path)
    common.write_lines(lines, path.with_suffix(".md"))
    for of in (value["load"], value["faults"]):
        for line in [*of["dropped"], *of["mixed_up"]][:20]:
            common.say(line)
    return 0 if right(value) else 1


if __name__ == "__main__":
    sys.exit(main())
