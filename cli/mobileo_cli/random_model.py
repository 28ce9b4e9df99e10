"""`mobileo-mlx random-model`: a small checkpoint with random weights, to try the commands and for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options, printing

NAME = "random-model"


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The new folder; must not exist.")],
    seed: Annotated[int, typer.Option("--seed", metavar="SEED", help="Seed of the weights.")] = 0,
    as_json: options.Json = False,
) -> None:
    """Write a small untrained model.

    Its weights are random: its images and answers mean nothing.
    """
    from mobileo_mlx.checkpoints.random_model import write_random_model

    write_random_model(folder, seed=seed)
    if as_json:
        from mobileo_mlx.checkpoints.convert import describe

        printing.report(describe(folder).to_json())
    else:
        printing.out(str(folder))
