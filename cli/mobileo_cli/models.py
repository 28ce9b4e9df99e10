"""`mobileo-mlx models`: the models on this machine, bundled and from the hub."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from . import options, printing

NAME = "models"
HELP = "List, download, verify and remove models."

Name = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A repository on the hub, owner/name or owner/name@revision."),
]
LocalName = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A bundled name, a folder, or a repository: owner/name, owner/name@revision."),
]


def list_(as_json: options.Json = False) -> None:
    """List the models on this machine.

    The bundled ones and those in the cache of the Hugging Face hub, which other programs share.
    """
    import dataclasses

    from mobileo_mlx.checkpoints.model_cache import list_models
    from mobileo_mlx.files import without_home

    found = list_models()
    if as_json:
        models = [{**dataclasses.asdict(one), "turbo": one.turbo, "folder": str(one.folder)} for one in found]
        printing.report({"models": models})
        return
    rows = [("model", "revision", "size", "state", "folder")]
    for one in found:
        state = f"{one.state}, turbo" if one.turbo else one.state
        row = (one.name, one.revision[:12] or "-", printing.size(one.nbytes), state, without_home(str(one.folder)))
        rows.append(row)
    printing.out(printing.table(rows, right=(False, False, True, False, False)))


def pull(name: Name, as_json: options.Json = False) -> None:
    """Download a model, or its latest commit.

    A download that was interrupted continues. Prints the folder.
    """
    from mobileo_mlx.checkpoints import hub

    folder = hub.find(name, progress=printing.draws_bars(), refresh=True)
    if as_json:
        printing.report({"name": name, "folder": str(folder)})
    else:
        printing.out(str(folder))


def path(name: LocalName, as_json: options.Json = False) -> None:
    """Print the folder of a model on this machine.

    Needs no network.
    """
    from mobileo_mlx.checkpoints.model_cache import locate

    folder = locate(name)
    if as_json:
        printing.report({"name": name, "folder": str(folder)})
    else:
        printing.out(str(folder))


def verify(name: LocalName, as_json: options.Json = False) -> None:
    """Check the files of a model on this machine.

    Compares them with the checksums of the hub, as far as they come from there, and reads the headers of tensors. Exit
    status 1 says that something is wrong.
    """
    import dataclasses

    from mobileo_mlx.checkpoints.model_cache import is_cached, verify

    found = []
    with printing.Progress() as progress:
        for file in verify(name):
            progress.say(f"{name}: {file.name}")
            found.append(file)
    problems = [file for file in found if file.problem]
    if as_json:
        files = [dataclasses.asdict(file) for file in found]
        printing.report({"name": name, "whole": not problems, "files": files})
    else:
        rows = [("file", "size", "compared", "")]
        for file in found:
            state = "WRONG" if file.problem else "ok"
            rows.append((file.name or "all of it", printing.size(file.nbytes), file.compared or "-", state))
        printing.out(printing.table(rows, right=(False, True, False, False)))
    for file in problems:
        printing.note(f"{file.name}: {file.problem}." if file.name else f"{file.problem}.")
    if any(file.name for file in problems) and is_cached(name):
        printing.note(f"Run `mobileo-mlx models remove {name}` and `mobileo-mlx models pull {name}` to get it again.")
    if problems:
        raise typer.Exit(1)


def remove(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    as_json: options.Json = False,
) -> None:
    """Remove a model from the cache.

    Without a revision, all revisions of it. Says what that frees, and asks.
    """
    from mobileo_mlx.checkpoints.model_cache import plan_removal
    from mobileo_mlx.errors import OptionError

    planned = plan_removal(name)
    freed = printing.size(planned.nbytes)
    if not yes:
        if not _somebody_answers():
            raise OptionError(f"'{name}' is not removed without a question, and nobody can answer it here: give --yes.")
        printing.note(f"Remove '{name}' from {planned.folder}, which frees {freed}? [y/N]")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            printing.note("Nothing is removed.")
            raise typer.Exit(1)
    planned.execute()
    if as_json:
        printing.report({"name": name, "revisions": planned.revisions, "nbytes": planned.nbytes})
    else:
        printing.out(f"removed '{name}', {freed}")


def _somebody_answers() -> bool:
    return sys.stdin.isatty()


COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_,
    "pull": pull,
    "verify": verify,
    "remove": remove,
    "path": path,
}
