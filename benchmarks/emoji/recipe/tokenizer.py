"""How the bundled model `emoji` was made: its tokenizer."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from benchmarks.recipes.tokenizers import add_prompts, byte_level

from ..names import names
from ..text import wording

if TYPE_CHECKING:
    import tokenizers

Pair = tuple[str, str]


def emoji_tokenizer() -> tokenizers.Tokenizer:
    """Byte-level BPE in which every word is one token, and a regular plural its singular and "s".

    So what is counted is what is drawn alone. The constant text of the prompts is a few tokens.
    """
    from tokenizers import models, pre_tokenizers

    openings, followings = wording()
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [*openings, *(f" {text}" for text in followings)]
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(text)}
    plurals = {word for word in words if word[-1] == "s" and word[:-1] in words and word[1:] in _plurals()}
    merges = learn_merges(words - plurals)
    tokens = dict.fromkeys([*sorted(splitter.alphabet()), *(left + right for left, right in merges)])
    tokenizer = byte_level(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    add_prompts(tokenizer)
    return tokenizer


def learn_merges(words: Iterable[str]) -> list[Pair]:
    """Merges that make each word one token: always the pair that is most frequent, as BPE's training does.

    But an "s" is joined to nothing before it, unless that begins the word. Otherwise a plural's last letters would be
    joined ("appl", "es") before its singular is.
    """
    pieces = [list(word) for word in sorted(words)]
    counts: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[int]] = defaultdict(set)

    def count(index: int, change: int) -> None:
        for i, pair in enumerate(zip(pieces[index], pieces[index][1:], strict=False)):
            if pair[1] != "s" or i == 0:
                counts[pair] += change
                where[pair].add(index)
                if not counts[pair]:
                    del counts[pair]

    for index in range(len(pieces)):
        count(index, 1)
    merges = []
    while counts:
        pair, _ = max(counts.items(), key=lambda each: each[::-1])
        merges.append(pair)
        for index in where.pop(pair):
            count(index, -1)
            pieces[index] = _merged(pieces[index], pair)
            count(index, 1)
    return merges


def _merged(pieces: list[str], pair: Pair) -> list[str]:
    result: list[str] = []
    for piece in pieces:
        # What was just joined is joined to nothing again.
        if result and (result[-1], piece) == pair:
            result[-1] += piece
        else:
            result.append(piece)
    return result


def _plurals() -> frozenset[str]:
    """The last words of regular plurals' heads."""
    return frozenset(
        word
        for own in names().values()
        for name in own
        if name.plural
        for word in name.plural.replace("-", " ").split()
    )
