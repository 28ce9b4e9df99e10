"""`mobileo-mlx export`: a model for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options, printing

NAME = "export"


def command(
    target: Annotated[Path, typer.Argument(metavar="DST", help="The new folder; must not exist.")],
    format_name: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="app: the llm folder of Mobile-O's iOS app; mlx-lm: the language model; mlx-vlm: vision and language; "
            "upstream: all of it in the original's layout, for PyTorch.",
        ),
    ],
    model: options.Model = None,
    adapter: options.Adapter = None,
    adapter_scale: options.AdapterScale = None,
    bits: Annotated[
        int | None,
        typer.Option(
            "--bits",
            metavar="4|8|16",
            help="Bits of the language model; 16 also dequantizes a model that is quantized. [default: 4 for app, "
            "else as in the model]",
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Write a model for another program.

    With a model card, and adapters merged into the weights.
    """
    from mobileo_mlx.checkpoints.export import export

    with printing.Progress() as progress:
        written = export(
            target,
            format_name,
            **options.loading({"model": model, "adapter": adapter, "adapter_scale": adapter_scale}),
            **options.given(["bits"], {"bits": bits}),
            progress=lambda component: progress.say(f"writing {component}"),
            note=lambda sentence: printing.note(f"note: {sentence}"),
            download_progress=printing.draws_bars(),
        )
    if not written.tokenizer:
        printing.note(f"note: the model has no tokenizer; add its files to '{target}' before you use it.")
    if as_json:
        printing.report(written.to_json())
    else:
        printing.out(str(target))
