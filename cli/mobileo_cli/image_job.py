"""What generate and edit share: settings, replay, file names, previews, and the loop over the images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import options, output_paths, printing
from .previews import Previews

if TYPE_CHECKING:
    from PIL.Image import Image

    from mobileo_mlx import GenerationResult, GenerationStep, MobileO

    Stream = Iterator[GenerationStep | GenerationResult]

# What a replay takes from the metadata, besides the prompt and the seed, with its type.
SETTINGS: dict[str, type | tuple[type, ...]] = {
    "steps": int,
    "guidance_scale": (int, float),
    "guidance_interval": list,
    "scheduler": str,
    "flow_shift": (int, float),
    "width": int,
    "height": int,
    "negative_prompt": str,
}
# And for `edit`.
EDITING: dict[str, type | tuple[type, ...]] = {"strength": (int, float)}
# The same for loading the model.
LOADING: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "dtype": str,
    "quantize": dict,
    "adapter": str,
    "adapter_scale": (int, float),
}


@dataclass
class Job:
    """Images to draw: the text, one seed and one path per image, and what goes to the library.

    Fields:
        prompt: the text.
        seeds, paths: one of each per image.
        settings: keyword arguments of `stream_generate` or `stream_edit` but the seed.
        loading: keyword arguments of `MobileO.load`.
        overwrite: replace files that exist.
        previews: the folder for the images of the steps, or None.
        metadata: write the settings into the PNG.
        source: what the metadata say about the image that is edited.
        verbose: print timings and peak memory.
    """

    prompt: str
    seeds: list[int]
    paths: list[Path]
    settings: dict[str, Any] = field(default_factory=dict)
    loading: dict[str, Any] = field(default_factory=dict)
    overwrite: bool = False
    previews: Path | None = None
    metadata: bool = True
    source: dict[str, str] = field(default_factory=dict)
    verbose: bool = False


def recorded(file: Path, task: str) -> dict[str, Any]:
    """The prompt and settings that an image of the same task was made with.

    Raises:
        ImageError: no metadata of ours, of another command, or damaged.
    """
    from mobileo_mlx.errors import ImageError
    from mobileo_mlx.images import read_metadata

    values = {name: value for name, value in read_metadata(file).items() if value is not None}
    if values.get("task", task) != task:
        raise ImageError(f"{file}: made by '{values['task']}'; replay it with that command.")
    types = {"prompt": str, "seed": int, **SETTINGS, **(EDITING if task == "edit" else {}), **LOADING}
    wrong = [name for name in types if name in values and not isinstance(values[name], types[name])]
    wrong += [name for name in ("prompt", "seed") if name not in values]
    if wrong:
        raise ImageError(f"{file}: its metadata has no valid {', '.join(wrong)}; it can't be replayed.")
    return {name: values[name] for name in types if name in values}


def source_of(image: Image, name: str) -> dict[str, str]:
    """Which image an edit started from, for its metadata: a replay needs the same one. Not in which folder it lies."""
    return {"image": Path(name).name, "image_sha256": hashlib.sha256(image.tobytes()).hexdigest()}


def plan(
    task: str,
    text: str | None,
    *,
    text_name: str,
    model: str | None,
    dtype: str | None,
    quantize: str | None,
    preset: str | None,
    adapter: str | None,
    adapter_scale: float | None,
    seed: list[int] | None,
    num_images: int | None,
    size: str | None,
    guidance_interval: str | None,
    output: str | None,
    overwrite: bool,
    previews: Path | None,
    no_metadata: bool,
    from_image: Path | None,
    verbose: bool,
    **settings: object,
) -> Job:
    """Reads the options and checks what can be checked before the model is loaded.

    Raises:
        MobileOError: options, files or folders that can't be.
    """
    from mobileo_mlx.errors import OptionError
    from mobileo_mlx.generation_options import sampling_preset
    from mobileo_mlx.prompts import check_text

    bits_preset, drawing_preset = options.parse_preset(preset)

    known = recorded(from_image, task) if from_image is not None else {}
    text = known.get("prompt") if text is None else text
    if text is None:
        raise OptionError(f"give {text_name}, - to read it from standard input, or --prompt-file FILE.")
    check_text(text, text_name.lower())
    given = {**options.given(**settings), **options.parse_size(size), **options.parse_interval(guidance_interval)}
    chosen = {**known, **sampling_preset(drawing_preset), **given}
    if chosen.get("negative_prompt") == "":  # how a replay gets rid of one
        del chosen["negative_prompt"]
    loading = options.loading(
        model=model,
        dtype=dtype,
        quantize=quantize,
        preset=bits_preset,
        adapter=adapter,
        adapter_scale=adapter_scale,
        known={name: known[name] for name in LOADING if name in known},
    )
    loading.setdefault("model", options.DEFAULT_MODEL)
    seeds = options.expand_seeds(seed or ([known["seed"]] if "seed" in known else None), num_images)
    paths = output_paths.plan(output, prompt=text, model=loading["model"], seeds=seeds, overwrite=overwrite)
    if previews is not None:
        output_paths.check_folder(previews)
    return Job(
        prompt=text,
        seeds=seeds,
        paths=paths,
        settings={name: chosen[name] for name in (*SETTINGS, *EDITING) if name in chosen},
        loading=loading,
        overwrite=overwrite,
        previews=previews,
        metadata=not no_metadata,
        verbose=verbose,
    )


def plan_one(prompt: str, *, model: str, source: dict[str, str], verbose: bool = False) -> Job:
    """One image with default settings, a random seed, and the default name in the current folder.

    Raises:
        OutputError: the current folder can't be written.
    """
    seeds = options.expand_seeds(None, None)
    paths = output_paths.plan(None, prompt=prompt, model=model, seeds=seeds)
    return Job(prompt, seeds, paths, source=source, verbose=verbose)


def run(job: Job, model: MobileO, start: Callable[[int], Stream]) -> Iterator[tuple[Path, Image]]:
    """Draws and saves one image after the other, so that the finished ones stay when it is stopped.

    Args:
        job: what to draw.
        model: decodes the previews.
        start: the library's stream of steps for one seed.

    Yields:
        the path and the image, once it is saved.
    """
    from mobileo_mlx.images import save_png

    taken: set[Path] = set()
    for number, (seed, wished) in enumerate(zip(job.seeds, job.paths, strict=True), start=1):
        label = f"image {number}/{len(job.seeds)}, seed {seed}"
        previews = None
        if job.previews is not None:
            previews = Previews(job.previews, model, seed, overwrite=job.overwrite)
        result = _follow(start(seed), label, previews)
        path = output_paths.free(wished, overwrite=job.overwrite, taken=taken)
        taken.add(path)
        metadata = {**result.metadata(0), **job.source} if job.metadata else None
        save_png(result.images[0], path, metadata, overwrite=job.overwrite)
        total = printing.seconds(sum(result.timings.values()))
        printing.note(f"{label}: {result.width}x{result.height}, {result.steps} steps, {total}")
        if job.verbose:
            printing.details(result.timings, result.peak_memory)
        yield path, result.images[0]
        if previews is not None:
            previews.finish()


def _follow(stream: Stream, label: str, previews: Previews | None) -> GenerationResult:
    """Runs one image to its end under a progress bar."""
    from mobileo_mlx import GenerationResult

    with printing.Progress(label) as progress:
        for item in stream:
            if isinstance(item, GenerationResult):
                return item
            if previews is not None:
                previews.add(item)
            progress.update(item.step, item.steps)
    raise RuntimeError("the stream of steps ended without a result")
