"""Edits: an instruction, and a scene of emoji before and after it.

The result is laid out as its caption would be: where something is added to a single thing, this becomes small and
stands on the left, the added one on the right; what is left of two stands alone in the middle, in the normal size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from mobileo_mlx.errors import OptionError

from ..shapes.world import pick
from .names import Name
from .names import held_out as held_out_indices
from .sprites import TONES, emoji
from .text import Style, composable, sample_caption
from .world import BACKGROUNDS, CENTRE, ROW, Scene, Thing

EDIT_TYPES = ("background", "size", "replace", "add", "remove", "tone")
_COMPOSING = ("replace", "add", "remove")  # a held-out emoji is never part of these in training
_SIZES = ("small", "normal", "large")
# How often a single thing is called "it".
IT = 0.3


@dataclass(frozen=True)
class Edit:
    """`kind` is one of `EDIT_TYPES`."""

    text: str
    kind: str
    before: Scene
    after: Scene


def sample_edit(
    rng: np.random.Generator, kind: str | None = None, *, held_out: bool | None = False, plain: bool = False
) -> Edit:
    """An edit of a kind, by default any.

    Args:
        rng: where all randomness comes from.
        kind: of `EDIT_TYPES`.
        held_out: see `text`; if it is True, one of them is there before or after, and something is replaced, added or
            removed.
        plain: as for `sample_caption`.

    Raises:
        OptionError: `held_out`, and another kind.
    """
    kind = pick(rng, _COMPOSING if held_out else EDIT_TYPES) if kind is None else kind
    if held_out and kind not in _COMPOSING:
        raise OptionError(f"edits of the {kind} compose nothing; choose one of {', '.join(_COMPOSING)}.")
    categories, weights = zip(*_SCENES_TO_EDIT[kind].items(), strict=True)
    while True:
        category = str(rng.choice(categories, p=weights))
        before = sample_caption(rng, category, held_out=None if held_out else held_out, plain=True).scene
        style = Style(rng, plain)
        change = _CHANGES[kind](style, before)
        if change is None:
            continue
        text, before, after = change
        shown = {thing.index for scene in (before, after) for thing in scene.things}
        if held_out is None or kind not in _COMPOSING or bool(shown & held_out_indices()) == held_out:
            return Edit(style.typed(text), kind, before, after)


_SCENES_TO_EDIT: dict[str, dict[str, float]] = {
    "background": {"single": 0.3, "background": 0.3, "two": 0.15, "position": 0.1, "count": 0.15},
    "size": {"single": 0.2, "background": 0.3, "size": 0.5},
    "replace": {"single": 0.2, "background": 0.3, "two": 0.3, "position": 0.2},
    "add": {"single": 0.4, "background": 0.4, "size": 0.2},
    "remove": {"two": 0.6, "position": 0.4},
    "tone": {"tone": 1.0},
}
# The instruction, the scene before and the scene after; None where this random choice changes nothing.
_Change = tuple[str, Scene, Scene] | None


def _background(style: Style, scene: Scene) -> _Change:
    background = pick(style.rng, tuple(BACKGROUNDS))
    if background == scene.background:
        return None
    colour = style.colour(background)
    text = style.word((f"change the background to {colour}", f"make the background {colour}"))
    return text, scene, replace(scene, background=background)


def _size(style: Style, scene: Scene) -> _Change:
    (thing,) = scene.things
    larger = style.rng.random() < 0.5
    size = _SIZES.index(thing.size) + (1 if larger else -1)
    if not 0 <= size < len(_SIZES):
        return None
    subject = "it" if style.sometimes(IT) or style.plain else style.name(thing.index).definite
    text = f"make {subject} {style.word(('larger', 'bigger')) if larger else 'smaller'}"
    return text, scene, replace(scene, things=(replace(thing, size=_SIZES[size]),))


def _replace(style: Style, scene: Scene) -> _Change:
    at = int(style.rng.integers(len(scene.things)))
    subject, added = _subject(style, scene, at), _something_else(style, scene)
    if subject is None or added is None:
        return None
    new = style.phrase(added)
    text = style.word((f"replace {subject} with {new}", f"change {subject} into {new}", f"turn {subject} into {new}"))
    things = list(scene.things)
    things[at] = replace(things[at], index=added.index)
    return text, scene, replace(scene, things=tuple(things))


def _add(style: Style, scene: Scene) -> _Change:
    (thing,) = scene.things
    added = _something_else(style, scene)
    if added is None:
        return None
    new = style.phrase(added)
    things = tuple(Thing(index, x, y, "small") for index, (x, y) in zip((thing.index, added.index), ROW, strict=True))
    return style.word((f"add {new}", f"put {new} next to it")), scene, replace(scene, things=things)


def _remove(style: Style, scene: Scene) -> _Change:
    at = int(style.rng.integers(2))
    subject = _subject(style, scene, at)
    if subject is None:
        return None
    return f"remove {subject}", scene, replace(scene, things=(Thing(scene.things[1 - at].index, *CENTRE),))


def _tone(style: Style, scene: Scene) -> _Change:
    (thing,) = scene.things
    usual = emoji(toned=True)[thing.index].name
    tones = {each.tone: index for index, each in enumerate(emoji(toned=True)) if each.name == usual}
    old = None if style.rng.random() < 0.5 else emoji(toned=True)[thing.index].tone
    new = pick(style.rng, [tone for tone in TONES if tone != old])
    before, after = (replace(scene, things=(replace(thing, index=tones[tone]),)) for tone in (old, new))
    return style.word((f"make the skin {new}", f"give it {new} skin")), before, after


def _subject(style: Style, scene: Scene, at: int) -> str | None:
    """One of the things as something that is there; None where its name fits another one too."""
    if len(scene.things) == 1 and style.sometimes(IT):
        return "it"
    name = style.name(scene.things[at].index)
    others = {thing.index for i, thing in enumerate(scene.things) if i != at}
    return None if name.indices & others else name.definite


def _something_else(style: Style, scene: Scene) -> Name | None:
    """A name that fits nothing that is there."""
    name = style.name(pick(style.rng, composable(None)))
    return None if name.indices & {thing.index for thing in scene.things} else name


_CHANGES: dict[str, Callable[[Style, Scene], _Change]] = {
    "background": _background,
    "size": _size,
    "replace": _replace,
    "add": _add,
    "remove": _remove,
    "tone": _tone,
}
