"""`mobileo-mlx generate`: an image from a text."""

from __future__ import annotations

from typing import Annotated

import typer

from . import image_job, inputs, options, printing

NAME = "generate"


def command(
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="What to draw; - reads it from standard input.")
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
    """Draw an image from a text.

    Prints the path of each finished image.
    """
    job = image_job.plan(
        NAME,
        inputs.read_text(prompt, prompt_file, name="PROMPT"),
        text_name="PROMPT",
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
    )
    keep_loaded = len(job.seeds) > 1 if keep_loaded is None else keep_loaded
    loaded = options.load(**job.loading, keep_loaded=keep_loaded)

    def start(seed: int) -> image_job.Stream:
        return loaded.stream_generate(job.prompt, seed=seed, **job.settings)

    for path, _ in image_job.run(job, loaded, start):
        printing.out(str(path))
