"""Finetuning: from data and a model to an adapter, as a generator that yields what happens.

run = FinetuneRun.prepare("data.jsonl", "tiny", Options())
for event in run.start("adapter"):
    ...
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from ..checkpoints import precision
from ..checkpoints.adapters import Adapter
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.modules import named_parameters
from ..checkpoints.weights_fault import stored_fault
from ..errors import ImageError, NotFiniteError, OptionError, OutputError, TrainingError
from ..files import expand
from ..models.mcp import annealed_temperature
from ..models.mobileo import build
from ..models.sana import SanaTransformer
from ..parts import Parts
from ..pipeline import MobileO
from .batches import Batches
from .consistency import Distillation, StudentBatch, StudentLoss, drawing_options
from .data import Progress, read_data
from .events import Evaluated, Event, Finished, Notice, SamplesFailed, SamplesWritten
from .fingerprints import resume_settings
from .guard import DivergenceGuard
from .loop import TrainingLoop
from .lora import AdapterArrays, add_lora, start_from
from .options import LARGEST, Options
from .plots import can_plot, plot_losses
from .quadruplets import Data, DataError, Sample
from .run_state import (
    SAMPLES_FOLDER,
    append_metrics,
    check_new,
    checkpoints,
    holds_run,
    locked,
    read_metrics,
    read_state,
)
from .sample_sheet import holds_samples, write_samples
from .schedule import Schedule
from .sequences import preview
from .stages import make_optimizer, parameter_groups, set_mode, set_trainable
from .trainable import Batch, JointLoss, TrainableModel

MINIMUM_TEMPERATURE = 0.5
PLOT_FILE = "loss.png"
_LARGE = 100_000_000  # parameters from which activations are computed twice rather than kept
_TRAINED = ("vision_tower", "mm_projector", "llm", "lm_head", "diffusion_connector", "dit")  # or read by what is
_SAMPLES = 4  # that the sample sheet shows


class FinetuneRun:
    """A run on data and a model that are in memory; `prepare` reads, loads and checks both.

    Args:
        data: see `mobileo_mlx.training.data.read_data`.
        model: not quantized. Its networks become those that are trained.
        options: see `Options`.

    Attributes:
        held_out: samples that are not trained on.
        batches: of the others.
        steps: of the optimizer.

    Raises:
        OptionError: the batch can't be divided among the processes and the parts of a step.
    """

    def __init__(self, data: Data, model: MobileO, options: Options) -> None:
        self.data, self.model, self.options = data, model, options
        self.world = mx.distributed.init()
        self.micro_batches = _micro_batches(options, self.world.size())
        train, self.held_out = split(data.samples, options.held_out, options.seed)
        self.batches = Batches(train, model, options, self.micro_batches)
        epochs = options.stage.epochs * len(train) / options.stage.batch_size
        self.steps = options.steps or max(1, round(epochs))
        if self.steps > LARGEST:
            raise OptionError(
                f"{options.stage.epochs} epochs are {self.steps:,} steps; choose fewer, {LARGEST:,} at most."
            )

    @classmethod
    def prepare(
        cls,
        data: str | Path,
        model: str | Path,
        options: Options,
        *,
        progress: Progress | None = None,
        download_progress: bool = False,
    ) -> FinetuneRun:
        """Reads all data and decodes every image, loads the model, and checks that they fit. It may take minutes.

        Args:
            data: see `mobileo_mlx.training.data.read_data`.
            model: as for `MobileO.load`.
            options: see `Options`.
            progress: called with the number of samples read so far.
            download_progress: whether a download shows its bars.

        Raises:
            DataError: there are samples that can't be used; its `problems` are all of them.
            OptionError: options do not fit each other, the data, the model, or the number of processes.
            CheckpointError, ConfigError: see `MobileO.load`.
        """
        _micro_batches(options, mx.distributed.init().size())  # before anything is read
        if options.adapter is not None:
            Adapter.open(options.adapter)
        found = read_data(data, questions=options.stage.questions, default_question=options.upstream, progress=progress)
        run = cls(found, _load(model, options.dtype, download_progress), options)
        if problems := run.batches.too_long(found.samples):
            raise DataError(f"'{data}' can't be trained on: {len(problems)} of its samples do not fit.", problems)
        return run

    def previews(self) -> list[tuple[str, str]]:
        """A title and what the model reads, for the first text-to-image sample and the first edit."""
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

    @cached_property
    def adapter(self) -> Adapter | None:
        """What is trained further; None where the model itself is."""
        return None if self.options.adapter is None else Adapter.open(self.options.adapter)

    @cached_property
    def network(self) -> TrainableModel:
        """The networks that are trained or needed for it, with adapters beside their layers, in training mode."""
        options, stage = self.options, self.options.stage
        names = ["llm", "diffusion_connector", "dit"]
        if stage.questions or self.data.edits:
            names += ["vision_tower", "mm_projector"]
        if stage.questions and self.model.checkpoint.has("lm_head"):
            names.append("lm_head")
        network = TrainableModel({name: self.model.parts[name] for name in names})
        if options.distills:  # before anything stands beside its layers; the arrays are the same
            self._teacher.update(network.dit.parameters())
        set_trainable(network, stage)
        # The optimizer's steps are too small for half precision.
        network.update(tree_map(lambda p: p.astype(mx.float32), network.trainable_parameters()))
        if self._anneals:  # in steps that are as small
            connector = network.diffusion_connector
            connector.temperature = connector.temperature.astype(mx.float32)
        if options.lora is not None:
            add_lora(network.children(), options.lora, key=mx.random.key(options.seed))
        if self.adapter is not None:
            self.adapter.check(self.model.checkpoint)
            start_from(network.children(), self.adapter, options.lora, self.model.config)
        set_mode(network, stage, training=True)
        return network

    @cached_property
    def loss(self) -> JointLoss:
        """The loss of a batch, computed in the precision that the model was loaded in."""
        options = self.options
        dtype = self.network.llm.embed_tokens.weight.dtype  # which no stage trains
        size = sum(array.size for array in named_parameters(self.network).values())
        kind = StudentLoss if options.distills else JointLoss
        return kind(
            num_train_timesteps=self.model.config.num_train_timesteps,
            upstream=options.upstream,
            dtype=None if dtype == mx.float32 else dtype,
            recompute=size > _LARGE if options.recompute is None else options.recompute,
        )

    @cached_property
    def _teacher(self) -> SanaTransformer:
        """A DiT of the model's configuration, which `network` gives the model's arrays."""
        return build("dit", self.model.config)  # type: ignore[return-value]

    @cached_property
    def _drawing(self) -> dict[str, Any]:
        """Options with which what is trained draws, where they are not the defaults."""
        return drawing_options() if self.options.distills else {}

    @cached_property
    def _distillation(self) -> Distillation:
        options, loss = self.options, self.loss
        assert isinstance(loss, StudentLoss)
        config, steps = self.model.config, options.teacher_steps
        return Distillation(self.network, self._teacher, loss, config, steps, options.guidance_scale)

    def _learned(self, batch: Batch, turn: int) -> Batch | StudentBatch:
        """What the loss takes of a batch; `turn` counts them."""
        return self._distillation(batch, turn) if self.options.distills else batch

    def start(
        self, folder: str | Path, *, resume: bool = False, stop: Callable[[], bool] | None = None
    ) -> Iterator[Event]:
        """Trains, yielding what happens; all files are in `folder`, the adapter among them.

        Args:
            folder: new or empty, or with `resume` that of the run that goes on, if there is one. With more steps than
                it had, see `mobileo_mlx.training.schedule`.
            stop: asked after every step; True ends the run there, with a checkpoint.

        Raises:
            OutputError: the folder is taken, in use, or can't be written, or the disk is full.
            CheckpointError: the run to resume had other settings, or its checkpoint is damaged.
            TrainingError: the loss or the parameters are not finite, or the loss grows.
            OptionError: the adapter to start from, or the number of steps, does not fit the run.
            ImageError: a picture of the data is gone since it was checked; there is a checkpoint of the last step.

        Whatever ends a run after its first step, the adapter of the last one that is done is written, KeyboardInterrupt
        and errors of MLX included; but not where the disk is full.
        """
        folder = expand(folder)
        lock: Any = nullcontext(True)
        _ = self.network  # which may not fit: before there is a folder
        if self.world.rank() == 0:
            if not (resume and holds_run(folder)):
                check_new(folder)
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"'{folder}' can't be made ({error.strerror}); choose another folder.") from error
            lock = locked(folder)
        with lock as held:
            if not held:
                yield Notice(f"'{folder}' is on a file system without locks: take care that no other run writes there")
            if resume and self.world.rank() == 0 and not checkpoints(folder):
                yield Notice(f"'{folder}' holds no checkpoint: the run starts at its first step")
            yield from self._run(folder, stop)

    def _run(self, folder: Path, stop: Callable[[], bool] | None) -> Iterator[Event]:
        options, stage, network = self.options, self.options.stage, self.network
        checkpoint = self.model.checkpoint
        settings = resume_settings(self.data, self.batches, checkpoint, self.adapter, options, self.world.size())
        with _connected(self.world):
            schedule, done = self._schedule(folder, settings)
        self.steps = schedule.steps
        arrays = AdapterArrays(network.children(), options.lora, self.model.checkpoint.name, self._drawing)
        loop = TrainingLoop(
            model=network,
            loss=self.loss,
            batches=lambda step, index: self._learned(self.batches(step, index), step * self.micro_batches + index),
            optimizer=make_optimizer(
                parameter_groups(network, stage, upstream=options.upstream),
                schedule.factor(stage.warmup, stage.minimum / stage.learning_rate),
            ),
            steps=schedule.steps,
            batch_size=stage.batch_size,
            seed=options.seed,
            clip=stage.clip,
            accumulate=options.accumulate,
            folder=folder,
            save_every=options.save_every or max(10, min(500, self.steps // 20)),
            settings=settings,
            state={"schedule": asdict(schedule)},
            kept=arrays,
            guard=DivergenceGuard(),
            before_step=self._annealing(schedule) if self._anneals else None,
            stop=stop,
            bad_samples=self._bad_samples,
        )
        every = options.sample_every or max(20, self.steps // 10)
        leading = self.world.rank() == 0
        if leading and done:
            yield Notice(schedule.describe(done))
        set_mode(network, stage, training=True)
        try:
            with _connected(self.world):
                loop.begin()
                # What a kill prevented is made up for.
                if leading and done and (done % every == 0 or done in (schedule.steps, schedule.start)):
                    yield from self._evaluate(folder, done)
                for report in loop.run():
                    yield report
                    if leading and (report.step % every == 0 or report.step == self.steps):
                        yield from self._evaluate(folder, report.step)
        except GeneratorExit:  # whoever reads the events wants no more
            raise
        except BaseException as error:
            if loop.step == 0:
                if isinstance(error, TrainingError):
                    self._check_stored(error)
                raise
            written = leading and self._write_at_last(arrays, folder)
            if written and isinstance(error, ImageError):  # nothing is wrong but a file: the run can go on from here
                loop.save_once()
            if written and isinstance(error, TrainingError | OutputError | ImageError):
                raise type(error)(
                    f"{str(error).rstrip('.')}; '{folder}' holds the adapter of step {loop.step}."
                ) from error
            raise
        set_mode(network, stage, training=False)
        if leading:
            arrays.write(folder)
            yield Finished(folder, loop.step, self.steps, _plot(folder))

    def _write_at_last(self, arrays: AdapterArrays, folder: Path) -> bool:
        """Writes the adapter of a run that failed; False where the disk has no place for it either."""
        set_mode(self.network, self.options.stage, training=False)
        try:
            arrays.write(folder)
        except OutputError:
            return False
        return True

    def _schedule(self, folder: Path, settings: dict[str, Any]) -> tuple[Schedule, int]:
        """The schedule of the run, and the steps that are done; both from the first process's folder."""
        found = (Schedule(self.steps), 0)
        if self.world.rank() == 0 and (kept := checkpoints(folder)):
            state = read_state(kept[-1], {"seed": self.options.seed, "settings": settings})
            last = Schedule.from_state(state.get("schedule"), kept[-1])
            found = (last.extended(self.options.steps or last.steps, state["step"]), state["step"])
        if self.world.size() == 1:
            return found
        numbers: Any = mx.array([*asdict(found[0]).values(), found[1]]) * (self.world.rank() == 0)
        numbers = mx.distributed.all_sum(numbers).tolist()
        return Schedule(*numbers[:-1]), numbers[-1]

    @property
    def _anneals(self) -> bool:
        """Whether the connector's temperature changes; upstream's training leaves it as it is."""
        return self.options.stage.anneal and not self.options.upstream

    def _annealing(self, schedule: Schedule) -> Callable[[int], None]:
        """Sets the connector's temperature before each step; it falls from epoch to epoch of the first schedule."""
        connector, samples = self.network.diffusion_connector, len(self.batches.samples)
        start = float(connector.temperature)
        epochs = max(1, -(-schedule.first * self.options.stage.batch_size // samples))

        def before_step(step: int) -> None:
            epoch = min(step, schedule.first - 1) * self.options.stage.batch_size // samples
            value = annealed_temperature(epoch, epochs, min(MINIMUM_TEMPERATURE, start), start)
            connector.temperature = mx.array(value, mx.float32)

        return before_step

    def _evaluate(self, folder: Path, step: int) -> Iterator[Event]:
        """The held-out loss, the sample sheet and the plot, as far as they are not there yet."""
        set_mode(self.network, self.options.stage, training=False)
        evaluated = any(entry["step"] == step and "held_out" in entry for entry in read_metrics(folder))
        if self.held_out and not evaluated:
            metrics = self._held_out_loss()
            append_metrics(folder, {"step": step, "held_out": metrics})
            yield Evaluated(step, metrics)
        samples = (self.held_out or self.batches.samples)[:_SAMPLES]
        try:
            if not holds_samples(folder / SAMPLES_FOLDER, step):
                sheet = write_samples(
                    self.model, samples, folder / SAMPLES_FOLDER, step, self.options.stage.questions, self._drawing
                )
                yield SamplesWritten(step, sheet)
        except NotFiniteError as error:  # what is trained is kept, whatever it draws
            yield SamplesFailed(step, str(error))
        _plot(folder)
        set_mode(self.network, self.options.stage, training=True)

    def _held_out_loss(self) -> dict[str, float]:
        """The means over all held-out samples, and over all tokens of their answers."""
        totals: dict[str, float] = {}
        weights: dict[str, float] = {}
        size = max(1, self.options.stage.batch_size // self.micro_batches)
        for turn, batch in enumerate(self.batches.held_out(self.held_out, size)):
            _, metrics = self.loss(self.network, self._learned(batch, turn), mx.random.key(0))  # type: ignore[arg-type]
            mx.eval(metrics)
            for name, value in metrics.items():
                weight = batch.answer_tokens if name == "answer_loss" else len(batch.names)
                totals[name] = totals.get(name, 0.0) + float(value) * weight
                weights[name] = weights.get(name, 0.0) + weight
        means = {name: total / weights[name] for name, total in totals.items()}
        loss = means["diffusion_loss"] + self.loss.answer_weight * means.get("answer_loss", 0.0)
        return {"loss": loss, **means}

    def _check_stored(self, error: TrainingError) -> None:
        """Looks whether the model was at fault for the failure of the first step.

        Raises:
            NotFiniteError: one of its weights is not finite.
        """
        for name in self.network.children():
            if fault := stored_fault(self.model.checkpoint, name):
                raise NotFiniteError(name, fault) from error

    def _bad_samples(self, step: int) -> str:
        """The samples of a step that by themselves have a loss that is not finite; all where each alone is fine."""
        bad: list[str] = []
        for batch in self.batches.one_by_one(step):
            loss, _ = self.loss(self.network, self._learned(batch, step), mx.random.key(0))  # type: ignore[arg-type]
            if not np.isfinite(float(loss)):
                bad += batch.names
        names = list(dict.fromkeys(bad or self.batches.names(step)))
        return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def split(samples: list[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Samples to train on, and a random share of them that is held out; at least one sample is trained on."""
    count = min(round(share * len(samples)), len(samples) - 1)
    held = set(np.random.default_rng([seed, len(samples)]).permutation(len(samples))[:count].tolist())
    return (
        [sample for i, sample in enumerate(samples) if i not in held],
        [sample for i, sample in enumerate(samples) if i in held],
    )


def _micro_batches(options: Options, processes: int) -> int:
    """In how many micro-batches a step is computed, over all processes."""
    size, count = options.stage.batch_size, options.accumulate * processes
    if size % count:
        raise OptionError(
            f"a batch of {size} can't be divided into {count} parts ({options.accumulate} in each of {processes} "
            "processes); choose a multiple."
        )
    return count


def _load(model: str | Path, dtype: str | None, download_progress: bool) -> MobileO:
    """The model, with all that is trained or needed for it in one dtype; what only encodes and decodes has its own."""
    checkpoint = Checkpoint.open(model, progress=download_progress)
    if checkpoint.quantization:
        raise OptionError(f"'{model}' is quantized; train the original, and quantize what comes out.")
    dtypes = precision.parse_dtypes(dtype)
    if dtype is None:
        stored = {name: checkpoint.stored_dtype(name) for name in _TRAINED if checkpoint.has(name)}
        dtypes = dict.fromkeys(stored, precision.training_dtype(stored))
    return MobileO(Parts(checkpoint, dtypes=dtypes))


@contextmanager
def _connected(world: mx.distributed.Group) -> Iterator[None]:
    """Says what MLX's error means where another process of the run has ended.

    Raises:
        TrainingError: it did.
    """
    try:
        yield
    except RuntimeError as error:
        if world.size() > 1 and re.match(r"\[(ring|jaccl|mpi|nccl)]", str(error)):
            raise TrainingError(f"Another process of this run has ended ({error}); see what it says.") from error
        raise


def _plot(folder: Path) -> Path | None:
    """The curves of the run so far; None where matplotlib is not installed."""
    if not can_plot():
        return None
    plot_losses(read_metrics(folder), folder / PLOT_FILE)
    return folder / PLOT_FILE
