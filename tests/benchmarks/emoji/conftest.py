"""A few made-up pictures under the names of emoji, in the place of the data, which tests do not fetch."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.emoji import augment, classifier, names, rules, sprites, text

# Some are held out of compositions, some hands exist in all skin tones, and some names fit more than one of them.
EMOJI = {
    "😀": ("grinning face", "Smileys & Emotion"),
    "🙂": ("slightly smiling face", "Smileys & Emotion"),
    "😢": ("crying face", "Smileys & Emotion"),
    "💙": ("blue heart", "Smileys & Emotion"),
    "❤️": ("red heart", "Smileys & Emotion"),
    "👋": ("waving hand", "People & Body"),
    "✋": ("raised hand", "People & Body"),
    "👏": ("clapping hands", "People & Body"),
    "👩": ("woman", "People & Body"),
    "🎅": ("Santa Claus", "People & Body"),
    "🐵": ("monkey face", "Animals & Nature"),
    "🐒": ("monkey", "Animals & Nature"),
    "🐶": ("dog face", "Animals & Nature"),
    "🐕": ("dog", "Animals & Nature"),
    "🐺": ("wolf", "Animals & Nature"),
    "🐁": ("mouse", "Animals & Nature"),
    "🦉": ("owl", "Animals & Nature"),
    "🍇": ("grapes", "Food & Drink"),
    "🍎": ("red apple", "Food & Drink"),
    "🍏": ("green apple", "Food & Drink"),
    "🍕": ("pizza", "Food & Drink"),
    "🍿": ("popcorn", "Food & Drink"),
    "☕": ("hot beverage", "Food & Drink"),
    "🗽": ("Statue of Liberty", "Travel & Places"),
    "🚗": ("automobile", "Travel & Places"),
    "🦄": ("unicorn", "Animals & Nature"),
    "📷": ("camera", "Objects"),
    "🔨": ("hammer", "Objects"),
    "☂️": ("umbrella", "Travel & Places"),
}
TONED = ("👋", "✋", "👏")


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the data: a framed square in a colour of its own for each emoji."""
    folder = tmp_path_factory.mktemp("emoji")
    _write(folder / "node_modules")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOBILEO_EMOJI", str(folder))
        _forget()
        yield folder
    _forget()


@pytest.fixture(scope="module")
def fetched() -> Path:
    """The folder of the real data, where it has been fetched."""
    folder = sprites.cache_folder()
    if not (folder / "node_modules" / "@lobehub").is_dir():
        pytest.skip("the emoji have not been fetched: python -m benchmarks.emoji fetch")
    _forget()
    return folder


def _write(folder: Path) -> None:
    from PIL import Image

    pictures = folder / "@lobehub/fluent-emoji-3d/assets"
    for path in (pictures, folder / "unicode-emoji-json", folder / "emojilib/dist"):
        path.mkdir(parents=True)
    data = {character: {"name": name, "group": group} for character, (name, group) in EMOJI.items()}
    (folder / "unicode-emoji-json/data-by-emoji.json").write_text(json.dumps(data), encoding="utf-8")
    (folder / "emojilib/dist/emoji-en-US.json").write_text(json.dumps({each: [] for each in EMOJI}), encoding="utf-8")
    characters = [*EMOJI, *(each + sign for each in TONED for sign in "🏻🏼🏽🏾🏿")]
    for i, character in enumerate(characters):
        picture = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
        colour = (40 + 150 * (i % 2), 20 + 5 * i, 220 - 37 * i % 200, 255)
        picture.paste((20, 20, 20, 255), (3, 3, 29, 29))  # a frame, so that no background hides it
        picture.paste(colour, (5, 5, 27, 27))
        name = "-".join(f"{ord(each):04x}" for each in character)
        picture.save(pictures / f"{name}.webp", lossless=True)


def _forget() -> None:
    """Nothing that was made of other data is used."""
    for module in (sprites, names, text, augment, classifier, rules):
        for thing in vars(module).values():
            if hasattr(thing, "cache_clear"):
                thing.cache_clear()
