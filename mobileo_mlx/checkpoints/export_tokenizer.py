"""A tokenizer's files as transformers reads them, and with it mlx-lm, mlx-vlm and the app, with the prompt's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import read_json
from ..prompts import SYSTEM_PROMPT
from ..tokenizer import END_OF_TEXT, IM_END, IM_START

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer

FILES = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
_MAX_FILE = 2**25

# Jinja: the same text that `prompts.first_turn` and `next_turn` make of a conversation.
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    f"{{{{ '{IM_START}system\\n{SYSTEM_PROMPT}{IM_END}\\n' }}}}"
    "{% endif %}"
    "{% for message in messages %}"
    f"{{{{ '{IM_START}' + message['role'] + '\\n' + message['content'] + '{IM_END}\\n' }}}}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{{{{ '{IM_START}assistant\\n' }}}}{{% endif %}}"
)


def write_tokenizer(folder: Path, tokenizer: Tokenizer, positions: int) -> None:
    """Writes `FILES`.

    Args:
        folder: where to.
        tokenizer: whose.
        positions: of the model's context.
    """
    tokenizer.save(folder / "tokenizer.json")
    content = read_json(folder / "tokenizer.json", limit=_MAX_FILE)
    added = {entry["content"]: entry for entry in content["added_tokens"]}
    ids = {text: entry["id"] for text, entry in added.items()}
    special = [text for text, entry in added.items() if entry["special"]]
    padding = END_OF_TEXT if END_OF_TEXT in added else IM_END
    names = {"eos_token": IM_END, "pad_token": padding, "additional_special_tokens": special}
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    config: dict[str, Any] = {
        **names,
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(e["id"]): {flag: e[flag] for flag in flags} for e in added.values()},
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": positions,
        "split_special_tokens": False,
        "tokenizer_class": _tokenizer_class(content),
        "unk_token": None,
    }
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in content["model"]["merges"]]
    _write_json(folder / "vocab.json", content["model"]["vocab"])
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    _write_json(folder / "added_tokens.json", ids)
    _write_json(folder / "special_tokens_map.json", names)
    _write_json(folder / "tokenizer_config.json", config)


def _tokenizer_class(content: dict[str, Any]) -> str:
    """Of Qwen2's transformers builds some parts anew; what cuts text otherwise it has to read from `tokenizer.json`."""
    cuts = (content.get("pre_tokenizer") or {}).get("type") == "Sequence"
    return "Qwen2Tokenizer" if cuts and content.get("normalizer") == {"type": "NFC"} else "PreTrainedTokenizerFast"


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
