"""Two ways to run a model compared on the same samples: the arithmetic of pairs, and its tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import common

BATCH = 25  # drawings at a time
LOSS = -1.0  # points that a preset of drawing may lose
TITLES = {"draw": "drawings", "edit": "edits", "ask": "questions"}
DEFAULT = "default"


@dataclass(frozen=True)
class Variant:
    """A way to run the model: a preset, the default, or what is tried.

    Attributes:
        drawing: options of `MobileO.generate` and `MobileO.edit`.
        bits: by component.
        tried: it is no preset.
        adapter: what the model is loaded with; "" for nothing.
    """

    name: str
    drawing: Mapping[str, Any] = field(default_factory=dict)
    bits: Mapping[str, int] = field(default_factory=dict)
    tried: bool = False
    adapter: str = ""

    def changes(self, task: str) -> bool:
        """Whether a task could come out otherwise than by default."""
        from .phase_memory import PHASES

        name = "generate" if task == "draw" else task
        used = {component for phase, _, components in PHASES if phase == name for component in components}
        return bool(used & set(self.bits)) or (task != "ask" and bool(self.drawing or self.adapter))


@dataclass(frozen=True)
class Sample:
    """What became of one sample: right or not, passes of the diffusion transformer, seconds of processor time."""

    right: bool
    passes: int
    seconds: float


VariantSamples = dict[str, dict[str, list[Sample]]]  # by task and variant, in the order of the samples


def difference(both: int, first: int, second: int, neither: int) -> tuple[float, float, float]:
    """How much more often the second of two is right on the same samples, with the 95 % interval, as shares.

    Newcombe's method 10 for paired proportions (Statistics in Medicine 17, 1998): Wilson's intervals of both, joined
    with their correlation, whose numerator is corrected for continuity.

    Args:
        both, first, second, neither: on how many samples both were right, only the first, only the second, or none.
    """
    from .shapes.report import wilson

    n = both + first + second + neither
    p1, p2 = (both + first) / n, (both + second) / n
    (low1, high1), (low2, high2) = wilson(both + first, n), wilson(both + second, n)
    product = math.prod((both + first, second + neither, both + second, first + neither))
    covariance = both * neither - first * second
    corrected = max(covariance - n / 2, 0) if covariance > 0 else covariance
    phi = corrected / math.sqrt(product) if product else 0.0

    def joined(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    return p2 - p1, p2 - p1 - joined(p2 - low2, high1 - p1), p2 - p1 + joined(high2 - p2, p1 - low1)


def mcnemar(first: int, second: int) -> float:
    """The exact two-sided p of as unequal a split of the samples on which just one was right, were both as good."""
    n, fewer = first + second, min(first, second)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)


def rows(found: VariantSamples, chosen: Sequence[Variant], seed: int) -> Iterator[dict[str, Any]]:
    """A row for each task and variant that changes it, beside the default; in points and seconds."""
    for task, by_name in found.items():
        default = by_name[DEFAULT]
        for variant in (variant for variant in chosen if variant.name in by_name and variant.name != DEFAULT):
            samples = by_name[variant.name]
            pairs = [(a.right, b.right) for a, b in zip(default, samples, strict=True)]
            seconds = [statistics.fmean(sample.seconds for sample in some) for some in (default, samples)]
            lost, won = pairs.count((True, False)), pairs.count((False, True))
            shares = difference(pairs.count((True, True)), lost, won, pairs.count((False, False)))
            change, low, high = (100 * share for share in shares)
            yield {
                "task": task,
                "preset": variant.name,
                "tried": variant.tried,
                "settings": {**variant.drawing, **({"bits": dict(variant.bits)} if variant.bits else {})},
                "seed": seed,
                "n": len(samples),
                "default_right": sum(sample.right for sample in default),
                "right": sum(sample.right for sample in samples),
                "difference": change,
                "low": low,
                "high": high,
                "lost": lost,
                "won": won,
                "p": mcnemar(lost, won),
                "passes": statistics.fmean(sample.passes for sample in samples),
                "seconds": seconds[1],
                "speed": seconds[0] / seconds[1],
                "offered": low >= LOSS if variant.drawing else None,
            }


def merged(earlier: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of several runs, by task; what was measured again stands where it stood."""

    def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return row["task"], row["preset"], row["tried"], row["seed"]

    by_key = {key(row): row for row in (*earlier, *new)}
    return sorted(by_key.values(), key=lambda row: list(TITLES).index(row["task"]))


def markdown(value: Mapping[str, Any]) -> Iterator[str]:
    """The tables, and what their columns mean."""
    presets = [row for row in value["rows"] if not row["tried"]]
    bits = [row for row in value["rows"] if row["tried"] and "bits" in row["settings"]]
    drawing = [row for row in value["rows"] if row["tried"] and "bits" not in row["settings"]]
    for title, some in (("Presets", presets), ("Bits that were tried", bits), ("Drawing that was tried", drawing)):
        if some:
            yield from (f"## {title}", "", *_table(some), "")
    yield (
        f"Model {value['model']}. Differences from the default on the same samples, in points, by Newcombe's interval "
        "for paired proportions; lost: right by default alone, won: right in the changed way alone. Seed: of the "
        "samples and their noise. Passes of the diffusion transformer; speed: of processor time per sample on one "
        "thread, the default's by that of the row; drawings and edits in batches of "
        f"{BATCH}."
    )
    yield ""
    for row in {row["preset"]: row for row in presets}.values():
        settings = row["settings"].get("bits") or row["settings"]
        yield f"- {row['preset']}: {', '.join(f'{name} {value}' for name, value in settings.items())}"
    yield ""
    yield common.machine_line(value["machine"])


def _table(some: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    head = (
        "what",
        "seed",
        "n",
        "default",
        "right",
        "difference",
        "interval",
        "lost",
        "won",
        "passes",
        "seconds",
        "speed",
    )
    cells = [
        (
            f"{TITLES[row['task']]}, {row['preset']}",
            str(row["seed"]),
            str(row["n"]),
            f"{100 * row['default_right'] / row['n']:.1f} %",
            f"{100 * row['right'] / row['n']:.1f} %",
            f"{row['difference']:+.2f}",
            f"{row['low']:+.2f} to {row['high']:+.2f}",
            str(row["lost"]),
            str(row["won"]),
            f"{row['passes']:.3g}" if row["passes"] else "",
            f"{row['seconds']:.3f}",
            f"{row['speed']:.2f}",
        )
        for row in some
    ]
    yield from common.markdown_table(head, cells)
