"""Parameters of the commands: those of a task as the library declares them, and those that only a command has.

Defaults are None throughout: an option that is not given is not passed on, so that the library's own defaults
hold, and `--from-image` can tell what was given.
"""

from __future__ import annotations

import inspect
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, TypeVar, get_type_hints

import typer

from mobileo_mlx.generation_options import OPTIONS, AnswerOptions, Task
from mobileo_mlx.options import Option, declared, shown

from . import printing

if TYPE_CHECKING:
    from mobileo_mlx import MobileO

DEFAULT_MODEL = "Amshaker/Mobile-O-0.5B"

Command = TypeVar("Command", bound=Callable[..., None])
Parameters = list[inspect.Parameter]

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="A bundled name, a folder (upstream's layout or ours), or a repository on the hub. "
        f"[default: {DEFAULT_MODEL}]",
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option("--quantize", metavar="PART=BITS,...", help="Quantize parts while loading, e.g. llm=4,dit=8."),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="NAME",
        help="Bits of all parts at once: small, balanced or full; --quantize changes single parts.",
    ),
]
Preset = Annotated[str | None, typer.Option("--preset", metavar="NAME", hidden=True)]
Adapter = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="ADAPTER",
        help="Apply an adapter of finetune, the PEFT library or mlx-lm: a folder, or a repository on the hub. May "
        "be given several times.",
    ),
]
AdapterScale = Annotated[
    list[float] | None,
    typer.Option(
        "--adapter-scale",
        metavar="X",
        help="How strongly an adapter changes the model: 0 not at all, 1 as trained; once for all adapters, or once "
        "for each. [default: 1]",
    ),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show timings per phase and peak memory on standard error.")
]

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object; all that is said besides goes to standard error.")
]
Progress = Annotated[
    str | None,
    typer.Option(
        "--progress",
        metavar="HOW",
        help="auto: a bar, in a terminal; json: a JSON object a line on standard error; none. [default: auto]",
    ),
]


class Loading(TypedDict, total=False):
    """How a model is loaded. All of it goes to `MobileO.load`, but for `preset`, the old spelling."""

    model: Model
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="DTYPE",
            help="Compute in float16, bfloat16 or float32; or a part in each, e.g. dit=float16,vae=float32. "
            "[default: by part and device]",
        ),
    ]
    quantize: Quantize
    precision: Precision
    preset: Preset
    adapter: Adapter
    adapter_scale: AdapterScale


class Text(TypedDict, total=False):
    """Where the text of an image comes from, beside the argument."""

    prompt_file: Annotated[
        Path | None, typer.Option("--prompt-file", metavar="FILE", help="Read the text from a file.")
    ]
    from_image: Annotated[
        Path | None,
        typer.Option(
            "--from-image",
            metavar="FILE",
            help="Take text and settings from an image's metadata; options that are given win.",
        ),
    ]


class Images(TypedDict, total=False):
    """How many images of which size."""

    num_images: Annotated[
        int | None,
        typer.Option("--num-images", "-n", metavar="N", help="Images per seed: seed, seed+1, and so on. [default: 1]"),
    ]
    size: Annotated[
        str | None,
        typer.Option(
            "--size", metavar="WxH", help="Width and height in pixels, multiples of 32. [default: the model's]"
        ),
    ]


class Output(TypedDict, total=False):
    """What is written."""

    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATTERN",
            help="Name of the image, with {prompt}, {seed}, {index} and {model}; or a folder; or - for standard "
            "output. It ends with .png, .jpg or .webp. A name that is taken gets -1, -2, ... "
            "[default: {prompt}-{seed}.png]",
        ),
    ]
    overwrite: Annotated[bool | None, typer.Option("--overwrite", help="Replace files that exist.")]
    previews: Annotated[
        Path | None,
        typer.Option(
            "--previews", metavar="DIR", help="Also save what the model sees at each step, and a contact sheet of it."
        ),
    ]
    no_metadata: Annotated[
        bool | None, typer.Option("--no-metadata", help="Do not write prompt and settings into the image.")
    ]


def takes(*groups: Parameters) -> Callable[[Command], Command]:
    """Gives a command the parameters of groups, in the place of its `**given`."""

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
        parameters = [*own, *(parameter for group in groups for parameter in group)]
        # Where typer looks for them.
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def group(declaration: type) -> Parameters:
    """The parameters of a TypedDict of typer's options."""
    return [_parameter(name, kind) for name, kind in get_type_hints(declaration, include_extras=True).items()]


def derived(options: Iterable[Option]) -> Parameters:
    """The parameters of options that the library declares."""
    return [_parameter(option.name, _annotation(option)) for option in options if option.on_command]


def drawing(task: Task) -> Parameters:
    """All that generate and edit take, beside their arguments."""
    return [
        *group(Text),
        *derived(declared(OPTIONS[task]).values()),
        *group(Images),
        *group(Output),
        *group(Loading),
        keeping("staged for one image"),
        _parameter("verbose", Verbose),
        _parameter("as_json", Json, False),
    ]


def answering(*, keep_loaded: bool = False) -> Parameters:
    """All that ask takes beside its arguments; with `keep_loaded`, which it has no use for, all that chat takes."""
    return [
        *group(Loading),
        *derived(declared(AnswerOptions).values()),
        *([keeping("keep-loaded")] if keep_loaded else []),
        _parameter("verbose", Verbose),
    ]


def keeping(default: str) -> inspect.Parameter:
    """Whether networks stay in memory; `default` says in the help what is done where it is not given."""
    text = (
        "Keep all parts in memory (faster for several images), or free each after use (about half the memory). "
        f"[default: {default}]"
    )
    return _parameter("keep_loaded", Annotated[bool | None, typer.Option("--keep-loaded/--staged", help=text)])


def progress() -> Parameters:
    """How progress is shown."""
    return [_parameter("progress", Progress)]


def _parameter(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _annotation(option: Option) -> Any:
    kind: Any = list[int] if option.several else str if option.read else option.kind
    default = option.default_help or ("random" if option.several else option.default)
    if kind is bool:
        default = None  # a flag that is not given
    shown = "" if default is None else f" [default: {default}]"
    return Annotated[kind | None, typer.Option(option.flag, metavar=option.metavar, help=option.help + shown)]


def given(names: Iterable[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """The options of these names that are not None."""
    return {name: values[name] for name in names if values.get(name) is not None}


def given_options(options: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the library declares and that are given, read where they are texts.

    Raises:
        OptionError: a text is malformed.
    """
    known = declared(options)
    found = given(known, values)
    return {name: known[name].parse(value) if known[name].read else value for name, value in found.items()}


def loading(values: Mapping[str, Any], recorded: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Keyword arguments of `MobileO.load`: the options that are given, else what an image's metadata say.

    Raises:
        OptionError: a malformed quantization, or a scale of no adapter.
    """
    from mobileo_mlx.checkpoints.quantize import parse_quantize
    from mobileo_mlx.errors import OptionError

    arguments = given(Loading.__annotations__, values)
    if "quantize" in arguments:
        arguments["quantize"] = parse_quantize(arguments["quantize"])
    known = dict(recorded or {})
    if "quantize" in arguments or "precision" in arguments:
        known.pop("quantize", None)
    if "adapter" in arguments:
        known.pop("adapter_scale", None)  # it was another adapter's
        arguments["adapter"] = [name for name in arguments["adapter"] if name]  # "": how a replay gets rid of one
    arguments = {**known, **arguments}
    if not arguments.get("adapter"):
        arguments.pop("adapter", None)
        if "adapter_scale" in arguments:
            raise OptionError("--adapter-scale is that of an adapter: give --adapter DIR, too.")
    return arguments


def load(model: str = DEFAULT_MODEL, **arguments: Any) -> MobileO:
    """The model, with download bars where somebody can see them.

    Raises:
        MobileOError: no such model, not reachable, damaged, or a precision that can't be.
    """
    from mobileo_mlx import MobileO

    loaded = MobileO.load(model, progress=printing.draws_bars(), **arguments)
    for sentence in loaded.notes:
        printing.note(f"note: {sentence}")
    printing.note_slow_blas()
    printing.note_hidden_cuda()
    return loaded


def parse_size(text: str) -> tuple[int, int]:
    """`512x384` as width and height.

    Raises:
        OptionError: not of the form WIDTHxHEIGHT.
    """
    from mobileo_mlx.errors import OptionError

    match = re.fullmatch(r"([0-9]{1,9})[xX×]([0-9]{1,9})", text.strip())
    if match is None:
        raise OptionError(f"--size {text}: write WIDTHxHEIGHT in pixels, for example 512x512.")
    return int(match[1]), int(match[2])


def resolve_preset(values: dict[str, Any], *, speeds: bool = False) -> dict[str, Any]:
    """The options with `--preset`, the old spelling, as `precision` and `speed`; a note says so.

    Args:
        values: options by name.
        speeds: whether there is a `speed`, too: in `small,fast` one of each can be.

    Raises:
        OptionError: an unknown name, two of a kind, or the new spelling beside the old one.
    """
    from mobileo_mlx.checkpoints.quantize import PRECISIONS
    from mobileo_mlx.errors import OptionError
    from mobileo_mlx.generation_options import SPEEDS

    values = dict(values)
    text = values.pop("preset")
    if text is None:
        return values
    tables: dict[str, Iterable[str]] = {"precision": PRECISIONS, **({"speed": SPEEDS} if speeds else {})}
    names = [name.strip() for name in text.split(",")]
    known = [name for table in tables.values() for name in table]
    if unknown := [name for name in names if name not in known]:
        raise OptionError(f"there is no preset {unknown[0]!r}; there are {', '.join(known)}.")
    instead = []
    for option, table in tables.items():
        chosen = [name for name in names if name in table]
        if len(chosen) > 1:
            raise OptionError(f"--preset {text}: only one of {', '.join(chosen)} can be.")
        if chosen and values[option] is not None:
            raise OptionError(f"--preset is the old spelling of --{option}; give only --{option}.")
        if chosen:
            values[option] = chosen[0]
            instead.append(f"--{option} {chosen[0]}")
    printing.note(f"note: --preset is now {' '.join(instead)}.")
    return values


def expand_seeds(seeds: Sequence[int] | None, count: int | None) -> list[int]:
    """The seeds of all images: `count` in a row from each given seed, or from a random one; no repeats.

    Raises:
        OptionError: `count` is not from 1 to 10000, or a seed is out of range.
    """
    from mobileo_mlx.errors import OptionError

    count = 1 if count is None else count
    if not 1 <= count <= 10_000:
        raise OptionError(f"--num-images {count}: choose a number from 1 to 10000.")
    if wrong := [seed for seed in seeds or () if not 0 <= seed <= 2**64 - count]:
        raise OptionError(f"--seed {shown(wrong[0])}: choose a number from 0 to 2**64 - {count}.")
    starts = list(seeds) if seeds else [secrets.randbelow(2**32)]
    return list(dict.fromkeys(start + i for start in starts for i in range(count)))
