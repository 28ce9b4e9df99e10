"""The training loop: a generator that yields each step, and checkpoints from which it goes on exactly.

Nothing random is kept between steps: a batch and its random key are functions of the seed and the step, so a
checkpoint needs no more than parameters, optimizer state and the number of the step, and a run that was killed
continues with the same losses, bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_map, tree_unflatten

from ..errors import TrainingError
from ..ops.finite import all_finite
from .guard import DivergenceGuard
from .model_arrays import Arrays, ModelArrays, by_name
from .run_state import (
    append_metrics,
    checkpoint_name,
    checkpoints,
    clean,
    read_checkpoint,
    read_metrics,
    write_checkpoint,
)


@dataclass(frozen=True)
class StepReport:
    """One optimizer step.

    Attributes:
        step: 1 for the first.
        steps: of the whole run.
        loss: mean over the batch.
        metrics: parts of the loss and whatever else the loss function returned.
        grad_norm: of all trained parameters, before clipping.
        learning_rate: of the first group.
        samples_per_second: since this process started; what is done between steps does not count.
    """

    step: int
    steps: int
    loss: float
    metrics: dict[str, float]
    grad_norm: float
    learning_rate: float
    samples_per_second: float


@dataclass
class TrainingLoop:
    """One run: what is trained and how, and the step at which it stands.

    Attributes:
        model: its trainable parameters are trained.
        loss: (model, batch, key) to the loss and a dictionary of scalars to report.
        batches: step and index of the micro-batch to a batch; a pure function, so that resuming is exact.
        optimizer: of MLX, with its schedule.
        steps: optimizer steps of the whole run.
        batch_size: samples that one step sees in all, for the rate that is reported.
        seed: of the random keys.
        clip: the largest norm of the gradient; longer ones are scaled to it.
        accumulate: micro-batches of each process in one step.
        ema: decay of a running mean of the parameters; None for none.
        folder: of checkpoints and metrics.jsonl; None keeps nothing.
        save_every: steps between checkpoints.
        settings: what a run has to have in common with the one that it resumes; kept in checkpoints.
        state: what checkpoints keep besides, for JSON.
        kept: how a checkpoint keeps what changes of the model; by default as `ModelArrays`.
        guard: asked about every loss whether the run makes no sense to continue.
        before_step: called with the step (0 for the first) before it, for what changes on a schedule.
        stop: asked after each step; a True ends the run there, with a checkpoint.
        compiled: whether loss and gradient are compiled. It pays where batches are arrays of few different shapes, for
            each of which they are traced anew.
        bad_samples: the step (0 for the first) to the names of the samples that may have made its loss infinite.
        step: optimizer steps that are done.
        averages: the running mean of the parameters by name, where there is one.
    """

    model: nn.Module
    loss: Callable[[Any, Any, mx.array], tuple[mx.array, dict[str, mx.array]]]
    batches: Callable[[int, int], Any]
    optimizer: optim.Optimizer
    steps: int
    batch_size: int
    seed: int = 0
    clip: float | None = 1.0
    accumulate: int = 1
    ema: float | None = None
    folder: Path | None = None
    save_every: int = 500
    settings: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    kept: ModelArrays | None = None
    guard: DivergenceGuard | None = None
    before_step: Callable[[int], None] | None = None
    stop: Callable[[], bool] | None = None
    compiled: bool = False
    bad_samples: Callable[[int], str] | None = None

    step: int = field(default=0, init=False)
    averages: dict[str, mx.array] = field(default_factory=dict, init=False)
    _began: bool = field(default=False, init=False)

    def begin(self) -> None:
        """Goes to where the last checkpoint in `folder` stands; `run` does it where it was not done.

        Raises:
            CheckpointError: the last checkpoint is of another run, or damaged.
            OutputError: the folder can't be read or written.
        """
        if self._began:
            return
        self._began = True
        self.optimizer.init(self.model.trainable_parameters())
        if self.ema is not None:
            self.averages = by_name(self.model.trainable_parameters())
        self.resume()

    def run(self) -> Iterator[StepReport]:
        """Trains from where the last checkpoint in `folder` stands, yielding each step.

        Data-parallel where `mx.distributed` has several processes: gradients are averaged, the first one writes.
        BatchNorm's statistics are not averaged: those of the first one are kept.

        Whatever is raised, KeyboardInterrupt included, the model is left as it was after the last step that is done.

        Raises:
            TrainingError: the loss, the gradient or what the parameters would become is not finite, or the loss grows;
                older checkpoints are kept.
            CheckpointError, OutputError: see `begin`; or the disk is full.
        """
        world = mx.distributed.init()
        self.begin()
        gradient, update = self._gradient(), self._compiled_update()
        busy, first = 0.0, self.step
        stopped = False
        while self.step < self.steps and not stopped:
            begin = time.perf_counter()
            before = by_name(self.model.parameters())
            try:
                if self.before_step is not None:
                    self.before_step(self.step)
                mean_loss, metrics, grads = self._mean_gradient(gradient, world)
                grads, norm = optim.clip_grad_norm(grads, self.clip or math.inf)
                loss, grad_norm = float(mean_loss), float(norm)
                self._check(loss, grad_norm)
                changed = update(grads, self.model.trainable_parameters())
                self._check_parameters(changed)
                self.model.update(changed)
                mx.eval(self.model.parameters(), self.optimizer.state)
            except BaseException:
                self.model.update(tree_unflatten(list(before.items())))
                raise
            self.step += 1
            self._average()
            mx.eval(self.averages)
            busy += time.perf_counter() - begin
            report = StepReport(
                step=self.step,
                steps=self.steps,
                loss=loss,
                metrics={name: float(value) for name, value in metrics.items()},
                grad_norm=grad_norm,
                learning_rate=_learning_rate(self.optimizer),
                samples_per_second=(self.step - first) * self.batch_size / busy,
            )
            stopped = self._stopped(world)
            if self.folder is not None and world.rank() == 0:
                append_metrics(self.folder, asdict(report))
                if self.step % self.save_every == 0 or self.step == self.steps or stopped:
                    self.save()
            yield report

    def _gradient(self) -> Callable[[Any, mx.array], Any]:
        """Batch and key to loss, metrics and gradient."""
        gradient = partial(nn.value_and_grad(self.model, self.loss), self.model)
        if not self.compiled:
            return gradient
        state = [self.model.state]
        return partial(mx.compile, inputs=state, outputs=state)(gradient)

    def _mean_gradient(self, gradient: Callable, world: mx.distributed.Group) -> tuple[mx.array, dict, Any]:
        """Loss, metrics and gradient of one step: means over the micro-batches of all processes."""
        total: Any = None
        for part in range(self.accumulate):
            index = part * world.size() + world.rank()
            key = mx.random.key(int(np.random.SeedSequence([self.seed, self.step, index]).generate_state(1)[0]))
            (loss, metrics), grads = gradient(self.batches(self.step, index), key)
            found = (loss, metrics, grads)
            total = found if total is None else tree_map(lambda a, b: a + b, total, found)
            mx.eval(total)
        return nn.average_gradients(tree_map(lambda x: x / self.accumulate, total), world)

    def _compiled_update(self) -> Callable[[Any, Any], Any]:
        """The optimizer's step as a function from the gradient and the parameters to new parameters.

        It is compiled, which fuses the optimizer's many small operations on each parameter into a few. The loss is
        only on demand: where nearly every batch has lengths of its own, tracing it for each costs more than it saves.
        """
        state = [self.optimizer.state]
        return partial(mx.compile, inputs=state, outputs=state)(self.optimizer.apply_gradients)

    def _average(self) -> None:
        """Takes the parameters into their running mean."""
        if self.ema is None:
            return
        # At first the parameters change fast, and a mean over many steps would hold little but the start.
        decay = min(self.ema, (1 + self.step) / (10 + self.step))
        current = by_name(self.model.trainable_parameters())
        self.averages = {name: decay * old + (1 - decay) * current[name] for name, old in self.averages.items()}

    def _check(self, loss: float, norm: float) -> None:
        """Stops a run that makes no sense to continue, before the parameters change.

        Raises:
            TrainingError: see `run`.
        """
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._failure(f"the loss is {loss} and the gradient's norm {norm}", look=True)
        if self.guard is not None and self.guard.diverged(loss):
            raise self._failure(f"the loss grows, from {self.guard.lowest:.3g} to {self.guard.value:.3g} in the mean")

    def _check_parameters(self, changed: Any) -> None:
        """Stops a run whose next parameters would not be finite.

        Raises:
            TrainingError: see `run`.
        """
        finite = all_finite(*by_name(changed).values())
        mx.eval(changed, self.optimizer.state, finite)
        if not finite.item():
            raise self._failure("the parameters would no longer be finite")

    def _failure(self, what: str, *, look: bool = False) -> TrainingError:
        """What went wrong in this step, and what helps; with `look` its samples may be at fault."""
        remedy = "lower the learning rate"
        if look:
            samples = "the samples of this step" if self.bad_samples is None else self.bad_samples(self.step)
            remedy += f", and look at {samples}"
        kept = ": the last checkpoint is kept" if self.folder is not None and checkpoints(self.folder) else ""
        return TrainingError(f"At step {self.step + 1} {what}; {remedy}{kept}.")

    def _stopped(self, world: mx.distributed.Group) -> bool:
        """Whether one of the processes is to stop: then all do, at the same step."""
        stopped = self.stop is not None and self.stop()
        if world.size() > 1:
            stopped = bool(mx.distributed.all_sum(mx.array(stopped, mx.float32)) > 0)
        return stopped

    def save(self) -> None:
        """Writes a checkpoint of this step into `folder`, whole or not at all, and removes old ones.

        Raises:
            OutputError: the disk is full, or the folder can't be written.
        """
        assert self.folder is not None
        state = {"steps": self.steps, **self.state, **self._shared_settings()}
        write_checkpoint(self.folder, self.step, self.arrays(), state, self._model_arrays.texts)

    def save_once(self) -> None:
        """Writes a checkpoint of this step unless there is one, as for a run that an error ends before it.

        Only where the error came before the optimizer's step.

        Raises:
            OutputError: see `save`.
        """
        assert self.folder is not None
        if all(path.name != checkpoint_name(self.step) for path in checkpoints(self.folder)):
            self.save()

    def resume(self) -> None:
        """Continues from the last checkpoint in `folder`, if there is one. Of several processes the first reads it.

        Raises:
            CheckpointError: it is of another run, or damaged.
            OutputError: the folder can't be read or written.
        """
        if self.folder is None:
            return
        world = mx.distributed.init()
        step = 0
        arrays: Arrays = {}
        if world.rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            if found := checkpoints(self.folder):
                step, arrays = read_checkpoint(found[-1], self._shared_settings(), self.arrays())
            clean(self.folder, step)
        if world.size() > 1:
            step = int(mx.distributed.all_sum(mx.array(step)))
            arrays = self._from_first(arrays, world) if step else {}
        if not arrays:
            return
        self._model_arrays.set(arrays)
        self.optimizer.state = tree_unflatten(list(arrays["optimizer"].items()))
        self.averages = arrays.get("ema", self.averages)
        self._resume_guard(world)
        self.step = step

    def arrays(self) -> Arrays:
        """What a checkpoint holds, by file and name: all that training changes."""
        arrays = {**self._model_arrays.get(), "optimizer": by_name(self.optimizer.state)}
        return {**arrays, "ema": self.averages} if self.averages else arrays

    @property
    def _model_arrays(self) -> ModelArrays:
        return ModelArrays(self.model) if self.kept is None else self.kept

    def _resume_guard(self, world: mx.distributed.Group) -> None:
        """Shows the guard the losses so far, so that it stops a run that was resumed where it would have stopped it.

        Not with several processes, of which all have to stop at the same step, and only the first has the metrics.
        """
        if self.guard is not None and self.folder is not None and world.size() == 1:
            for entry in read_metrics(self.folder):
                if "loss" in entry:
                    self.guard.diverged(entry["loss"])

    def _shared_settings(self) -> dict[str, Any]:
        return {"seed": self.seed, "settings": self.settings}

    def _from_first(self, arrays: dict[str, dict[str, mx.array]], world: mx.distributed.Group) -> dict[str, Any]:
        """The first process's arrays in all processes: the others, which have arrays of the same names, add zeros."""
        own = arrays or tree_map(mx.zeros_like, self.arrays())
        shared = {
            file: {name: mx.distributed.all_sum(own[file][name], group=world) for name in sorted(own[file])}
            for file in sorted(own)
        }
        mx.eval(shared)
        return shared


def _learning_rate(optimizer: optim.Optimizer) -> float:
    while isinstance(optimizer, optim.MultiOptimizer):
        optimizer = optimizer.optimizers[0]
    return float(optimizer.learning_rate)
