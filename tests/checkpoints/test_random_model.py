import json
from functools import partial
from pathlib import Path

import mlx.core as mx
import pytest

from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.checkpoints.load import load_component
from mobileo_mlx.checkpoints.random_model import SPECIAL_TOKENS, write_random_model
from mobileo_mlx.errors import OutputError


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("random") / "model"
    write_random_model(folder)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_seed_gives_the_same_model(model, tmp_path):
    write_random_model(tmp_path / "same")
    write_random_model(tmp_path / "other", seed=1)
    assert files(tmp_path / "same") == files(model)
    other = files(tmp_path / "other")
    assert {name for name in other if other[name] == files(model)[name]} == {"config.json", "tokenizer.json"}


def test_it_is_small(model):
    assert sum(map(len, files(model).values())) < 6_000_000


def test_an_occupied_folder_is_refused(model):
    with pytest.raises(OutputError, match="not empty"):
        write_random_model(model)


def test_the_tokenizer(model):
    checkpoint = Checkpoint.open(model)
    tokenizer = checkpoint.load_tokenizer()
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]["vocab"]
    first = len(vocabulary)
    assert tokenizer.vocab_size == checkpoint.config.llm.vocab_size == first + len(SPECIAL_TOKENS)
    assert [tokenizer.token_id(token) for token in SPECIAL_TOKENS] == list(range(first, tokenizer.vocab_size))
    text = "Ein Fuß, 三角形, 🟥 and\n\ttabs<|im_end|>"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids[-1] == tokenizer.token_id("<|im_end|>")
    # Words of the prompts are more than single bytes.
    assert len(tokenizer.encode("You are a helpful assistant.")) < 15


def test_its_networks_answer_to_their_input(model):
    """Nothing vanishes and nothing explodes, and another input gives another output."""
    checkpoint = Checkpoint.open(model)
    config, load = checkpoint.config, partial(load_component, checkpoint)

    def noise(*shape: int, seed: int) -> mx.array:
        return mx.random.normal(shape, key=mx.random.key(seed))

    vision, projector, llm, head = map(load, ("vision_tower", "mm_projector", "llm", "lm_head"))
    connector, dit, decoder, encoder = map(load, ("diffusion_connector", "dit", "vae_decoder", "vae_encoder"))

    def run(seed: int) -> dict[str, mx.array]:
        image = mx.random.uniform(shape=(1, 128, 128, 3), key=mx.random.key(seed))
        features = projector(vision(image))
        text = mx.concatenate([llm.embed_tokens(mx.array([[seed, 2, 3]])), features], axis=1)
        states = llm.hidden_states(text, config.diffusion_connector.num_layers)
        condition = connector(states)
        latents = noise(1, 4, 4, 8, seed=0)
        velocity = dit(latents, mx.array([500.0]), dit.encode_text(condition))
        drawn = decoder(velocity / config.vae.scaling_factor)
        encoded = encoder(2 * image - 1) * config.vae.scaling_factor
        logits = head(states[-1])
        return {
            "features": features, "logits": logits, "condition": condition, "velocity": velocity, "drawn": drawn,
            "encoded": encoded,
        }  # fmt: skip

    one, two = run(1), run(9)
    for name, x in one.items():
        assert 0.2 < x.std().item() < 5, name
        assert mx.abs(x - two[name]).mean().item() > 0.05, name
