from __future__ import annotations

import mlx.core as mx
from PIL import Image

from mobileo_mlx.array_cache import ArrayCache, image_key, prompt_key
from mobileo_mlx.prompts import IMAGE_TOKEN_INDEX


def test_what_is_kept_is_found() -> None:
    recall = ArrayCache()
    assert recall.get("a") is None
    recall.keep("a", [mx.ones(3)])
    assert "a" in recall
    (found,) = recall.get("a") or []
    assert mx.array_equal(found, mx.ones(3))
    recall.keep("a", [mx.zeros(5)])
    assert recall.nbytes == 20
    recall.clear()
    assert (recall.get("a"), recall.nbytes) == (None, 0)


def test_the_least_recently_used_goes_first() -> None:
    recall = ArrayCache(limit=100)
    for name in "ab":
        recall.keep(name, [mx.zeros(5), mx.zeros(5)])
    recall.get("a")
    recall.keep("c", [mx.zeros(10)])
    assert [name in recall for name in "abc"] == [True, False, True]
    assert recall.nbytes == 80
    recall.keep("d", [mx.zeros(26)])  # more than all that there is room for
    assert recall.nbytes == 0


def test_images_are_told_by_their_pixels() -> None:
    image = Image.new("RGB", (6, 4), (1, 2, 3))
    other = image.copy()
    assert image_key(other) == image_key(image)
    other.putpixel((5, 3), (1, 2, 4))
    turned = Image.new("RGB", (4, 6), (1, 2, 3))
    keys = {image_key(each) for each in (image, other, turned, image.convert("L"))}
    assert len(keys) == 4


def test_an_image_stands_in_its_place() -> None:
    ids = [5, IMAGE_TOKEN_INDEX, 6, IMAGE_TOKEN_INDEX]
    assert prompt_key(ids, ["x", "y"]) == (5, "x", 6, "y")
    assert prompt_key(ids, ["y", "x"]) != prompt_key(ids, ["x", "y"])
