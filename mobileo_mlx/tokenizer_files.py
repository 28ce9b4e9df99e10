"""The files of a tokenizer: checked, and built into Qwen2's byte-level BPE.

The library `tokenizers` builds it from a vocabulary, merges and added tokens alone. It is not given the files: they may
describe any other tokenizer, with regular expressions of their own, and some of them end its Rust code in a panic.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError
from .files import is_file, read_json, read_text

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
_MAX_FILE = 2**25  # bytes; three times Qwen2's tokenizer.json
_MAX_ADDED = 10_000
# Settings of BPE that Qwen2 does not have, and that would change what a text becomes.
_OTHER_BPE = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@functools.cache
def byte_values() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for.

    Printable characters of Latin-1 stand for themselves; the other bytes, in order, for U+0100 and following.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


def read_tokenizer(folder: Path) -> tuple[tokenizers.Tokenizer, Path]:
    """The tokenizer of `tokenizer.json`, or where there is none of `vocab.json` and `merges.txt`.

    Returns:
        the tokenizer, whose ids go from 0 to its size without a gap; and the file that holds its vocabulary.

    Raises:
        CheckpointError: a file is missing or malformed, or it is another kind of tokenizer; the file is named.
    """
    path = folder / "tokenizer.json"
    if is_file(path):
        return _from_tokenizer_json(path), path
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    if not (is_file(vocab) and is_file(merges)):
        raise CheckpointError(
            f"'{folder}' has no tokenizer: it needs tokenizer.json, or vocab.json with merges.txt; "
            "copy the model's own files there."
        )
    return _from_vocabulary(vocab, merges), vocab


def _from_tokenizer_json(path: Path) -> tokenizers.Tokenizer:
    content = read_json(path, limit=_MAX_FILE)
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise _foreign(path, "holds no BPE model")
    if other := [name for name in _OTHER_BPE if model.get(name)]:
        raise _foreign(path, f"sets {other[0]}")
    normalizer = _unwrapped(content.get("normalizer"), "normalizers")
    if normalizer not in ([], [None], [{"type": "NFC"}]):
        raise _foreign(path, "changes text in another way than to NFC")
    listed = content.get("added_tokens") or []
    if not isinstance(listed, list) or not all(map(_is_added, listed)):
        raise CheckpointError(f"'{path}' has malformed added tokens; download it again.")
    return _build(
        path,
        model.get("vocab"),
        [merge.split(" ") if isinstance(merge, str) else merge for merge in _list(model.get("merges"))],
        [(entry["id"], entry["content"], {flag: bool(entry.get(flag)) for flag in _FLAGS}) for entry in listed],
        composes=normalizer == [{"type": "NFC"}],
        words=_words(path, content.get("pre_tokenizer")),
    )


def _words(path: Path, pre_tokenizer: Any) -> str | None:
    """The expression that cuts text into words; None for that of GPT-2, which is part of `tokenizers`.

    Raises:
        CheckpointError: another one.
    """
    parts = _unwrapped(pre_tokenizer, "pretokenizers")
    if len(parts) == 1 and _is_byte_level(parts[0], cuts=True):
        return None
    split = {"type": "Split", "pattern": {"Regex": _WORDS}, "behavior": "Isolated", "invert": False}
    if len(parts) == 2 and parts[0] == split and _is_byte_level(parts[1], cuts=False):
        return _WORDS
    raise _foreign(path, "cuts text into other words than Qwen2's")


def _is_byte_level(part: Any, *, cuts: bool) -> bool:
    given = {"use_regex": True, **part} if isinstance(part, dict) else {}
    given.pop("trim_offsets", None)  # of the places of tokens in the text, which nobody asks for
    return given == {"type": "ByteLevel", "add_prefix_space": False, "use_regex": cuts}


def _unwrapped(value: Any, name: str) -> list[Any]:
    """The steps of a sequence, or of one step."""
    return _list(value.get(name)) if isinstance(value, dict) and value.get("type") == "Sequence" else [value]


def _is_added(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and type(entry.get("id")) is int
        and isinstance(entry.get("content"), str)
        and all(isinstance(entry.get(flag, False), bool) for flag in _FLAGS)
    )


def _from_vocabulary(vocab: Path, merges: Path) -> tokenizers.Tokenizer:
    tokens = read_json(vocab, limit=_MAX_FILE)
    lines = [line.removesuffix("\r") for line in read_text(merges, limit=_MAX_FILE).split("\n")]
    wanted, special = _added_tokens(vocab.parent, first=len(tokens))
    return _build(
        vocab,
        tokens,
        [line.split(" ") for line in lines if line and not line.startswith("#version")],
        [(i, token, {"special": token in special, "normalized": False}) for i, token in wanted.items()],
        composes=True,
        words=_WORDS,
    )


def _build(
    path: Path,
    vocab: Any,
    merges: list[Any],
    added: list[tuple[int, str, dict[str, bool]]],
    *,
    composes: bool,
    words: str | None,
) -> tokenizers.Tokenizer:
    """The tokenizer of a vocabulary.

    Args:
        path: of the file that is named where something is wrong.
        vocab: tokens to ids, from a file.
        merges: pairs of tokens, from a file.
        added: id, text and properties of each added token; the texts are not looked at yet.
        composes: whether text becomes NFC first.
        words: see `_words`.
    """
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    # In one go: the ids are whole numbers, none comes twice, and none is missing, negative or huge.
    if not isinstance(vocab, dict) or {i for i in vocab.values() if type(i) is int} != set(range(len(vocab))):
        raise CheckpointError(f"'{path}' has no vocabulary with ids from 0 on without a gap; download it again.")
    if strange := set("".join(vocab.keys() - {text for _, text, _ in added})) - byte_values().keys():
        raise _foreign(path, f"has tokens with {min(strange)!r}, which stands for no byte")
    # Of 150,000 merges: so they are looked at in no time.
    pairs = set(map(type, merges)) <= {list} and set(map(len, merges)) <= {2}
    if not pairs or not set(map(type, chain.from_iterable(merges))) <= {str}:
        raise CheckpointError(f"The merges of '{path}' are not pairs of tokens; download its files again.")
    with _refusing(f"The merges of '{path}' do not fit its vocabulary"):
        backend = tokenizers.Tokenizer(models.BPE(vocab, list(map(tuple, merges))))
    if composes:
        backend.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words is None)
    backend.pre_tokenizer = (
        byte_level
        if words is None
        else pre_tokenizers.Sequence([pre_tokenizers.Split(tokenizers.Regex(words), behavior="isolated"), byte_level])
    )
    backend.decoder = decoders.ByteLevel()
    if len(added) > _MAX_ADDED:
        raise CheckpointError(f"'{path.parent}' lists {len(added)} added tokens; download the tokenizer again.")
    added = sorted(added, key=lambda token: token[0])
    with _refusing(f"The added tokens in '{path.parent}' can't be used"):
        backend.add_tokens([tokenizers.AddedToken(text, **properties) for _, text, properties in added])
        found = [backend.token_to_id(text) for _, text, _ in added]
    for (i, text, _), got in zip(added, found, strict=True):
        if got != i:
            raise CheckpointError(
                f"The added token {text} of '{path.parent}' has the id {i}, but {got} is the next after {path.name}; "
                "use the tokenizer files that came with the model."
            )
    return backend


def _added_tokens(folder: Path, first: int) -> tuple[dict[int, str], set[str]]:
    """Added tokens by id, and the texts of those that are special."""
    config, listed = (_read_optional(folder / name) for name in ("tokenizer_config.json", "added_tokens.json"))
    added = {token: i for i, token in enumerate((END_OF_TEXT, IM_START, IM_END), first)}
    declared = config.get("added_tokens_decoder") or {}
    malformed = CheckpointError(
        f"The added tokens in '{folder}' (added_tokens.json, tokenizer_config.json) are malformed; "
        "download the two files again."
    )
    try:
        if listed or declared:
            added = dict(listed)
            added |= {entry["content"]: int(i) for i, entry in declared.items()}
        special = {_content(config[name]) for name in ("bos_token", "eos_token", "pad_token") if config.get(name)}
        special |= {_content(token) for token in config.get("additional_special_tokens") or ()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise malformed from error
    by_id = {i: token for token, i in added.items() if type(i) is int and isinstance(token, str)}
    if len(by_id) != len(added):  # an id that is none, or that two tokens have
        raise malformed
    # A token can be added without being special. The original's `<|im_start|>` is such a one.
    return by_id, special or set(added)


def _content(token: str | Mapping[str, Any]) -> str:
    """Configurations write a token as its text, or as an object that holds it."""
    content = token if isinstance(token, str) else token["content"]
    if not isinstance(content, str):
        raise TypeError
    return content


def _read_optional(path: Path) -> dict[str, Any]:
    """A JSON object from a file; an empty one when there is no such file."""
    return read_json(path) if is_file(path) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _foreign(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"'{path}' {what}, so it is not the tokenizer of a Mobile-O model; copy the model's own files there."
    )


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Names the file in whatever `tokenizers` raises: bare exceptions, and panics, which are no `Exception`."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise CheckpointError(f"{what} ({error}); download the tokenizer again.") from error
