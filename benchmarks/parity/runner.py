"""Runs every case that a reference directory holds."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np

from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.checkpoints.precision import parse_dtypes
from mobileo_mlx.errors import MobileOError
from mobileo_mlx.parts import Parts
from mobileo_mlx.pipeline import MobileO

from .compare import Check, compare, tolerance, unexercised
from .goldens import Case, GoldenError, Goldens, Reference
from .lora import lora
from .networks import NETWORKS, kept
from .pipelines import annealing, drawing, picture_hashes, pictures, schedulers
from .texts import prompts
from .training import train_steps, training
from .training_texts import training_tokens

COMPONENTS = (
    *("vision", "preprocess", "llm", "mcp", "dit", "vae", "schedulers", "generate", "edit"),
    *("prompts", "training_tokens", "training", "train_steps", "lora"),
)
_TRAINING = {"training": training, "train_steps": train_steps, "lora": lora}
_DRAWINGS = ("generate", "edit")


@dataclass
class ParityReport:
    """What came out.

    Attributes:
        absent: parts that the directory lacks.
        not_run: parts that were not asked for.
    """

    checks: list[Check] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    not_run: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return all(check.verdict in ("pass", "inputs") for check in self.checks)


def run(reference: Reference, only: Collection[str] = ()) -> ParityReport:
    """Compares everything in the directory with the original.

    Args:
        only: components to run; all by default.

    Raises:
        MobileOError: the directory or its checkpoint is incomplete or damaged.
    """
    paths = reference.goldens
    texts = {"prompts": reference.prompts, "training_tokens": reference.training_tokens}
    there = [*paths, *(name for name, path in texts.items() if path.is_file())]
    if not there:
        raise GoldenError(f"'{reference.path}' holds no goldens; give a folder that has tiny/goldens/*.json.")
    if missing := [name for name in only if name not in there]:
        raise GoldenError(f"'{reference.path}' has no goldens of {', '.join(missing)}; it has {', '.join(there)}.")
    report = ParityReport()
    report.absent = [name for name in COMPONENTS if name not in there]
    report.not_run = [name for name in there if only and name not in only]
    for name in (*COMPONENTS, *(name for name in there if name not in COMPONENTS)):
        if name not in there or name in report.not_run:
            continue
        if name in texts:
            report.checks += (prompts if name == "prompts" else training_tokens)(texts[name], reference.tokenizer)
        elif name in _TRAINING:
            report.checks += _TRAINING[name](Goldens(paths[name]), open_model(reference))
        elif name in COMPONENTS:
            report.checks += _component(Goldens(paths[name]), reference)
        else:
            report.checks.append(unexercised(name, "*", "*", "no component of this name is known"))
    if not only:
        report.checks += [
            unexercised(name, "*", "*", "nothing is known of this file") for name in reference.unknown_files
        ]
        if not reference.fullsize:
            report.absent.append("fullsize")
    return report


def open_model(reference: Reference) -> MobileO:
    """The tiny model in float32, whatever the device."""
    return MobileO(Parts(Checkpoint.open(reference.checkpoint, partial=True), dtypes=parse_dtypes("float32")))


def _component(goldens: Goldens, reference: Reference) -> Iterator[Check]:
    name = goldens.component
    model = open_model(reference) if name in NETWORKS or name in _DRAWINGS else None
    for case in goldens.cases():
        if not case.expected:
            yield Check(name, case.name, "*", "inputs", note="inputs of other cases")
            continue
        try:
            yield from _case(case, goldens, model)
        except MobileOError:
            raise
        except Exception as error:
            # A case of unknown make must not hide the others.
            yield unexercised(name, case.name, "*", f"{type(error).__name__}: {error}")
    for key in goldens.unlisted:
        yield unexercised(name, key, "*", "the index does not list this tensor")
    if name == "mcp" and model is not None:
        yield from annealing(goldens, model)


def _case(case: Case, goldens: Goldens, model: MobileO | None) -> Iterator[Check]:
    component = case.component
    if model is None:
        outputs = (schedulers if component == "schedulers" else pictures)(case, goldens)
    else:
        outputs = NETWORKS.get(component, drawing)(case, model)
    for name, spec in case.expected.items():
        if name not in outputs:
            yield unexercised(component, case.name, name)
            continue
        expected = goldens.expected(case, name)
        allowed = tolerance(component, name, str(expected.dtype))
        rounding = spec.get("f32_vs_f64_max_abs")
        ours = np.array(outputs[name])
        yield compare(component, case.name, name, ours, expected, allowed, rounding, kept(case, name))
    if component == "preprocess":
        yield from picture_hashes(case, goldens)
