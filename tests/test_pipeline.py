"""The tasks of one model: what they compute, and which parts they read."""

from __future__ import annotations

import gc
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mobileo_mlx import conditioning
from mobileo_mlx.conditioning import encode_image
from mobileo_mlx.diffusion import GenerationStep
from mobileo_mlx.images import cover_crop, to_signed
from mobileo_mlx.latents import decode_latents, encode_latents, noise
from mobileo_mlx.models.mobileo import COMPONENTS
from mobileo_mlx.parts import Parts
from mobileo_mlx.pipeline import MobileO
from mobileo_mlx.prompts import encode_prompt
from mobileo_mlx.results import GenerationResult
from mobileo_mlx.schedulers import make_scheduler

SMALL = {"width": 64, "height": 32}


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> MobileO:
    return MobileO.load(tiny_model)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Two pictures of large, smooth shapes that have nothing in common."""
    red, blue = Image.new("RGB", (96, 64), (200, 60, 40)), Image.new("RGB", (96, 64), (40, 90, 220))
    red.paste((240, 220, 90), (0, 0, 48, 64))
    blue.paste((20, 20, 60), (0, 32, 96, 64))
    return [red, blue]


def steps_of(stream: Any) -> list[GenerationStep]:
    return [event for event in stream if isinstance(event, GenerationStep)]


def distance(first: Image.Image, second: Image.Image) -> float:
    """The mean difference of two images, in levels of 255."""
    return float(np.abs(np.asarray(first, np.float32) - np.asarray(second, np.float32)).mean())


# Negative prompts

SHORT, LONG = "a cat", "a small house beside a river, mountains at sunset and two stars above it"


@pytest.mark.parametrize(("prompt", "negative"), [(SHORT, LONG), (LONG, SHORT), (SHORT, "a dog")])
@pytest.mark.parametrize("seeds", [[3], [3, 4]])
def test_a_negative_prompt_guides_as_two_runs_apart(
    model: MobileO, prompt: str, negative: str, seeds: list[int]
) -> None:
    """One is padded to the length of the other, which must not change what the network makes of it."""
    options = {"seed": seeds, "steps": 1, **SMALL}
    (guided,) = steps_of(
        model.stream_generate(prompt, negative_prompt=negative, guidance_scale=2.5, **options)  # type: ignore[arg-type]
    )
    toward, away = (
        steps_of(model.stream_generate(text, guidance_scale=1.0, **options))[0].velocity  # type: ignore[arg-type]
        for text in (prompt, negative)
    )
    assert not mx.allclose(toward, away, atol=1e-2)
    assert mx.allclose(guided.velocity, away + 2.5 * (toward - away), atol=1e-4)


@pytest.mark.parametrize("negative", [SHORT, LONG])
def test_a_negative_prompt_of_an_edit_sees_the_image(
    model: MobileO, pictures: list[Image.Image], negative: str
) -> None:
    options: dict[str, Any] = {"seed": 3, "steps": 1, **SMALL}
    (guided,) = steps_of(
        model.stream_edit(pictures[0], "a red cat", negative_prompt=negative, guidance_scale=2.5, **options)
    )
    toward, away = (
        steps_of(model.stream_edit(pictures[0], text, guidance_scale=1.0, **options))[0].velocity
        for text in ("a red cat", negative)
    )
    assert mx.allclose(guided.velocity, away + 2.5 * (toward - away), atol=1e-4)


# The parts that a task reads

DRAWING = {"llm", "diffusion_connector", "dit", "vae_decoder"}
SEEING = {"vision_tower", "mm_projector"}
Task = Callable[[MobileO, Image.Image], Any]
TASKS: dict[str, tuple[set[str], Task]] = {
    "generate": (DRAWING, lambda model, image: model.generate("a cat", steps=1)),
    "generate with a negative prompt": (
        DRAWING,
        lambda model, image: model.generate("a cat", negative_prompt="a dog on a table", steps=1),
    ),
    "edit": (DRAWING | SEEING, lambda model, image: model.edit(image, "redder", steps=1)),
    "edit from the image": (
        DRAWING | SEEING | {"vae_encoder"},
        lambda model, image: model.edit(image, "redder", steps=2, strength=0.9),
    ),
    "ask": ({"llm", "lm_head"} | SEEING, lambda model, image: model.ask(image, "What is this?", max_tokens=2)),
    "talk": ({"llm", "lm_head"}, lambda model, image: model.chat().send("Who are you?", max_tokens=2)),
}


def without(tiny_model: Path, folder: Path, used: set[str]) -> Path:
    """A copy of the model that has no files of any other component."""
    shutil.copytree(tiny_model, folder)
    for name in set(COMPONENTS) - used:
        (folder / f"{name}.safetensors").unlink()
    return folder


@pytest.mark.parametrize("files", ["all", "its own"])
@pytest.mark.parametrize("task", TASKS)
def test_a_task_reads_its_own_parts_only(
    tiny_model: Path,
    tmp_path: Path,
    pictures: list[Image.Image],
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    files: str,
) -> None:
    used, run = TASKS[task]
    loaded: list[str] = []
    load = Parts.__getitem__

    def recording(self: Parts, component: str) -> Any:
        if component not in self.loaded:
            loaded.append(component)
        return load(self, component)

    monkeypatch.setattr(Parts, "__getitem__", recording)
    folder = tiny_model if files == "all" else without(tiny_model, tmp_path / "part", used)
    run(MobileO.load(folder), pictures[0])
    assert sorted(loaded) == sorted(used)


@pytest.mark.parametrize(
    ("task", "arguments"),
    [
        ("generate", ["generate", "a cat", "--steps", "1", "-o", "out.png"]),
        ("edit", ["edit", "in.png", "redder", "--steps", "1", "-o", "out.png"]),
        ("ask", ["ask", "in.png", "What is this?", "--max-tokens", "2"]),
    ],
)
def test_a_command_reads_its_own_parts_only(
    tiny_model: Path, tmp_path: Path, pictures: list[Image.Image], task: str, arguments: list[str]
) -> None:
    part = without(tiny_model, tmp_path / "part", TASKS[task][0])
    pictures[0].save(tmp_path / "in.png")
    command = [str(Path(sysconfig.get_path("scripts")) / "mobileo-mlx"), *arguments, "-m", str(part)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert task == "ask" or (tmp_path / "out.png").exists()


# What stays in memory


def weights_of(model: MobileO, *names: str) -> int:
    """Bytes of the stored weights; on a CPU they are float32 in memory, too."""
    return sum(info.nbytes for name in names for info in model.checkpoint.tensors(name).values())


STAGES: list[tuple[str, dict[str, Any]]] = [
    ("generate", {}),
    ("generate", {"negative_prompt": LONG}),
    ("edit", {}),
    ("edit", {"negative_prompt": LONG}),
    ("edit", {"strength": 0.9}),
]


def drawing(model: MobileO, task: str, picture: Image.Image, **options: Any) -> Any:
    options = {"seed": 3, "steps": 3, **SMALL, **options}
    return (
        model.stream_generate("a cat", **options)
        if task == "generate"
        else model.stream_edit(picture, "redder", **options)
    )


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(("task", "options"), STAGES)
def test_a_stage_holds_what_it_needs_alone(
    tiny_model: Path, pictures: list[Image.Image], task: str, options: dict[str, Any], no_collection: None
) -> None:
    """Once the weights of the others are freed, little more is in use than those of the stage.

    No cycle may hold them: Python looks for cycles when it likes.
    """
    model = MobileO.load(tiny_model, keep_loaded=False)
    dit, decoder = weights_of(model, "dit"), weights_of(model, "vae_decoder")
    margin = min(decoder, weights_of(model, "mm_projector", "vision_tower"), weights_of(model, "llm")) // 2
    for event in drawing(model, task, pictures[0]):  # what is made once for a process, such as tables
        del event
    model.release()
    gc.collect()
    before = mx.get_active_memory()
    for event in drawing(model, task, pictures[0], **options):
        last = isinstance(event, GenerationResult)
        used, own = mx.get_active_memory() - before, decoder if last else dit
        assert own / 2 < used < own + margin, (event, used, own, margin)
    model.release()
    del event
    assert mx.get_active_memory() - before < margin


def test_an_answer_in_stages_holds_the_language_model_alone(tiny_model: Path, pictures: list[Image.Image]) -> None:
    model = MobileO.load(tiny_model, keep_loaded=False)
    for _ in model.stream_ask(pictures[0], "What is this?", max_tokens=2):
        pass
    model.release()
    gc.collect()
    before = mx.get_active_memory()
    language, vision = weights_of(model, "llm", "lm_head"), weights_of(model, "vision_tower", "mm_projector")
    for _ in model.stream_ask(pictures[0], "What is this?", max_tokens=3):
        assert language / 2 < mx.get_active_memory() - before < language + vision / 2


@pytest.mark.parametrize(("task", "options"), STAGES)
def test_stages_change_no_result(
    tiny_model: Path, model: MobileO, pictures: list[Image.Image], task: str, options: dict[str, Any]
) -> None:
    staged = MobileO.load(tiny_model, keep_loaded=False)
    ours, *others = (
        list(drawing(one, task, pictures[0], **options))[-1].latents for one in (staged, staged, model, model)
    )
    assert all(mx.array_equal(ours, other) for other in others)


def test_stages_change_no_answer(tiny_model: Path, model: MobileO, pictures: list[Image.Image]) -> None:
    staged = MobileO.load(tiny_model, keep_loaded=False)
    first, *others = (one.ask(pictures, "What?", max_tokens=5) for one in (staged, staged, model, model))
    assert all(other.tokens == first.tokens for other in others)


# What is cached


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the networks in the order in which they run from now on."""
    calls: list[str] = []
    real_image, real_states = conditioning.encode_image, conditioning.hidden_states
    monkeypatch.setattr(conditioning, "encode_image", lambda *given: calls.append("vision") or real_image(*given))
    monkeypatch.setattr(conditioning, "hidden_states", lambda *given: calls.append("llm") or real_states(*given))
    return calls


def test_a_prompt_that_is_drawn_again_is_not_read_again(
    tiny_model: Path, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MobileO.load(tiny_model)
    calls = counted(monkeypatch)
    options: dict[str, Any] = {"steps": 1, **SMALL}
    first = model.generate("a cat", seed=3, **options)
    assert calls == ["llm"]
    assert mx.array_equal(model.generate("a cat", seed=3, **options).latents, first.latents)
    assert calls == ["llm"]
    model.generate("a dog", negative_prompt="a cat", **options)
    assert calls == ["llm"] * 2
    model.edit(pictures[0], "a cat", **options)
    assert calls == ["llm"] * 2 + ["vision", "llm"]
    model.edit(pictures[0].copy(), "a dog", **options)  # the same pixels, and another instruction
    assert calls == ["llm"] * 2 + ["vision", "llm", "llm"]
    model.edit(pictures[1], "a dog", **options)
    assert calls == ["llm"] * 2 + ["vision", "llm", "llm", "vision", "llm"]


def test_other_weights_need_no_word_to_the_cache(tiny_model: Path, pictures: list[Image.Image]) -> None:
    """As in training, whose samples are drawn between steps that replace arrays."""
    model = MobileO.load(tiny_model)
    options: dict[str, Any] = {"steps": 1, **SMALL}
    first, answer = model.generate("a cat", **options), model.ask(pictures[0], "What?", max_tokens=3)
    edited = model.edit(pictures[0], "redder", **options)
    llm, projector = model.parts.llm, model.parts.mm_projector
    llm.update({"norm": {"weight": llm.norm.weight * 2}})
    assert not mx.allclose(model.generate("a cat", **options).latents, first.latents, atol=1e-4)
    assert model.ask(pictures[0], "What?", max_tokens=3).prompt_tokens == answer.prompt_tokens  # nothing was cached
    llm.update({"norm": {"weight": llm.norm.weight / 2}})
    assert mx.array_equal(model.generate("a cat", **options).latents, first.latents)
    projector.layers[0].weight = projector.layers[0].weight * 2
    assert mx.array_equal(model.generate("a cat", **options).latents, first.latents)  # no image is looked at
    assert not mx.allclose(model.edit(pictures[0], "redder", **options).latents, edited.latents, atol=1e-4)


def test_a_second_question_reads_its_own_words_alone(
    tiny_model: Path, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = ["What is this?", "Is there a circle?"]
    alone = [MobileO.load(tiny_model).ask(pictures, question, max_tokens=5) for question in questions]
    model = MobileO.load(tiny_model)
    calls = counted(monkeypatch)
    together = [model.ask(pictures, question, max_tokens=5) for question in questions]
    assert calls == ["vision"] * 2
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]
    assert together[0].prompt_tokens == alone[0].prompt_tokens
    words = together[1].prompt_tokens
    assert words == len(encode_prompt(model.tokenizer, f"\n{questions[1]}<|im_end|>\n<|im_start|>assistant\n"))
    # In another order, or after another system prompt, they are another conversation of the same images.
    model.ask(pictures[::-1], questions[0], max_tokens=1)
    assert model.chat(system_prompt="Be brief.").send("What?", images=pictures, max_tokens=1).prompt_tokens > words
    assert calls == ["vision"] * 2
    # Another question needs no vision tower at all.
    phases: list[str] = []
    model.parts.on_phase = phases.append
    model.ask(pictures, questions[0], max_tokens=1)
    assert phases == ["answer"]


# Editing


def test_latents_are_scaled(tiny_model: Path, pictures: list[Image.Image]) -> None:
    model = MobileO.load(tiny_model, dtype="float32")
    factor = model.config.vae.scaling_factor
    assert factor != 1
    image = cover_crop(pictures[0], 64, 32)
    latents = encode_latents(model.parts, image)
    assert mx.allclose(latents, model.parts.vae_encoder(to_signed(image)) * factor, atol=1e-5)
    decoded = model.parts.vae_decoder(latents / factor)
    assert mx.allclose(decode_latents(model.parts, latents), decoded, atol=1e-4)


@pytest.mark.parametrize("scheduler", ["dpm++", "euler"])
@pytest.mark.parametrize("strength", [0.3, 0.75, 0.95, 1.0])
def test_strength_starts_between_the_image_and_noise(
    model: MobileO, pictures: list[Image.Image], scheduler: str, strength: float
) -> None:
    sigmas = make_scheduler(scheduler, 12, 3.0).sigmas
    noise_levels = [float(sigma) for sigma in sigmas[:-1] if sigma <= strength]
    steps = steps_of(
        model.stream_edit(
            pictures[0],
            "redder",
            strength=strength,
            seed=[5, 6],
            steps=12,
            scheduler=scheduler,
            flow_shift=3.0,
            **SMALL,
        )
    )
    assert [step.steps for step in steps] == [len(noise_levels)] * len(steps)
    assert [step.sigma for step in steps] == [*noise_levels[1:], 0.0]
    sigma = noise_levels[0]
    source = encode_latents(model.parts, cover_crop(pictures[0], 64, 32))
    start = mx.concatenate([noise(model.config, seed, 64, 32) for seed in (5, 6)])
    # Both samplers predict the clean latents as x - sigma velocity.
    first = steps[0].denoised + sigma * steps[0].velocity
    assert mx.allclose(first, (1 - sigma) * source + sigma * start, atol=1e-4)


def test_little_strength_keeps_the_image(model: MobileO, pictures: list[Image.Image]) -> None:
    for picture in pictures:
        (decoded,) = model.decode_latents(encode_latents(model.parts, cover_crop(picture, 64, 32)))
        options: dict[str, Any] = {"steps": 400, "flow_shift": 1.0, **SMALL}
        little = model.edit(picture, "redder", strength=0.003, **options)
        assert distance(little.images[0], decoded) < 3
        much = model.edit(picture, "redder", strength=0.9, **{**options, "steps": 4})
        assert distance(much.images[0], decoded) > 20


def test_an_edit_without_strength_sees_the_image_through_the_language_model_alone(
    model: MobileO, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"steps": 2, "seed": 3, **SMALL}
    first, second = (model.edit(picture, "redder", **options) for picture in pictures)
    assert not mx.allclose(first.latents, second.latents, atol=1e-2)
    with_strength = [model.edit(picture, "redder", strength=0.99, **options) for picture in pictures]
    features = encode_image(model.parts, pictures[0])
    model.release()  # what was read of the second picture too
    monkeypatch.setattr(conditioning, "encode_image", lambda parts, image: features)
    blind = model.edit(pictures[1], "redder", **options)
    assert mx.array_equal(blind.latents, first.latents)
    # With strength the pixels do count, whatever the language model sees.
    assert not mx.allclose(
        model.edit(pictures[1], "redder", strength=0.99, **options).latents, with_strength[0].latents, atol=1e-3
    )


@pytest.mark.parametrize("options", [{}, {"strength": 0.9}, {"negative_prompt": LONG}, {"strength": 1.0}])
def test_a_seed_gives_the_same_edit_alone_and_in_a_batch(
    model: MobileO, pictures: list[Image.Image], options: dict[str, Any]
) -> None:
    options = {"steps": 3, **SMALL, **options}
    together = model.edit(pictures[0], "redder", seed=[5, 6, 7], **options)
    assert not mx.allclose(together.latents[0], together.latents[1], atol=0.1)
    for row, seed in enumerate([5, 6, 7]):
        alone = model.edit(pictures[0], "redder", seed=seed, **options)
        assert mx.allclose(together.latents[row], alone.latents[0], atol=1e-4)


def test_the_largest_seed(model: MobileO) -> None:
    largest, before = (noise(model.config, seed, 32, 32) for seed in (2**64 - 1, 2**64 - 2))
    assert not mx.allclose(largest, before, atol=0.1)
