"""`mobileo-mlx ask`: an answer about one or several images."""

from __future__ import annotations

from typing import Annotated

import typer

from . import inputs, options, printing

NAME = "ask"


def command(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE... QUESTION",
            help="One or several images, then the question; - reads an image from standard input.",
        ),
    ],
    model: options.Model = None,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.SamplingSeed = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    preset: options.Preset = None,
    adapter: options.Adapter = None,
    adapter_scale: options.AdapterScale = None,
    verbose: options.Verbose = False,
) -> None:
    """Ask a question about images.

    The answer is printed as it comes.
    """
    from mobileo_mlx.errors import OptionError

    *files, question = arguments
    if not files:
        raise OptionError("give an image and a question: mobileo-mlx ask photo.jpg 'What is this?'")
    if files.count(inputs.STDIN) > 1:
        raise OptionError("only one image can be read from standard input.")
    text = inputs.read_text(question, None, name="QUESTION") if question != inputs.STDIN else None
    if text is None:
        raise OptionError("the question can't be read from standard input; give it as the last argument.")
    loading = options.loading(
        model=model,
        dtype=dtype,
        quantize=quantize,
        preset=preset,
        adapter=adapter,
        adapter_scale=adapter_scale,
    )
    images = [inputs.read_image(file) for file in files]
    loaded = options.load(**loading, keep_loaded=False)
    sampling = options.given(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    last = None
    for last in loaded.stream_ask(images, text, **sampling):
        if last.text:
            printing.out(last.text, end="")
    printing.out("")
    if verbose and last is not None:
        printing.details(last.timings, last.peak_memory)
