"""What the original's training reads: token ids, labels and masks, all of them exact."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mobileo_mlx.conditioning import IGNORED_LABEL
from mobileo_mlx.prompts import EDIT_PREFIX, GENERATE_PREFIX, IMAGE_TOKEN
from mobileo_mlx.tokenizer import END_OF_TEXT, Tokenizer
from mobileo_mlx.training.sequences import TokenSequence, upstream_pair_sequence, upstream_sequence
from mobileo_mlx.training.webdataset import CATEGORIES, DEFAULT_QUESTION, parse_qna

from .compare import Check, equal, unexercised
from .goldens import read_json

COMPONENT = "training_tokens"
# Inputs, words, and the sizes of placeholder images.
_GIVEN = {"description", "category", "gen_prompt", "qna", "txt", "batch_image_shapes"}


def training_tokens(path: Path, tokenizer_folder: Path) -> Iterator[Check]:
    """Compares every value that `training_tokens.json` holds."""
    tokenizer = Tokenizer.load(tokenizer_folder)
    padding = tokenizer.token_id(END_OF_TEXT)
    kinds = {"post_training": _post_training, "sft": _pair}
    for stage, entry in read_json(path).items():
        if stage == "description":
            continue
        if stage not in kinds:
            yield unexercised(COMPONENT, stage, "*", "no stage of this name is known")
            continue
        read = [kinds[stage](sample, tokenizer) for sample in entry["samples"]]
        for i, (sample, ours) in enumerate(zip(entry["samples"], read, strict=True)):
            yield from _all(f"{stage} {i}", sample, ours)
        if "batch" in entry:
            yield from _all(f"{stage} batch", entry["batch"], _collated(read, padding))
        for key in entry.keys() - _GIVEN - {"samples", "batch"}:
            yield unexercised(COMPONENT, stage, key)


def _post_training(sample: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    edit = CATEGORIES[sample["category"]]
    qa = (parse_qna(sample["qna"]) or [DEFAULT_QUESTION])[0]
    sequence = upstream_sequence(tokenizer, sample["gen_prompt"], qa.question, qa.answer, edit=edit)
    request = (EDIT_PREFIX if edit else GENERATE_PREFIX) + sample["gen_prompt"] + IMAGE_TOKEN
    turns = [("human", request), ("gpt", ""), ("human", qa.question), ("gpt", qa.answer)]
    return _values(sequence) | {"conversations": [{"from": who, "value": text} for who, text in turns]}


def _pair(sample: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    return _values(upstream_pair_sequence(tokenizer, sample["txt"]))


def _values(sequence: TokenSequence) -> dict[str, Any]:
    return {"input_ids": list(sequence.input_ids), "labels": list(sequence.labels)}


def _collated(samples: list[dict[str, Any]], padding: int | None) -> dict[str, Any]:
    length = max(len(sample["input_ids"]) for sample in samples)

    def padded(name: str, filling: Any) -> list[list[Any]]:
        return [[*sample[name], *[filling] * (length - len(sample[name]))] for sample in samples]

    mask = [[int(i < len(sample["input_ids"])) for i in range(length)] for sample in samples]
    return {
        "input_ids": padded("input_ids", padding),
        "labels": padded("labels", IGNORED_LABEL),
        "attention_mask": mask,
    }


def _all(case: str, expected: dict[str, Any], ours: dict[str, Any]) -> Iterator[Check]:
    for name, value in expected.items():
        if name in ours:
            yield equal(COMPONENT, case, name, ours[name], value)
        elif name not in _GIVEN:
            yield unexercised(COMPONENT, case, name)
