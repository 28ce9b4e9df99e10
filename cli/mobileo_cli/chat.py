"""`mobileo-mlx chat`: a conversation with images, in the terminal or through a pipe."""

from __future__ import annotations

import sys

from . import options, printing

NAME = "chat"


def command(
    model: options.Model = None,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.SamplingSeed = None,
    dtype: options.Dtype = None,
    quantize: options.Quantize = None,
    preset: options.Preset = None,
    keep_loaded: options.KeepLoadedInChat = True,
    adapter: options.Adapter = None,
    adapter_scale: options.AdapterScale = None,
    verbose: options.Verbose = False,
) -> None:
    """Talk about images, draw and edit them.

    /help lists the commands.
    """
    from . import history
    from .chat_session import HELP, Session

    loading = options.loading(
        model=model,
        dtype=dtype,
        quantize=quantize,
        preset=preset,
        adapter=adapter,
        adapter_scale=adapter_scale,
    )
    loaded = options.load(**loading, keep_loaded=keep_loaded)
    sampling = options.given(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    session = Session(loaded, sampling=sampling, verbose=verbose)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if interactive:
        history.enable()
        printing.note(f"{HELP.splitlines()[0]} /help lists all commands; Ctrl-D ends.")
    while True:
        try:
            line = input("> " if interactive else "")
        except EOFError:
            if interactive:
                printing.out("")
            return
        except KeyboardInterrupt:
            # At the prompt it drops the line that was being typed; a pipe has no prompt.
            if not interactive:
                raise
            printing.out("")
            printing.note("Ctrl-D or /quit ends the chat.")
            continue
        if not session.handle(line):
            return
