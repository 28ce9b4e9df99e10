"""The `mobileo-mlx` program as typer knows it: its commands.

The command modules import only typer, so that `--help` answers at once; each command imports the library inside its
body.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from . import (
    ask,
    batch,
    capabilities,
    chat,
    convert,
    dataset,
    doctor,
    edit,
    evals,
    export,
    finetune,
    fuse,
    generate,
    info,
    mcp,
    models,
    options,
    printing,
    random_model,
    serve,
    signals,
)

NAME = "mobileo-mlx"

Command = Callable[..., None]


def _prepared(command: Command) -> Command:
    """The command with what all have in common, `--progress`; `--help` needs none of the rest.

    A fast BLAS is loaded before it imports MLX. In every path ~ stands for the user's folder: a shell sees to that only
    where it begins a word, and not in --out=~/x.
    """

    @options.takes(options.progress())
    @functools.wraps(command)
    def run(*arguments: Any, progress: str | None = None, **given: Any) -> None:
        from mobileo_mlx import blas
        from mobileo_mlx.files import expand

        printing.set_progress(progress)
        printing.relay_log()
        blas.preload()
        with signals.deferred():
            import mlx.core  # noqa: F401 - its start swallows Ctrl-C
        command(
            *arguments,
            **{name: expand(value) if isinstance(value, Path) else value for name, value in given.items()},
        )

    return run


class _PrintedHelp:
    """Help that is written as all else is: click's own ends with a traceback where standard output is full."""

    def get_help_option(self, context: Any) -> Any:
        option = super().get_help_option(context)  # type: ignore[misc]
        if option is not None:
            option.callback = _show_help
        return option


def _show_help(context: typer.Context, parameter: Any, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        printing.out(context.get_help())
        context.exit()


class _Group(_PrintedHelp, typer.core.TyperGroup): ...


class _Command(_PrintedHelp, typer.core.TyperCommand): ...


program = typer.Typer(
    name=NAME,
    cls=_Group,
    rich_markup_mode=None,  # rich would double the time that --help takes
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
_commands = (
    *(generate, edit, ask, chat, serve, batch, mcp),
    *(finetune, convert, fuse, export, info, random_model, doctor, capabilities),
)
_groups = (models, evals, dataset)
for module in _commands:
    program.command(module.NAME, cls=_Command)(_prepared(module.command))


def _add_group(module: Any) -> None:
    """Adds a command that has commands of its own; alone it lists them."""
    group = typer.Typer(name=module.NAME, cls=_Group, rich_markup_mode=None)
    for name, command in module.COMMANDS.items():
        group.command(name, cls=_Command)(_prepared(command))

    @group.callback(invoke_without_command=True, help=module.HELP)
    def list_commands(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            printing.out(context.get_help())

    program.add_typer(group)


for module in _groups:
    _add_group(module)


@program.callback(invoke_without_command=True)
def _program(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Mobile-O in MLX: draws, edits, and answers questions about images, with one small model."""
    if version:
        from mobileo_mlx import __version__

        printing.out(f"{NAME} {__version__}")
        raise typer.Exit()
    if context.invoked_subcommand is None:
        printing.out(context.get_help())
