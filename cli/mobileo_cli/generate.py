"""`mobileo-mlx generate`: an image from a text."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from . import image_job, inputs, options

NAME = "generate"


@options.takes(options.drawing("generate"))
def command(
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="What to draw; - reads it from standard input.")
    ] = None,
    **given: Any,
) -> None:
    """Draw an image from a text.

    Prints the path of each finished image; `--output -` prints the image itself.
    """
    text = inputs.read_text(prompt, given["prompt_file"], name="PROMPT")
    job = image_job.plan("generate", text, given, text_name="PROMPT")
    model = options.load(**job.loading)

    def start(seed: int) -> image_job.Stream:
        return model.stream_generate(job.prompt, seed=seed, **job.options)

    image_job.draw(job, model, start)
