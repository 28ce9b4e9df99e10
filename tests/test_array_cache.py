from __future__ import annotations

import mlx.core as mx
from PIL import Image

from mobileo_mlx.array_cache import ArrayCache, image_key, prompt_key
from mobileo_mlx.prompts import IMAGE_TOKEN_INDEX


def test_what_is_kept_is_found() -> None:
    cache = ArrayCache()
    assert cache.get("a") is None
    cache.put("a", [mx.ones(3)])
    assert "a" in cache
    (found,) = cache.get("a") or []
    assert mx.array_equal(found, mx.ones(3))
    cache.put("a", [mx.zeros(5)])
    assert cache.nbytes == 20
    cache.clear()
    assert (cache.get("a"), cache.nbytes) == (None, 0)


def test_the_least_recently_used_goes_first() -> None:
    cache = ArrayCache(limit=100)
    for name in "ab":
        cache.put(name, [mx.zeros(5), mx.zeros(5)])
    cache.get("a")
    cache.put("c", [mx.zeros(10)])
    assert [name in cache for name in "abc"] == [True, False, True]
    assert cache.nbytes == 80
    cache.put("d", [mx.zeros(26)])  # more than the whole cache
    assert cache.nbytes == 0


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
