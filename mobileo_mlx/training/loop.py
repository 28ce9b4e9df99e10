"""The training loop: a generator that yields each step, and checkpoints from which it goes on exactly.

Nothing random is kept between steps: a batch and its random key are functions of the seed and the step, so a
checkpoint needs no more than parameters, optimizer state and the number of the step, and a run that was killed
continues with the same losses, bit for bit.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from ..errors import CheckpointError, TrainingError
from ..files import atomic_folder

STATE_FILE = "state.json"
_KEPT = 2  # the last checkpoints; one would be lost with a disk that fills while it is replaced


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
        samples_per_second: since this process started.
    """

    step: int
    steps: int
    loss: float
    metrics: dict[str, float]
    grad_norm: float
    learning_rate: float
    samples_per_second: float

    def to_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass
class Fit:
    """Everything of a run that does not change while it runs.

    Attributes:
        model: its trainable parameters are trained.
        loss: (model, batch, key) to the loss and a dictionary of scalars to report.
        batches: step and part of the accumulation to a batch; a pure function, so that resuming is exact.
        optimizer: of MLX, with its schedule.
        steps: optimizer steps of the whole run.
        batch_size: samples that one step sees in all, for the rate that is reported.
        seed: of the random keys.
        clip: the largest norm of the gradient; longer ones are scaled to it.
        accumulate: parts that a step is computed in.
        ema: decay of a running mean of the parameters; None for none.
        folder: of checkpoints and metrics.jsonl; None keeps nothing.
        save_every: steps between checkpoints.
        describe: what to keep in checkpoints and to compare when resuming.
    """

    model: nn.Module
    loss: Callable[[nn.Module, Any, mx.array], tuple[mx.array, dict[str, mx.array]]]
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
    describe: dict[str, Any] = field(default_factory=dict)

    step: int = field(default=0, init=False)
    averages: dict[str, mx.array] | None = field(default=None, init=False)

    def run(self) -> Iterator[StepReport]:
        """Trains from where the last checkpoint in `folder` stands, yielding each step.

        Data-parallel where `mx.distributed` has several processes: gradients are averaged, the first one writes.

        Raises:
            TrainingError: the loss or the gradient is not finite; the last checkpoint stays as it is.
        """
        world = mx.distributed.init()
        self.optimizer.init(self.model.trainable_parameters())
        self.resume()
        if self.ema is not None and self.averages is None:
            self.averages = dict(tree_flatten(self.model.trainable_parameters()))
        gradient = nn.value_and_grad(self.model, self.loss)
        begin, first = time.perf_counter(), self.step
        while self.step < self.steps:
            losses, metrics, grads = self._accumulated(gradient, world)
            grads, norm = optim.clip_grad_norm(grads, self.clip or math.inf)
            loss, grad_norm = float(losses), float(norm)
            if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                raise TrainingError(
                    f"The loss is {loss} and the gradient's norm {grad_norm} at step {self.step + 1}; "
                    "lower the learning rate, and look at the samples of this step. The last checkpoint is whole."
                )
            self.optimizer.update(self.model, grads)
            self.step += 1
            if self.averages is not None and self.ema is not None:
                # Early on a long memory would hold little but the start.
                decay = min(self.ema, (1 + self.step) / (10 + self.step))
                current = dict(tree_flatten(self.model.trainable_parameters()))
                self.averages = {k: decay * v + (1 - decay) * current[k] for k, v in self.averages.items()}
            mx.eval(self.model.parameters(), self.optimizer.state, self.averages or {})
            report = StepReport(
                step=self.step,
                steps=self.steps,
                loss=loss,
                metrics={k: float(v) for k, v in metrics.items()},
                grad_norm=grad_norm,
                learning_rate=_learning_rate(self.optimizer),
                samples_per_second=(self.step - first) * self.batch_size / (time.perf_counter() - begin),
            )
            if self.folder is not None and world.rank() == 0:
                with (self.folder / "metrics.jsonl").open("a") as file:
                    file.write(report.to_json() + "\n")
                if self.step % self.save_every == 0 or self.step == self.steps:
                    self.save()
            yield report

    def _accumulated(self, gradient: Callable, world: mx.distributed.Group) -> tuple[mx.array, dict, Any]:
        """Loss, metrics and gradient of one step: means over the parts of this process and over all processes."""
        total: Any = None
        parts = self.accumulate * world.size()
        for part in range(self.accumulate):
            index = part * world.size() + world.rank()
            key = mx.random.key(int(np.random.SeedSequence([self.seed, self.step, index]).generate_state(1)[0]))
            (loss, metrics), grads = gradient(self.model, self.batches(self.step, index), key)
            found = (loss, metrics, grads)
            total = found if total is None else tree_map(lambda a, b: a + b, total, found)
            mx.eval(total)
        if world.size() > 1:
            total = tree_map(lambda x: mx.distributed.all_sum(x.astype(mx.float32)).astype(x.dtype), total)
        return tree_map(lambda x: x / parts, total)

    def save(self) -> None:
        """Writes a checkpoint of this step into `folder`, whole or not at all, and removes old ones."""
        assert self.folder is not None
        with atomic_folder(self.folder / f"step-{self.step:07d}") as temporary:
            arrays = {"model": dict(tree_flatten(self.model.trainable_parameters()))}
            arrays["optimizer"] = dict(tree_flatten(self.optimizer.state))
            if self.averages is not None:
                arrays["ema"] = self.averages
            for name, values in arrays.items():
                mx.save_safetensors(str(temporary / f"{name}.safetensors"), values)
            state = {"step": self.step, "steps": self.steps, "seed": self.seed, "describe": self.describe}
            (temporary / STATE_FILE).write_text(json.dumps(state, indent=2))
        for old in checkpoints(self.folder)[:-_KEPT]:
            shutil.rmtree(old)

    def resume(self) -> None:
        """Takes up the last checkpoint in `folder`, if there is one.

        Raises:
            CheckpointError: it is of another run.
        """
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        found = checkpoints(self.folder)
        if not found:
            return
        state = json.loads((found[-1] / STATE_FILE).read_text())
        if state["describe"] != self.describe or state["seed"] != self.seed:
            raise CheckpointError(
                f"'{found[-1]}' belongs to a run with other settings; continue with those, or choose another folder."
            )
        self.step = state["step"]
        self.model.update(tree_unflatten(_load(found[-1] / "model.safetensors")))
        self.optimizer.state = tree_unflatten(_load(found[-1] / "optimizer.safetensors"))
        if (found[-1] / "ema.safetensors").exists():
            self.averages = dict(_load(found[-1] / "ema.safetensors"))
        _drop_later(self.folder / "metrics.jsonl", self.step)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / STATE_FILE).is_file())


def _load(path: Path) -> list[tuple[str, mx.array]]:
    arrays = mx.load(str(path))
    assert isinstance(arrays, dict)
    return list(arrays.items())


def _drop_later(path: Path, step: int) -> None:
    """Removes the metrics of steps that were done after the checkpoint and will be done again."""
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
        path.write_text("".join(line + "\n" for line in lines))


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf  # cut short when the process was killed


def _learning_rate(optimizer: optim.Optimizer) -> float:
    while isinstance(optimizer, optim.MultiOptimizer):
        optimizer = optimizer.optimizers[0]
    return float(optimizer.learning_rate)
