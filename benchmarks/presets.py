"""What the presets cost: `python -m benchmarks.presets --model tiny --n 1000`.

Every preset beside the default (20 steps of DPM-Solver++, guidance in all of them, weights as they are stored): the
same prompts, edits and questions of the shapes world, the same seeds, the same scorer. For each
how often it is right, the difference in points with its 95 % interval, what only one of the two had right, passes of
the diffusion transformer, and processor time per sample on one thread. A preset of drawing may lose a point at most:
where the lower end of an interval is below -1 it is not to be offered. Drawings are computed 25 at a time, each with
its own prompt, which gives the same pictures in less than half the time.

What presets could be made of is tried in the same way, in tables of its own:

    python -m benchmarks.presets --n 1000 --quantize llm=4 --quantize dit=4 --drawing steps=8,guidance_interval=0:0.97

Bits are tried only in the tasks whose components they change. What they cost the small model is a sign of what they
cost the published ones, and no more: its layers are 128 to 160 wide, so that errors average out over fewer products,
and those of its diffusion transformer are quantized in groups of 32 instead of 64, which is finer.

Writes presets.json and presets.md; rows that are there stay, where they are not measured again. Each sample goes to
presets-samples-*.jsonl, from where a stopped run goes on.
Exit status: 0 done, 2 it can't be done.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import common
from .paired_stats import BATCH, DEFAULT, TITLES, Sample, Variant, VariantSamples, markdown, merged, rows
from .preset_variants import tried_bits, tried_drawing, variants

if TYPE_CHECKING:
    import numpy as np

    from mobileo_mlx import MobileO
    from mobileo_mlx.models.sana_cross_attention import TextInput


def measured(
    model_name: str,
    chosen: Sequence[Variant],
    counts: Mapping[str, int],
    seed: int,
    folder: Path,
    share: tuple[int, int] = (0, 1),
) -> VariantSamples:
    """Runs samples through every variant; of each task those whose index is `share[0]` modulo `share[1]`.

    Args:
        model_name: what `MobileO.load` takes.
        chosen: see `variants`.
        counts: of samples, by task.
        seed: of all samples and of their noise; each has its own, whatever the counts and the share are.
        folder: of the samples that are kept; what an earlier run has left there is not measured again.
    """
    from mobileo_mlx import MobileO
    from mobileo_mlx.checkpoints.adapters import Adapter
    from mobileo_mlx.checkpoints.digests import adapter_digest

    models = {
        (str(variant.bits), variant.adapter): MobileO.load(
            model_name, quantize=dict(variant.bits), adapter=variant.adapter or None
        )
        for variant in chosen
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"presets-samples-{share[0]}-of-{share[1]}.jsonl"
    kept, warm = _kept(path), set[tuple[str, str]]()
    found: VariantSamples = {}
    for task, count in counts.items():
        changed = [variant for variant in chosen if variant.name == DEFAULT or variant.changes(task)]
        found[task] = {variant.name: [] for variant in changed}
        indices = range(share[0], count, share[1])
        for begin in range(0, len(indices), BATCH):
            some = indices[begin : begin + BATCH]
            for variant in changed:
                settings = [model_name, dict(variant.drawing), dict(variant.bits), task]
                settings += [adapter_digest(Adapter.open(variant.adapter))] if variant.adapter else []
                keys = {index: json.dumps([*settings, _entropy(task, seed, index)]) for index in some}
                missing = [index for index in some if keys[index] not in kept]
                run = partial(_RUN[task], models[str(variant.bits), variant.adapter], variant.drawing, seed=seed)
                if missing and (task, variant.name) not in warm:
                    run(missing[:1])  # weights are read
                    warm.add((task, variant.name))
                with path.open("a", encoding="utf-8") as lines:
                    for index, sample in zip(missing, run(missing) if missing else (), strict=True):
                        kept[keys[index]] = sample
                        lines.write(json.dumps([keys[index], *vars(sample).values()]) + "\n")
                found[task][variant.name] += [kept[keys[index]] for index in some]
            common.say(_progress(task, begin + len(some), len(indices), found[task]))
    return found


def _kept(path: Path) -> dict[str, Sample]:
    """The samples of an earlier run; a line that was torn when it was stopped is left out."""
    kept = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            key, right, passes, seconds = json.loads(line)
        except ValueError:
            continue
        kept[key] = Sample(right, passes, seconds)
    return kept


def _progress(task: str, done: int, of: int, found: Mapping[str, Sequence[Sample]]) -> str:
    counts = []
    for name, samples in found.items():
        pairs = [(a.right, b.right) for a, b in zip(found[DEFAULT], samples, strict=True)]
        lost, won = pairs.count((True, False)), pairs.count((False, True))
        counts.append(f"{name} {sum(sample.right for sample in samples)} (-{lost} +{won})")
    return f"{TITLES[task]} {done}/{of}: {', '.join(counts)}"


def _generator(task: str, seed: int, index: int) -> np.random.Generator:
    """Of a sample of its own, whatever the counts and the share are."""
    import numpy as np

    return np.random.default_rng(_entropy(task, seed, index))


def _entropy(task: str, seed: int, index: int) -> list[int]:
    return [seed, zlib.crc32(task.encode()), index]


@dataclass(frozen=True)
class Wanted:
    """A picture that is to be drawn: from what, and whether one is right."""

    text: str
    before: Any  # the image to be edited, or None
    seed: int
    right: Callable[[Any], bool]


def wanted(task: str, side: int, seed: int, index: int) -> Wanted:
    """The caption or edit of an index, and the seed of its noise; images have this side in pixels."""
    from PIL import Image

    from .shapes.edits import EDIT_TYPES, sample_edit
    from .shapes.score import caption_samplers
    from .shapes.scorer import edit_succeeded, read_picture, satisfies
    from .shapes.world import render

    rng = _generator(task, seed, index)
    if task == "draw":
        samplers = list(caption_samplers().values())
        caption = samplers[index % len(samplers)](rng)
        return Wanted(
            caption.text, None, int(rng.integers(2**32)), lambda picture: satisfies(read_picture(picture), caption.spec)
        )
    edit = sample_edit(rng, EDIT_TYPES[index % len(EDIT_TYPES)])
    return Wanted(
        edit.text,
        Image.fromarray(render(edit.before, side)),
        int(rng.integers(2**32)),
        lambda picture: edit_succeeded(read_picture(picture), edit),
    )


def _pictures(task: str, model: MobileO, options: Mapping[str, Any], indices: Sequence[int], seed: int) -> list[Sample]:
    some = [wanted(task, model.default_size[0], seed, index) for index in indices]
    pictures, passes, seconds = drawn(model, [(one.text, one.before, one.seed) for one in some], options)
    return [Sample(one.right(picture), passes, seconds) for one, picture in zip(some, pictures, strict=True)]


def _ask(model: MobileO, _: Mapping[str, Any], indices: Sequence[int], seed: int) -> list[Sample]:
    from PIL import Image

    from .scoring import MAX_TOKENS
    from .shapes.questions import QUESTION_TYPES, sample_question
    from .shapes.world import render

    samples = []
    for index in indices:
        question = sample_question(_generator("ask", seed, index), QUESTION_TYPES[index % len(QUESTION_TYPES)])
        image = Image.fromarray(render(question.scene, model.default_size[0]))
        model.parts.cache.clear()
        begin = time.process_time()
        answer = model.ask(image, question.text, max_tokens=MAX_TOKENS)
        seconds = time.process_time() - begin
        samples.append(Sample(answer.text.lower().strip().rstrip(".") in question.accepted, 0, seconds))
    return samples


_RUN: Mapping[str, Callable[..., list[Sample]]] = {
    "draw": partial(_pictures, "draw"),
    "edit": partial(_pictures, "edit"),
    "ask": _ask,
}


def drawn(
    model: MobileO, wanted: Sequence[tuple[str, Any, int]], options: Mapping[str, Any]
) -> tuple[list[Any], int, float]:
    """What `MobileO.generate` and `MobileO.edit` draw, of several prompts at once.

    Args:
        model: drawings are of its default size.
        wanted: prompt, image to be edited or None, and seed of each.
        options: of `MobileO.generate`, with guidance.

    Returns:
        pictures (H, W, 3) uint8, passes of the diffusion transformer, and seconds of processor time for each.
    """
    import mlx.core as mx
    import numpy as np

    from mobileo_mlx.conditioning import (
        embed_prompts,
        encode_image,
        hidden_states,
        text_input,
        unconditional_input,
    )
    from mobileo_mlx.diffusion import denoise, guided_steps
    from mobileo_mlx.generation_options import resolve
    from mobileo_mlx.latents import noise
    from mobileo_mlx.prompts import edit_prompt, encode_prompt, generate_prompt

    begin = time.process_time()
    seeds = [seed for _, _, seed in wanted]
    settings = resolve(model.config, "generate", wanted[0][0], seed=seeds, **options)
    scheduler, _ = settings.schedule
    texts: list[tuple[TextInput, TextInput]] = []  # without and with each prompt
    for prompt, image, _ in wanted:
        ids = encode_prompt(model.tokenizer, (generate_prompt if image is None else edit_prompt)(prompt))
        features = [] if image is None else [encode_image(model.parts, image)[0]]
        states = hidden_states(model.parts, embed_prompts(model.parts.llm.embed_tokens, [ids], features))
        texts.append((text_input(model.parts, states), unconditional_input(model.parts, states)))
    *_, last = denoise(
        model.parts.dit,
        scheduler,
        mx.concatenate([noise(model.config, seed, settings.width, settings.height) for seed in seeds]),
        _batched([text for text, _ in texts]),
        unconditional=_batched([unconditional for _, unconditional in texts]),
        guidance_scale=settings.guidance_scale,
        guidance_interval=settings.guidance_interval,
    )
    pictures = [np.asarray(image.convert("RGB")) for image in model.decode_latents(last.latents)]
    guided = guided_steps(scheduler, settings.guidance_scale, settings.guidance_interval)
    return pictures, len(guided) + sum(guided), (time.process_time() - begin) / len(wanted)


def _batched(texts: Sequence[TextInput]) -> TextInput:
    """Texts of one row each as one of many, padded to the longest."""
    import mlx.core as mx

    from mobileo_mlx.models.sana_cross_attention import TextInput

    lengths = [text.states.shape[1] for text in texts]
    longest = max(lengths)
    states = [mx.pad(text.states, [(0, 0), (0, longest - n), (0, 0)]) for text, n in zip(texts, lengths, strict=True)]
    return TextInput(mx.concatenate(states), mx.arange(longest) < mx.array(lengths)[:, None])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.presets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny", help="one that knows the shapes world (default: tiny)")
    parser.add_argument("--n", type=int, default=1000, help="drawings (default: 1000)")
    parser.add_argument("--edits", type=int, help="(default: half as many as drawings)")
    parser.add_argument("--questions", type=int, help="(default: as many as edits)")
    parser.add_argument("--seed", type=int, default=0, help="of samples and noise (default: 0)")
    parser.add_argument("--only", action="append", metavar="PRESET", help="a preset; repeatable")
    parser.add_argument(
        "--quantize", action="append", default=[], metavar="BITS", help="to try, such as llm=4,dit=8; repeatable"
    )
    parser.add_argument(
        "--drawing",
        action="append",
        default=[],
        metavar="OPTIONS",
        help="to try, such as steps=8,guidance_interval=0:0.97; repeatable. Presets by --only alone then",
    )
    parser.add_argument("--processes", type=int, default=1, help="that share the samples (default: 1)")
    common.add_out(parser, "the results")
    options = parser.parse_args(arguments)
    common.one_thread()
    return common.exit_status("presets", lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    from mobileo_mlx.errors import OptionError

    edits = options.n // 2 if options.edits is None else options.edits
    questions = edits if options.questions is None else options.questions
    counts = {name: count for name, count in (("draw", options.n), ("edit", edits), ("ask", questions)) if count}
    if not counts or min(counts.values()) < options.processes or options.processes < 1:
        raise OptionError("a sample of something and a process are needed, and no more processes than samples.")
    tried = [*map(tried_bits, options.quantize), *map(tried_drawing, options.drawing)]
    chosen = [*variants(options.only or [] if tried else options.only), *tried]
    work = partial(measured, options.model, chosen, counts, options.seed, options.out)
    if options.processes == 1:
        parts = [work()]
    else:
        # MLX does not survive a fork.
        with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
            parts = list(pool.map(work, [(i, options.processes) for i in range(options.processes)]))
    found = {
        task: {name: [sample for part in parts for sample in part[task][name]] for name in parts[0][task]}
        for task in counts
    }
    path = options.out / "presets.json"
    earlier = common.read_json(path) if path.exists() else {}
    value = {
        "machine": common.machine(),
        "model": options.model,
        "rows": merged(
            earlier["rows"] if earlier.get("model") == options.model else [],
            list(rows(found, chosen, options.seed)),
        ),
    }
    lines = list(markdown(value))
    print("\n".join(lines))
    common.write_json(value, path)
    common.write_lines(lines, options.out / "presets.md")


if __name__ == "__main__":
    sys.exit(main())
