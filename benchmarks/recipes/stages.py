"""Recipes of small models: stages of training that build on each other, each in a folder of its own.

Every stage writes metrics.jsonl and its last checkpoints, from which it goes on when it was stopped. A step's samples
come in parts, which as many processes (`mlx.launch -n N`) may share out among them; the result is the same.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_map

from mobileo_mlx.errors import CheckpointError, OptionError
from mobileo_mlx.models.mobileo import MobileOConfig
from mobileo_mlx.tokenizer import Tokenizer
from mobileo_mlx.training.loop import StepReport, TrainingLoop
from mobileo_mlx.training.model_arrays import Arrays, ModelArrays, by_name
from mobileo_mlx.training.run_state import checkpoints, read_metrics

from .ahead import ahead

Batch = dict[str, Any]
Loss = Callable[[Any, Any, mx.array], tuple[mx.array, dict[str, mx.array]]]


@dataclass(frozen=True)
class Stage:
    """How long and how fast; samples are those of one part of a step."""

    name: str
    steps: int
    parts: int = 1  # of a step
    captions: int = 0
    edits: int = 0
    questions: int = 0
    pictures: int = 0
    learning_rate: float = 1e-3
    decay: float = 1.0  # the last share of the steps, in which the rate falls (cosine where it is all of them)
    ema: float | None = None
    rates: Mapping[str, float] = field(default_factory=dict)  # factors of the rate, by how a parameter's name begins
    seed: int = 0

    @property
    def samples(self) -> int:
        """Of a part of a step; questions that go with something to draw do not count."""
        return self.pictures or self.captions + self.edits or self.questions


@dataclass(frozen=True)
class Setup:
    """What a stage trains, on what: batches of NumPy arrays, which the loss gets as those of MLX."""

    model: nn.Module
    batches: Callable[[int, int], Batch]
    loss: Loss


@dataclass(frozen=True)
class Recipe:
    """A model that is trained in stages.

    Attributes:
        folder: of all stages.
        config, tokenizer: of the model.
        stages: by name, in order.
        setups: by the name of a stage, what it trains.
        sources: by component of the model, the stage with whose weights it is exported.
        workers: processes that make batches ahead, see `ahead`.
        shared: what one stage made and others of this process can use.
    """

    folder: Path
    config: MobileOConfig
    tokenizer: Tokenizer
    stages: Mapping[str, Stage]
    setups: Mapping[str, Callable[[Recipe, Stage], Setup]]
    sources: Mapping[str, str]
    workers: int = 0
    shared: dict[str, Any] = field(default_factory=dict)

    def weights(self, stage: str, *components: str) -> list[tuple[str, mx.array]]:
        """The parameters that an earlier stage ended with, their running mean where it kept one.

        Raises:
            CheckpointError: the stage is not done.
        """
        done = checkpoints(self.folder / stage)
        if not done or int(done[-1].name.removeprefix("step-")) < self.stages[stage].steps:
            raise CheckpointError(f"The stage {stage!r} is not done in '{self.folder}'; run it first.")
        arrays: dict[str, mx.array] = {}
        for name in ("model", "ema"):
            if (path := done[-1] / f"{name}.safetensors").exists():
                arrays |= mx.load(str(path))  # type: ignore[arg-type]
        return [(name, array) for name, array in arrays.items() if name.split(".")[0] in components]

    def run(self, stage: Stage) -> Iterator[StepReport]:
        """Runs a stage, or what is left of it, yielding its steps.

        Raises:
            OptionError: the processes can't share the parts of a step.
        """
        processes = mx.distributed.init().size()
        if stage.parts % processes:
            raise OptionError(
                f"a step of the stage {stage.name!r} has {stage.parts} parts, which {processes} processes can't share."
            )
        mx.random.seed(stage.seed)  # of the initial weights alone; the rest has keys
        setup = self.setups[stage.name](self, stage)
        made = ahead(setup.batches, self.workers, stage.steps)
        yield from TrainingLoop(
            model=setup.model,
            loss=setup.loss,
            batches=lambda step, part: on_device(made(step, part)),
            optimizer=_optimizer(stage),
            steps=stage.steps,
            batch_size=stage.samples * stage.parts,
            accumulate=stage.parts // processes,
            seed=stage.seed,
            ema=stage.ema,
            folder=self.folder / stage.name,
            save_every=100,
            kept=_WholeModel(setup.model),
            settings={"parts": stage.parts},
            compiled=True,
        ).run()

    def run_all(self, name: str, say: Callable[[str], None]) -> None:
        """Runs the stage of that name, or "all" of them, or the "export" to `folder`/model, which "all" ends with.

        Args:
            say: called with a line on what happens, now and then, by the first process.

        Raises:
            OptionError: there is no such stage.
            CheckpointError, OutputError: see `weights`, `export` and `TrainingLoop`.
        """
        names = (*self.stages, "export")
        if name not in (*names, "all"):
            raise OptionError(f"there is no stage {name!r}; there are {', '.join(names)} and all.")
        first = mx.distributed.init().rank() == 0
        for each in names if name == "all" else (name,):
            if each == "export":
                if first:
                    self.export(self.folder / "model")
                    say(str(self.folder / "model"))
                continue
            begin, before = time.monotonic(), None
            for report in self.run(self.stages[each]):
                before = report.step - 1 if before is None else before
                if first and (report.step % 25 == 0 or report.step == 1):
                    parts = "".join(f", {key} {value:.4f}" for key, value in report.metrics.items())
                    left = (report.steps - report.step) * (time.monotonic() - begin) / (report.step - before)
                    say(
                        f"{each} {report.step}/{report.steps}: loss {report.loss:.4f}{parts}, "
                        f"{report.samples_per_second:.0f} samples/s, {left / 60:.0f} min left"
                    )

    def export(self, destination: Path) -> None:
        """Writes the weights of all stages as a model in our layout, float16, and the log of its training beside it.

        Raises:
            CheckpointError: a stage is not done.
            OutputError: the folder can't be written.
        """
        from mobileo_mlx.atomic import atomic_folder
        from mobileo_mlx.checkpoints.convert import write_config
        from mobileo_mlx.checkpoints.modules import named_parameters
        from mobileo_mlx.checkpoints.tensor_files import write_tensors
        from mobileo_mlx.models.mobileo import COMPONENTS, build

        trained = {k: v for name, stage in self.sources.items() for k, v in self.weights(stage, name)}
        with atomic_folder(destination) as temporary:
            for component in COMPONENTS:
                parameters = named_parameters(build(component, self.config))
                # The connector's temperature is a buffer, which no stage changes.
                found = {k: v if k == "temperature" else trained[f"{component}.{k}"] for k, v in parameters.items()}
                tensors = {name: array.astype(mx.float16) for name, array in found.items()}
                write_tensors(temporary / f"{component}.safetensors", tensors)
            self.tokenizer.save(temporary / "tokenizer.json")
            write_config(temporary, self.config, COMPONENTS)
            with (temporary / "training.jsonl").open("w", encoding="utf-8") as log:
                log.writelines(self._log())

    def _log(self) -> Iterator[str]:
        """Lines of JSON: the first, every 50th and the last step of each stage."""
        for name, stage in self.stages.items():
            for entry in read_metrics(self.folder / name):
                if entry["step"] == 1 or entry["step"] % 50 == 0 or entry["step"] == stage.steps:
                    yield json.dumps({"stage": name, **entry}) + "\n"


class _WholeModel(ModelArrays):
    """What a stage leaves as it is, too, so that later ones need nothing but this one."""

    def get(self) -> Arrays:
        return {"model": by_name(self._model.parameters())}


def on_device(batch: Batch) -> Batch:
    """A batch with MLX's arrays in place of NumPy's."""
    return tree_map(lambda value: mx.array(value) if isinstance(value, np.ndarray) else value, batch)


def _optimizer(stage: Stage) -> optim.Optimizer:
    def adam(factor: float) -> optim.Optimizer:
        schedule = _schedule(stage, stage.learning_rate * factor)
        return optim.AdamW(schedule, betas=[0.9, 0.95], weight_decay=0.01, bias_correction=True)

    if not stage.rates:
        return adam(1)

    def begins(prefix: str) -> Callable[[str, mx.array], bool]:
        return lambda name, _: name.startswith(prefix)

    groups = [adam(factor) for factor in stage.rates.values()]
    return optim.MultiOptimizer([*groups, adam(1)], [begins(prefix) for prefix in stage.rates])


def _schedule(stage: Stage, rate: float) -> Callable:
    warmup = min(100, stage.steps // 4)
    if stage.decay == 1:
        parts = [optim.cosine_decay(rate, stage.steps - warmup, 0.01 * rate)]
        ends = [warmup]
    else:
        decay = max(1, min(int(stage.steps * stage.decay), stage.steps - warmup - 1))
        steady = optim.linear_schedule(rate, rate, stage.steps - decay - warmup)
        parts, ends = [steady, optim.linear_schedule(rate, 0.01 * rate, decay)], [warmup, stage.steps - decay]
    return optim.join_schedules([optim.linear_schedule(0.001 * rate, rate, warmup), *parts], ends)
