"""`mobileo-mlx eval`: the benchmarks of the paper."""

from __future__ import annotations

from collections.abc import Callable

from . import eval_drawing, eval_geneval, eval_understanding

NAME = "eval"
HELP = "Run the benchmarks of the paper: GenEval, seven of visual questions, DPG-Bench, ImgEdit-Bench."

COMMANDS: dict[str, Callable[..., None]] = {
    "geneval": eval_geneval.geneval,
    "geneval-score": eval_geneval.score,
    "understanding": eval_understanding.understanding,
    "dpg": eval_drawing.dpg,
    "imgedit": eval_drawing.imgedit,
}
