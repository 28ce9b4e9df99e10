"""What the tasks yield and return."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ._version import __version__
from .errors import ImageError, MobileOError, OptionError
from .generation_options import OPTIONS, GenerationSettings, Task, check_seed
from .images import read_metadata
from .options import declared
from .prompts import check_text

if TYPE_CHECKING:
    import mlx.core as mx
    from PIL import Image


# What a result says about its model: with these values `MobileO.load` loads it again.
LOADING: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "dtype": (str,),
    "quantize": (dict,),
    "adapter": (str, list),
    "adapter_scale": (int, float, list),
}


_MAX_NAME = 4096  # characters of a path; in a picture that somebody sent there may be anything


@dataclass(frozen=True)
class GenerationResult(GenerationSettings):
    """Finished images of one prompt, with the settings that they were made with.

    Attributes:
        model: its name where it is bundled or on the hub, else its folder's absolute path.
        images: one for each seed.
        latents: (B, h, w, latent_channels) float32, scaled: the decoder divides them by its scaling factor.
        timings: seconds in "encode" (text, image, connector), "denoise" and "decode".
        peak_memory: bytes that MLX held at most.
        cache_memory: bytes that it kept besides at the end, of what was freed; the process may hold both together.
        adapter: its folder's absolute path, or a list of them; None where there was none.
        adapter_scale: how strongly it changed the model; a list where there were several.
        dtype: that was asked for, as `checkpoints.precision.parse_dtypes` reads it; None where the default was.
        quantize: the bits that were asked for, by component; None where the model was taken as it is stored.
        best_of: of each image its candidates and what the model said of it, as JSON can hold it; empty where there was
            one candidate. See `mobileo_mlx.best_of.candidates`.
    """

    model: str
    images: list[Image.Image]
    latents: mx.array
    timings: dict[str, float]
    peak_memory: int
    adapter: str | list[str] | None = None
    adapter_scale: float | list[float] = 1.0
    dtype: str | None = None
    quantize: dict[str, int] | None = None
    cache_memory: int = 0
    best_of: tuple[dict[str, Any], ...] = ()

    def metadata(self, index: int = 0) -> dict[str, Any]:
        """Everything that makes image `index` again, as JSON can hold it."""
        loading = {name: getattr(self, name) for name in LOADING}
        if self.adapter is None:
            del loading["adapter"], loading["adapter_scale"]
        options = {name: value for name, value in self.options.items() if name != "speed" or value is not None}
        return {
            "software": f"mobileo-mlx {__version__}",
            **loading,
            "task": self.task,
            "prompt": self.prompt,
            **options,
            "seed": self.seeds[index] if self.seeds else None,
            **({"best_of": self.best_of[index]} if self.best_of else {}),
        }


@dataclass(frozen=True)
class Recorded:
    """How an image was made, read from its file.

    Attributes:
        prompt: the text.
        seed: of the noise.
        options: keyword arguments of the task but the seed, as far as they were recorded.
        loading: keyword arguments of `MobileO.load`, likewise.
        metadata: all that the file holds.
    """

    prompt: str
    seed: int
    options: dict[str, Any]
    loading: dict[str, Any]
    metadata: dict[str, Any]


def read_recorded(file: Path, task: Task) -> Recorded:
    """What `GenerationResult.metadata` of the same task said about an image.

    Raises:
        ImageError: no metadata of ours, of another task, or with values that can't be.
    """
    metadata = read_metadata(file)
    values = {name: value for name, value in metadata.items() if value is not None}
    made_by = values.get("task", task)
    if made_by != task and made_by in tuple(OPTIONS):
        raise ImageError(f"{file}: made by '{made_by}'; replay it with that command.")
    options = {name: option for name, option in declared(OPTIONS[task]).items() if option.recorded}
    checks = {"prompt": _check_prompt, "seed": check_seed, **{name: o.checked for name, o in options.items()}}
    checks |= {name: partial(_check_loading, types) for name, types in LOADING.items()}
    wrong = [] if made_by == task else ["task"]
    wrong += [name for name in ("prompt", "seed") if name not in values]
    for name in checks.keys() & values.keys():
        try:
            checks[name](values[name])
        except MobileOError:
            wrong.append(name)
    if wrong:
        raise ImageError(f"{file}: its metadata has no valid {', '.join(sorted(wrong))}; it can't be replayed.")
    return Recorded(
        values["prompt"],
        values["seed"],
        {name: values[name] for name in options if name in values},
        {name: values[name] for name in LOADING if name in values},
        metadata,
    )


def _check_prompt(value: Any) -> None:
    if not isinstance(value, str):
        raise OptionError("a prompt is a text")
    check_text(value)


def _check_loading(types: tuple[type, ...], value: Any) -> None:
    for one in value if isinstance(value, list) and list in types else [value]:
        odd = isinstance(one, dict) and any(type(bits) is not int for bits in one.values())
        odd |= isinstance(one, str) and len(one) > _MAX_NAME
        if odd or not isinstance(one, types) or isinstance(one, bool | list):
            raise OptionError("it has another type")


@dataclass(frozen=True)
class AnswerToken:
    """One token of an answer.

    Attributes:
        text: what to print now; "" while a character is incomplete and for control tokens.
        token: the id.
        finish_reason: in the last one "stop" (the model or a stop text ended the answer) or "length" (`max_tokens`),
            else None.
        prompt_tokens: positions of the prompt that were computed for this answer, image features among them.
        timings: in the last one seconds in "vision", "prefill" (to the first token) and "decode" (the rest).
        peak_memory: in the last one, bytes that MLX held at most.
        cache_memory: in the last one, bytes that it kept besides at the end, of what was freed.
        cached_tokens: positions of the prompt that were known already, besides those that were computed.
    """

    text: str
    token: int
    finish_reason: Literal["stop", "length"] | None
    prompt_tokens: int
    timings: dict[str, float] = field(default_factory=dict)
    peak_memory: int = 0
    cache_memory: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True)
class Answer:
    """A finished answer; the attributes are those of `AnswerToken`, with the whole `text` and all `tokens`."""

    text: str
    tokens: list[int]
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    timings: dict[str, float]
    peak_memory: int
    cache_memory: int = 0
    cached_tokens: int = 0

    @classmethod
    def of(cls, stream: list[AnswerToken]) -> Answer:
        """Joins a finished stream."""
        last = stream[-1]
        return cls(
            text="".join(token.text for token in stream).strip(),
            tokens=[token.token for token in stream],
            finish_reason=last.finish_reason or "stop",
            prompt_tokens=last.prompt_tokens,
            timings=last.timings,
            peak_memory=last.peak_memory,
            cache_memory=last.cache_memory,
            cached_tokens=last.cached_tokens,
        )


@dataclass(frozen=True)
class Message:
    """One turn of a chat; `images` says how many were shown with it."""

    role: Literal["user", "assistant"]
    content: str
    images: int = 0
