"""Prompts, token ids and decoded text: all of them exact."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from mobileo_mlx.prompts import (
    IMAGE_TOKEN_INDEX,
    ask_prompt,
    edit_prompt,
    encode_prompt,
    first_turn,
    generate_prompt,
)
from mobileo_mlx.tokenizer import END_OF_TEXT, IM_END, Tokenizer

from .compare import Check, equal, unexercised
from .goldens import read_json

COMPONENT = "prompts"
_TEMPLATES: dict[str, Callable[[str], str]] = {
    "chat": first_turn,
    "ask": ask_prompt,
    "generate": generate_prompt,
    "edit": edit_prompt,
}
# How the file came about; nothing that could be compared.
_PROVENANCE = {"description", "tokenizer", "slow_vs_fast_differences"}


def prompts(path: Path, tokenizer_folder: Path) -> list[Check]:
    """Compares every value that `prompts.json` holds."""
    index, tokenizer = read_json(path), Tokenizer.load(tokenizer_folder)
    checks = []
    for key, value in index.items():
        if key == "items":
            for i, item in enumerate(value):
                checks += _guarded(f"item {i}", _item, item, tokenizer)
        elif key == "decode":
            for i, item in enumerate(value):
                checks += _guarded(f"decode {i}", _decode, item, tokenizer)
        elif key not in _PROVENANCE:
            checks += _all("vocabulary", {key: value}, _vocabulary(index, tokenizer))
    return checks


def _guarded(case: str, kind: Callable[..., list[Check]], item: Any, tokenizer: Tokenizer) -> list[Check]:
    """An item of unknown make must not hide the others."""
    try:
        return kind(case, item, tokenizer)
    except (AttributeError, KeyError, TypeError) as error:
        return [unexercised(COMPONENT, case, "*", f"{type(error).__name__}: {error}")]


def _decode(case: str, item: dict[str, Any], tokenizer: Tokenizer) -> list[Check]:
    return _all(case, item, _decoded(item, "ids", "decoded", tokenizer), given={"ids"})


def _item(case: str, item: dict[str, Any], tokenizer: Tokenizer) -> list[Check]:
    text = item["text"]
    ours = {"plain_ids": tokenizer.encode(text)} | _decoded(item, "plain_ids", "plain_decoded", tokenizer)
    checks = _all(case, item, ours, given={"text", "prompts"})
    for task, expected in item.get("prompts", {}).items():
        if task not in _TEMPLATES:
            checks.append(unexercised(COMPONENT, case, task))
            continue
        prompt = _TEMPLATES[task](text)
        ids = encode_prompt(tokenizer, prompt)
        positions = [i for i, token in enumerate(ids) if token == IMAGE_TOKEN_INDEX]
        ours = {"prompt": prompt, "ids": ids, "image_positions": positions}
        checks += _all(case, *({f"{task}.{k}": v for k, v in values.items()} for values in (expected, ours)))
    return checks


def _decoded(item: dict[str, Any], ids: str, name: str, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        name: tokenizer.decode(item[ids]),
        f"{name}_skip_special": tokenizer.decode(item[ids], skip_special=True),
    }


def _vocabulary(index: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    special = index.get("all_special_tokens", [])
    return {
        "image_token_index": IMAGE_TOKEN_INDEX,
        "special_ids": {token: tokenizer.token_id(token) for token in index.get("special_ids", {})},
        # Which tokens are special shows in what decoding leaves out.
        "all_special_tokens": [
            token
            for token in [*special, *(t for t in index.get("special_ids", {}) if t not in special)]
            if tokenizer.decode(tokenizer.encode(token), skip_special=True) == ""
        ],
        "eos_token": IM_END,
        "pad_token": END_OF_TEXT,
        "bos_token": _added_before(tokenizer),
        "len": tokenizer.vocab_size,
    }


def _added_before(tokenizer: Tokenizer) -> str | None:
    """What encoding puts before every text; None where it adds nothing."""
    ids = tokenizer.encode("")
    return tokenizer.decode(ids) if ids else None


def _all(case: str, expected: dict[str, Any], ours: dict[str, Any], given: Collection[str] = ()) -> list[Check]:
    """One check for each expected value; one that ours lacks is not exercised."""
    return [
        equal(COMPONENT, case, name, ours[name], value) if name in ours else unexercised(COMPONENT, case, name)
        for name, value in expected.items()
        if name not in given
    ]
