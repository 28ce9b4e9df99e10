"""`mobileo-mlx finetune`: what the model learns from quadruplets, written as an adapter."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options, printing, signals

if TYPE_CHECKING:
    from mobileo_mlx.training.events import Event
    from mobileo_mlx.training.loop import StepReport
    from mobileo_mlx.training.options import Options
    from mobileo_mlx.training.trainer import FinetuneRun

NAME = "finetune"
_SHOWN_PROBLEMS = 1000  # beyond these a list helps nobody


def command(
    quadruplets: Annotated[
        Path,
        typer.Option(
            "--quadruplets",
            metavar="DATA",
            help="A JSONL file, a WebDataset shard (*.tar), either also gzipped, or a folder of shards.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="The new folder for adapter, checkpoints and curves."),
    ] = None,
    model: options.Model = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            "--adapter",
            metavar="ADAPTER",
            help="Start from an adapter, or from a checkpoint of a run, which holds one; with its rank and alpha.",
        ),
    ] = None,
    objective: Annotated[
        str,
        typer.Option(
            "--objective",
            metavar="NAME",
            help="flow: learn the samples' images; consistency: learn from the model itself to draw in 1, 2 or 4 "
            "steps, without guidance.",
        ),
    ] = "flow",
    train: Annotated[
        str | None,
        typer.Option(
            "--train",
            metavar="STAGE",
            help="lora: an adapter, meant for a 16 GB Mac; paper: post-training as published; align, sft: the two "
            "stages before it, on prompt-image pairs; student: the DiT alone, for --objective consistency. "
            "[default: lora or student]",
        ),
    ] = None,
    layout: Annotated[
        str,
        typer.Option(
            "--layout",
            metavar="NAME",
            help="inference: what the model reads is what it reads in use; upstream: the original's sequences, images "
            "and rates.",
        ),
    ] = "inference",
    llm: Annotated[
        str | None, typer.Option("--llm", metavar="HOW", help="lora or frozen. [default: the stage's]")
    ] = None,
    dit: Annotated[
        str | None, typer.Option("--dit", metavar="HOW", help="full, lora or frozen. [default: the stage's]")
    ] = None,
    vision: Annotated[
        str | None, typer.Option("--vision", metavar="HOW", help="full or frozen. [default: the stage's]")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", metavar="N", help="Optimizer steps; more with --resume extend a run. [default: from --epochs]"
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", metavar="N", help="Passes over the data. [default: the stage's]")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", metavar="N", help="Samples in a step, on all machines. [default: the stage's]"),
    ] = None,
    accumulate: Annotated[
        int,
        typer.Option("--accumulate", metavar="N", help="Compute a step in N parts, one after the other."),
    ] = 1,
    learning_rate: Annotated[
        float | None, typer.Option("--learning-rate", metavar="X", help="The largest rate. [default: the stage's]")
    ] = None,
    warmup: Annotated[
        float | None,
        typer.Option(
            "--warmup", metavar="SHARE", help="Share of the steps until the rate is full. [default: the stage's]"
        ),
    ] = None,
    rank: Annotated[int, typer.Option("--rank", metavar="N", help="Rank of the low-rank updates.")] = 16,
    alpha: Annotated[float, typer.Option("--alpha", metavar="X", help="LoRA scale is alpha / rank.")] = 32.0,
    dropout: Annotated[float, typer.Option("--dropout", metavar="SHARE", help="Dropout on the LoRA inputs.")] = 0.05,
    cond_dropout: Annotated[
        float | None,
        typer.Option(
            "--cond-dropout",
            metavar="SHARE",
            help="Share of the samples trained without their text, for guidance. [default: 0.1; upstream's layout: 0]",
        ),
    ] = None,
    flow_shift: Annotated[
        float, typer.Option("--flow-shift", metavar="X", help="Above 1: train more at high noise.")
    ] = 1.0,
    teacher_steps: Annotated[
        int,
        typer.Option(
            "--teacher-steps", metavar="N", help="Of --objective consistency: steps of the teacher, a multiple of 4."
        ),
    ] = 20,
    guidance_scale: Annotated[
        float,
        typer.Option(
            "--guidance-scale",
            metavar="X",
            help="Of --objective consistency: the teacher's, which the student learns.",
        ),
    ] = 1.5,
    seed: Annotated[int, typer.Option("--seed", metavar="SEED", help="Random seed.")] = 0,
    held_out: Annotated[
        float,
        typer.Option("--held-out", metavar="SHARE", help="Share of the samples to judge by and not to train on."),
    ] = 0.05,
    sample_every: Annotated[
        int | None,
        typer.Option(
            "--sample-every",
            metavar="N",
            help="Steps between held-out losses, pictures and answers. [default: a tenth of the run, 20 or more]",
        ),
    ] = None,
    save_every: Annotated[
        int | None,
        typer.Option(
            "--save-every", metavar="N", help="Steps between checkpoints. [default: a twentieth of the run, 10 to 500]"
        ),
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--gradient-checkpointing/--no-gradient-checkpointing",
            help="Less memory for a third more time. [default: for large models]",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="DTYPE", help="Compute in bfloat16 or float32. [default: by device]"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the last checkpoint in DIR, with the same options.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the data, show what the model will read, and stop.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Teach the model from samples.

    Quadruplets: prompt, image, question, answer. Prints the folder of the adapter that was learned.

    Each line of the JSONL file is an object with "prompt", "image", "question" and "answer", or a list "qa" of
    questions and answers; an edit has "source_image" too. `mlx.launch -n N mobileo-mlx finetune ...` trains on several
    machines.
    """
    from mobileo_mlx.errors import OptionError
    from mobileo_mlx.files import expand
    from mobileo_mlx.training.options import Options
    from mobileo_mlx.training.run_state import check_new
    from mobileo_mlx.training.stages import stage_named

    stage = stage_named(train or ("student" if objective == "consistency" else "lora")).adjusted(
        llm=llm,
        dit=dit,
        vision=vision,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup=warmup,
    )
    chosen = Options(
        stage=stage,
        layout=layout,  # type: ignore[arg-type]  # checked there
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        steps=steps,
        accumulate=accumulate,
        cond_dropout=cond_dropout,
        flow_shift=flow_shift,
        seed=seed,
        held_out=held_out,
        sample_every=sample_every,
        save_every=save_every,
        recompute=gradient_checkpointing,
        dtype=dtype,
        adapter=adapter,
        objective=objective,  # type: ignore[arg-type]
        teacher_steps=teacher_steps,
        guidance_scale=guidance_scale,
    )
    if out is None and not dry_run:
        raise OptionError("--out is missing; name the folder for the adapter, or add --dry-run.")
    out = None if out is None else expand(out)
    if out is not None and not resume and not dry_run and leading():
        check_new(out)
    run = _prepare(quadruplets, model or options.DEFAULT_MODEL, chosen)
    if dry_run:
        if leading():
            _describe(run, as_json)
        return
    assert out is not None
    if leading():
        printing.note_slow_blas()
        printing.note_hidden_cuda()
    log = _Log(run)
    with signals.noted(_say_that_it_stops) as stopped:
        for event in run.start(out, resume=resume, stop=lambda: bool(stopped)):
            if leading():
                log.show(event)
    if stopped:
        raise signals.interruption(stopped[0])
    if leading() and as_json:
        printing.report({"adapter": str(out), **log.last})
    elif leading():
        printing.out(str(out))


def leading() -> bool:
    """Whether this process is the one that writes: the only one, or the first of `mlx.launch`."""
    import mlx.core as mx

    return mx.distributed.init().rank() == 0


def _prepare(data: Path, model: str, chosen: Options) -> FinetuneRun:
    """The run, with data that was checked. What is wrong with them is listed before the error is raised."""
    from mobileo_mlx.training.quadruplets import DataError
    from mobileo_mlx.training.trainer import FinetuneRun

    if leading():
        printing.note(f"reading {data}")
    with printing.Progress() as progress:
        try:
            return FinetuneRun.prepare(
                data,
                model,
                chosen,
                progress=lambda count: progress.say(f"{count} samples are fine") if count % 50 == 0 else None,
                download_progress=printing.draws_bars(),
            )
        except DataError as error:
            progress.say("")
            for problem in error.problems[:_SHOWN_PROBLEMS] if leading() else ():
                printing.note(str(problem))
            raise


def _describe(run: FinetuneRun, as_json: bool) -> None:
    """What `--dry-run` prints: counts, and what the model reads."""
    data, stage = run.data, run.options.stage
    held_out = len(run.held_out)
    if as_json:
        printing.report(
            {
                "samples": len(data.samples),
                "edits": data.edits,
                "questions": data.questions,
                "default_questions": data.default_questions,
                "held_out": held_out,
                "steps": run.steps,
                "batch_size": stage.batch_size,
                "stage": stage.name,
                "layout": run.options.layout,
                "previews": [{"title": title, "text": text} for title, text in run.previews()],
            }
        )
        return
    printing.out(
        f"{len(data.samples)} samples: {len(data.samples) - data.edits} drawings, {data.edits} edits, "
        f"{data.questions} questions; {held_out} held out"
    )
    if data.default_questions:
        printing.out(f"{data.default_questions} of the samples have no question; upstream's own takes its place")
    printing.out(f"{run.steps} steps of {stage.batch_size} samples, {stage.name}, {run.options.layout} layout")
    for title, text in run.previews():
        printing.out(f"\n--- {title}\n{text}")


def _say_that_it_stops() -> None:
    if leading():
        printing.note("stopping after this step, with a checkpoint; press Ctrl-C again to stop at once")


class _Log:
    """What is written while a run goes on: of quick steps one line a second."""

    def __init__(self, run: FinetuneRun) -> None:
        self._batch_size = run.options.stage.batch_size
        self._last = -math.inf
        self.last: dict[str, Any] = {}  # what was heard last, for --json

    def show(self, event: Event) -> None:
        from mobileo_mlx.training.events import Evaluated, Finished, Notice, SamplesFailed, SamplesWritten

        if isinstance(event, Evaluated):
            self.last["held_out"] = event.metrics
            printing.note(f"step {event.step}: held out {_numbers(event.metrics)}")
        elif isinstance(event, SamplesWritten):
            self.last["samples"] = str(event.path)
            printing.note(f"step {event.step}: pictures and answers in {event.path}")
        elif isinstance(event, SamplesFailed):
            printing.note(f"step {event.step}: no pictures and answers: {event.reason}")
        elif isinstance(event, Notice):
            printing.note(event.text)
        elif isinstance(event, Finished):
            self.last |= {"step": event.step, "steps": event.steps}
            if event.step < event.steps:
                printing.note(f"stopped at step {event.step} of {event.steps}; --resume continues")
            if event.plot is None:
                printing.note("metrics.jsonl has the losses; for a plot of them, pip install 'mobileo-mlx[bench]'")
        else:
            self.last |= {"loss": event.loss, "metrics": event.metrics}
            self._show_step(event)

    def _show_step(self, event: StepReport) -> None:
        if printing.step(event.step, event.steps, "training", loss=event.loss, metrics=event.metrics):
            return
        if event.step == event.steps or time.monotonic() >= self._last + 1:
            self._last = time.monotonic()
            left = (event.steps - event.step) * self._batch_size / event.samples_per_second
            printing.note(
                f"step {event.step}/{event.steps}: loss {event.loss:.4f} ({_numbers(event.metrics)}), "
                f"{event.samples_per_second:.3g} samples/s, {printing.seconds(left)} left"
            )


def _numbers(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
