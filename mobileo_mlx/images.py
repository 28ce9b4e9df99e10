"""One door for every image: opening, orientation, colours, transparency, sizes, arrays.

Inside, an image is a Pillow image in mode RGB, upright, in sRGB, without metadata; or an array `(B, H, W, 3)`.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from .color import to_srgb
from .errors import ImageError
from .image_files import ImageFile
from .image_settings import read_metadata as read_metadata
from .image_settings import save_png as save_png
from .image_sources import MAX_PIXELS, ImageSource, opened, subject

if TYPE_CHECKING:
    import mlx.core as mx
    from PIL import Image

_LARGEST_SQUARE = 2**26  # pixels; a larger one is not made for an image that fills a part of it
_STRIP = 2**22  # pixels that are padded, or made of more than 8 bits, at once


def load_image(
    source: ImageSource,
    *,
    name: str = "the image",
    background: str | None = "white",
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Opens an image of any usual kind as RGB, right side up, in sRGB.

    Greyscale of 16 bits and more is scaled to 8. An animation gives its first frame. Of what else a file holds, only
    the orientation and the colour profile count; where they are damaged, they count as missing.

    Args:
        source: see `ImageSource`.
        name: what messages call a source without a path, such as "the image on standard input".
        background: the colour that transparent pixels are laid over. With None transparency is dropped and shows
            whatever colour lies beneath, and colour profiles are ignored: as in the original.
        max_pixels: that are accepted; known from the header, before anything is decoded.

    Raises:
        ImageError: the file is missing, a folder, empty, not an image, damaged, too large, or can't be read.
        TypeError: the source is nothing that could be an image.
    """
    from PIL import Image

    with opened(source, name, max_pixels=max_pixels) as (image, file):
        image.load()
        try:
            rgb = _to_rgb(image, None if background is None else file.icc_profile, background)
        except ValueError as error:  # Pillow has no conversion from a few rare modes, such as LAB
            raise ImageError(
                f"{subject(source, name)} has the colour mode {image.mode}, which can't be read; save it as RGB."
            ) from error
        turn = _TURNS.get(_orientation(image, file))
        if turn is not None:
            rgb = rgb.transpose(Image.Transpose[turn])
        elif rgb is image:
            rgb = image.copy()  # the caller's, or one that still has to do with its file
    rgb.info = {}  # what it says is done
    return rgb


def pixel_hash(image: Image.Image) -> str:
    """The SHA-256 of an image's pixels, in hexadecimal. It says nothing of size and mode."""
    return hashlib.sha256(image.tobytes()).hexdigest()


def source_of(image: Image.Image, name: str = "", picture: str | None = None) -> dict[str, str]:
    """Which image an edit started from, for its metadata: a replay needs the same one.

    Args:
        image: that is edited.
        name: of its file; in which folder that lies is left out.
        picture: its id, where a server keeps it.
    """
    known = {"image": Path(name).name, "image_sha256": pixel_hash(image), "source": picture}
    return {key: value for key, value in known.items() if value}


def pad_to_square(image: Image.Image) -> Image.Image:
    """Pads the shorter side with black on both sides, so that the image stays in the middle; see `preprocess`."""
    from PIL import Image

    side = max(image.size)
    square = Image.new("RGB", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def load_images(sources: ImageSource | Sequence[ImageSource]) -> list[Image.Image]:
    """One image or several in a list or tuple; see `load_image`."""
    several = sources if isinstance(sources, list | tuple) else [cast(ImageSource, sources)]
    return [load_image(source) for source in several]


def preprocess(image: Image.Image, size: int) -> mx.array:
    """What the vision tower sees, with no normalisation; see `square_image`.

    Returns:
        `(1, size, size, 3)`, float32 in [0, 1].
    """
    return _to_unit(square_image(image, size))


def square_image(image: Image.Image, size: int) -> Image.Image:
    """Padded to a square with black, bicubic resize. Of such a square it is the same again.

    The square of a long and narrow image would take many times its memory. Where it is large, the image is resized
    along its longer side first, which needs no padding, and then along the other one, some rows at a time: the same
    up to a rounding between the two.

    Args:
        image: RGB.
        size: side of the result in pixels.
    """
    from PIL import Image

    side = max(image.size)
    if side * side <= _LARGEST_SQUARE:
        return pad_to_square(image).resize((size, size), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (size, size))
    if image.height > image.width:
        rows, left = _pad_and_resize_rows(image.resize((image.width, size), Image.Resampling.BICUBIC), side, size)
        square.paste(rows, (left, 0))
    else:
        small = image.resize((size, image.height), Image.Resampling.BICUBIC)
        columns, top = _pad_and_resize_rows(small.transpose(Image.Transpose.TRANSPOSE), side, size)
        square.paste(columns.transpose(Image.Transpose.TRANSPOSE), (0, top))
    return square


def _pad_and_resize_rows(image: Image.Image, side: int, size: int) -> tuple[Image.Image, int]:
    """Each row in the middle of `side` black pixels, resized to `size` pixels.

    Returns:
        those columns of the result that the image has a share in, and how many black ones are left of them.
    """
    from PIL import Image

    scale, start = side / size, (side - image.width) // 2
    reach = 2 * max(scale, 1) + 2  # of the bicubic filter, in pixels of the row
    first = max(0, math.floor((start - reach) / scale))
    last = min(size, math.ceil((start + image.width + reach) / scale))
    # As much of the row as these columns are made of.
    begin = max(0, math.floor(first * scale - reach))
    end = min(side, math.ceil(last * scale + reach))
    box = (max(0.0, first * scale - begin), min(float(end - begin), last * scale - begin))
    result = Image.new("RGB", (last - first, image.height))
    height = max(1, _STRIP // (end - begin))
    for top in range(0, image.height, height):
        strip = image.crop((0, top, image.width, min(top + height, image.height)))
        padded = Image.new("RGB", (end - begin, strip.height))
        padded.paste(strip, (start - begin, 0))
        resized = padded.resize(
            (last - first, strip.height), Image.Resampling.BICUBIC, box=(box[0], 0, box[1], strip.height)
        )
        result.paste(resized, (0, top))
    return result, first


def cover_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resizes so that the image covers `width` x `height` pixels, then crops around the centre.

    The side that is too long is truncated to an integer, as in the original's training transform.

    Raises:
        ImageError: the image is so narrow that covering would take more than `MAX_PIXELS`.
    """
    from PIL import Image

    if width * image.height >= height * image.width:
        size = (width, image.height * width // image.width)
    else:
        size = (image.width * height // image.height, height)
    if size[0] * size[1] > MAX_PIXELS:
        raise ImageError(
            f"The image is too narrow ({image.width}x{image.height}) to fill {width}x{height} pixels; crop it first."
        )
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    covering = image.resize(size, Image.Resampling.BICUBIC)
    return covering.crop((left, top, left + width, top + height))


def to_signed(image: Image.Image) -> mx.array:
    """An RGB image as `(1, H, W, 3)`, float32 in [-1, 1]: the range of the autoencoder."""
    return (_to_unit(image) - 0.5) / 0.5


def from_array(pixels: mx.array) -> list[Image.Image]:
    """Images from the autoencoder's output.

    Args:
        pixels: `(B, H, W, 3)`, nominally in [-1, 1]; what lies outside is cut off.

    Raises:
        ValueError: there are values that are not finite.
    """
    import mlx.core as mx
    import numpy as np
    from PIL import Image

    values = np.array(pixels.astype(mx.float32))
    if not np.isfinite(values).all():
        raise ValueError("the decoded image has values that are not finite")
    # Rounding half to even, as the original does.
    levels = np.round(np.clip(values / 2 + 0.5, 0, 1) * 255).astype(np.uint8)
    return [Image.fromarray(level) for level in levels]


def contact_sheet(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """All images on one sheet, row by row, in cells of the largest width and height."""
    from PIL import Image

    if not images or columns < 1:
        raise ValueError("a contact sheet needs at least one image and one column")
    columns = min(columns, len(images))
    width, height = max(image.width for image in images), max(image.height for image in images)
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height))
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * width, i // columns * height))
    return sheet


# What a mode is converted to before its profile is applied; all others to RGB.
_COLORS = {"1": "L", "L": "L", "LA": "L", "CMYK": "CMYK"}

# How an orientation is undone; 1 is upright.
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_ORIENTATION = 0x0112
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
_XMP_ORIENTATION = re.compile(rb"""tiff:Orientation(?:\s?=\s?["']|>)\s?([1-8])""")


def _orientation(image: Image.Image, file: ImageFile) -> int:
    """1 to 8, as EXIF defines them; 1 where nothing, or nothing that can be read, says it."""
    from PIL import Image

    try:
        if file.exif is None:
            exif = image.getexif()  # of a Pillow image that has one in another form
        else:
            exif = Image.Exif()
            exif.load(file.exif)
        value = exif.get(_ORIENTATION)
    except MemoryError:
        raise
    except Exception:  # as images do, EXIF data make Pillow raise nearly anything
        value = None
    if value is None and isinstance(file.xmp, bytes) and (found := _XMP_ORIENTATION.search(file.xmp)):
        value = int(found[1])
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image, profile: bytes | None, background: str | None) -> Image.Image:
    """Any mode to RGB with 8 bits, in sRGB, laid over a background; see `load_image`."""
    from PIL import ImageChops

    alpha = None
    if image.mode == "F" or image.mode.startswith("I"):
        color, alpha = _from_deep(image)
    else:
        if image.mode in ("La", "RGBa"):  # multiplied by alpha already
            image = image.convert("LA" if image.mode == "La" else "RGBA")
        target = _COLORS.get(image.mode, "RGB")
        color = image if image.mode == target else image.convert(target)
        if image.has_transparency_data and background is not None:
            alpha = (image if image.mode in ("LA", "RGBA") else image.convert("RGBA")).getchannel("A")
    rgb = to_srgb(color, profile)
    if background is None or alpha is None or alpha.getextrema() == (255, 255):
        return rgb
    rgb = image.copy() if rgb is image else rgb
    rgb.paste(background, (0, 0, *rgb.size), ImageChops.invert(alpha))
    return rgb


def _from_deep(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Greyscale of more than 8 bits as L, scaled, where Pillow would cut it off at 255; and its alpha, if any."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})  # of a TIFF file
    bits, kind = (tags.get(tag, (0,))[0] for tag in (_BITS, _SAMPLE_FORMAT))
    # What white may be. Mode "I" has 32 bits, but is how Pillow before 11.0 and some formats give 16 bits.
    whites = [4095.0] if bits == 12 else [65535.0]
    if image.mode == "F":
        values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
        whites = [1.0, 255.0, 65535.0]
    elif bits == 32 and kind in (0, 1):  # without a sign, which Pillow does not know
        values = values.view(np.uint32)
        whites = [65535.0, 2.0**32 - 1]
    # No file says it where there is a choice. It is the first that holds all values.
    white = next((w for w in whites if values.max() <= w), whites[-1])
    negative = tags.get(_PHOTOMETRIC) == 0  # Pillow turns 8 bits alone
    levels = np.empty(values.shape, np.uint8)
    rows = max(1, _STRIP // image.width)
    for top in range(0, len(values), rows):
        part = values[top : top + rows]
        part = part if image.mode == "F" else part.astype(np.float64)
        share = np.clip(part / white, 0, 1)
        levels[top : top + rows] = np.round((1 - share if negative else share) * 255)
    transparent = image.info.get("transparency")
    alpha = None
    if isinstance(transparent, int):  # the one level that is
        alpha = Image.fromarray((values != transparent).astype(np.uint8) * 255)
    return Image.fromarray(levels), alpha


def _to_unit(image: Image.Image) -> mx.array:
    """`(1, H, W, 3)`, float32 in [0, 1]. The device gets bytes, a quarter of the numbers, and divides them itself."""
    import mlx.core as mx
    import numpy as np

    return mx.array(np.asarray(image))[None].astype(mx.float32) / 255
