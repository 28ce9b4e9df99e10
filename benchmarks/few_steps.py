"""What drawing in few steps costs: `python -m benchmarks.few_steps --adapter DIR`.

A student of `finetune --objective consistency` with 4, 2 and 1 steps, and the model itself in as few, beside the
model's default (20 steps, guidance): the same captions and edits of the shapes world, the same seeds, the same scorer;
see `benchmarks.presets`, which this goes by. The sheet shows the first captions and edits, whatever their verdicts.

Writes few_steps.json, few_steps.md and few_steps.webp; each sample goes to presets-samples-*.jsonl, from where a
stopped run goes on. Exit status: 0 done, 2 it can't be done.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import common, presets
from .paired_stats import DEFAULT, TITLES, Variant, rows

STEPS = (4, 2, 1)
SHOWN = {"draw": 10, "edit": 5}


def variants(adapter: str) -> list[Variant]:
    """The default, the student in few steps, and the model itself in as few, with guidance and without."""
    without = {"guidance_scale": 1.0, "scheduler": "dpm++"}
    student = [Variant(f"student, {n} step{'s' * (n > 1)}", {"steps": n, **without}, adapter=adapter) for n in STEPS]
    guided = [Variant(f"model, {n} steps, guided", {"steps": n}) for n in (8, 4, 2)]
    return [Variant(DEFAULT), *student, *guided, Variant("model, 4 steps", {"steps": 4, **without})]


def markdown(value: Mapping[str, Any]) -> Iterator[str]:
    """The table, and what its columns mean."""
    head = ("what", "n", "passes", "right", "20 steps", "difference", "95 %", "lost", "won", "speed")
    cells = [
        (
            f"{TITLES[row['task']]}, {row['preset']}",
            str(row["n"]),
            f"{row['passes']:.3g}",
            f"{100 * row['right'] / row['n']:.1f} %",
            f"{100 * row['default_right'] / row['n']:.1f} %",
            f"{row['difference']:+.2f}",
            f"{row['low']:+.2f} to {row['high']:+.2f}",
            str(row["lost"]),
            str(row["won"]),
            f"{row['speed']:.2f}",
        )
        for row in value["rows"]
    ]
    yield from common.markdown_table(head, cells)
    yield ""
    yield (
        f"Model {value['model']}, seed {value['seed']}. Passes of the diffusion transformer for a picture (40 by "
        "default); differences from the default on the same samples, in points, by Newcombe's interval for paired "
        "proportions; lost: right by default alone, won: right in the changed way alone; speed: of processor time per "
        f"sample on one thread, {presets.BATCH} drawings at a time, with reading the prompt and decoding."
    )
    yield ""
    yield common.machine_line(value["machine"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.few_steps",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="tiny", help="one that knows the shapes world (default: tiny)")
    parser.add_argument("--adapter", required=True, metavar="DIR", help="the student")
    parser.add_argument("--n", type=int, default=2000, help="drawings (default: 2000)")
    parser.add_argument("--edits", type=int, default=500, help="(default: 500)")
    parser.add_argument("--seed", type=int, default=0, help="of samples and noise (default: 0)")
    parser.add_argument("--student-only", action="store_true", help="leave out the model itself in few steps")
    common.add_out(parser, "the results")
    options = parser.parse_args(arguments)
    common.one_thread()
    return common.exit_status("few_steps", lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    from mobileo_mlx.image_settings import save_image

    chosen = variants(options.adapter)
    if options.student_only:
        chosen = [variant for variant in chosen if variant.adapter or variant.name == DEFAULT]
    counts = {name: count for name, count in (("draw", options.n), ("edit", options.edits)) if count > 0}
    found = presets.measured(options.model, chosen, counts, options.seed, options.out)
    value = {
        "machine": common.machine(),
        "model": options.model,
        "seed": options.seed,
        "rows": list(rows(found, chosen, options.seed)),
    }
    lines = list(markdown(value))
    print("\n".join(lines))
    common.write_json(value, options.out / "few_steps.json")
    common.write_lines(lines, options.out / "few_steps.md")
    sheet = _sheet(options.model, chosen[: 1 + len(STEPS)], options.seed)
    save_image(sheet, options.out / "few_steps.webp", overwrite=True)


def _sheet(model_name: str, chosen: Sequence[Variant], seed: int) -> Any:
    """The same samples in every row, a row for each way to draw them."""
    from PIL import Image

    from mobileo_mlx import MobileO

    from .shapes.sheet import Tile, draw_sheet

    shown = []
    for variant in chosen:
        model = MobileO.load(model_name, adapter=variant.adapter or None)
        tiles: list[Tile] = []
        for task, count in SHOWN.items():
            some = [presets.wanted(task, model.default_size[0], seed, index) for index in range(count)]
            pictures, *_ = presets.drawn(model, [(one.text, one.before, one.seed) for one in some], variant.drawing)
            for one, picture in zip(some, pictures, strict=True):
                images = [] if one.before is None else [one.before]
                tiles.append(Tile((*images, Image.fromarray(picture)), one.text, one.right(picture)))
        shown.append((variant.name, tiles))
    return draw_sheet(shown)


if __name__ == "__main__":
    sys.exit(main())
