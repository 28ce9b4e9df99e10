from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from PIL import Image

from mobileo_mlx import MobileO
from mobileo_mlx.checkpoints import precision
from mobileo_mlx.conditioning import encode_image
from mobileo_mlx.errors import CheckpointError, ImageError, NotFiniteError, OptionError, OutputError, TrainingError
from mobileo_mlx.models.batch_norm import BatchNorm
from mobileo_mlx.ops import backend
from mobileo_mlx.training.batches import EpochCache
from mobileo_mlx.training.events import Evaluated, Finished, SamplesFailed, SamplesWritten
from mobileo_mlx.training.loop import StepReport
from mobileo_mlx.training.options import Options
from mobileo_mlx.training.quadruplets import DataError
from mobileo_mlx.training.run_state import checkpoints, read_metrics
from mobileo_mlx.training.stages import STAGES, make_optimizer, parameter_groups, stage_named, warmup_cosine
from mobileo_mlx.training.trainer import FinetuneRun, split

from .conftest import losses, options, write_lines

Write = Callable[..., Path]


@pytest.mark.parametrize("plotting", [True, False])
def test_a_whole_run(
    prepared: Callable[..., FinetuneRun],
    tiny_model: Path,
    tmp_path: Path,
    plotting: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if plotting:
        pytest.importorskip("matplotlib")
    else:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = tmp_path / "out"
    events = list(prepared().start(out))
    kinds = [type(event) for event in events]
    assert kinds == [StepReport] * 4 + [Evaluated, SamplesWritten, Finished]
    assert isinstance(events[0], StepReport)
    assert events[0].metrics.keys() == {"diffusion_loss", "answer_loss"}
    total = events[0].metrics["diffusion_loss"] + 0.2 * events[0].metrics["answer_loss"]
    assert np.isclose(events[0].loss, total, rtol=1e-6)
    assert events[-1] == Finished(out, 4, 4, out / "loss.png" if plotting else None)
    lines = read_metrics(out)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4]
    assert lines[-1]["held_out"].keys() == {"loss", "diffusion_loss", "answer_loss"}
    assert (out / "loss.png").exists() == plotting
    with Image.open(out / "samples" / "0000004.png") as sheet:
        assert sheet.size == (2 * 128, 2 * 128)  # two samples are held out
    shown = json.loads((out / "samples" / "0000004.json").read_text())
    assert [entry["expected"] for entry in shown] == [s.qa[0].answer for s in prepared().held_out]
    # What was trained changes the images, and only then.
    base = MobileO.load(tiny_model).generate("a cat", seed=1, steps=2).latents
    taught = MobileO.load(tiny_model, adapter=out).generate("a cat", seed=1, steps=2).latents
    assert not np.allclose(base, taught, atol=1e-3)
    without = MobileO.load(tiny_model, adapter=out, adapter_scale=0.0).generate("a cat", seed=1, steps=2).latents
    assert np.allclose(base, without, atol=1e-5)


def test_the_adapter_is_the_trained_model(
    prepared: Callable[..., FinetuneRun], tiny_model: Path, tmp_path: Path
) -> None:
    run = prepared("paper", steps=2, dropout=0.0, dtype="float32")
    list(run.start(tmp_path / "out"))
    adapted = MobileO.load(tiny_model, adapter=tmp_path / "out", dtype="float32")
    image = run.data.samples[0].question_image.open()
    assert np.allclose(encode_image(run.model.parts, image), encode_image(adapted.parts, image), atol=1e-4)
    ours, theirs = (model.generate("a cat", seed=1, steps=2).latents for model in (run.model, adapted))
    assert np.allclose(ours, theirs, atol=1e-3)


@pytest.mark.parametrize(
    ("stage", "layout", "trained"),
    [
        ("lora", "inference", {"llm", "dit", "mm_projector", "diffusion_connector"}),
        ("paper", "upstream", {"llm", "dit", "mm_projector", "diffusion_connector", "vision_tower"}),
        ("align", "inference", {"dit", "diffusion_connector"}),
        ("sft", "upstream", {"dit", "diffusion_connector"}),
    ],
)
def test_what_a_stage_trains(
    prepared: Callable[..., FinetuneRun], tmp_path: Path, stage: str, layout: str, trained: set[str]
) -> None:
    run = prepared(stage, count=2, layout=layout, steps=1, held_out=0.0, dtype="float32")
    network = run.network
    before = {name: np.array(value) for name, value in tree_flatten(network.parameters())}
    names = {name for name, _ in tree_flatten(network.trainable_parameters())}
    assert {name.split(".")[0] for name in names} == trained
    assert all(".lora_" in name for name in names if name.startswith("llm."))
    assert not any(name.endswith(("temperature", "running_mean", "running_var")) for name in names)
    events = list(run.start(tmp_path / "out"))
    assert ("answer_loss" in events[0].metrics) == STAGES[stage].questions  # type: ignore[union-attr]
    after = dict(tree_flatten(network.parameters()))
    changed = {name for name, value in before.items() if not np.array_equal(value, after[name])}
    # At first B is zero, and so is the gradient of A.
    assert names - changed <= {name for name in names if name.endswith("lora_a")} | {
        name for name in names if name.endswith("attn2.to_k.bias")
    }
    assert all(name.endswith(("running_mean", "running_var")) for name in changed - names)
    assert bool(changed - names) == (STAGES[stage].vision == "full")


def test_stopping_and_resuming_is_exact(prepared: Callable[..., FinetuneRun], tmp_path: Path) -> None:
    expected = losses(list(prepared("paper").start(tmp_path / "whole")))
    asked = iter([False, False, True])
    first = list(prepared("paper").start(tmp_path / "out", stop=lambda: next(asked)))
    assert isinstance(first[-1], Finished)
    assert (first[-1].step, first[-1].steps) == (3, 4)
    rest = list(prepared("paper").start(tmp_path / "out", resume=True))
    assert losses(first) + losses(rest) == expected
    for name in ("adapter_model.safetensors", "trained.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_parts_give_the_losses_of_the_whole(prepared: Callable[..., FinetuneRun], tmp_path: Path) -> None:
    whole = losses(list(prepared(dropout=0.0, dtype="float32").start(tmp_path / "whole")))
    parts = losses(list(prepared(dropout=0.0, accumulate=4, dtype="float32").start(tmp_path / "parts")))
    assert np.allclose(whole, parts, rtol=2e-5)


def test_a_run_goes_on_only_with_its_own_settings(
    prepared: Callable[..., FinetuneRun], quadruplets: Write, tiny_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    list(prepared("align", steps=1).start(out))
    with pytest.raises(OutputError, match="holds a run already; continue it with --resume"):
        list(prepared("align", steps=1).start(out))
    for changes, words in (
        ({"cond_dropout": 0.5}, r"\(cond_dropout 0\.1 there, 0\.5 here\)"),
        # On it depend the keys of the adapters' dropout.
        ({"accumulate": 2}, r"\(accumulate 1 there, 2 here\); continue with those, or choose another folder"),
    ):
        with pytest.raises(CheckpointError, match=words):
            list(prepared("align", steps=1, **changes).start(out, resume=True))
    with pytest.raises(CheckpointError, match=r"\(other data\)"):
        list(prepared("align", steps=1, count=7).start(out, resume=True))


def test_a_loss_that_is_no_number_names_its_samples(prepared: Callable[..., FinetuneRun], tmp_path: Path) -> None:
    run = prepared(count=4, held_out=0.0)
    network = run.network
    # A weight that only one of the prompts reads.
    prompts = {s.name: set(run.batches.sequences(s, 0)[0].input_ids) for s in run.data.samples}
    others = set().union(*(ids for name, ids in prompts.items() if name != "line 3"))
    answers = set().union(*(run.batches.sequences(s, 0)[1].input_ids for s in run.data.samples))  # type: ignore[union-attr]
    (token, *_) = prompts["line 3"] - others - answers
    network.llm.embed_tokens.weight[token] = float("nan")
    with pytest.raises(TrainingError, match=r"At step 1 the loss is nan .* look at line 3\.$"):
        list(run.start(tmp_path / "out"))


def test_samples_that_are_not_finite_do_not_stop_a_run(prepared: Callable[..., FinetuneRun], tmp_path: Path) -> None:
    run = prepared("align")
    decoder = run.model.parts.vae_decoder
    decoder.conv_in.weight = decoder.conv_in.weight * float("nan")
    events = list(run.start(tmp_path / "out"))
    failed = [event for event in events if isinstance(event, SamplesFailed)]
    assert [event.step for event in failed] == [4]
    assert failed[0].reason.startswith("vae_decoder in ")
    assert isinstance(events[-1], Finished)
    assert (tmp_path / "out" / "trained.safetensors").is_file()


def test_an_evaluation_that_is_not_finite_does_not_stop_a_run(
    prepared: Callable[..., FinetuneRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepared("align")
    monkeypatch.setattr(run, "_held_out_loss", lambda: {"loss": float("nan"), "diffusion_loss": float("nan")})
    events = list(run.start(tmp_path / "out"))
    assert [type(event) for event in events[-3:]] == [Evaluated, SamplesWritten, Finished]


@pytest.mark.parametrize(("rate", "step"), [(3e38, 1), (1e25, 2)])
def test_a_learning_rate_that_is_far_too_high_keeps_what_there_was(
    quadruplets: Write, tiny_model: Path, tmp_path: Path, rate: float, step: int
) -> None:
    chosen = Options(stage=STAGES["align"].adjusted(batch_size=4, learning_rate=rate, warmup=0.0), steps=4)
    run = FinetuneRun.prepare(quadruplets(8), tiny_model, chosen)
    out = tmp_path / "out"
    with pytest.raises(TrainingError, match=rf"At step {step} .*lower the learning rate") as failed:
        list(run.start(out))
    weights = [value for _, value in tree_flatten(run.network.parameters())]
    assert all(mx.isfinite(value).all() for value in weights)
    assert (out / "trained.safetensors").is_file() == (step > 1)
    assert (f"'{out}' holds the adapter of step {step - 1}" in str(failed.value)) == (step > 1)


def test_a_learning_rate_that_is_none() -> None:
    for rate in (float("inf"), float("nan"), 0.0, -1.0):
        with pytest.raises(OptionError, match=r"learning_rate .* makes no sense"):
            STAGES["lora"].adjusted(learning_rate=rate)


def test_a_model_that_is_not_finite_is_at_fault_and_not_its_samples(
    quadruplets: Write, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "spoilt"
    shutil.copytree(tiny_model, folder)
    weights: Any = dict(mx.load(str(folder / "dit.safetensors")))
    weights["proj_out.weight"] = weights["proj_out.weight"] * float("nan")
    mx.save_safetensors(str(folder / "dit.safetensors"), weights)
    run = FinetuneRun.prepare(quadruplets(8), folder, options("align"))
    with pytest.raises(NotFiniteError, match=r"^dit .*: proj_out\.weight in '.*' holds NaN or infinity"):
        list(run.start(tmp_path / "out"))


def test_a_picture_that_is_gone_costs_no_step(
    prepared: Callable[..., FinetuneRun], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = losses(list(prepared("align").start(tmp_path / "whole")))
    out = tmp_path / "out"
    run = prepared("align")
    fail_from(run, monkeypatch, step=2, error=ImageError("'red.png' does not exist; check the name of the image."))
    with pytest.raises(ImageError, match=r"'red\.png' does not exist.*; '.*out' holds the adapter of step 2\.$"):
        list(run.start(out))
    assert [path.name for path in checkpoints(out)] == ["step-0000002"]
    assert (out / "trained.safetensors").read_bytes() == (out / "step-0000002" / "trained.safetensors").read_bytes()
    assert losses(list(prepared("align").start(out, resume=True))) == expected[2:]


def test_any_error_leaves_the_adapter(
    prepared: Callable[..., FinetuneRun], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = prepared("align")
    fail_from(run, monkeypatch, step=2, error=RuntimeError("[METAL] Command buffer execution failed"))
    with pytest.raises(RuntimeError, match=r"\[METAL\] Command buffer execution failed$"):
        list(run.start(tmp_path / "out"))
    assert (tmp_path / "out" / "trained.safetensors").is_file()


def fail_from(run: FinetuneRun, monkeypatch: pytest.MonkeyPatch, *, step: int, error: Exception) -> None:
    """Lets the batches of a step and those after it raise."""
    batches = run.batches

    class Failing:
        samples, names, one_by_one = batches.samples, batches.names, batches.one_by_one
        held_out, fingerprint = batches.held_out, batches.fingerprint

        def __call__(self, at: int, part: int) -> Any:
            if at >= step:
                raise error
            return batches(at, part)

    monkeypatch.setattr(run, "batches", Failing())


def test_temperature_falls_from_epoch_to_epoch(prepared: Callable[..., FinetuneRun], tmp_path: Path) -> None:
    run = prepared("align", held_out=0.0, steps=6)
    found = []
    for event in run.start(tmp_path / "out"):
        if isinstance(event, StepReport):
            found.append(float(run.network.diffusion_connector.temperature))
    # 6 steps of 4 samples are three epochs of 8.
    assert found[0] == found[1] == 2.0
    assert np.allclose(found[2:], [1.625, 1.625, 0.875, 0.875])


def test_batches_are_functions_of_the_step(prepared: Callable[..., FinetuneRun]) -> None:
    first, again = prepared().batches(3, 0), prepared().batches(3, 0)
    assert first.names == again.names
    assert (first.noise == again.noise).all()
    assert first.drawing.input_ids == again.drawing.input_ids
    assert first.names != prepared().batches(4, 0).names
    run = prepared(held_out=0.0)
    # An epoch sees every sample once.
    assert sorted(run.batches.names(0) + run.batches.names(1)) == sorted(s.name for s in run.data.samples)
    one_by_one = list(run.batches.one_by_one(1))
    whole = run.batches(1, 0)
    assert [batch.names for batch in one_by_one] == [(name,) for name in whole.names]
    assert all((batch.noise[0] == whole.noise[i]).all() for i, batch in enumerate(one_by_one))


def test_conditioning_is_dropped_by_chance(prepared: Callable[..., FinetuneRun]) -> None:
    for share in (0.0, 0.25, 0.5):
        batches = prepared(cond_dropout=share).batches
        dropped = np.concatenate([np.array(batches(step, 0).dropped) for step in range(100)])
        assert abs(dropped.sum() - share * dropped.size) <= 3 * (dropped.size * share * (1 - share)) ** 0.5


def test_flow_shift_raises_noise_levels(prepared: Callable[..., FinetuneRun]) -> None:
    plain, shifted = (np.array(prepared(flow_shift=shift).batches(0, 0).sigmas) for shift in (1.0, 3.0))
    assert ((plain > 0) & (plain < 1)).all()
    assert np.allclose(shifted, 3 * plain / (1 + 2 * plain), rtol=1e-6)


def test_every_sample_is_tokenized_once(prepared: Callable[..., FinetuneRun], monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepared()
    monkeypatch.setattr(run.model.parts.tokenizer, "encode", None)
    assert run.batches.too_long(run.data.samples) == []
    assert run.batches(0, 0).names


def test_upstream_sees_images_of_half_the_side(prepared: Callable[..., FinetuneRun]) -> None:
    run = prepared("paper", layout="upstream", dtype="float32")
    batch = run.batches(0, 0)
    assert batch.answers is batch.drawing
    assert batch.drawing.pixels is not None
    assert batch.drawing.pixels.shape == (4, 64, 64, 3)
    assert float(batch.drawing.pixels.min()) < 0
    ours = prepared("paper").batches(0, 0)
    assert ours.answers is not None
    assert ours.answers.pixels is not None
    assert ours.answers.pixels.shape == (4, 128, 128, 3)
    assert float(ours.answers.pixels.min()) >= 0
    # Of a frozen tower there is the output.
    kept = prepared(dtype="float32").batches(0, 0)
    assert kept.answers is not None
    assert kept.answers.pixels is None
    assert kept.answers.features is not None
    features = run.model.parts.mm_projector(kept.answers.features)
    picture = next(s for s in run.data.samples if s.name == kept.names[0]).question_image
    assert np.allclose(features[0], encode_image(run.model.parts, picture.open())[0], atol=1e-4)


def test_previews_show_what_is_read(prepared: Callable[..., FinetuneRun]) -> None:
    titles, texts = zip(*prepared().previews(), strict=True)
    assert titles == ("drawing, line 1", "drawing's question, line 1", "edit, line 3", "edit's question, line 3")
    assert "following caption: a red picture, number 0<|im_end|>" in texts[0]
    assert texts[1].endswith("⟦red<|im_end|>⟧")
    assert "<image x 4>" in texts[2]
    (only, edit) = prepared(layout="upstream").previews()
    assert only[1].startswith("<image x 1><|im_start|>user")
    assert edit[0] == "edit, line 3"


def test_samples_that_do_not_fit(images: Path, tiny_model: Path) -> None:
    line = {"prompt": "a cat", "image": "red.png", "question": "what?", "answer": "red"}
    path = write_lines(images, [line, {**line, "prompt": "cat " * 3000}, {**line, "source_image": "blue.png"}])
    with pytest.raises(DataError) as caught:
        FinetuneRun.prepare(path, tiny_model, options())
    (problem,) = caught.value.problems
    assert problem.name == "line 2"
    assert "and the model's context has 2048" in problem.reason
    with pytest.raises(DataError) as caught:
        FinetuneRun.prepare(path, tiny_model, options("sft", layout="upstream"))
    assert [problem.name for problem in caught.value.problems] == ["line 2", "line 3"]


def test_options_that_make_no_sense(prepared: Callable[..., FinetuneRun]) -> None:
    for changes in (
        {"layout": "other"},
        {"steps": 0},
        {"accumulate": 0},
        {"cond_dropout": 1.0},
        {"held_out": -0.1},
        {"flow_shift": 0.0},
        {"layout": "upstream", "flow_shift": 3.0},
        {"seed": -1},
        {"dtype": "float16"},
    ):
        with pytest.raises(OptionError):
            options(**changes)  # type: ignore[arg-type]
    for changes in ({"dit": "none"}, {"vision": "lora"}, {"batch_size": 0}, {"warmup": 1.0}, {"learning_rate": -1.0}):
        with pytest.raises(OptionError):
            STAGES["lora"].adjusted(**changes)
    with pytest.raises(OptionError, match="no stage 'best'"):
        stage_named("best")
    with pytest.raises(OptionError, match="can't be divided into 3 parts"):
        prepared(accumulate=3)


@pytest.mark.parametrize(
    ("chip", "asked", "trained", "autoencoder"),
    [
        ("Apple M1", None, mx.bfloat16, mx.float32),  # where the rest is float16 by default
        ("Apple M4", None, mx.bfloat16, mx.bfloat16),
        ("H100", None, mx.float32, mx.float32),  # the dtype of the checkpoint
        ("Apple M1", "float32", mx.float32, mx.float32),
        ("Apple M1", "bfloat16", mx.bfloat16, mx.bfloat16),
    ],
)
def test_the_dtype_of_training_follows_the_chip(
    prepared: Callable[..., FinetuneRun],
    monkeypatch: pytest.MonkeyPatch,
    chip: str,
    asked: str | None,
    trained: mx.Dtype,
    autoencoder: mx.Dtype,
) -> None:
    monkeypatch.setattr(backend, "backend", lambda: "metal")
    monkeypatch.setattr(backend, "chip_name", lambda: chip)
    monkeypatch.setattr(precision, "default_dtype", lambda *of: precision.choice(*of).dtype)
    run = prepared(dtype=asked)
    parts = run.model.parts
    assert {parts.dtype(name) for name in run.network.children()} == {trained}
    assert parts.dtype("vae_encoder") == parts.dtype("vae_decoder") == autoencoder
    assert run.loss.dtype == (None if trained == mx.float32 else trained)
    loss, _ = run.loss(run.network, run.batches(0, 0), mx.random.key(0))
    assert mx.isfinite(loss)


def test_a_trained_tower_keeps_its_statistics_in_float32(prepared: Callable[..., FinetuneRun]) -> None:
    """Though it computes in bfloat16, as its parameters are cast to."""
    run = prepared("paper", dtype="bfloat16")
    batch = run.batches(0, 0)
    norms = [m for m in run.network.vision_tower.modules() if isinstance(m, BatchNorm)]
    before = [norm.running_mean for norm in norms]
    run.loss(run.network, batch, mx.random.key(0))
    assert {norm.running_mean.dtype for norm in norms} == {norm.running_var.dtype for norm in norms} == {mx.float32}
    assert not any(mx.array_equal(norm.running_mean, mean) for norm, mean in zip(norms, before, strict=True))


# Stages and rates


def test_a_new_rate_moves_its_minimum() -> None:
    stage = STAGES["sft"].adjusted(learning_rate=4e-4, epochs=None)
    assert np.isclose(stage.minimum, 2e-6)
    assert stage.epochs == 20


def test_warmup_then_cosine() -> None:
    factor = warmup_cosine(100, 0.1, 0.01)
    values = [float(factor(mx.array(step))) for step in range(100)]
    assert np.allclose(values[:10], np.arange(1, 11) / 10)
    assert np.isclose(values[54], 0.01 + 0.99 / 2, atol=1e-3)
    assert np.isclose(values[-1], 0.01, atol=1e-4)
    assert values[9:] == sorted(values[9:], reverse=True)


def test_adapters_have_the_stages_rate_but_not_upstream(prepared: Callable[..., FinetuneRun]) -> None:
    network = prepared("paper", layout="upstream").network
    for upstream, rate in ((False, 1e-4), (True, 1e-6)):
        groups = parameter_groups(network, STAGES["paper"], upstream=upstream)
        rates = {name: group.learning_rate for group in groups for name in group.names}
        assert {rates[name] for name in rates if ".lora_" in name and name.startswith("llm")} == {rate}
        assert groups[0].learning_rate == 1e-4
        assert len(rates) == sum(len(group.names) for group in groups)
        assert rates.keys() == dict(tree_flatten(network.trainable_parameters())).keys()
        assert {rates[name] for name in rates if name.startswith("vision_tower")} == {1e-6}
    assert make_optimizer(groups).learning_rate.item() == np.float32(1e-4)


def test_layer_weights_learn_faster_in_alignment(prepared: Callable[..., FinetuneRun]) -> None:
    network = prepared("align").network
    groups = {name: g for g in parameter_groups(network, STAGES["align"]) for name in g.names}
    fast = groups["diffusion_connector.layer_weights"]
    assert (fast.learning_rate, fast.weight_decay) == (2e-3, 0.0)
    assert groups["dit.proj_out.weight"].learning_rate == 2e-4


# Small things


def test_some_samples_are_held_out() -> None:
    samples: list[Any] = list(range(20))
    train, held = split(samples, 0.2, seed=1)
    assert (len(train), len(held)) == (16, 4)
    assert sorted(train + held) == samples
    assert split(samples, 0.2, seed=1) == (train, held)
    assert split(samples[:1], 0.9, seed=1) == (samples[:1], [])


def test_a_cache_keeps_what_comes_first() -> None:
    cache, computed = EpochCache(limit=8), []

    def compute(name: str) -> mx.array:
        computed.append(name)
        return mx.zeros(1)

    for name in "abcabc":
        cache.get(name, lambda name=name: compute(name))  # type: ignore[misc]
    assert computed == ["a", "b", "c", "c"]


def test_checkpoints_hold_what_resuming_needs(prepared: Callable[..., FinetuneRun], tmp_path: Path) -> None:
    list(prepared("align", steps=2).start(tmp_path / "out"))
    (last,) = checkpoints(tmp_path / "out")[-1:]
    assert {path.name for path in last.iterdir()} == {"state.json", "trained.safetensors", "optimizer.safetensors"}
