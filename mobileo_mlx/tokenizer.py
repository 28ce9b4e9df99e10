"""Text to token ids and back: Qwen2's byte-level BPE, behind a small class.

The library `tokenizers` encodes. Decoding is done here, byte by byte. So whole texts and streams of tokens share
one path, and a token costs the same however long the text has become.
"""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .atomic import atomic_write
from .errors import CheckpointError
from .files import read_json

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"  # padding
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"  # ends every turn, answers included

# How Qwen2 cuts text into words before the merges: contractions, letters, single digits, punctuation, space.
# This is part of the tokenizer's definition, as the vocabulary is.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)


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
    def load(cls, folder: str | Path) -> Tokenizer:
        """Reads `tokenizer.json`, or where there is none `vocab.json` and `merges.txt`.

        With the latter, added tokens come from `tokenizer_config.json` and `added_tokens.json`; where neither
        lists any, `<|endoftext|>`, `<|im_start|>` and `<|im_end|>` follow the vocabulary.

        Raises:
            CheckpointError: a file is missing or malformed, or the tokenizer lacks a single byte,
                `<|im_start|>` or `<|im_end|>`; the file is named.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if path.exists():
            tokenizer = cls(_read_tokenizer_json(path))
        else:
            path = folder / "vocab.json"
            if not (path.exists() and (folder / "merges.txt").exists()):
                raise CheckpointError(
                    f"'{folder}' has no tokenizer: it needs tokenizer.json, or vocab.json with merges.txt; "
                    "copy the model's own files there."
                )
            tokenizer = cls(_build(folder))
        # Without a token for each byte some text would vanish; without the other two there are no turns.
        needed = (*_byte_values(), IM_START, IM_END)
        absent = [token for token in needed if tokenizer.token_id(token) is None]
        if absent:
            raise CheckpointError(
                f"'{path}' has no token {absent[0]}, so it is not the tokenizer of a Mobile-O model; "
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
        return bytes(map(_byte_values().__getitem__, text)) if text is not None else b""

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


@functools.cache
def _byte_values() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for.

    Printable characters of Latin-1 stand for themselves; the other bytes, in order, for U+0100 and following.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


def _read_tokenizer_json(path: Path) -> tokenizers.Tokenizer:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # The library raises bare exceptions for every kind of bad file.
        raise CheckpointError(f"'{path}' can't be read as a tokenizer ({error}); download it again.") from error


def _build(folder: Path) -> tokenizers.Tokenizer:
    """Qwen2's tokenizer from `vocab.json`, `merges.txt` and what says which tokens were added."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    try:
        model = models.BPE.from_file(str(vocab), str(merges))
    except Exception as error:  # As above; the library does not say which of the two files it was.
        raise CheckpointError(
            f"'{vocab}' and 'merges.txt' beside it can't be read as a tokenizer ({error}); download them again."
        ) from error
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    wanted, special = _added_tokens(folder, first=backend.get_vocab_size())
    for i in sorted(wanted):
        token = tokenizers.AddedToken(wanted[i], special=wanted[i] in special, normalized=False)
        backend.add_tokens([token])
        if backend.token_to_id(wanted[i]) != i:
            raise CheckpointError(
                f"The added token {wanted[i]} of '{folder}' has the id {i}, but {backend.token_to_id(wanted[i])} "
                "is the next after vocab.json; use the tokenizer files that came with the model."
            )
    return backend


def _added_tokens(folder: Path, first: int) -> tuple[dict[int, str], set[str]]:
    """Added tokens by id, and the texts of those that are special."""
    config, listed = (_read_optional(folder / name) for name in ("tokenizer_config.json", "added_tokens.json"))
    added = {token: i for i, token in enumerate((END_OF_TEXT, IM_START, IM_END), first)}
    declared = config.get("added_tokens_decoder") or {}
    try:
        if listed or declared:
            added = {str(token): int(i) for token, i in listed.items()}
            added |= {str(entry["content"]): int(i) for i, entry in declared.items()}
        special = {_content(config[name]) for name in ("bos_token", "eos_token", "pad_token") if config.get(name)}
        special |= {_content(token) for token in config.get("additional_special_tokens") or ()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"The added tokens in '{folder}' (added_tokens.json, tokenizer_config.json) are malformed; "
            "download the two files again."
        ) from error
    # A token can be added without being special. The original's `<|im_start|>` is such a one.
    return {i: token for token, i in added.items()}, special or set(added)


def _content(token: str | Mapping[str, Any]) -> str:
    """Configurations write a token as its text, or as an object that holds it."""
    return token if isinstance(token, str) else token["content"]


def _read_optional(path: Path) -> dict[str, Any]:
    """A JSON object from a file; an empty one when there is no such file."""
    return read_json(path) if path.exists() else {}
