"""CLIP's tokenizer (section 2.4 of arXiv 2103.00020): byte-level BPE of lower-cased text, a word's last piece marked.

Matches transformers' `CLIPTokenizer`. open_clip's, which OpenAI wrote, repairs broken Unicode and HTML entities first;
for text without either they give the same ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...errors import CheckpointError
from ...files import read_json, read_text

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77  # positions

_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_MAX_FILE = 2**24  # bytes; the published ones have a tenth


class ClipTokenizer:
    """Texts to ids.

    Args:
        folder: with the checkpoint's vocab.json and merges.txt.
        length: of each row.

    Raises:
        CheckpointError: a file is missing or damaged, or they do not fit together.
    """

    def __init__(self, folder: Path, *, length: int = LENGTH) -> None:
        import tokenizers
        from tokenizers import models, normalizers, pre_tokenizers, processors

        vocab = read_json(folder / "vocab.json", limit=_MAX_FILE)
        # A form feed may be part of a token, so lines end at line feeds alone.
        lines = read_text(folder / "merges.txt", limit=_MAX_FILE).split("\n")
        lines = [line.removesuffix("\r") for line in lines if not line.startswith("#version")]
        merges = [(first, second) for first, _, second in (line.partition(" ") for line in lines if line)]
        ids = {value for value in vocab.values() if type(value) is int}
        if not {START, END} <= vocab.keys() or ids != set(range(len(vocab))):
            raise CheckpointError(
                f"vocab.json and merges.txt in '{folder}' are not those of CLIP; download the two files again."
            )
        try:
            backend = tokenizers.Tokenizer(
                models.BPE(vocab, merges, unk_token=END, end_of_word_suffix="</w>", continuing_subword_prefix="")
            )
        except Exception as error:  # the package raises no narrower one
            raise CheckpointError(
                f"vocab.json and merges.txt in '{folder}' do not fit together ({error}); download them again."
            ) from error
        backend.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(_WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        backend.add_special_tokens([START, END])
        backend.post_processor = processors.TemplateProcessing(
            f"{START} $A {END}", special_tokens=[(START, vocab[START]), (END, vocab[END])]
        )
        backend.enable_truncation(length)  # the end token stays
        self._backend, self._length = backend, length

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(B, length) int32: the start token, the text, the end token, and zeros, as open_clip pads them."""
        rows = np.zeros((len(texts), self._length), np.int32)
        for row, encoding in zip(rows, self._backend.encode_batch(list(texts)), strict=True):
            row[: len(encoding.ids)] = encoding.ids
        return rows
