"""What a GPU is asked for by a 512 px decode, a 512 px encode and a 1024 px tower: counts, which need no GPU.

    python -m benchmarks.gpu_counts [--before OTHER.json]

The production code runs at the size of the 0.5B model in float16, in the forms for Metal, on weights in upstream's
layout. Convolutions and all else are recorded and never computed; the weights of convolutions are, to see how they lie
in memory. Counted is the second run, so that what is made once and kept does not count. `--before` puts the counts of
an earlier version beside these: those that this file wrote when it was run in a checkout of that version.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
from mobileo_weights import manifest

from mobileo_mlx.checkpoints.modules import named_parameters
from mobileo_mlx.models.mobileo import build, component_of, sanitize
from mobileo_mlx.ops import backend

from .common import add_out
from .synthetic import official_config

ROWS = {
    "eval": "evaluations that are waited for",
    "async_eval": "evaluations that are not",
    "convolution": "convolutions",
    "made": "of these on a weight that was made for the call",
    "strided": "of these on a weight that is strided, which Metal copies first",
    "strided_mb": "MB of such copies",
    "concatenate": "concatenations",
    "contiguous": "other copies",
}
JOBS = {
    "decoder, 512 px": ("vae_decoder", "decode", (1, 16, 16, 32)),
    "encoder, 512 px": ("vae_encoder", "encode", (1, 512, 512, 3)),
    "vision tower, 1024 px": ("vision_tower", "encode", (1, 1024, 1024, 3)),
}


def load(component: str) -> nn.Module:
    """A component of the 0.5B model with weights of zeros, which were read in upstream's layout."""
    config, weights = official_config("0.5b"), {}
    for key, shape in manifest("0.5B").items():
        if (found := component_of(key)) is not None and found[0] == component:
            weights[found[1]] = mx.zeros(shape, mx.float16)
    module = build(component, config)
    module.load_weights(list(sanitize(component, weights, config).items()))
    module.set_dtype(mx.float16)
    mx.eval(module.parameters())
    return module


def count(module: nn.Module, run: Callable[[], Any]) -> Counter[str]:
    """What the second of two runs asks for."""
    counts: Counter[str] = Counter()
    evaluate, known = mx.eval, {id(array): array for array in named_parameters(module).values()}

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            counts[name] += 1
            return function(*arguments, **options)

        return call

    def convolution(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
        def call(x: mx.array, weight: mx.array, *arguments: Any, **options: Any) -> mx.array:
            counts["convolution"] += 1
            counts["made"] += id(weight) not in known
            known[id(weight)] = weight
            evaluate(weight)
            if not memoryview(weight).c_contiguous:  # type: ignore[arg-type]
                counts["strided"] += 1
                counts["strided_bytes"] += weight.nbytes
            return function(x, weight, *arguments, **options)

        return call

    with (
        mock.patch.object(backend, "backend", return_value="metal"),
        mock.patch.object(mx, "eval", counted("eval", lambda *arrays: None)),
        mock.patch.object(mx, "async_eval", counted("async_eval", lambda *arrays: None)),
        mock.patch.object(mx, "concatenate", counted("concatenate", mx.concatenate)),
        mock.patch.object(mx, "contiguous", counted("contiguous", mx.contiguous)),
        mock.patch.object(mx, "conv2d", convolution(mx.conv2d)),
        mock.patch.object(mx, "conv_general", convolution(mx.conv_general)),
    ):
        run()
        counts.clear()
        run()
    counts["strided_mb"] = round(counts.pop("strided_bytes", 0) / 1e6)
    return counts


def table(now: dict[str, dict[str, int]], before: dict[str, dict[str, int]] | None) -> str:
    """Markdown, a column for each job, or two of them."""
    jobs = list(now)
    titles = [title for job in jobs for title in ([f"{job}: before", "now"] if before else [job])]
    lines = ["| | " + " | ".join(titles) + " |", "|---|" + "--:|" * len(titles)]
    for key, text in ROWS.items():
        cells = [counts[job].get(key, 0) for job in jobs for counts in ([before, now] if before else [now])]
        lines.append(f"| {text} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, metavar="JSON", help="what this wrote in a checkout of another version")
    add_out(parser)
    options = parser.parse_args()
    now = {}
    for job, (component, method, shape) in JOBS.items():
        module = load(component)
        now[job] = dict(count(module, lambda m=module, name=method, s=shape: getattr(m, name)(mx.zeros(s))))  # type: ignore[misc]
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / "gpu_counts.json"
    if options.before:
        before = json.loads(options.before.read_text(encoding="utf-8"))["now"]
    else:  # what was counted before stays
        before = json.loads(kept.read_text(encoding="utf-8"))["before"] if kept.is_file() else None
    kept.write_text(json.dumps({"now": now, "before": before}, indent=1) + "\n", encoding="utf-8")
    lines = [
        "# What a GPU is asked for",
        "",
        f"`python -m benchmarks.gpu_counts{' --before OTHER.json' if before else ''}`",
        "",
        "Float16, 0.5B, weights in upstream's layout, in the forms for Metal; counted in the second run.",
        *(["`OTHER.json` is what the same file wrote in a checkout of the version before."] if before else []),
        "",
        table(now, before),
    ]
    text = "\n".join(lines) + "\n"
    (options.out / "gpu_counts.md").write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
