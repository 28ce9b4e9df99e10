"""`mobileo-mlx edit`: an image changed as a text says."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from . import image_job, inputs, options, printing

NAME = "edit"


@options.takes(options.drawing("edit"))
def command(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="The image to edit; - reads it from standard input.")],
    instruction: Annotated[
        str | None,
        typer.Argument(metavar="INSTRUCTION", help="What to change; - reads it from standard input."),
    ] = None,
    **given: Any,
) -> None:
    """Change an image as a text says.

    Prints the path of each finished image; `--output -` prints the image itself.
    """
    from mobileo_mlx.errors import OptionError
    from mobileo_mlx.images import source_of

    if image == instruction == inputs.STDIN:
        raise OptionError("only one of IMAGE and INSTRUCTION can be read from standard input.")
    text = inputs.read_text(instruction, given["prompt_file"], name="INSTRUCTION")
    job = image_job.plan("edit", text, given, text_name="INSTRUCTION")
    source = inputs.read_image(image)  # before the model: a broken image is known at once
    job.source = source_of(source, image)
    if job.replayed and job.replayed.get("image_sha256") != job.source["image_sha256"]:
        printing.note(f"note: '{given['from_image']}' was made from another image than '{image}'.")
    model = options.load(**job.loading)

    def start(seed: int) -> image_job.Stream:
        return model.stream_edit(source, job.prompt, seed=seed, **job.options)

    image_job.draw(job, model, start)
