"""`mobileo-mlx convert`: a checkpoint in our layout, in another precision or with fewer bits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options, printing

NAME = "convert"


def command(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A folder, or a repository on the hub.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The new folder; must not exist.")],
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="DTYPE",
            help="Store in float16, bfloat16 or float32; or a part in each, e.g. all=bfloat16,vae=float32. "
            "[default: as in the source]",
        ),
    ] = None,
    quantize: options.Quantize = None,
    precision: options.Precision = None,
    preset: options.Preset = None,
    as_json: options.Json = False,
) -> None:
    """Write a checkpoint in our layout.

    That is a folder of config.json, one file per part, and tokenizer.json.
    """
    from mobileo_mlx.checkpoints.convert import convert
    from mobileo_mlx.checkpoints.quantize import parse_quantize

    precision = options.resolve_preset({"precision": precision, "preset": preset})["precision"]
    shown = printing.draws_bars()
    with printing.Progress() as progress:
        written = convert(
            source,
            target,
            dtype=dtype,
            quantize=parse_quantize(quantize) if quantize is not None else None,
            precision=precision,
            progress=lambda component: progress.say(f"writing {component}"),
            download_progress=shown,
        )
    if not written.tokenizer:
        printing.note(f"note: '{source}' has no tokenizer; add its tokenizer.json to '{target}' before you use it.")
    if as_json:
        printing.report(written.to_json())
    else:
        printing.out(str(target))
