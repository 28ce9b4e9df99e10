"""`mobileo-mlx mcp`: the tasks as tools of the Model Context Protocol, on standard input and output."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options, output_paths, printing, signals

if TYPE_CHECKING:
    from PIL.Image import Image

    from mobileo_mlx import MobileO

NAME = "mcp"


@options.takes(options.group(options.Loading), [options.keeping("keep-loaded")])
def command(
    allow_folder: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-folder",
            metavar="DIR",
            help="Let images be given as paths inside of DIR, too. May be given several times.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Also save each picture in DIR, which must exist."),
    ] = None,
    **given: Any,
) -> None:
    """Offer draw, edit and ask as tools to a program that speaks MCP.

    Such a program starts this command and speaks to it on standard input and output.
    """
    import importlib.metadata

    from mobileo_mlx.errors import MobileOError, OptionError
    from mobileo_mlx.event_loop import EventLoop
    from mobileo_mlx.files import absolute, expand, is_folder

    try:
        version = importlib.metadata.version("mcp")
        if int(version.partition(".")[0]) < 2:
            raise ImportError(f"it is {version}")
        from mobileo_mlx import mcp_server
    except ImportError as error:
        raise MobileOError(
            f"mobileo-mlx mcp needs the package mcp 2.0 or later ({error}): `pip install 'mobileo-mlx[mcp]'`."
        ) from None
    folders = [expand(folder) for folder in allow_folder or []]
    for folder in folders:
        if not is_folder(folder, error=OptionError):
            raise OptionError(f"--allow-folder {folder}: there is no such folder.")
    if output is not None:
        if not is_folder(output, error=OptionError):
            raise OptionError(f"--output {output}: there is no such folder; make it first.")
        output_paths.check_folder(output)
        output = Path(absolute(output, error=OptionError))
    loading = options.loading(options.resolve_preset(given))
    loading.setdefault("model", options.DEFAULT_MODEL)
    loading["keep_loaded"] = given["keep_loaded"] is not False

    def load() -> MobileO:
        from mobileo_mlx.checkpoints.hub import is_here
        from mobileo_mlx.errors import CheckpointError

        if not is_here(loading["model"]):  # callers would wait for gigabytes, and give up before
            raise CheckpointError(
                f"The model '{loading['model']}' is not on this machine; download it with "
                f"`mobileo-mlx models pull {loading['model']}`, and call again."
            )
        return options.load(**loading)

    def save(image: Image, settings: dict[str, Any]) -> Path:
        from mobileo_mlx.image_settings import save_image

        seeds = [settings["seed"]]
        (path,) = output_paths.plan(f"{output}/", prompt=settings["prompt"], model=settings["model"], seeds=seeds)
        return output_paths.write_free(path, lambda name: save_image(image, name, settings))

    tools = mcp_server.Tools(load, folders=folders, save=None if output is None else save)
    loop = EventLoop()
    with signals.noted(loop.stop, loop.stop) as numbers:
        printing.note("mobileo-mlx: waiting for a client of MCP on standard input.")
        loop.run(mcp_server.serve(tools))
        if numbers:
            # Python's own end would wait for threads: of a step, and of an answer that nobody reads.
            os._exit(printing.interrupted(numbers[0]))
