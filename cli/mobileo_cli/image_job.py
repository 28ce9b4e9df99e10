"""What generate and edit share: settings, replay, file names, previews, and the loop over the images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import options, output_paths, printing

if TYPE_CHECKING:
    from PIL.Image import Image

    from mobileo_mlx import GenerationResult, GenerationStep, MobileO
    from mobileo_mlx.generation_options import Task

    Stream = Iterator[GenerationStep | GenerationResult]


@dataclass
class Job:
    """Images to draw: the text, one seed and one path per image, and what goes to the library.

    Fields:
        prompt: the text.
        seeds, paths: one of each per image.
        options: keyword arguments of `stream_generate` or `stream_edit` but the seed.
        loading: keyword arguments of `MobileO.load`.
        overwrite: replace files that exist.
        previews: the folder for the images of the steps, or None.
        metadata: write the settings into the image's file.
        source: what the metadata say about the image that is edited.
        replayed: the metadata of the image that the settings come from, if there is one.
        as_json: print one JSON object instead of paths.
        named: what that image, and no option, says is to be loaded, for a note.
        verbose: print timings and peak memory.
    """

    prompt: str
    seeds: list[int]
    paths: list[Path]
    options: dict[str, Any] = field(default_factory=dict)
    loading: dict[str, Any] = field(default_factory=dict)
    overwrite: bool = False
    previews: Path | None = None
    metadata: bool = True
    source: dict[str, str] = field(default_factory=dict)
    replayed: dict[str, Any] = field(default_factory=dict)
    named: str = ""
    verbose: bool = False
    as_json: bool = False


def plan(task: Task, text: str | None, given: dict[str, Any], *, text_name: str) -> Job:
    """Reads the options and checks what can be checked before the model is loaded.

    Args:
        task: which one.
        text: None where only a replayed image can say it.
        given: the values of the parameters `options.drawing(task)`, by name.
        text_name: of the argument, for a message.

    Raises:
        MobileOError: options, files or folders that can't be.
    """
    from mobileo_mlx.errors import OptionError
    from mobileo_mlx.files import expand
    from mobileo_mlx.generation_options import OPTIONS, SPEEDS, check_options
    from mobileo_mlx.results import read_recorded

    given = options.resolve_preset(given, speeds=True)
    image, previews = given["from_image"], given["previews"]
    recorded = read_recorded(image, task) if image is not None else None
    text = recorded.prompt if text is None and recorded is not None else text
    if text is None:
        raise OptionError(f"give {text_name}, - to read it from standard input, or --prompt-file FILE.")
    chosen = options.given_options(OPTIONS[task], given)
    if given["size"] is not None:
        chosen["width"], chosen["height"] = options.parse_size(given["size"])
    seeds = chosen.pop("seed", None)
    if recorded is not None:
        chosen = {**_kept(recorded.options, chosen.get("speed")), **SPEEDS.get(chosen.get("speed", ""), {}), **chosen}
        seeds = seeds or [recorded.seed]
    if chosen.get("negative_prompt") == "":  # how a replay gets rid of one
        del chosen["negative_prompt"]
    seeds = options.expand_seeds(seeds, given["num_images"])
    check_options(task, text, chosen)
    loading = options.loading(given, recorded.loading if recorded is not None else None)
    named = "" if recorded is None else _named(image, recorded.loading, loading, given)
    loading.setdefault("model", options.DEFAULT_MODEL)
    loading["keep_loaded"] = len(seeds) > 1 if given["keep_loaded"] is None else given["keep_loaded"]
    overwrite = bool(given["overwrite"])
    paths = output_paths.plan(given["output"], prompt=text, model=loading["model"], seeds=seeds, overwrite=overwrite)
    if given["as_json"] and output_paths.STDOUT in paths:
        raise OptionError("--json and --output - both write to standard output; name a file for the image.")
    # What the model is asked about candidates may repeat the text.
    asked_again = text if chosen.get("best_of", 1) > 1 else ""
    _check_room(paths, text, chosen.get("negative_prompt", ""), asked_again, metadata=not given["no_metadata"])
    if previews is not None:
        previews = expand(previews)
        output_paths.check_folder(previews)
    return Job(
        prompt=text,
        seeds=seeds,
        paths=paths,
        options=chosen,
        loading=loading,
        overwrite=overwrite,
        previews=previews,
        metadata=not given["no_metadata"],
        replayed=recorded.metadata if recorded is not None else {},
        named=named,
        verbose=bool(given["verbose"]),
        as_json=given["as_json"],
    )


def _kept(recorded: dict[str, Any], speed: str | None) -> dict[str, Any]:
    """The recorded options that still hold where an image is made again at another speed.

    `fast` and `faster` change single values of any picture. But what belongs to a few-step adapter goes with it, and
    what does not belong to it goes where it comes.
    """
    from mobileo_mlx.generation_options import SAMPLING, TURBO

    if speed is None or (TURBO not in (speed, recorded.get("speed")) and speed != "default"):
        return recorded
    return {name: value for name, value in recorded.items() if name not in (*SAMPLING, "speed")}


def _named(image: Path, recorded: dict[str, Any], loading: dict[str, Any], given: dict[str, Any]) -> str:
    """What an image says is to be loaded, in words; somebody else may have made it.

    Raises:
        OptionError: that would be downloaded.
    """
    from mobileo_mlx.checkpoints import adapters, hub
    from mobileo_mlx.errors import OptionError

    words = []
    for name, is_here in (("model", hub.is_here), ("adapter", adapters.is_here)):
        if name not in recorded or recorded[name] != loading.get(name) or given[name]:
            continue
        values = recorded[name] if isinstance(recorded[name], list) else [recorded[name]]
        for one in values:
            if one != options.DEFAULT_MODEL and not is_here(one):
                again = " ".join(f"--{name} {value}" for value in values)  # one alone would leave out the others
                raise OptionError(
                    f"'{image}' was made with '{one}', which is not on this machine: give {again} to download it."
                )
            words.append(f"{name} '{one}'")
    return f"as '{image}' says, it is made with the {' and the '.join(words)}" if words else ""


def _check_room(paths: list[Path], *texts: str, metadata: bool) -> None:
    """Whether settings with these texts have place in the files.

    Raises:
        OptionError: they have not.
    """
    from mobileo_mlx.errors import OptionError
    from mobileo_mlx.image_settings import FORMATS, fits

    for path in paths if metadata else []:
        if not fits(FORMATS.get(path.suffix.lower(), "PNG"), *texts):
            raise OptionError(
                f"--output {path}: the text is too long for the settings in a JPEG file; end the name with .png, or "
                "give --no-metadata."
            )


def plan_one(prompt: str, *, model: str, source: dict[str, str], verbose: bool = False) -> Job:
    """One image with default settings, a random seed, and the default name in the current folder.

    Raises:
        OutputError: the current folder can't be written.
    """
    seeds = options.expand_seeds(None, None)
    paths = output_paths.plan(None, prompt=prompt, model=model, seeds=seeds)
    return Job(prompt, seeds, paths, source=source, verbose=verbose)


def draw(job: Job, model: MobileO, start: Callable[[int], Stream]) -> None:
    """Draws and saves all images, and prints where they are: each at once, or all in one JSON object."""
    drawn = []
    for path, result in run(job, model, start):
        if job.as_json:
            drawn.append(
                {
                    "path": str(path),
                    "width": result.width,
                    "height": result.height,
                    "seed": result.seeds[0],
                    "settings": {**result.metadata(0), **job.source},
                    "seconds": result.timings,
                    "peak_memory": result.peak_memory,
                }
            )
        elif path != output_paths.STDOUT:
            printing.out(str(path))
    if job.as_json:
        printing.report({"images": drawn})


def run(job: Job, model: MobileO, start: Callable[[int], Stream]) -> Iterator[tuple[Path, GenerationResult]]:
    """Draws and saves one image after the other, so that the finished ones stay when it is stopped.

    Args:
        job: what to draw.
        model: decodes the previews.
        start: the library's stream of steps for one seed.

    Yields:
        the path and the result, once it is saved.
    """
    from mobileo_mlx.image_settings import encode, save_image

    taken: set[Path] = set()
    for number, (seed, wished) in enumerate(zip(job.seeds, job.paths, strict=True), start=1):
        label = f"image {number}/{len(job.seeds)}, seed {seed}"
        previews = None
        if job.previews is not None:
            previews = Previews(job.previews, model, seed, overwrite=job.overwrite)
        stream = start(seed)  # which checks what depends on the model
        if number == 1 and job.named:
            printing.note(f"note: {job.named}.")
        result = _follow(stream, label, previews)
        image = result.images[0]
        metadata = {**result.metadata(0), **job.source} if job.metadata else None
        if wished == output_paths.STDOUT:
            path = wished
            printing.out_bytes(encode(image, "PNG", metadata))
        else:
            write = partial(save_image, image, metadata=metadata, overwrite=job.overwrite)
            path = output_paths.write_free(wished, write, overwrite=job.overwrite, taken=taken)
            taken.add(path)
        total = printing.seconds(sum(result.timings.values()))
        printing.note(f"{label}: {result.width}x{result.height}, {result.steps} steps, {total}")
        if job.verbose:
            for record in result.best_of:
                _note_scores(record, result.seeds[0])
            printing.details(result.timings, result.peak_memory, result.cache_memory)
        yield path, result
        if previews is not None:
            previews.finish()


def _note_scores(record: dict[str, Any], kept: int) -> None:
    """What the model said about the candidates of an image, and about the one that was kept."""
    for one in record["candidates"]:
        verdict = "passes" if one["passes"] else "does not pass"
        printing.note(f"candidate {one['seed']}: score {one['score']:.4f}, {verdict}{', kept' * (one['seed'] == kept)}")
    for check in record["checks"]:
        said = "" if check["answer"] == check["expected"] else f", instead of {check['expected']}"
        printing.note(f"  {check['question']} {check['answer']}{said} ({check['probability']:.0%} {check['expected']})")


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


class Previews:
    """`--previews` of one image: what the model sees at each step, saved at once, and a contact sheet at the end.

    Args:
        folder: created with the first preview; until then a failure leaves nothing behind.
        model: decodes.
        seed: of the image; begins the file names.
        overwrite: replace files that exist.
    """

    def __init__(self, folder: Path, model: MobileO, seed: int, *, overwrite: bool) -> None:
        self.folder = folder
        self.model = model
        self.seed = seed
        self.overwrite = overwrite
        self.images: list[Image] = []

    def add(self, step: GenerationStep) -> None:
        """Decodes and saves what a step predicts the image to be.

        Raises:
            OutputError: it can't be written.
        """
        (image,) = self.model.decode_latents(step.denoised)
        self.images.append(image)
        self._save(image, f"step-{step.step:02d}")

    def finish(self) -> None:
        """Saves the contact sheet.

        Raises:
            OutputError: it can't be written.
        """
        from mobileo_mlx.images import contact_sheet

        self._save(contact_sheet(self.images, math.ceil(math.sqrt(len(self.images)))), "contact-sheet")

    def _save(self, image: Image, name: str) -> None:
        from mobileo_mlx.errors import OutputError
        from mobileo_mlx.image_settings import save_image

        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"'{self.folder}' can't be made ({error.strerror}); choose another folder.") from error
        write = partial(save_image, image, overwrite=self.overwrite)
        output_paths.write_free(self.folder / f"{self.seed}-{name}.png", write, overwrite=self.overwrite)
