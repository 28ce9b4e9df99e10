"""`mobileo-mlx fuse`: a model with adapters merged into its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options, printing

NAME = "fuse"


def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A bundled name, a folder, or a repository on the hub.")
    ],
    adapter: Annotated[
        list[str],
        typer.Argument(metavar="ADAPTER...", help="One or several adapters: folders, or repositories on the hub."),
    ],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The new folder; must not exist.")],
    adapter_scale: options.AdapterScale = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="DTYPE",
            help="Store in float16, bfloat16 or float32; or a part in each, e.g. all=bfloat16,vae=float32. "
            "[default: as in the model]",
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Merge adapters into a model.

    Writes a folder in our layout.
    """
    from mobileo_mlx.checkpoints.convert import fuse

    with printing.Progress() as progress:
        written = fuse(
            model,
            adapter,
            target,
            **options.given(("scale", "dtype"), {"scale": adapter_scale, "dtype": dtype}),
            progress=lambda component: progress.say(f"writing {component}"),
            note=lambda sentence: printing.note(f"note: {sentence}"),
            download_progress=printing.draws_bars(),
        )
    if as_json:
        printing.report(written.to_json())
    else:
        printing.out(str(target))
