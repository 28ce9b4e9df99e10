"""The same weights through PyTorch and through this program, in turns: `python -m benchmarks.vs_torch`.

One thread, processor time, float32 on the CPU, the median of three, at the published 0.5B configuration with random
weights. PyTorch runs at its fastest: inference mode, fused attention, and channels-last where a first run finds that
faster. Its side is diffusers' SanaTransformer2DModel and AutoencoderDC, transformers' Qwen2, and for the vision tower
`benchmarks.torch_vision`. Needs the extra "parity".
Exit status: 0 all targets are met, 1 some are not, 2 it can't be done.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import common
from .common import POSITIONS, PROMPT_TOKENS, Timing, timed

if TYPE_CHECKING:
    import mlx.core as mx
    import torch

    from mobileo_mlx.models.mobileo import MobileOConfig

TARGETS = {"dit": 1.0, "vision": 0.75, "decoder": 0.85, "prefill": 0.85, "decode": 0.7}
NAMES = {
    "dit": "DiT step with guidance",
    "vision": "vision tower and projector",
    "decoder": "decoder",
    "prefill": "prefill",
    "decode": "decoding a token",
}
DECODED = 16  # tokens
GUIDANCE = 1.5


@dataclass(frozen=True)
class Comparison:
    """One part of the model on both sides.

    Attributes:
        error: of our output, max |a - b| / max |b|.
        layout: of PyTorch's convolutions.
    """

    name: str
    ours: Timing
    theirs: Timing
    error: float
    layout: str = ""

    @property
    def ratio(self) -> float:
        """Our speed relative to PyTorch's: above 1 we are faster."""
        return self.theirs.median / self.ours.median


def dit(config: MobileOConfig, runs: int, size: int | None = None) -> Comparison:
    """A step of denoising with guidance: two rows, `PROMPT_TOKENS` tokens of text."""
    import diffusers
    import mlx.core as mx
    import torch

    from mobileo_mlx import GenerationStep
    from mobileo_mlx.conditioning import embed_prompts, hidden_states
    from mobileo_mlx.latents import noise
    from mobileo_mlx.models.mobileo import sanitize
    from mobileo_mlx.prompts import encode_prompt, generate_prompt

    from .synthetic import prompt_of, random_weights, synthetic_model, with_layers

    options = config.dit.to_dict() | {"cross_attention_dim": config.dit.dim}
    del options["attention_eps"]
    theirs = randomised(diffusers.SanaTransformer2DModel(**options))
    weights = sanitize("dit", as_mlx(theirs.state_dict(), skip=("patch_embed.pos_embed",)), config)
    config = with_layers(config, config.diffusion_connector.num_layers, llm=True)  # the text is not what is timed
    model = synthetic_model(
        config, read=lambda name: weights if name == "dit" else random_weights(name, config), dtype=mx.float32
    )
    model.parts.keep_loaded = False  # as the command draws one image
    prompt = prompt_of(PROMPT_TOKENS, model.tokenizer)
    states = hidden_states(
        model.parts,
        embed_prompts(model.parts.llm.embed_tokens, [encode_prompt(model.tokenizer, generate_prompt(prompt))], []),
    )
    connector = model.parts.diffusion_connector
    text = as_torch(mx.concatenate([connector([mx.zeros_like(state) for state in states]), connector(states)]))
    side = size or config.default_size[0]
    latents = noise(model.config, 0, side, side)
    doubled = as_torch(mx.concatenate([latents, latents]).transpose(0, 3, 1, 2))

    stream = model.stream_generate(prompt, steps=runs + 1, guidance_scale=GUIDANCE, initial_latents=latents)
    first = next(stream)
    assert isinstance(first, GenerationStep)
    timestep = torch.full((2,), first.timestep)

    def step(rows: torch.Tensor) -> torch.Tensor:
        return theirs(rows, encoder_hidden_states=text, timestep=timestep).sample

    with torch.inference_mode():
        doubled, layout = fastest_layout(step, theirs, doubled)
        unconditional, conditional = step(doubled).chunk(2)
        expected = unconditional + GUIDANCE * (conditional - unconditional)
        error = difference(first.velocity.transpose(0, 3, 1, 2), expected)
        return Comparison("dit", *alternating(lambda: next(stream), lambda: step(doubled), runs), error, layout)


def vision(config: MobileOConfig, runs: int, size: int | None = None) -> Comparison:
    """An image to the language model's features."""
    import mlx.core as mx
    import torch

    from mobileo_mlx.conditioning import encode_image
    from mobileo_mlx.models.mobileo import sanitize

    from .synthetic import synthetic_model
    from .torch_vision import FastViTHD

    sizes = config.mm_projector
    tower = randomised(FastViTHD(config.vision_tower))
    projector = randomised(
        torch.nn.Sequential(
            torch.nn.Linear(sizes.input_dim, sizes.hidden_dim),
            torch.nn.GELU(),
            torch.nn.Linear(sizes.hidden_dim, sizes.output_dim),
        )
    )
    weights = {
        name: sanitize(name, as_mlx(module.state_dict()), config)
        for name, module in (("vision_tower", tower), ("mm_projector", projector))
    }
    model = synthetic_model(config, read=weights.__getitem__, dtype=mx.float32)
    side = size or config.image_size
    pixels = mx.random.uniform(shape=(1, side, side, 3), key=mx.random.key(0))
    with torch.inference_mode():
        given, layout = fastest_layout(tower, tower, as_torch(pixels.transpose(0, 3, 1, 2)))
        error = difference(encode_image(model.parts, pixels), projector(tower(given)))
        measured = alternating(
            lambda: mx.eval(encode_image(model.parts, pixels)), lambda: projector(tower(given)), runs
        )
    return Comparison("vision", *measured, error, layout)


def decoder(config: MobileOConfig, runs: int, size: int | None = None) -> Comparison:
    """Latents to an image."""
    import diffusers
    import mlx.core as mx
    import torch

    from mobileo_mlx.latents import decode_latents
    from mobileo_mlx.models.mobileo import sanitize

    from .synthetic import synthetic_model

    options = config.vae.to_dict()
    del options["glumb_ratio"], options["attention_eps"]
    theirs = randomised(diffusers.AutoencoderDC(**options).decoder)  # type: ignore[attr-defined]
    weights = sanitize("vae_decoder", as_mlx(theirs.state_dict()), config)
    model = synthetic_model(config, read=lambda name: weights, dtype=mx.float32)
    side = (size or config.default_size[0]) // config.vae.factor
    latents = mx.random.normal((1, side, side, config.vae.latent_channels), key=mx.random.key(0))
    with torch.inference_mode():
        given = as_torch(latents.transpose(0, 3, 1, 2)) / config.vae.scaling_factor
        given, layout = fastest_layout(theirs, theirs, given)
        error = difference(decode_latents(model.parts, latents).transpose(0, 3, 1, 2), theirs(given))
        measured = alternating(lambda: mx.eval(decode_latents(model.parts, latents)), lambda: theirs(given), runs)
    return Comparison("decoder", *measured, error, layout)


def language(config: MobileOConfig, runs: int, *, positions: int = POSITIONS) -> Iterator[Comparison]:
    """The first token of a prompt of `positions`, then one token after the other."""
    import mlx.core as mx
    import torch
    import transformers

    from mobileo_mlx.decoding import decode
    from mobileo_mlx.models.mobileo import sanitize

    from .synthetic import synthetic_model

    options = dataclasses.asdict(config.llm)
    theirs = transformers.Qwen2Model(transformers.Qwen2Config(**options, attn_implementation="sdpa"))  # type: ignore[call-arg]
    head = torch.nn.Linear(config.llm.hidden_size, config.llm.vocab_size, bias=False)
    weights = {
        "llm": sanitize("llm", as_mlx(randomised(theirs).state_dict()), config),
        "lm_head": as_mlx(randomised(head).state_dict()),
    }
    model = synthetic_model(config, read=weights.__getitem__, dtype=mx.float32)
    llm, lm_head = model.parts.llm, model.parts.lm_head
    weights.clear()
    ids = [7 * i % config.llm.vocab_size for i in range(positions)]

    def answer(tokens: int) -> Iterator[Any]:
        return decode(llm, lm_head, llm.embed_tokens(mx.array([ids])), llm.make_cache(), max_tokens=tokens)

    def prefilled() -> tuple[torch.Tensor, Any]:
        out = theirs(torch.tensor([ids]), use_cache=True)
        return head(out.last_hidden_state[:, -1:]), out.past_key_values

    with torch.inference_mode():
        logits, _ = prefilled()
        error = difference(next(answer(1)).logits, logits[0, 0])
        yield Comparison("prefill", *alternating(lambda: next(answer(1)), prefilled, runs), error)

        def rest(logits: torch.Tensor, cache: Any) -> torch.Tensor:
            for _ in range(DECODED):
                token = logits[:, -1].argmax(-1, keepdim=True)
                logits = head(theirs(token, past_key_values=cache, use_cache=True).last_hidden_state)
            return logits

        pairs, error = [], 0.0
        for _ in range(runs):
            stream = answer(DECODED + 1)
            next(stream)
            begin = time.process_time()
            *_, last = stream
            between = time.process_time()
            state = prefilled()
            start = time.process_time()
            logits = rest(*state)
            pairs.append(((between - begin) / DECODED, (time.process_time() - start) / DECODED))
            error = max(error, difference(last.logits, logits[0, 0]))
        mine, other = zip(*pairs, strict=True)
        yield Comparison("decode", Timing(mine), Timing(other), error)


def alternating(ours: Callable[[], object], theirs: Callable[[], object], runs: int) -> tuple[Timing, Timing]:
    """Processor time of both sides, in turns, so that what else the machine does meets both."""
    pairs = [(timed(ours, time.process_time), timed(theirs, time.process_time)) for _ in range(runs)]
    mine, other = zip(*pairs, strict=True)
    return Timing(mine), Timing(other)


def fastest_layout(
    run: Callable[[torch.Tensor], object], module: torch.nn.Module, x: torch.Tensor
) -> tuple[torch.Tensor, str]:
    """Puts the module into the layout in which one run on `x` was faster; returns `x` in it, and its name."""
    import torch

    seconds = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        given = x.contiguous(memory_format=layout)
        module.to(memory_format=layout)  # type: ignore[call-overload]
        run(given)  # warm
        seconds[layout] = timed(lambda given=given: run(given), time.process_time)  # type: ignore[misc]
    best = min(seconds, key=lambda layout: seconds[layout])
    module.to(memory_format=best)  # type: ignore[call-overload]
    return x.contiguous(memory_format=best), str(best).removeprefix("torch.").replace("_", " ")


def randomised(module: Any) -> Any:
    """The module in evaluation mode, with no bias zero and no norm the identity, so that an error would show."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if "layer_scale" in name:
                tensor.uniform_(0.2, 0.8, generator=generator)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.ndim == 1 and tensor.is_floating_point() and not name.endswith("inv_freq"):
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return module.eval()


def as_mlx(state: dict[str, torch.Tensor], skip: Sequence[str] = ()) -> dict[str, mx.array]:
    """PyTorch's tensors as MLX arrays."""
    import mlx.core as mx

    return {name: mx.array(tensor.numpy()) for name, tensor in state.items() if name not in skip}


def as_torch(x: mx.array) -> torch.Tensor:
    """An MLX array as a tensor."""
    import numpy as np
    import torch

    return torch.from_numpy(np.array(x))


def difference(ours: mx.array, theirs: torch.Tensor) -> float:
    """max |a - b| / max |b|."""
    import numpy as np

    a, b = np.array(ours), theirs.numpy()
    assert a.shape == b.shape, (a.shape, b.shape)
    return float(np.abs(a - b).max() / np.abs(b).max())


def stages(
    config: MobileOConfig, names: Sequence[str], *, runs: int = 3, positions: int = POSITIONS
) -> Iterator[Comparison]:
    """The stages that are named, one after the other, so that one is in memory at a time."""
    import gc

    import mlx.core as mx

    for name, stage in (("dit", dit), ("vision", vision), ("decoder", decoder)):
        if name in names:
            yield stage(config, runs)
            gc.collect()
            mx.clear_cache()
    if {"prefill", "decode"} & set(names):
        yield from (stage for stage in language(config, runs, positions=positions) if stage.name in names)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vs_torch", description=__doc__)
    parser.add_argument("--only", action="append", choices=tuple(TARGETS), help="one stage; repeatable")
    parser.add_argument("--runs", type=int, default=3, help="of which the median counts (default: 3)")
    parser.add_argument("--layers", type=int, help="fewer blocks in DiT and language model, to try this out")
    parser.add_argument("--quick", action="store_true", help="a tiny configuration, to try this out")
    common.add_out(parser, "vs_torch.json")
    options = parser.parse_args(arguments)
    common.one_thread()
    return common.exit_status("vs_torch", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from mobileo_mlx.errors import OptionError

    from .synthetic import official_config, tiny_config, with_layers

    if options.runs < 1 or (options.layers is not None and options.layers < 1):
        raise OptionError("at least 1 run and 1 layer are needed.")
    try:
        import diffusers
        import torch
        import transformers
    except ImportError as error:
        raise OptionError(f"PyTorch's side is missing ({error}); install the extra 'parity'.") from error
    torch.set_num_threads(1)
    config = tiny_config() if options.quick else official_config("0.5b")
    if options.layers is not None:
        config = with_layers(with_layers(config, options.layers), max(options.layers, 4), llm=True)
    names = [name for name in TARGETS if name in (options.only or TARGETS)]
    full = not options.quick and options.layers is None
    positions = min(POSITIONS, config.llm.max_position_embeddings - DECODED - 1)
    rows = []
    for stage in stages(config, names, runs=options.runs, positions=positions):
        common.say(f"{stage.name}: {stage.ratio:.2f} of PyTorch's speed, relative error {stage.error:.1e}")
        target = TARGETS[stage.name] if full else None
        rows.append({
            "name": stage.name,
            "ours": stage.ours.to_dict(),
            "torch": stage.theirs.to_dict(),
            "ratio": stage.ratio,
            "target": target,
            "met": None if target is None else stage.ratio >= target,
            "error": stage.error,
            "layout": stage.layout,
        })  # fmt: skip
    value = {
        "machine": common.machine(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "full_size": full,
        "runs": options.runs,
        "rows": rows,
    }
    lines = list(markdown(value))
    print("\n".join(lines))
    common.write_json(value, options.out / "vs_torch.json")
    common.write_lines(lines, options.out / "vs_torch.md")
    return 1 if any(row["met"] is False for row in rows) else 0


def markdown(value: dict[str, Any]) -> Iterator[str]:
    """The table and what it was measured with."""
    head = ("stage", "PyTorch, s", "here, s", "speed ratio", "target", "met", "relative error", "torch's layout")
    verdicts = {None: "", True: "yes", False: "no"}
    rows = [
        [
            NAMES[row["name"]],
            f"{row['torch']['median']:.4g}",
            f"{row['ours']['median']:.4g}",
            f"{row['ratio']:.2f}",
            "" if row["target"] is None else f">= {row['target']}",
            verdicts[row["met"]],
            f"{row['error']:.1e}",
            row["layout"],
        ]
        for row in value["rows"]
    ]
    yield from common.markdown_table(head, rows)
    yield ""
    size = "published 0.5B configuration" if value["full_size"] else "a smaller configuration than the published one"
    yield (
        f"{common.machine_line(value['machine'])}; torch {value['torch']}, diffusers {value['diffusers']}, "
        f"transformers {value['transformers']}; {size}, random weights, float32, one thread, processor time, "
        f"median of {value['runs']}. PyTorch's vision tower is ours (benchmarks/torch_vision.py), not timm's."
    )


if __name__ == "__main__":
    sys.exit(main())
