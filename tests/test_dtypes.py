"""Components that compute in different dtypes, side by side in one model."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import mlx.core as mx
import pytest
from PIL import Image

from mobileo_mlx import MobileO
from mobileo_mlx.checkpoints import precision
from mobileo_mlx.conditioning import embed_prompts, encode_image, hidden_states, text_input, unconditional_input
from mobileo_mlx.images import to_signed
from mobileo_mlx.models.mobileo import COMPONENTS
from mobileo_mlx.models.sana_prepared import PreparedSana
from mobileo_mlx.ops import backend
from mobileo_mlx.parts import Parts
from mobileo_mlx.prompts import IMAGE_TOKEN_INDEX

# Neighbours differ, each once as the wider and once as the narrower of the two.
MIXED = [
    dict(zip(COMPONENTS, cycle(("float16", "float32")), strict=False)),
    dict(zip(COMPONENTS, cycle(("float32", "float16")), strict=False)),
    dict(zip(COMPONENTS, cycle(("bfloat16", "float16", "float32")), strict=False)),
]


@pytest.fixture(params=["cpu", "metal"])
def forms(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forms of a backend, on whatever is here."""
    monkeypatch.setattr(backend, "backend", lambda: request.param)


@pytest.fixture
def picture() -> Image.Image:
    return Image.radial_gradient("L").convert("RGB").resize((128, 128))


@pytest.mark.parametrize("dtypes", MIXED)
@pytest.mark.parametrize("bits", [None, {"all": 8}])
@pytest.mark.usefixtures("forms")
def test_each_component_computes_in_its_own(
    tiny_model: Path, picture: Image.Image, dtypes: dict[str, str], bits: dict[str, int] | None
) -> None:
    """What comes out of each has its dtype, whatever goes in: wider inputs would make all that follows wider."""
    parts = MobileO.load(tiny_model, dtype=dtypes, quantize=bits).parts
    found = dict(zip(COMPONENTS, computed(parts, picture), strict=True))
    assert {name: str(array.dtype).removeprefix("mlx.core.") for name, array in found.items()} == dtypes
    assert all(mx.isfinite(array).all() for array in found.values())


def computed(parts: Parts, picture: Image.Image) -> list[mx.array]:
    """The outputs of all components in the order of `COMPONENTS`, each computed from that of the one before."""
    pixels = mx.random.uniform(shape=(1, 128, 128, 3), key=mx.random.key(0))
    tokens = parts.vision_tower.encode(pixels)
    features = encode_image(parts, pixels)
    states = hidden_states(parts, embed_prompts(parts.llm.embed_tokens, [[1, IMAGE_TOKEN_INDEX, 2]], features))
    text, unconditional = text_input(parts, states), unconditional_input(parts, states)
    assert unconditional.states.dtype == text.states.dtype
    assert {state.dtype for state in states} == {parts.dtype("llm")}
    latents = parts.vae_encoder.encode(to_signed(picture))
    velocity = PreparedSana(parts.dit, mx.array([500.0]), text, unconditional)(0, latents, guided=True)
    plain = parts.dit(latents, mx.array([500.0]), parts.dit.encode_text(text.states))
    assert plain.dtype == velocity.dtype
    logits = parts.lm_head(states[-1])
    return [tokens, features, states[-1], logits, text.states, velocity, latents, parts.vae_decoder.decode(latents)]


@pytest.mark.parametrize("dtypes", MIXED)
@pytest.mark.usefixtures("forms")
def test_all_tasks_run(tiny_model: Path, picture: Image.Image, dtypes: dict[str, str]) -> None:
    exact, mixed = MobileO.load(tiny_model, dtype="float32"), MobileO.load(tiny_model, dtype=dtypes)

    def difference(ours: mx.array, theirs: mx.array) -> float:
        return (mx.abs(ours - theirs).max() / mx.abs(theirs).max()).item()

    drawn = [model.generate("a cat", steps=2, seed=1).latents for model in (mixed, exact)]
    assert drawn[0].dtype == mx.float32
    assert difference(*drawn) < 0.02
    edits = [model.edit(picture, "make it red", steps=4, strength=0.5, seed=1).latents for model in (mixed, exact)]
    assert difference(*edits) < 0.02
    answer = mixed.ask(picture, "what is this?", max_tokens=4)
    assert len(answer.tokens) == 4
    assert mixed.ask(picture, "what is this?", max_tokens=4).tokens == answer.tokens  # the image's part is kept


def test_the_result_says_what_was_asked_for(tiny_model: Path) -> None:
    asked = MobileO.load(tiny_model, dtype="vae=float32,dit=float16").generate("a cat", steps=1, seed=1)
    assert asked.dtype == "dit=float16,vae_encoder=float32,vae_decoder=float32"
    again = MobileO.load(tiny_model, dtype=asked.metadata()["dtype"]).generate("a cat", steps=1, seed=1)
    assert mx.array_equal(asked.latents, again.latents)
    one = MobileO.load(tiny_model, dtype=dict.fromkeys(COMPONENTS, "float16")).generate("a cat", steps=1, seed=1)
    assert one.dtype == "float16"


def test_a_decoder_beyond_float16s_range(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What M1 takes by default draws an autoencoder whose activations are large; float16 would not."""
    monkeypatch.setattr(backend, "backend", lambda: "metal")
    monkeypatch.setattr(backend, "chip_name", lambda: "Apple M1")
    monkeypatch.setattr(precision, "default_dtype", lambda *of: precision.choice(*of).dtype)

    def pixels(dtype: str | None) -> mx.array:
        decoder = MobileO.load(tiny_model, dtype=dtype).parts.vae_decoder
        # The stream begins with the first convolution and the latents themselves: both a thousand times as large.
        decoder.conv_in.bias = decoder.conv_in.bias * 1000
        return decoder.decode(1000 * mx.random.normal((1, 4, 4, 8), key=mx.random.key(0)))

    assert not mx.isfinite(pixels("float16")).all()
    assert mx.isfinite(pixels("bfloat16")).all()
    assert mx.isfinite(pixels(None)).all()
