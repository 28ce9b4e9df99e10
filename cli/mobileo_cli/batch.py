"""`mobileo-mlx batch`: many pictures and answers from a file of tasks."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobileo_mlx.batch.tasks import common_options
from mobileo_mlx.generation_options import AnswerOptions, EditOptions

from . import inputs, options, printing

if TYPE_CHECKING:
    from mobileo_mlx.batch.engine import Engine, Setup
    from mobileo_mlx.batch.jobs import Jobs
    from mobileo_mlx.batch.runner import Progress, Run
    from mobileo_mlx.batch.tasks import Common

NAME = "batch"

_SHOWN = 20  # bad lines that are named
_CHECKED = 1000  # lines after which the check says how far it is

# `seed` is one number here, and those of a single picture's size are given as `--size`.
_COMMON = [option for option in common_options().values() if option.name != "seed"]


@options.takes(options.derived(_COMMON), options.group(options.Loading))
def command(
    jobs: Annotated[
        str, typer.Argument(metavar="JOBS", help="A file with one task a line, as JSON; .gz is read, too.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder for results; a run in it goes on.")],
    suffix: Annotated[str, typer.Option("--format", metavar="KIND", help="Of pictures: png, jpg or webp.")] = "png",
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="SEED", help="Of all lines without one. [default: made of the id]")
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="WxH", help="Of all pictures, in pixels. [default: the model's]")
    ] = None,
    servers: Annotated[
        str | None,
        typer.Option(
            "--servers",
            metavar="URL,URL|FILE",
            help="Let running `mobileo-mlx serve`s compute: their addresses, or a file with an address, and a key if "
            "there is one, a line.",
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key", metavar="KEY", help="Of servers that have none in the file. [default: $MOBILEO_API_KEY]"
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", help="Let N processes of this machine compute, by means of Dask."),
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(
            "--dask",
            metavar="ADDRESS",
            help="Let the workers of a running Dask scheduler compute, e.g. tls://10.0.0.1:8786; see docs/scale.md.",
        ),
    ] = None,
    skip_bad_lines: Annotated[
        bool, typer.Option("--skip-bad-lines", help="Do the other lines; bad ones go to failed.jsonl.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try the lines of failed.jsonl once more.")
    ] = False,
    as_json: options.Json = False,
    **given: Any,
) -> None:
    """Do many tasks: draw, edit, ask and caption, a line each.

    The options are those of all lines that do not give their own. A run that was stopped goes on where it was, and
    several may work in one folder. Exit status 1: some lines failed.
    """
    from mobileo_mlx.atomic import check_output
    from mobileo_mlx.batch.engine import Setup
    from mobileo_mlx.batch.folder import Folder, make_folder
    from mobileo_mlx.batch.runner import Run
    from mobileo_mlx.batch.tasks import Common
    from mobileo_mlx.errors import OptionError
    from mobileo_mlx.files import check_input, expand

    if jobs == inputs.STDIN:
        raise OptionError("a run that can go on needs a file: write the tasks into one, and give its name.")
    path = Path(os.path.abspath(expand(jobs)))
    check_input(path, error=OptionError)
    given = options.resolve_preset(given, speeds=True)
    chosen = _chosen(given, seed, size)
    loading = options.loading(given)
    suffix = _suffix(suffix)
    target = make_folder(out)
    check_output(target / f"picture{suffix}", overwrite=True)
    try:
        engine, config = _engine(Setup(target, loading, suffix), servers, api_key, workers, dask)
        common = Common(path.parent, chosen, suffix, engine.identity(), config)
        opened = _checked(path, target, common, skip=skip_bad_lines)
        run = Run(opened, Folder(target), retry_failed=retry_failed)
        if not run.locks:
            printing.note(f"note: the file system of '{target}' has no locks: several runs in it may do a line twice.")
        for sentence in getattr(engine, "notes", ()):
            printing.note(f"note: {sentence}.")
    except BaseException:
        with suppress(OSError):
            target.rmdir()  # where nothing is in it
        raise
    begin = time.monotonic()
    progress = _follow(run, engine)
    seconds = time.monotonic() - begin
    _summarize(target, progress, seconds, as_json=as_json)
    if progress.failed:
        raise typer.Exit(1)


def _chosen(given: dict[str, Any], seed: int | None, size: str | None) -> dict[str, Any]:
    """The options of all lines, checked one by one."""
    from mobileo_mlx.generation_options import check_seed

    chosen = options.given_options(EditOptions, given) | options.given_options(AnswerOptions, given)
    for option in _COMMON:
        if option.name in chosen:
            chosen[option.name] = option.checked(chosen[option.name])
    if seed is not None:
        chosen["seed"] = check_seed(seed)
    if size is not None:
        chosen["width"], chosen["height"] = options.parse_size(size)
    return chosen


def _suffix(kind: str) -> str:
    from mobileo_mlx.errors import OptionError
    from mobileo_mlx.image_settings import FORMATS, can_write

    suffix = f".{kind.lower().removeprefix('.')}"
    if suffix not in FORMATS or not can_write(FORMATS[suffix]):
        raise OptionError(f"--format {kind}: choose png, jpg or webp.")
    return suffix


def _engine(
    setup: Setup, servers: str | None, api_key: str | None, workers: int | None, dask: str | None
) -> tuple[Engine, Any]:
    """What computes, and the configuration of its model where it is here."""
    from mobileo_mlx.errors import OptionError

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

        return Dask(setup, workers=workers), options.load(**setup.loading).config
    from mobileo_mlx.batch.local import Local

    model = options.load(**setup.loading, keep_loaded=True)
    return Local(model, setup), model.config


def _checked(path: Path, target: Path, common: Common, *, skip: bool) -> Jobs:
    """The jobs file, all of whose lines are good; or bad ones have been named.

    Raises:
        OptionError: there are bad lines, and they are not to be skipped.
    """
    from mobileo_mlx.batch.folder import check_manifest
    from mobileo_mlx.batch.jobs import keep_index, open_jobs
    from mobileo_mlx.errors import OptionError

    jobs, known = open_jobs(path, target, common)
    if known:
        check_manifest(target, common)
        return jobs
    bad = 0
    with printing.Progress("checking the lines"):
        for problem in jobs.check():
            bad += 1
            if bad <= _SHOWN:
                printing.note(f"'{path}', line {problem.line} {problem.problem}")
    if bad and not skip:
        first = f", of which the first {_SHOWN} are named" if bad > _SHOWN else ""
        lines, them = ("1 bad line", "it") if bad == 1 else (f"{bad} bad lines{first}", "them")
        raise OptionError(f"'{path}' has {lines}; correct {them}, or leave {them} out with --skip-bad-lines.")
    check_manifest(target, common)
    keep_index(jobs, target, good=not bad)
    return jobs


def _follow(run: Run, engine: Engine) -> Progress:
    """Does all tasks, and shows how far they are."""
    from mobileo_mlx.batch.runner import GivenUp

    begin = time.monotonic()
    with printing.Progress("batch") as bar:
        for event in run.events(engine):
            if isinstance(event, GivenUp):
                bar.say("")
                printing.note(f"line {event.line} failed: {event.error}")
            else:
                _show(bar, event, time.monotonic() - begin)
    return run.progress


def _show(bar: printing.Progress, progress: Progress, elapsed: float) -> None:
    each = elapsed / progress.computed if progress.computed else None
    more = {"failed": progress.failed, "left": progress.left, "seconds_per_task": each}
    more["seconds_left"] = None if each is None else each * progress.left
    if printing.step(progress.done, progress.total, "batch", **more):
        return
    words = f"{progress.done} done, {progress.failed} failed, {progress.left} left"
    if each is not None:
        words += f", {printing.seconds(each)} each, {printing.seconds(each * progress.left)} left"
    bar.say(words)


def _summarize(target: Path, progress: Progress, seconds: float, *, as_json: bool) -> None:
    from mobileo_mlx.batch.folder import FAILED
    from mobileo_mlx.batch.results import RESULTS

    if as_json:
        printing.report(
            {
                "folder": str(target),
                "results": str(target / RESULTS),
                "failures": str(target / FAILED) if progress.failed else None,
                **vars(progress),
                "seconds": seconds,
            }
        )
        return
    failed = f", {progress.failed} failed (see {FAILED})" if progress.failed else ""
    now = f", {progress.computed} of them now in {printing.seconds(seconds)}" if progress.computed else ""
    printing.out(f"{target / RESULTS}: {progress.done} done{failed}{now}")
