"""The pictures and names of the emoji, from npm packages in a cache.

Packages, all under the MIT licence: @lobehub/fluent-emoji-3d (pictures by Microsoft), unicode-emoji-json and emojilib
(names, groups and keywords by Mu-An Chiou).
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mobileo_mlx.atomic import atomic_write
from mobileo_mlx.files import parse_json

PACKAGES = ("@lobehub/fluent-emoji-3d@1.1.0", "unicode-emoji-json@0.9.0", "emojilib@4.0.3")
SIZES = {"small": 64, "normal": 104, "large": 144}  # sides in pixels; some tenth of it is empty on each side
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
# By what the pictures show: those of the second and the third sign are the other way round in the package.
_MODIFIERS = dict(zip("🏻🏼🏽🏾🏿", ("light", "medium", "medium-light", "medium-dark", "dark"), strict=True))
_VARIANT = "\N{VARIATION SELECTOR-16}"

# What nobody would name in a prompt, or what differs from another picture in a detail of a few pixels.
_LEFT_OUT = {
    "Flags": r"flag ",
    "People & Body": r"(man|woman|men|women|person) |family |.*, ",
    "Travel & Places": r".*(o’clock|-thirty)",
    "Symbols": r"(?!(?:red|orange|yellow|green|blue|purple|brown|black|white) (?:circle|square)$|.*diamond$|warning$|"
    r"no entry$|radioactive$|biohazard$|atom symbol$|yin yang$|peace symbol$|infinity$|trident emblem$|"
    r"recycling symbol$|heavy dollar sign$|sparkle$|red triangle|latin cross$|star of David$|hollow red circle$|"
    r"up arrow$|down arrow$|left arrow$|right arrow$|multiply$|plus$|minus$|divide$|cinema$|hot springs$)",
}


@dataclass(frozen=True)
class Emoji:
    """One of `names()`.

    Attributes:
        name: in lower case, but for proper names, as Unicode's.
        group: Unicode's.
        keywords: in lower case; words and short phrases.
        tone: of `TONES`; None for the usual yellow, and for all that have no skin.
    """

    character: str
    name: str
    group: str
    keywords: tuple[str, ...]
    tone: str | None = None


def cache_folder() -> Path:
    """Where the packages are: $MOBILEO_EMOJI, or mobileo-mlx/emoji in the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mobileo-mlx" / "emoji"
    return Path(os.environ.get("MOBILEO_EMOJI", default))


def fetch() -> Path:
    """Installs the packages with npm and returns their folder.

    Raises:
        OSError: there is no npm.
        subprocess.CalledProcessError: npm failed.
    """
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text('{"private": true}\n')
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES], cwd=folder, check=True)
    return folder


@cache
def emoji(toned: bool = False) -> tuple[Emoji, ...]:
    """All emoji of this world, in Unicode's order.

    Args:
        toned: the hands in other skin tones, after all others, too.
    """
    data = _read("unicode-emoji-json/data-by-emoji.json")
    keywords = _read("emojilib/dist/emoji-en-US.json")
    found = []
    for character, entry in data.items():
        name, group = entry["name"], entry["group"]
        if re.match(_LEFT_OUT.get(group, "(?!)"), name) or not _path(character).exists():
            continue
        words = tuple(word.replace("_", " ") for word in keywords.get(character, ()) if re.fullmatch(r"[\w-]+", word))
        found.append(Emoji(character, name.replace("’", "'"), group, words))
    if toned:
        found += [tone for each in found if is_hand(each) for tone in _tones(each)]
    return tuple(found)


def is_hand(each: Emoji) -> bool:
    """Whether it is a hand that exists in all skin tones."""
    hand = re.search(r"hand|fist|thumbs|finger|index|gesture|salute|horns|biceps", each.name)
    return bool(each.group == "People & Body" and hand and len(_tones(each)) == len(TONES))


def _tones(each: Emoji) -> list[Emoji]:
    plain = each.character.replace(_VARIANT, "")
    toned = [Emoji(plain + sign, each.name, each.group, each.keywords, tone) for sign, tone in _MODIFIERS.items()]
    return [one for one in toned if _path(one.character).exists()]


def _read(name: str) -> dict[str, Any]:
    path = cache_folder() / "node_modules" / name
    return parse_json(path.read_text(encoding="utf-8"))


def _path(character: str) -> Path:
    """Names of files are the code points; some leave out the sign that asks for a picture rather than a letter."""
    folder = cache_folder() / "node_modules" / "@lobehub" / "fluent-emoji-3d" / "assets"
    names = ["-".join(f"{ord(c):04x}" for c in text) for text in (character, character.replace(_VARIANT, ""))]
    paths = [folder / f"{name}.webp" for name in names]
    return next((path for path in paths if path.exists()), paths[0])


@cache
def sprites(size: str) -> np.ndarray:
    """All of `emoji(toned=True)`, (N, S, S, 4) uint8 with S of `SIZES`; colours are multiplied by alpha.

    Made once, and kept in the cache.
    """
    side, everything = SIZES[size], emoji(toned=True)
    path = cache_folder() / f"sprites-{len(everything)}-{side}.npy"
    if not path.exists():
        made = np.stack([_sprite(_path(each.character), side) for each in everything])
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.save(file, made)
    return np.load(path, mmap_mode="r")


def _sprite(path: Path, side: int) -> np.ndarray:
    with Image.open(path) as image:
        # "RGBa" has its colours multiplied by alpha, as they must be to be averaged.
        return np.array(image.convert("RGBA").convert("RGBa").resize((side, side), Image.Resampling.BOX))
