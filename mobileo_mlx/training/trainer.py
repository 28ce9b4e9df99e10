"""Finetuning: from data and a model to an adapter, as a generator that yields what happens.

    run = FinetuneRun("data.jsonl", "tiny", Options())
    for event in run.start("adapter"):
        ...

Nothing is computed before the data is read and checked to the end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from ..checkpoints.checkpoint import default_dtype, named_parameters
from ..errors import OptionError
from ..models.mcp import annealed_temperature
from ..pipeline import MobileO
from .batches import BatchConfig, Batches
from .data import Data, DataError, Progress, Sample, read_data
from .loop import StepReport, TrainingLoop
from .lora import add_lora, write_adapter
from .options import Options
from .plots import plot_losses
from .run_state import append_metrics, check_new, holds_run, locked, read_metrics
from .sample_sheet import write_samples
from .sequences import preview
from .stages import make_optimizer, parameter_groups, set_mode, set_trainable, warmup_cosine
from .trainable import JointLoss, TrainableModel

MINIMUM_TEMPERATURE = 0.5
PLOT_FILE = "loss.png"
_LARGE = 100_000_000  # parameters from which activations are computed twice rather than kept
_TOLERANCE = 10.0  # the running mean of the loss may grow to so many times its smallest value
_SHOWN = 4  # samples that are drawn and asked about


@dataclass(frozen=True)
class Evaluated:
    """The loss on samples that are not trained on, and its parts."""

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class SamplesWritten:
    """Pictures and answers were written."""

    step: int
    path: Path


@dataclass(frozen=True)
class Finished:
    """The adapter was written. `step` is smaller than `steps` where the run was stopped."""

    folder: Path
    step: int
    steps: int


Event = StepReport | Evaluated | SamplesWritten | Finished


class FinetuneRun:
    """A run that is ready to start: data and model are read and fit each other.

    Args:
        data: see `mobileo_mlx.training.data.read_data`.
        model: as for `MobileO.load`.
        options: see `Options`.
        progress: called with the number of samples read so far.
        download_progress: whether a download draws its bars.

    Raises:
        DataError: there are samples that can't be used; its `problems` are all of them.
        OptionError: options do not fit each other, the data, or the number of processes.
        CheckpointError, ConfigError: see `MobileO.load`.
    """

    def __init__(
        self,
        data: str | Path,
        model: str | Path,
        options: Options,
        *,
        progress: Progress | None = None,
        download_progress: bool = False,
    ) -> None:
        self.options, stage = options, options.stage
        self.world = mx.distributed.init()
        self.parts = options.accumulate * self.world.size()
        if stage.batch_size % self.parts:
            raise OptionError(
                f"a batch of {stage.batch_size} can't be divided into {self.parts} parts ({options.accumulate} in each "
                f"of {self.world.size()} processes); choose a multiple."
            )
        upstream = options.layout == "upstream"
        self.data: Data = read_data(data, questions=stage.questions, default_question=upstream, progress=progress)
        self.model = _load(model, options.dtype, download_progress)
        train, self.held_out = split(self.data.samples, options.held_out, options.seed)
        self.batches = Batches(train, self.model, self._recipe())
        problems = Batches(self.data.samples, self.model, self._recipe()).too_long()
        if problems:
            raise DataError(f"'{data}' can't be trained on: {len(problems)} of its samples do not fit.", problems)
        epoch_steps = len(train) * stage.epochs / stage.batch_size
        self.steps = options.steps or max(1, round(epoch_steps))

    def previews(self) -> list[tuple[str, str]]:
        """A title and what the model reads, for the first drawing and the first edit."""
        found = []
        for title, edit in (("drawing", False), ("edit", True)):
            sample = next((s for s in self.data.samples if (s.source_image is not None) == edit), None)
            if sample is None:
                continue
            drawing, answer = self.batches.sequences(sample, 0)
            texts = [("", drawing), ("'s question", answer)]
            for what, sequence in texts if answer is not drawing else texts[:1]:
                if sequence is not None:
                    text = preview(sequence, self.model.tokenizer.decode, self.batches.image_tokens)
                    found.append((f"{title}{what}, {sample.name}", text))
        return found

    def start(
        self, folder: str | Path, *, resume: bool = False, stop: Callable[[], bool] | None = None
    ) -> Iterator[Event]:
        """Trains, yielding what happens; all files are in `folder`, the adapter among them.

        Args:
            folder: new or empty, or with `resume` that of the run that goes on, if there is one.
            stop: asked after every step; True ends the run there, with a checkpoint.

        Raises:
            OutputError: the folder is taken, in use, or can't be written, or the disk is full.
            CheckpointError: the run to resume had other settings.
            TrainingError: the loss is not finite, or grows.
        """
        folder = Path(folder)
        lock: Any = nullcontext()
        if self.world.rank() == 0:
            if not (resume and holds_run(folder)):
                check_new(folder)
            folder.mkdir(parents=True, exist_ok=True)
            lock = locked(folder)
        with lock:
            yield from self._run(folder, stop)

    def _run(self, folder: Path, stop: Callable[[], bool] | None) -> Iterator[Event]:
        options, stage = self.options, self.options.stage
        network, objective = self._network()
        upstream = options.layout == "upstream"
        groups = parameter_groups(network, stage, upstream=upstream)
        fit = TrainingLoop(
            model=network,
            loss=objective,
            batches=self.batches,
            optimizer=make_optimizer(
                groups, warmup_cosine(self.steps, stage.warmup, stage.minimum / stage.learning_rate)
            ),
            steps=self.steps,
            batch_size=stage.batch_size,
            seed=options.seed,
            clip=stage.clip,
            accumulate=options.accumulate,
            folder=folder,
            save_every=options.save_every or max(10, min(500, self.steps // 20)),
            describe=self._describe(),
            tolerance=_TOLERANCE,
            before_step=self._annealing(network) if stage.anneal and not upstream else None,
            stop=stop,
            suspects=lambda step: self._non_finite_samples(network, objective, step),
        )
        every = options.sample_every or max(20, self.steps // 10)
        leading = self.world.rank() == 0
        for report in fit.run():
            yield report
            if leading and (report.step % every == 0 or report.step == self.steps):
                set_mode(network, stage, training=False)
                yield from self._look(folder, report.step, network, objective)
                set_mode(network, stage, training=True)
        set_mode(network, stage, training=False)
        if leading:
            self._plot(folder)
            modules = {name: network[name] for name in network.children()}
            write_adapter(folder, modules, options.lora, base_model=self.model.checkpoint.name)
            yield Finished(folder, fit.step, self.steps)

    def _network(self) -> tuple[TrainableModel, JointLoss]:
        """The components that are trained or looked through, and the objective."""
        options, stage = self.options, self.options.stage
        names = ["llm", "diffusion_connector", "dit"]
        if stage.questions or self.data.edits:
            names += ["vision_tower", "mm_projector"]
        if stage.questions and self.model.checkpoint.has("lm_head"):
            names.append("lm_head")
        network = TrainableModel({name: self.model.parts[name] for name in names})
        dtype = network.llm.embed_tokens.weight.dtype
        set_trainable(network, stage)
        # The optimizer's steps are too small for half precision.
        network.update(tree_map(lambda p: p.astype(mx.float32), network.trainable_parameters()))
        if options.lora is not None:
            modules = {name: network[name] for name in network.children()}
            add_lora(modules, options.lora, key=mx.random.key(options.seed))
        set_mode(network, stage, training=True)
        size = sum(array.size for array in named_parameters(network).values())
        objective = JointLoss(
            upstream=options.layout == "upstream",
            dtype=None if dtype == mx.float32 else dtype,
            recompute=size > _LARGE if options.recompute is None else options.recompute,
        )
        return network, objective

    def _recipe(self) -> BatchConfig:
        options = self.options
        return BatchConfig(
            layout=options.layout,
            questions=options.stage.questions,
            batch_size=options.stage.batch_size,
            parts=self.parts,
            seed=options.seed,
            cond_dropout=options.conditioning_dropout,
            flow_shift=options.flow_shift,
            pixels=options.stage.vision == "full",
        )

    def _annealing(self, network: TrainableModel) -> Callable[[int], None]:
        connector, samples = network.diffusion_connector, len(self.batches.samples)
        start = float(connector.temperature)
        epochs = max(1, -(-self.steps * self.options.stage.batch_size // samples))

        def before_step(step: int) -> None:
            epoch = step * self.options.stage.batch_size // samples
            value = annealed_temperature(epoch, epochs, min(MINIMUM_TEMPERATURE, start), start)
            connector.temperature = mx.array(value, mx.float32)

        return before_step

    def _describe(self) -> dict[str, Any]:
        """What has to be the same for a run to go on."""
        checkpoint = self.model.checkpoint
        tensors = {
            name: sorted((key, info.dtype, info.shape) for key, info in checkpoint.tensors(name).items())
            for name in ("llm", "diffusion_connector", "dit")
        }
        model = json.dumps([checkpoint.config.to_dict(), tensors])
        options = self.options
        return {
            "data": self.data.fingerprint,
            "model": hashlib.sha256(model.encode()).hexdigest(),
            "stage": asdict(options.stage),
            "lora": None if options.lora is None else asdict(options.lora),
            "steps": self.steps,
            "layout": options.layout,
            "cond_dropout": options.cond_dropout,
            "flow_shift": options.flow_shift,
            "held_out": options.held_out,
            "dtype": options.dtype,
        }

    def _look(self, folder: Path, step: int, network: TrainableModel, objective: JointLoss) -> Iterator[Event]:
        """The held-out loss, pictures and answers."""
        if self.held_out:
            metrics = self._held_out_loss(network, objective)
            append_metrics(folder, json.dumps({"step": step, "held_out": metrics}))
            yield Evaluated(step, metrics)
        samples = (self.held_out or self.batches.samples)[:_SHOWN]
        yield SamplesWritten(
            step, write_samples(self.model, samples, folder / "samples", step, self.options.stage.questions)
        )
        self._plot(folder)

    def _held_out_loss(self, network: TrainableModel, objective: JointLoss) -> dict[str, float]:
        totals: dict[str, float] = {}
        weights: dict[str, float] = {}
        size = max(1, self.options.stage.batch_size // self.parts)
        for batch in self.batches.held_out(self.held_out, size):
            _, metrics = objective(network, batch, mx.random.key(0))
            mx.eval(metrics)
            for name, value in metrics.items():
                weight = batch.answer_tokens if name == "answer_loss" else len(batch.names)
                totals[name] = totals.get(name, 0.0) + float(value) * weight
                weights[name] = weights.get(name, 0.0) + weight
        means = {name: total / weights[name] for name, total in totals.items()}
        loss = means["diffusion_loss"] + objective.answer_weight * means.get("answer_loss", 0.0)
        return {"loss": loss, **means}

    def _non_finite_samples(self, network: TrainableModel, objective: JointLoss, step: int) -> str:
        """The samples of a step that by themselves have a loss that is not finite; all where each alone is fine."""
        bad: list[str] = []
        for batch in self.batches.one_by_one(step):
            loss, _ = objective(network, batch, mx.random.key(0))
            if not np.isfinite(float(loss)):
                bad += batch.names
        names = list(dict.fromkeys(bad or self.batches.names(step)))
        return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")

    def _plot(self, folder: Path) -> None:
        lines = read_metrics(folder)
        losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
        held_out = [(line["step"], line["held_out"]["loss"]) for line in lines if "held_out" in line]
        plot_losses(losses, held_out, folder / PLOT_FILE)


def split(samples: list[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Samples to train on, and a random share of them that is held out; at least one sample is trained on."""
    count = min(round(share * len(samples)), len(samples) - 1)
    held = set(np.random.default_rng([seed, len(samples)]).permutation(len(samples))[:count].tolist())
    return (
        [sample for i, sample in enumerate(samples) if i not in held],
        [sample for i, sample in enumerate(samples) if i in held],
    )


def _load(model: str | Path, dtype: str | None, download_progress: bool) -> MobileO:
    """The model in the precision of training: float16 has too small a range for gradients."""
    loaded = MobileO.load(model, dtype=dtype, progress=download_progress)
    if loaded.checkpoint.quantization:
        raise OptionError(f"'{model}' is quantized; train the original, and quantize what comes out.")
    half = dtype is None and default_dtype(loaded.checkpoint.stored_dtype("llm")) == mx.float16
    return MobileO.load(model, dtype="bfloat16") if half else loaded
