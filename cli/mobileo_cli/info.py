"""`mobileo-mlx info`: what a checkpoint holds."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from . import printing

NAME = "info"


def command(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A bundled name, a folder, or a repository on the hub."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show what is in a checkpoint.

    Its parts with their parameters, precision and size on disk.
    """
    import dataclasses

    from mobileo_mlx.checkpoints.convert import describe

    found = describe(model, progress=printing.draws_bars())
    if as_json:
        totals = {"parameters": found.parameters, "nbytes": found.nbytes}
        printing.out(json.dumps({**dataclasses.asdict(found), **totals}, indent=2, default=str))
        return
    rows = [("component", "parameters", "precision", "size")]
    for part in found.components:
        precision = f"{part.bits} bits, else {part.dtype}" if part.bits else part.dtype
        rows.append((part.name, f"{part.parameters:,}", precision, printing.size(part.nbytes)))
    rows.append(("total", f"{found.parameters:,}", "", printing.size(found.nbytes)))
    printing.out(printing.table(rows, right=(False, True, False, True)))
