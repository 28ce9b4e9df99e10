"""One door for every image: opening, orientation, colour modes, sizes, arrays, and PNG files with metadata.

Inside, an image is a Pillow image in mode RGB, upright, or an array `(B, H, W, 3)`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, Union, cast

from .atomic import atomic_write
from .errors import ImageError

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np
    from PIL import Image

# An image from outside: a path, the bytes of a file, or a Pillow image. (A string, as Pillow is imported late.)
ImageSource: TypeAlias = Union[str, Path, bytes, "Image.Image"]

# Larger ones are taken for decompression bombs. Few cameras give as much. The side has a limit of its own because
# images are padded to squares.
MAX_PIXELS = 2**27
MAX_SIDE = 2**14

METADATA_KEY = "mobileo-mlx"

# Pillow knows many more; some of them start other programs, others take any file for an image.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000")


def load_image(source: ImageSource, *, name: str = "the image") -> Image.Image:
    """Opens an image of any usual kind as RGB, right side up.

    Alpha is dropped, not blended. Greyscale of 16 bits and more is scaled to 8. An animation gives its first frame.

    Args:
        source: a path, the bytes of a file, or a Pillow image.
        name: what messages call bytes and Pillow images, such as "the image on standard input".

    Raises:
        ImageError: the file is missing, a folder, empty, not an image, damaged, too large, or can't be read.
    """
    label = f"'{source}'" if isinstance(source, str | Path) else name
    with _opened(source, label) as opened:
        from PIL import ImageOps

        image = ImageOps.exif_transpose(opened)  # always a copy
    try:
        return _to_rgb(image)
    except ValueError as error:  # Pillow has no conversion from a few rare modes, such as LAB
        raise ImageError(
            f"{_subject(label)} has the colour mode {image.mode}, which can't be read; save it as RGB."
        ) from error


def pixel_hash(image: Image.Image) -> str:
    """The SHA-256 of an image's pixels, in hexadecimal. It says nothing of size and mode."""
    return hashlib.sha256(image.tobytes()).hexdigest()


def pad_to_square(image: Image.Image) -> Image.Image:
    """Pads the shorter side with black on both sides, so that the image stays in the middle."""
    from PIL import Image

    side = max(image.size)
    square = Image.new("RGB", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def load_images(sources: ImageSource | Sequence[ImageSource]) -> list[Image.Image]:
    """One image or several; see `load_image`."""
    several = sources if isinstance(sources, list | tuple) else [cast(ImageSource, sources)]
    return [load_image(source) for source in several]


def preprocess(image: Image.Image, size: int) -> mx.array:
    """What the vision tower sees: padded to a square with black, bicubic resize, no normalisation.

    Args:
        image: RGB.
        size: side of the result in pixels.

    Returns:
        `(1, size, size, 3)`, float32 in [0, 1].
    """
    from PIL import Image

    return _to_unit(pad_to_square(image).resize((size, size), Image.Resampling.BICUBIC))


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


def save_png(
    image: Image.Image, path: str | Path, metadata: dict[str, Any] | None = None, *, overwrite: bool = False
) -> None:
    """Writes a PNG file, whole or not at all.

    Args:
        image: what to write.
        path: the file.
        metadata: goes into the file as JSON, in one text chunk named `mobileo-mlx`; None for no chunk.
        overwrite: whether a file of this name may be replaced.

    Raises:
        OutputError: the file exists, the folder is missing or not writable, or the disk is full.
    """
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    if metadata is not None:
        # An iTXt chunk is UTF-8, so prompts stay legible to other programs. Names of files can hold lone
        # surrogates, which UTF-8 can't; what replaces them is their JSON escape.
        text = json.dumps(metadata, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()
        info.add_itxt(METADATA_KEY, text)
    with atomic_write(path, overwrite=overwrite) as temporary:
        image.save(temporary, format="PNG", pnginfo=info)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata that `save_png` wrote into a file.

    Raises:
        ImageError: the file is not a readable image, or does not hold such metadata.
    """
    with _opened(path, f"'{path}'") as image:
        image.load()  # Text may also stand behind the pixels, where other programs put it.
        text = image.info.get(METADATA_KEY)
    if text is None:
        raise ImageError(
            f"'{path}' does not say how it was made: it is not from mobileo-mlx, or its metadata was removed; "
            "give the prompt and the options instead."
        )
    try:
        metadata = json.loads(text)
    except ValueError:
        metadata = None
    if not isinstance(metadata, dict):
        raise ImageError(f"'{path}' says in a damaged way how it was made; give the prompt and the options instead.")
    return metadata


@contextmanager
def _opened(source: ImageSource, label: str) -> Iterator[Image.Image]:
    """Opens a source lazily. What goes wrong here or in the body, where pixels are decoded, is an ImageError."""
    from PIL import Image, UnidentifiedImageError

    subject = _subject(label)
    stream: BinaryIO | None = None
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images, odd palettes and odd EXIF data; none of it needs the user.
            warnings.simplefilter("ignore")
            if isinstance(source, Image.Image):
                image = source
            else:
                stream = _stream(source, subject)
                Image.init()
                image = Image.open(stream, formats=[name for name in _FORMATS if name in Image.OPEN])
            _check_size(image.size, subject)
            yield image
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(subject, "too many pixels") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{subject} is not an image that can be read; save it as PNG or JPEG, or give another file."
        ) from error
    except Exception as error:
        # Damaged files make decoders raise nearly anything: OSError, SyntaxError, struct.error, KeyError, ...
        raise ImageError(f"{subject} is damaged or cut short ({error}); give an intact copy.") from error
    finally:
        if stream is not None:
            stream.close()


def _stream(source: str | Path | bytes, subject: str) -> BinaryIO:
    """An open, seekable, non-empty binary stream; Pillow rewinds it."""
    stream: BinaryIO
    if isinstance(source, bytes):
        stream = io.BytesIO(source)
    else:
        path = os.path.expanduser(source)
        if os.path.isdir(path):
            raise ImageError(f"{subject} is a folder; name an image in it.")
        try:
            stream = open(path, "rb")  # noqa: SIM115 - _opened closes it
            if not stream.seekable():  # a pipe, such as a shell's <(...)
                with stream:
                    stream = io.BytesIO(stream.read())
        except FileNotFoundError as error:
            raise ImageError(f"{subject} does not exist; check the name of the image.") from error
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            reason = getattr(error, "strerror", None) or error
            raise ImageError(f"{subject} can't be opened ({reason}); name a file that you may read.") from error
    if not stream.read(1):
        stream.close()
        raise ImageError(f"{subject} is empty (0 bytes); give an intact copy.")
    return stream


def _check_size(size: tuple[int, int], subject: str) -> None:
    """Only the header is read by now, so nothing was allocated yet."""
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{subject} has no pixels ({width}x{height}); give another image.")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise _too_large(subject, f"{width}x{height} pixels")


def _too_large(subject: str, what: str) -> ImageError:
    limits = f"at most {MAX_PIXELS // 10**6} million, and {MAX_SIDE} on a side, are accepted"
    return ImageError(f"{subject} declares {what}; {limits}: make it smaller first.")


def _subject(label: str) -> str:
    """The label at the beginning of a sentence."""
    return label[:1].upper() + label[1:]


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB with 8 bits; greyscale that is deeper is scaled, where Pillow would cut it off at 255."""
    import numpy as np
    from PIL import Image

    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0.0, neginf=0.0)
        # No file says what white is. It is the first of 1, 255 (8 bits) and 65535 (16 bits) that holds all values.
        white = next((w for w in (1.0, 255.0) if values.max() <= w), 65535.0)
        image = Image.fromarray(_to_levels(values / white))
    elif image.mode == "I" or image.mode.startswith("I;16"):
        # Mode "I" has 32 bits, but is how Pillow before 11.0 and some formats give 16 bits.
        image = Image.fromarray(_to_levels(np.asarray(image).astype(np.float64) / 65535))
    image.info.pop("transparency", None)  # Pillow warns of what alpha's loss means for palettes; it is meant
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_levels(values: np.ndarray) -> np.ndarray:
    """[0, 1] to 0..255."""
    import numpy as np

    return np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _to_unit(image: Image.Image) -> mx.array:
    """`(1, H, W, 3)`, float32 in [0, 1]. The device gets bytes, a quarter of the numbers, and divides them itself."""
    import mlx.core as mx
    import numpy as np

    return mx.array(np.asarray(image))[None].astype(mx.float32) / 255
