"""`mobileo-mlx info`: what a checkpoint holds, or how an image was made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import options, printing

NAME = "info"


def command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|IMAGE",
            help="A bundled name, a folder, or a repository on the hub; or an image that generate or edit wrote.",
        ),
    ],
    as_json: options.Json = False,
) -> None:
    """Show what is in a checkpoint, or how an image was made.

    Of a checkpoint its parts with their parameters, precision and size on disk; of an image its prompt and settings.
    """
    from mobileo_mlx.files import expand, is_file

    if is_file(expand(name)):
        _show_image(expand(name), as_json)
    else:
        _show_model(name, as_json)


def _show_model(name: str, as_json: bool) -> None:
    from mobileo_mlx.checkpoints.convert import describe
    from mobileo_mlx.errors import format_names

    found = describe(name, progress=printing.draws_bars())
    if found.extra:
        printing.note(
            f"note: '{name}' can't be loaded, as nothing in it asks for the tensors {format_names(found.extra)}."
        )
    if as_json:
        printing.report(found.to_json())
        return
    rows = [("component", "parameters", "precision", "size")]
    for part in found.components:
        precision = f"{part.bits} bits, else {part.dtype}" if part.bits else part.dtype
        rows.append((part.name, f"{part.parameters:,}", precision, printing.size(part.nbytes)))
    rows.append(("total", f"{found.parameters:,}", "", printing.size(found.nbytes)))
    printing.out(printing.table(rows, right=(False, True, False, True)))


def _show_image(file: Path, as_json: bool) -> None:
    from mobileo_mlx.image_settings import read_metadata

    settings = read_metadata(file)
    if as_json:
        printing.report(settings)
        return
    width = max(map(len, settings), default=0)
    for key, value in settings.items():
        if value is not None:
            printing.out(f"{key.ljust(width)}  {_text(value)}")


def _text(value: Any) -> str:
    return " ".join(value.split()) if isinstance(value, str) else printing.json_text(value)
