"""`mobileo-mlx ask`: an answer about one or several images."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from . import inputs, options, printing

NAME = "ask"


@options.takes(options.answering())
def command(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE... QUESTION",
            help="One or several images, then the question; - reads an image from standard input.",
        ),
    ],
    as_json: options.Json = False,
    **given: Any,
) -> None:
    """Ask a question about images.

    The answer is printed as it comes.
    """
    from mobileo_mlx.errors import OptionError
    from mobileo_mlx.generation_options import AnswerOptions

    *files, question = arguments
    if not files:
        raise OptionError("give an image and a question: mobileo-mlx ask photo.jpg 'What is this?'")
    if files.count(inputs.STDIN) > 1:
        raise OptionError("only one image can be read from standard input.")
    text = inputs.read_text(question, None, name="QUESTION") if question != inputs.STDIN else None
    if text is None:
        raise OptionError("the question can't be read from standard input; give it as the last argument.")
    given = options.resolve_preset(given)
    answering = options.given_options(AnswerOptions, given)
    loading = options.loading(given)
    images = [inputs.read_image(file) for file in files]
    loaded = options.load(**loading, keep_loaded=False)
    if as_json:
        printing.report(dataclasses.asdict(loaded.ask(images, text, **answering)))
        return
    last = None
    with printing.Answer() as answer:
        for last in loaded.stream_ask(images, text, **answering):
            answer.add(last.text)
    if given["verbose"] and last is not None:
        printing.details(last.timings, last.peak_memory, last.cache_memory)
