"""Runs many tasks: what `batch` has in common with other commands that have many.

A command takes the options of `Computing`, of `options.Loading` and of its tasks (`task_options`), and calls `run_file`
with a jobs file of the user's, or `run_lines` with lines that it made itself.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import typer

from mobileo_mlx.batch.tasks import options_of

from . import options, printing

if TYPE_CHECKING:
    from mobileo_mlx import MobileO
    from mobileo_mlx.batch.engine import Engine, Setup
    from mobileo_mlx.batch.jobs import BadLine, Jobs
    from mobileo_mlx.batch.runner import Progress, Run
    from mobileo_mlx.batch.tasks import Common
    from mobileo_mlx.options import Option

Refuse = Callable[[Path, "Iterable[BadLine]"], None]

_SHOWN = 20  # bad lines that are named


class Computing(TypedDict, total=False):
    """Who computes the tasks, and whether those that failed are tried again."""

    servers: Annotated[
        str | None,
        typer.Option(
            "--servers",
            metavar="URL,URL|FILE",
            help="Let running `mobileo-mlx serve`s compute: their addresses, or a file with an address, and a key if "
            "there is one, a line.",
        ),
    ]
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key", metavar="KEY", help="Of servers that have none in the file. [default: $MOBILEO_API_KEY]"
        ),
    ]
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", help="Let N processes of this machine compute, by means of Dask."),
    ]
    dask: Annotated[
        str | None,
        typer.Option(
            "--dask",
            metavar="ADDRESS",
            help="Let the workers of a running Dask scheduler compute, e.g. tls://10.0.0.1:8786; see docs/scale.md.",
        ),
    ]
    retry_failed: Annotated[
        bool | None, typer.Option("--retry-failed", help="Try the lines of failed.jsonl once more.")
    ]


def task_options(*tasks: str) -> options.Parameters:
    """The parameters of all that lines of these tasks may have, but for their size and seed.

    Args:
        tasks: of `batch.tasks.TEXTS`.
    """
    return options.derived(_known(tasks).values())


def _known(tasks: Iterable[str]) -> dict[str, Option]:
    """The options of tasks by name; `seed` is one number here."""
    known = {name: option for task in tasks for name, option in options_of(task).items()}
    return {name: option for name, option in known.items() if name != "seed"}


def chosen_options(
    given: Mapping[str, Any], *tasks: str, seed: int | None = None, size: str | None = None
) -> dict[str, Any]:
    """The options of all lines by name, checked one by one.

    Args:
        given: the values of `task_options`; None where one is not given.
        tasks: as there.
        seed: of all lines; None where each has its own.
        size: WIDTHxHEIGHT of all pictures.

    Raises:
        OptionError: one is malformed or out of range.
    """
    from mobileo_mlx.generation_options import OPTIONS, AnswerOptions, check_seed

    known = _known(tasks)
    chosen: dict[str, Any] = {}
    for task in tasks:
        chosen |= options.given_options(OPTIONS.get(task, AnswerOptions), given)  # type: ignore[call-overload]
    chosen = {name: known[name].checked(value) for name, value in chosen.items() if name in known}
    if seed is not None:
        chosen["seed"] = check_seed(seed)
    if size is not None:
        chosen["width"], chosen["height"] = options.parse_size(size)
    return chosen


@dataclass(frozen=True)
class Finished:
    """What a run has done.

    Attributes:
        folder: its output, from the root of the file system.
        progress: how far it came; `progress.failed` lines were given up.
        seconds: that it took, without the loading of the model.
    """

    folder: Path
    progress: Progress
    seconds: float


def run_file(
    path: Path,
    out: Path,
    given: Mapping[str, Any],
    chosen: Mapping[str, Any],
    *,
    suffix: str = ".png",
    skip: bool = False,
    images: Path | None = None,
    label: str = "batch",
) -> Finished:
    """Does all tasks of a jobs file, or what is left of them, and shows how far it is.

    Args:
        path: of the file.
        out: the output folder; a run in it goes on.
        given: values of `Computing`'s and `options.Loading`'s options, `preset` resolved; others are passed over.
        chosen: options of all lines by name, see `chosen_options`.
        suffix: of pictures.
        skip: whether bad lines are given up instead of being an error.
        images: the folder that paths of images are relative to; by default that of the file.
        label: what the progress is called.

    Raises:
        MobileOError: the run can't begin, or can't go on; no line is to blame.
    """
    return _run(path, out, given, chosen, suffix, None if skip else _refuse_all, images or path.parent, label)


def run_lines(
    lines: Iterable[Mapping[str, Any]],
    out: Path,
    given: Mapping[str, Any],
    chosen: Mapping[str, Any],
    *,
    suffix: str = ".png",
    images: Path | None = None,
    label: str = "batch",
    at_end: Callable[[], object] = lambda: None,
) -> Finished:
    """As `run_file`, with lines that the command has made; the output folder keeps them.

    A run that goes on has the same lines, and may have more at the end. Exit status and words are the command's.

    Args:
        lines: a task each, with an "id"; see docs/batch.md.
        out: the output folder; its parent is made where it is missing.
        given, chosen, suffix, label: see `run_file`.
        images: the folder that paths of images are relative to; by default the output folder.
        at_end: called however the run ends, by Ctrl-C, too, but not where it could not begin.

    Raises:
        MobileOError: as `run_file`; the folder was begun with other lines.
    """
    from mobileo_mlx.atomic import atomic_write
    from mobileo_mlx.batch.folder import MANIFEST, make_folder
    from mobileo_mlx.batch.jobs import MADE
    from mobileo_mlx.errors import OptionError
    from mobileo_mlx.files import is_file, open_input

    target = make_folder(out)
    path = target / MADE
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    begun = is_file(target / MANIFEST, error=OptionError)
    if begun and is_file(path, error=OptionError):
        with open_input(path, error=OptionError) as file:
            if not text.startswith(file.read()):
                raise OptionError(
                    f"'{out}' was begun with other tasks, or more of them; give the same options, or a new folder."
                )
    try:
        with atomic_write(path, overwrite=True) as temporary:
            temporary.write_bytes(text)
        return _run(path, target, given, chosen, suffix, _refuse_first, images or target, label)
    finally:
        if is_file(target / MANIFEST, error=OptionError):
            at_end()
        else:
            with suppress(OSError):
                path.unlink()
                target.rmdir()


def _run(
    path: Path,
    out: Path,
    given: Mapping[str, Any],
    chosen: Mapping[str, Any],
    suffix: str,
    refuse: Refuse | None,
    images: Path,
    label: str,
) -> Finished:
    from mobileo_mlx.atomic import check_output
    from mobileo_mlx.batch.engine import Setup
    from mobileo_mlx.batch.folder import Folder, make_folder
    from mobileo_mlx.batch.runner import Run
    from mobileo_mlx.batch.tasks import Common

    loading = options.loading(given)
    target = make_folder(out)
    check_output(target / f"picture{suffix}", overwrite=True)
    try:
        engine, model = _engine(Setup(target, loading, suffix), given)
        here = (None, None) if model is None else (model.config, model.speeds)
        common = Common(images, chosen, suffix, engine.identity(), *here)
        opened = _checked(path, target, common, refuse)
        run = Run(opened, Folder(target), retry_failed=bool(given.get("retry_failed")))
        if not run.locks:
            printing.note(f"note: the file system of '{target}' has no locks: several runs in it may do a line twice.")
        for sentence in getattr(engine, "notes", ()):
            printing.note(f"note: {sentence}.")
    except BaseException:
        with suppress(OSError):
            target.rmdir()  # where nothing is in it
        raise
    begin = time.monotonic()
    progress = _follow(run, engine, label)
    return Finished(target, progress, time.monotonic() - begin)


def _engine(setup: Setup, given: Mapping[str, Any]) -> tuple[Engine, MobileO | None]:
    """What computes, and its model where it is here."""
    from mobileo_mlx.errors import OptionError

    servers, api_key, workers, dask = (given.get(name) for name in ("servers", "api_key", "workers", "dask"))
    if sum(given is not None for given in (servers, workers, dask)) > 1:
        raise OptionError("--servers, --workers and --dask say where to compute; give one of them.")
    if servers is not None:
        from mobileo_mlx.batch.http import read_servers
        from mobileo_mlx.batch.servers import Servers

        if setup.loading:
            raise OptionError(f"--{next(iter(setup.loading))} is a matter of the servers; leave it out.")
        return Servers(read_servers(servers, api_key or os.environ.get("MOBILEO_API_KEY")), setup), None
    if api_key is not None:
        raise OptionError("--api-key is that of servers: give --servers, too.")
    if dask is not None:
        from mobileo_mlx.batch.dask import Dask

        return Dask(setup, address=dask), None
    if workers is not None:
        from mobileo_mlx.batch.dask import Dask

        return Dask(setup, workers=workers), options.load(**setup.loading)
    from mobileo_mlx.batch.local import Local

    model = options.load(**setup.loading, keep_loaded=True)
    return Local(model, setup), model


def _checked(path: Path, target: Path, common: Common, refuse: Refuse | None) -> Jobs:
    """The jobs file, all of whose lines are good; or bad ones have been named, where `refuse` is None.

    Raises:
        OptionError: there are bad lines, and they are not to be skipped.
    """
    from mobileo_mlx.batch.folder import check_manifest
    from mobileo_mlx.batch.jobs import keep_index, open_jobs

    jobs, known = open_jobs(path, target, common)
    if known:
        check_manifest(target, common)
        return jobs
    with printing.Progress("checking the lines"):
        problems = jobs.check()
        if refuse is not None:
            refuse(path, problems)
        bad = _name(path, problems)
    check_manifest(target, common)
    keep_index(jobs, target, good=not bad)
    return jobs


def _name(path: Path, problems: Iterable[BadLine]) -> int:
    """Says what is wrong with the first lines, and returns with how many something is."""
    bad = 0
    for problem in problems:
        bad += 1
        if bad <= _SHOWN:
            printing.note(f"'{path}', line {problem.line} {problem.problem}")
    return bad


def _refuse_all(path: Path, problems: Iterable[BadLine]) -> None:
    """Ends a run of a user's file that has bad lines, when they are named."""
    from mobileo_mlx.errors import OptionError

    if bad := _name(path, problems):
        first = f", of which the first {_SHOWN} are named" if bad > _SHOWN else ""
        lines, them = ("1 bad line", "it") if bad == 1 else (f"{bad} bad lines{first}", "them")
        raise OptionError(f"'{path}' has {lines}; correct {them}, or leave {them} out with --skip-bad-lines.")


def _refuse_first(path: Path, problems: Iterable[BadLine]) -> None:
    """Ends a run of a command's own lines, which mostly have one and the same fault, that of an option."""
    from mobileo_mlx.errors import OptionError

    for problem in problems:
        raise OptionError(f"task '{problem.id}' {problem.problem}.")


def _follow(run: Run, engine: Engine, label: str) -> Progress:
    """Does all tasks, and shows how far they are."""
    from mobileo_mlx.batch.runner import GivenUp

    begin = time.monotonic()
    with printing.Progress(label) as bar:
        for event in run.events(engine):
            if isinstance(event, GivenUp):
                bar.say("")
                printing.note(f"line {event.line} failed: {event.error}")
            else:
                _show(bar, event, time.monotonic() - begin, label)
    return run.progress


def _show(bar: printing.Progress, progress: Progress, elapsed: float, label: str) -> None:
    each = elapsed / progress.computed if progress.computed else None
    more = {"failed": progress.failed, "left": progress.left, "seconds_per_task": each}
    more["seconds_left"] = None if each is None else each * progress.left
    if printing.step(progress.done, progress.total, label, **more):
        return
    words = f"{progress.done} done, {progress.failed} failed, {progress.left} left"
    if each is not None:
        words += f", {printing.seconds(each)} each, {printing.seconds(each * progress.left)} left"
    bar.say(words)
