"""From what all sources say of the pictures of a folder to drafts of samples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ..training.quadruplets import QA
from .pictures import Picture
from .said import KINDS, Said

MODEL = "model"  # where a caption comes from that no source gives


@dataclass(frozen=True)
class Draft:
    """A sample before its questions are made.

    Attributes:
        picture: the path of what the model learns to draw, in the folder.
        source: of an edit the path of what it was made of; "" for all others.
        caption: what describes the picture; "" where nothing does.
        instruction: of an edit.
        qa: questions about the picture and answers, of the sources.
        origin: where the caption or instruction comes from, one of `KINDS` or `MODEL`.
        where: more exactly, for messages.
        number: of the captions of one picture, from 0.
    """

    picture: str
    source: str = ""
    caption: str = ""
    instruction: str = ""
    qa: tuple[QA, ...] = ()
    origin: str = ""
    where: str = ""
    number: int = 0

    @property
    def prompt(self) -> str:
        """What the model is given."""
        return self.instruction if self.source else self.caption

    def id(self, pictures: Mapping[str, Picture]) -> str:
        """By what a review knows it again, whatever files and texts are called."""
        source = pictures[self.source].digest if self.source else ""
        text = json.dumps([pictures[self.picture].digest, source, self.number])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_drafts(
    said: Iterable[Said], edits: Mapping[str, str], pictures: Iterable[str], *, all_captions: bool
) -> list[Draft]:
    """Drafts in the order of the pictures; one of which nothing is said is none where it is the source of an edit.

    Of what several sources say the first one in the order of `KINDS` counts: for the caption, for the instruction, and
    for the questions, each by itself.

    Args:
        said: by all sources.
        edits: originals by what was made of them, as `find_edits` gives them.
        pictures: all pictures of the folder.
        all_captions: whether a picture with several captions makes a sample of each; else the first one counts.
    """
    by_sample: dict[tuple[str, str], list[Said]] = {}
    for one in said:
        by_sample.setdefault((one.picture, one.source or edits.get(one.picture, "")), []).append(one)
    known = {picture for picture, _ in by_sample}
    sources = {source for _, source in by_sample if source} | set(edits.values())
    for picture in pictures:
        if picture in known:
            continue
        if picture in edits:
            by_sample[picture, edits[picture]] = []
        elif picture not in sources:
            by_sample[picture, ""] = []
    drafts = []
    for (picture, source), some in sorted(by_sample.items()):
        drafts += _of_one(Draft(picture, source), some, all_captions=all_captions)
    return drafts


def _of_one(draft: Draft, some: list[Said], *, all_captions: bool) -> list[Draft]:
    some = sorted(some, key=lambda one: KINDS.index(one.kind))  # those of a kind stay in their order
    asking = next((one.kind for one in some if one.qa), "")
    qa = tuple(dict.fromkeys(pair for one in some if one.kind == asking for pair in one.qa))
    # Of one that is no edit the text is a caption, too, and the better one: it is what kohya's tools train on.
    captions = [
        (text, one) for one in some for text in ((one.text,) if one.text and not draft.source else one.captions)
    ]
    if draft.source:
        given = next((one for one in some if one.text), None) or next((one for one in some if one.captions), None)
        if given is not None:
            text = given.text or given.captions[0]
            draft = replace(draft, instruction=text, origin=given.kind, where=given.where)
        if given is not None and not given.text:
            captions = captions[1:]
        return [replace(draft, qa=qa, caption=captions[0][0] if captions else "")]
    kept = [(text, one) for text, one in captions if one.kind == captions[0][1].kind]
    kept = list({text: (text, one) for text, one in reversed(kept)}.values())[::-1]
    if not kept:
        where = some[0].where if some else ""
        return [replace(draft, qa=qa, where=where)]
    return [
        replace(draft, caption=text, qa=qa, origin=one.kind, where=one.where, number=number)
        for number, (text, one) in enumerate(kept[: None if all_captions else 1])
    ]
