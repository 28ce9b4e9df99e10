"""Text to token ids and back: Qwen2's byte-level BPE, behind a small class.

The library `tokenizers` encodes. Decoding is done here, byte by byte. So whole texts and streams of tokens share
one path, and a token costs the same however long the text has become.
"""

from __future__ import annotations

import codecs
import functools
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from .atomic import atomic_write
from .errors import CheckpointError
from .tokenizer_files import END_OF_TEXT as END_OF_TEXT
from .tokenizer_files import IM_END, IM_START, byte_values, read_tokenizer

if TYPE_CHECKING:
    import tokenizers


class Tokenizer:
    """Qwen2's tokenizer: NFC, byte-level BPE, and added tokens such as `<|im_end|>`.

    Added tokens are recognised in text wherever they stand, as in the original.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        # Files saved while training may cut or pad, silently.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self._added = {i: token.content for i, token in added.items()}
        self._special = {i for i, token in added.items() if token.special}
        self._control = self._special | {i for i, s in self._added.items() if re.fullmatch(r"<\|.*\|>", s)}

    @classmethod
    def load(cls, folder: str | Path, *, rows: int | None = None) -> Tokenizer:
        """Reads `tokenizer.json`, or where there is none `vocab.json` and `merges.txt`.

        With the latter, added tokens come from `tokenizer_config.json` and `added_tokens.json`; where neither
        lists any, `<|endoftext|>`, `<|im_start|>` and `<|im_end|>` follow the vocabulary.

        Args:
            folder: of the files.
            rows: of the model's embedding, where it is known: an id beyond would be read from outside of it.

        Raises:
            CheckpointError: a file is missing or malformed, describes another kind of tokenizer, or has more tokens
                than the model; or the tokenizer lacks a single byte, `<|im_start|>` or `<|im_end|>`. The file is named.
        """
        backend, path = read_tokenizer(Path(folder))
        tokenizer = cls(backend)
        # Without a token for each byte some text would vanish; without the other two there are no turns.
        needed = (*byte_values(), IM_START, IM_END)
        absent = [token for token in needed if tokenizer.token_id(token) is None]
        if absent:
            raise CheckpointError(
                f"'{path}' has no token {absent[0]}, so it is not the tokenizer of a Mobile-O model; "
                "copy the model's own files there."
            )
        if rows is not None and tokenizer.vocab_size > rows:
            raise CheckpointError(
                f"The tokenizer in '{folder}' has {tokenizer.vocab_size} tokens, and the model's vocabulary {rows}; "
                "copy the model's own files there."
            )
        return tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the added ones included; a model may have more rows than that."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def token_id(self, token: str) -> int | None:
        """The id of one token, such as `<|im_end|>`, or None when there is no such token."""
        return self._backend.token_to_id(token)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; nothing is added before or after."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def fewest_tokens(self, text: str) -> int:
        """How many tokens `text` has at least. Encoding, which counts them, takes 200 times the text's memory."""
        if any(token.lstrip or token.rstrip for token in self._backend.get_added_tokens_decoder().values()):
            text = "".join(text.split())  # such a token takes any number of blanks beside it
        return -(-len(unicodedata.normalize("NFC", text).encode()) // self._longest)

    @functools.cached_property
    def _longest(self) -> int:
        """Bytes that one token stands for at most."""
        # In a byte-level vocabulary a letter is a byte. An added token stands for itself, or for its NFC.
        added = (form for text in self._added.values() for form in (text, unicodedata.normalize("NFC", text)))
        vocabulary = self._backend.get_vocab(with_added_tokens=False)
        return max(*map(len, vocabulary), *(len(form.encode()) for form in added), 1)

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD, ids without a token become nothing.

        Args:
            ids: token ids.
            skip_special: leaves out the tokens that the tokenizer's files declare special. As in the
                original, `<|im_start|>` is not always one of them; `stream` hides it in any case.
        """
        kept = (i for i in ids if not (skip_special and i in self._special))
        return b"".join(map(self.token_bytes, kept)).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for: often a part of a character; empty for an id without a token."""
        if token in self._added:
            return self._added[token].encode()
        text = self._backend.id_to_token(token) if token >= 0 else None
        return bytes(map(byte_values().__getitem__, text)) if text is not None else b""

    def is_control(self, token: int) -> bool:
        """Whether a token directs the conversation and is not part of what is said."""
        return token in self._control

    def stream(self) -> StreamingDecoder:
        """A new decoder for tokens that come one at a time."""
        return StreamingDecoder(self)

    def save(self, path: str | Path) -> None:
        """Writes a `tokenizer.json` that `load` and other tools read.

        Raises:
            OutputError: the file exists or can't be written.
        """
        with atomic_write(path) as temporary:
            self._backend.save(str(temporary), pretty=False)


class StreamingDecoder:
    """Text from tokens that come one at a time.

    Each segment is whole characters: bytes of a character that is not complete yet wait for the next token.
    Control tokens such as `<|im_end|>` never show.
    """

    # The `DecodeStream` of tokenizers 0.23 is equal on all texts of the reference, but can't be flushed: of an answer
    # that ends inside of a character (the bytes 61 F0 9F) it gives "a", and decoding at once "a\ufffd".
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """The text that became complete with `token`; may be empty."""
        if self._tokenizer.is_control(token):
            return ""
        return self._utf8.decode(self._tokenizer.token_bytes(token))

    def flush(self) -> str:
        """What is left at the end: U+FFFD when the last character never became complete, else nothing.

        The decoder is then as new.
        """
        return self._utf8.decode(b"", final=True)
