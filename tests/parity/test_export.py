"""Exported folders in transformers: the tokenizer's ids and prompts, and the language model's logits."""

import json
import shutil

import mlx.core as mx
import numpy as np
import pytest

from mobileo_mlx.checkpoints.checkpoint import Checkpoint
from mobileo_mlx.checkpoints.export import export
from mobileo_mlx.checkpoints.export_tokenizer import FILES, write_tokenizer
from mobileo_mlx.checkpoints.load import load_component
from mobileo_mlx.prompts import first_turn
from mobileo_mlx.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")


def test_qwen2s_tokenizer(reference, tmp_path):
    """The real one, by our own reader from each of its two forms, and by transformers."""
    folder = reference / "qwen2-tokenizer"
    before = Tokenizer.load(folder)
    write_tokenizer(tmp_path, before, 32768)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "Qwen2Tokenizer"
    assert json.loads((tmp_path / "vocab.json").read_text()) == json.loads((folder / "vocab.json").read_text())
    ids = json.loads((tmp_path / "added_tokens.json").read_text())
    assert ids == json.loads((folder / "added_tokens.json").read_text())
    texts = ["It's 2024, naïve café\n\n  d'été 東京 🙂", first_turn("Hello there"), "\u0041\u030a <|endoftext|>"]
    whole = Tokenizer.load(tmp_path)
    (tmp_path / "parts").mkdir()
    for name in FILES:
        if name != "tokenizer.json":
            shutil.copy(tmp_path / name, tmp_path / "parts")
    parts = Tokenizer.load(tmp_path / "parts")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in texts:
        expected_ids = before.encode(text)
        assert whole.encode(text) == parts.encode(text) == expected_ids
        assert theirs.encode(text, add_special_tokens=False) == expected_ids
    jinja = (folder / "chat_template.jinja").read_text()
    messages = [{"role": "user", "content": "Hello"}]
    given = {"tokenize": False, "add_generation_prompt": True}
    assert theirs.apply_chat_template(messages, **given) == theirs.apply_chat_template(
        messages, chat_template=jinja, **given
    )


def test_the_language_model(tiny_model, tmp_path):
    torch = pytest.importorskip("torch")
    folder = export(tmp_path / "lm", "mlx-lm", model=tiny_model).path
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    checkpoint = Checkpoint.open(tiny_model)
    llm, head = (load_component(checkpoint, name, dtype=mx.float32) for name in ("llm", "lm_head"))
    ids = Tokenizer.load(folder).encode(first_turn("What is in this image?"))
    expected = np.array(head(llm(llm.embed_tokens(mx.array([ids])))))
    with torch.no_grad():
        found = theirs.float()(torch.tensor([ids])).logits.numpy()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
