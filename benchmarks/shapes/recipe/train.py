"""How the bundled model `tiny` was made: trained from random weights in six stages, each of which can be resumed.

autoencoder  DC-AE on images.
decoder      its decoder alone, on images that show the colours and shapes of later finetuning too; the latent space is
             fixed from here on.
questions    the language model and its head, on questions about scenes. Token embeddings that name what each cell of a
             scene holds (`curriculum.symbols`) stand for the image features.
vision       the vision tower and the projector, towards these embeddings.
drawing      the language model, the connector and the DiT, on captions, and on edits and questions with those
             embeddings as image features.
joint        everything but the autoencoder, on the same, with the vision tower's own features.

With several processes (`mlx.launch -n N`) each stage is data-parallel. Every stage writes metrics.jsonl and its last
checkpoints into a folder of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_map_with_path, tree_unflatten

from mobileo_mlx.atomic import atomic_write
from mobileo_mlx.errors import CheckpointError
from mobileo_mlx.models.fastvithd import FastViTHD
from mobileo_mlx.models.mobileo import MobileOConfig
from mobileo_mlx.tokenizer import Tokenizer
from mobileo_mlx.training.loop import StepReport, TrainingLoop
from mobileo_mlx.training.run_state import checkpoints, read_metrics

from ..world import WORLD, Scene, render_batch
from . import autoencoder, curriculum
from .autoencoder import Autoencoder, any_scene
from .losses import (
    Batch,
    StageModel,
    drawing_loss,
    question_loss,
    sequence_arrays,
    symbol_features,
    symbol_ids,
)
from .tiny import SIDE, tiny_config, tiny_tokenizer

SHIFT = 6.0  # of the noise levels, as in sampling: the layout is decided at high noise
QUESTION_WEIGHT = 0.3


@dataclass(frozen=True)
class Stage:
    """How long and how fast; samples are those of one process and step."""

    name: str
    steps: int
    captions: int = 0
    edits: int = 0
    questions: int = 0
    pictures: int = 0
    learning_rate: float = 1e-3
    decay: float = 1.0  # the last share of the steps, in which the rate falls (cosine where it is all of them)
    ema: float | None = None
    seed: int = 0


STAGES = {
    stage.name: stage
    for stage in (
        Stage("autoencoder", 2000, pictures=16, learning_rate=3e-3, seed=0),
        Stage("decoder", 1000, pictures=16, learning_rate=1e-3, seed=5),
        Stage("questions", 2500, questions=64, learning_rate=1e-3, decay=0.2, seed=1),
        Stage("vision", 1800, pictures=64, learning_rate=1e-3, seed=2),
        Stage("drawing", 3600, captions=20, edits=8, questions=8, learning_rate=2e-3, decay=0.35, ema=0.999, seed=3),
        Stage("joint", 1000, captions=24, edits=8, questions=8, learning_rate=3e-4, ema=0.99, seed=4),
    )
}
POOL = 40_000  # scenes with their latents; encoding anew in each step would cost more than the step


@dataclass(frozen=True)
class Workspace:
    """What all stages share."""

    folder: Path
    tokenizer: Tokenizer
    config: MobileOConfig

    @classmethod
    def at(cls, folder: Path) -> Workspace:
        tokenizer = Tokenizer(tiny_tokenizer())
        end = [tokenizer.token_id(token) for token in ("<|im_end|>", "<|endoftext|>")]
        return cls(folder, tokenizer, tiny_config(tokenizer.vocab_size, tuple(i for i in end if i is not None)))

    def stage_weights(self, stage: str, *components: str) -> list[tuple[str, mx.array]]:
        """The parameters that an earlier stage ended with, their running mean where it kept one.

        Raises:
            CheckpointError: the stage is not done.
        """
        done = checkpoints(self.folder / stage)
        if not done or int(done[-1].name.removeprefix("step-")) < STAGES[stage].steps:
            raise CheckpointError(f"The stage {stage!r} is not done in '{self.folder}'; run it first.")
        arrays: dict[str, mx.array] = {}
        for name in ("model", "ema"):
            if (path := done[-1] / f"{name}.safetensors").exists():
                arrays |= mx.load(str(path))  # type: ignore[arg-type]
        return [(name, array) for name, array in arrays.items() if name.split(".")[0] in components]


def run(stage: Stage, folder: Path) -> Iterator[StepReport]:
    """Runs a stage, or what is left of it, yielding its steps."""
    mx.random.seed(stage.seed)  # of the initial weights alone; the rest has keys
    workspace = Workspace.at(folder)
    model, batches, loss = _SETUPS[stage.name](workspace, stage)
    world = mx.distributed.init()
    size = stage.pictures or stage.captions + stage.edits or stage.questions
    yield from TrainingLoop(
        model=model,
        loss=loss,
        batches=batches,
        optimizer=optim.AdamW(_schedule(stage), betas=[0.9, 0.95], weight_decay=0.01, bias_correction=True),
        steps=stage.steps,
        batch_size=size * world.size(),
        seed=stage.seed,
        ema=stage.ema,
        folder=folder / stage.name,
        save_every=250,
        settings={"processes": world.size()},
    ).run()


def _schedule(stage: Stage) -> Callable:
    rate, warmup = stage.learning_rate, min(100, stage.steps // 4)
    if stage.decay == 1:
        parts = [optim.cosine_decay(rate, stage.steps - warmup, 0.01 * rate)]
        ends = [warmup]
    else:
        decay = max(1, int(stage.steps * stage.decay))
        steady = optim.linear_schedule(rate, rate, stage.steps - decay - warmup)
        parts, ends = [steady, optim.linear_schedule(rate, 0.01 * rate, decay)], [warmup, stage.steps - decay]
    return optim.join_schedules([optim.linear_schedule(0.001 * rate, rate, warmup), *parts], ends)


Setup = tuple[nn.Module, Callable[[int, int], Any], Callable[[Any, Any, mx.array], tuple[mx.array, dict]]]


def _autoencoder(workspace: Workspace, stage: Stage) -> Setup:
    def batches(step: int, part: int) -> Batch:
        return autoencoder.batch(stage.seed, stage.pictures, step, part)

    return Autoencoder(workspace.config), batches, autoencoder.loss


def _decoder(workspace: Workspace, stage: Stage) -> Setup:
    model = Autoencoder(workspace.config)
    model.update(tree_unflatten(workspace.stage_weights("autoencoder", "vae_encoder", "vae_decoder")))
    model.vae_encoder.freeze()

    def batches(step: int, part: int) -> Batch:
        world = autoencoder.WIDE if step % 2 else WORLD
        return autoencoder.batch(stage.seed, stage.pictures, step, part, world=world)

    return model, batches, autoencoder.loss


def _questions(workspace: Workspace, stage: Stage) -> Setup:
    def batches(step: int, part: int) -> Batch:
        rng = np.random.default_rng([stage.seed, step, part])
        kinds = curriculum.kinds_at(step / stage.steps)
        sequences = curriculum.questions(rng, workspace.tokenizer, stage.questions, kinds)
        return {
            **sequence_arrays(sequences),
            "symbols": symbol_ids(sequences.seen, workspace.tokenizer),
        }

    def loss(model: Any, batch: Batch, key: mx.array) -> tuple[mx.array, dict]:
        return question_loss(model, batch, symbol_features(model, batch["symbols"])), {}

    return StageModel(workspace.config, "llm", "lm_head"), batches, loss


def _vision(workspace: Workspace, stage: Stage) -> Setup:
    words = dict(workspace.stage_weights("questions", "llm"))["llm.embed_tokens.weight"]
    sample = [any_scene(np.random.default_rng(i)) for i in range(300)]
    used = mx.array(np.unique(symbol_ids(sample, workspace.tokenizer)))
    scale = words[used].std()
    model = StageModel(workspace.config, "vision_tower", "mm_projector")
    # The published networks start from 1e-5; so small a start would leave all images alike for long.
    model.update(
        tree_map_with_path(lambda k, v: mx.full(v.shape, 0.3) if "layer_scale" in k else v, model.parameters())
    )
    standardise(model.vision_tower, pixels(sample[:64]))  # type: ignore[attr-defined]
    model.train()  # BatchNorm learns its statistics

    def batches(step: int, part: int) -> Batch:
        rng = np.random.default_rng([stage.seed, step, part])
        scenes = [any_scene(rng) for _ in range(stage.pictures)]
        return {"pixels": pixels(scenes), "target": words[symbol_ids(scenes, workspace.tokenizer)].sum(axis=2)}

    def loss(model: Any, batch: Batch, key: mx.array) -> tuple[mx.array, dict]:
        features = model.mm_projector(model.vision_tower(batch["pixels"]))
        return (((features - batch["target"]) / scale) ** 2).mean(), {}

    return model, batches, loss


def standardise(tower: FastViTHD, pictures: mx.array) -> None:
    """Scales each convolution so that every channel has mean 0 and variance 1 on `pictures` (arXiv 1511.06422).

    With the usual initial weights what differs between images is soon lost among the biases, and the loss hardly falls.
    """
    x = pictures
    for block in (block for blocks in tower.parts() for block in blocks):
        for part in getattr(block, "proj", [block]):
            holder = getattr(part, "token_mixer", part)
            for name in ("reparam_conv", "lkb_reparam"):
                if (convolution := getattr(holder, name, None)) is None:
                    continue
                y = convolution(x)
                mean, std = y.mean(axis=(0, 1, 2)), mx.sqrt(y.var(axis=(0, 1, 2)) + 1e-6)
                convolution.weight = convolution.weight / std.reshape(-1, *[1] * (convolution.weight.ndim - 1))
                convolution.bias = (convolution.bias - mean) / std
            x = part(x)
        mx.eval(x)


def _drawing(workspace: Workspace, stage: Stage) -> Setup:
    model = StageModel(workspace.config, "llm", "lm_head", "diffusion_connector", "dit")
    model.update(tree_unflatten(workspace.stage_weights("questions", "llm", "lm_head")))
    # The vision tower is trained towards these embeddings.
    model.llm.embed_tokens.freeze()  # type: ignore[attr-defined]
    return (
        model,
        _mixed_batches(workspace, stage),
        _mixed_loss(stage, lambda model, batch: symbol_features(model, batch)),
    )


def _joint(workspace: Workspace, stage: Stage) -> Setup:
    names = ("vision_tower", "mm_projector", "llm", "lm_head", "diffusion_connector", "dit")
    model = StageModel(workspace.config, *names)
    model.update(
        tree_unflatten(workspace.stage_weights("questions", "llm"))
    )  # the embeddings, which drawing left alone
    model.update(tree_unflatten(workspace.stage_weights("vision", *names[:2])))
    model.update(tree_unflatten(workspace.stage_weights("drawing", *names[2:])))

    def see(model: Any, pictures: mx.array) -> mx.array:
        return model.mm_projector(model.vision_tower(pictures))

    return model, _mixed_batches(workspace, stage, pictures=True), _mixed_loss(stage, see)


_SETUPS: dict[str, Callable[[Workspace, Stage], Setup]] = {
    "autoencoder": _autoencoder,
    "decoder": _decoder,
    "questions": _questions,
    "vision": _vision,
    "drawing": _drawing,
    "joint": _joint,
}


def _mixed_batches(workspace: Workspace, stage: Stage, *, pictures: bool = False) -> Callable[[int, int], Batch]:
    """Captions and edits from the pool, and new questions; scenes as pictures or as symbols."""
    pool = _pool(workspace)

    def shown(scenes: list[Scene]) -> mx.array:
        return pixels(scenes) if pictures else symbol_ids(scenes, workspace.tokenizer)

    def drawn(kind: str, rng: np.random.Generator, size: int) -> Batch:
        arrays, scenes = pool[kind]
        chosen = rng.integers(len(arrays["ids"]), size=size)
        length = int(arrays["mask"][chosen].sum(axis=1).max())
        sequences = curriculum.Sequences(
            arrays["ids"][chosen, :length], arrays["mask"][chosen, :length], arrays["labels"][chosen, :length], [], []
        )
        batch = sequence_arrays(sequences)
        batch["latents"] = mx.array(arrays["latents"][chosen].astype(np.float32))
        if scenes:
            batch["seen"] = shown([scenes[i] for i in chosen])
        return batch

    def batches(step: int, part: int) -> Batch:
        rng = np.random.default_rng([stage.seed, step, part])
        asked = curriculum.questions(rng, workspace.tokenizer, stage.questions)
        return {
            "captions": drawn("captions", rng, stage.captions),
            "edits": drawn("edits", rng, stage.edits),
            "questions": {**sequence_arrays(asked), "seen": shown(asked.seen)},
        }

    return batches


def _mixed_loss(stage: Stage, see: Callable[[Any, mx.array], mx.array]) -> Callable:
    def loss(model: Any, batch: Batch, key: mx.array) -> tuple[mx.array, dict]:
        caption_key, edit_key = mx.random.split(key)
        captions, edits, questions = batch["captions"], batch["edits"], batch["questions"]
        draw = drawing_loss(model, captions, None, captions["latents"], caption_key, shift=SHIFT)
        edit = drawing_loss(model, edits, see(model, edits["seen"]), edits["latents"], edit_key, shift=SHIFT)
        ask = question_loss(model, questions, see(model, questions["seen"]))
        flow = (draw * stage.captions + edit * stage.edits) / (stage.captions + stage.edits)
        return flow + QUESTION_WEIGHT * ask, {"draw": draw, "edit": edit, "ask": ask}

    return loss


def pixels(scenes: list[Scene]) -> mx.array:
    """What the vision tower sees, (B, SIDE, SIDE, 3) in [0, 1]."""
    return mx.array(render_batch(scenes, SIDE).astype(np.float32) / 255)


def _pool(workspace: Workspace) -> dict[str, tuple[dict[str, np.ndarray], list[Scene]]]:
    """Captions and edits with the latents of what they draw, and the scenes that edits see.

    The latents are computed once and kept in a file; the others wait for the first process to write it.
    """
    sequences = {
        "captions": curriculum.captions(np.random.default_rng([7, 0]), workspace.tokenizer, POOL),
        "edits": curriculum.edits(np.random.default_rng([7, 1]), workspace.tokenizer, POOL // 2),
    }
    path = workspace.folder / "latents.npz"
    if mx.distributed.init().rank() == 0 and not path.exists():
        model: Any = Autoencoder(workspace.config)
        model.update(tree_unflatten(workspace.stage_weights("autoencoder", "vae_encoder", "vae_decoder")))
        latents = {}
        for kind, drawn in sequences.items():
            parts = [drawn.drawn[i : i + 128] for i in range(0, len(drawn.drawn), 128)]
            latents[kind] = np.concatenate([np.array(model.vae_encoder(pixels(part) * 2 - 1)) for part in parts])
        with atomic_write(path) as temporary:
            halves: dict[str, Any] = {kind: values.astype(np.float16) for kind, values in latents.items()}
            np.savez(temporary, **halves)
    while not path.exists():
        time.sleep(1)
    stored = np.load(path)
    return {
        kind: ({"ids": s.ids, "mask": s.mask, "labels": s.labels, "latents": stored[kind]}, s.seen)
        for kind, s in sequences.items()
    }


def export(folder: Path, destination: Path) -> None:
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

    workspace = Workspace.at(folder)
    trained = dict(workspace.stage_weights("joint", *COMPONENTS))
    trained |= dict(workspace.stage_weights("autoencoder", "vae_encoder")) | dict(
        workspace.stage_weights("decoder", "vae_decoder")
    )
    with atomic_folder(destination) as temporary:
        for component in COMPONENTS:
            parameters = named_parameters(build(component, workspace.config))
            # The connector's temperature is a buffer, which no stage changes.
            found = {k: v if k == "temperature" else trained[f"{component}.{k}"] for k, v in parameters.items()}
            tensors = {name: array.astype(mx.float16) for name, array in found.items()}
            write_tensors(temporary / f"{component}.safetensors", tensors)
        workspace.tokenizer.save(temporary / "tokenizer.json")
        write_config(temporary, workspace.config, COMPONENTS)
        with (temporary / "training.jsonl").open("w", encoding="utf-8") as log:
            log.writelines(_log(folder))


def _log(folder: Path) -> Iterator[str]:
    """Lines of JSON: the first, every 50th and the last step of each stage."""
    for name, stage in STAGES.items():
        for entry in read_metrics(folder / name):
            if entry["step"] == 1 or entry["step"] % 50 == 0 or entry["step"] == stage.steps:
                yield json.dumps({"stage": name, **entry}) + "\n"
