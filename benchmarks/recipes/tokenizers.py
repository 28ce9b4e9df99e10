"""What the tokenizers of the small bundled models have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mobileo_mlx.prompts import EDIT_PREFIX, GENERATE_PREFIX, SYSTEM_PROMPT
from mobileo_mlx.tokenizer import END_OF_TEXT, IM_END, IM_START

if TYPE_CHECKING:
    import tokenizers


def byte_level(model: tokenizers.models.BPE) -> tokenizers.Tokenizer:
    """A byte-level tokenizer that cuts text into words as GPT-2's does."""
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers

    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def add_prompts(tokenizer: tokenizers.Tokenizer) -> None:
    """Makes the constant text of the prompts a few tokens: the prompts are the real model's, and short all the same."""
    from tokenizers import AddedToken

    constant = (f"system\n{SYSTEM_PROMPT}", GENERATE_PREFIX.rstrip(), EDIT_PREFIX.rstrip(), "user\n", "assistant\n")
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in constant])
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in (END_OF_TEXT, IM_START, IM_END)])
