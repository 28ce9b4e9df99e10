"""`mobileo-mlx edit`: an image changed as a text says."""

from __future__ import annotations

from typing import Annotated

import typer

from . import image_job, inputs, options, printing

NAME = "edit"


def command(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="The image to edit; - reads it from standard input.")],
    instruction: Annotated[
        str | None,
        typer.Argument(metavar="INSTRUCTION", help="What to change; - reads it from standard input."),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            "--strength",
            metavar="X",
            help="Start from the image itself at this noise level, above 0 and up to 1; small values keep "
            "more of it. [default: from pure noise]",
        ),
    ] = None,
    prompt_file: options.PromptFile = None,
    model: options.Model = None,
    seed: options.Seed = None,
    num_images: options.NumImages = None,
    steps: options.Steps = None,
    guidance_scale: options.GuidanceScale = None,
    guidance_interval: options.GuidanceInterval = None,
    scheduler: options.Scheduler = None,
    flow_shift: options.FlowShift = None,
    size: options.Size = None,
    negative_prompt: options.NegativePrompt = None,
    output: options.Output = None,
    overwrite: options.Overwrite = False,
    previews: options.Previews = None,
    no_metadata: options.NoMetadata = False,
    from_image: options.FromImage = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    preset: options.DrawingPreset = None,
    keep_loaded: options.KeepLoaded = None,
    adapter: options.Adapter = None,
    adapter_scale: options.AdapterScale = None,
    verbose: options.Verbose = False,
) -> None:
    """Change an image as a text says.

    Prints the path of each finished image.
    """
    from mobileo_mlx.errors import OptionError
    from mobileo_mlx.images import read_metadata

    if image == instruction == inputs.STDIN:
        raise OptionError("only one of IMAGE and INSTRUCTION can be read from standard input.")
    job = image_job.plan(
        NAME,
        inputs.read_text(instruction, prompt_file, name="INSTRUCTION"),
        text_name="INSTRUCTION",
        model=model,
        dtype=dtype,
        quantize=quantize,
        preset=preset,
        adapter=adapter,
        adapter_scale=adapter_scale,
        seed=seed,
        num_images=num_images,
        size=size,
        output=output,
        overwrite=overwrite,
        previews=previews,
        no_metadata=no_metadata,
        from_image=from_image,
        verbose=verbose,
        steps=steps,
        guidance_scale=guidance_scale,
        guidance_interval=guidance_interval,
        scheduler=scheduler,
        flow_shift=flow_shift,
        negative_prompt=negative_prompt,
        strength=strength,
    )
    source = inputs.read_image(image)  # before the model: a broken image is known at once
    job.source = image_job.source_of(source, image)
    if from_image is not None and read_metadata(from_image).get("image_sha256") != job.source["image_sha256"]:
        printing.note(f"note: '{from_image}' was made from another image than '{image}'.")
    keep_loaded = len(job.seeds) > 1 if keep_loaded is None else keep_loaded
    loaded = options.load(**job.loading, keep_loaded=keep_loaded)

    def start(seed: int) -> image_job.Stream:
        return loaded.stream_edit(source, job.prompt, seed=seed, **job.settings)

    for path, _ in image_job.run(job, loaded, start):
        printing.out(str(path))
