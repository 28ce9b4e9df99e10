"""Where an image comes from: a path, bytes, an open file, an array; and opening it, decoded by Pillow on demand."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, TypeAlias, Union

from .errors import ImageError
from .files import expand, kind_of, open_input, read_limited
from .image_files import ImageFile, heif_kind, take_apart

if TYPE_CHECKING:
    from PIL import Image

# An image from outside: a path, the bytes of a file or the file itself open for reading them, a Pillow image, or an
# array (H, W, 3) of uint8, NumPy's or one that NumPy can read. (A string, as Pillow is imported late.)
ImageSource: TypeAlias = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, IO[bytes], "Image.Image", Any]

# Larger ones are taken for decompression bombs. Few cameras give as much.
MAX_PIXELS = 2**27
MAX_SIDE = 2**17
MAX_BYTES = 2**29  # of a file; so many pixels take less, even if they are not compressed

# Pillow knows many more; some of them start other programs, others take any file for an image.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000")

_URL = re.compile(r"(?:^|/)(?:https?|ftp|file|s3|gs):/|^data:", re.IGNORECASE)  # a Path writes one / where two were
_SHOWN = 200  # characters of a path in a message; what is pasted for a path may be a whole image


@contextmanager
def opened(
    source: ImageSource, name: str = "the image", *, max_pixels: int = MAX_PIXELS
) -> Iterator[tuple[Image.Image, ImageFile]]:
    """Opens an image lazily. What goes wrong here or in the body, where pixels are decoded, is an ImageError.

    Args:
        source: the image.
        name: what messages call a source without a path.
        max_pixels: that are accepted.

    Yields:
        the image as Pillow has it, of a size that is accepted, and what its file holds beside the pixels.

    Raises:
        ImageError: see `images.load_image`.
        TypeError: the source is nothing that could be an image.
    """
    from PIL import Image, UnidentifiedImageError

    label = subject(source, name)
    content = source if isinstance(source, Image.Image) else _read(source, label)
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images, odd palettes and odd EXIF data; none of it needs the user.
            warnings.simplefilter("ignore")
            if isinstance(content, Image.Image):
                image, file = content, ImageFile(b"")
            else:
                file = take_apart(content)
                image = _open(file.data, label)
            _check_size(image.size, label, max_pixels)
            file.icc_profile = file.icc_profile or image.info.get("icc_profile")
            file.exif = file.exif or image.info.get("exif")
            file.xmp = file.xmp or image.info.get("xmp")
            yield image, file
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"{label} does not fit into memory; make it smaller first.") from error
    except Image.DecompressionBombError as error:
        raise _too_large(label, "too many pixels", max_pixels) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{label} is not an image that can be read; save it as PNG or JPEG, or give another file."
        ) from error
    except Exception as error:
        # Damaged files make decoders raise nearly anything: OSError, SyntaxError, struct.error, KeyError, ...
        raise ImageError(f"{label} is damaged or cut short ({error}); give an intact copy.") from error


def subject(source: ImageSource, name: str) -> str:
    """What a message begins with: a path in quotes, or the name."""
    if not isinstance(source, str | os.PathLike):
        return name[:1].upper() + name[1:]
    text = os.fsdecode(source)
    text = re.sub(r"^file:/(?!/)", "file:///", re.sub(r"^(https?|ftp|s3|gs):/(?!/)", r"\1://", text))
    return f"'{text}'" if len(text) <= _SHOWN else f"'{text[:_SHOWN]}...'"


def _open(data: bytes, subject: str) -> Image.Image:
    from PIL import Image

    Image.init()
    kind = heif_kind(data)
    if kind == "HEIC":
        try:
            from pillow_heif import HeifImageFile
        except ImportError:
            raise ImageError(
                f"{subject} is a HEIC image, which needs the package pillow-heif: `pip install 'mobileo-mlx[heif]'`, "
                "or save it as PNG or JPEG."
            ) from None
        return HeifImageFile(io.BytesIO(data))
    if kind == "AVIF" and "AVIF" not in Image.OPEN:
        raise ImageError(
            f"{subject} is an AVIF image, which Pillow reads from version 11.3 on: `pip install -U pillow`, or save it "
            "as PNG or JPEG."
        )
    return Image.open(io.BytesIO(data), formats=[name for name in _FORMATS if name in Image.OPEN])


def _read(source: ImageSource, subject: str) -> bytes | Image.Image:
    """The bytes of a file, or an image that is made of an array."""
    if isinstance(source, str | os.PathLike):
        data = _read_path(os.fspath(source), subject)
    elif isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
    elif callable(getattr(source, "read", None)):
        data = _read_open(source, subject)
    elif hasattr(source, "__array__") or hasattr(source, "__array_interface__"):
        return _from_pixels(source)
    else:
        raise TypeError(
            "an image is a path, the bytes of a file, a file opened for reading bytes, a Pillow image, or an array "
            f"(H, W, 3) of uint8; {type(source).__name__} is none of them"
        )
    if not data:
        raise ImageError(f"{subject} is empty (0 bytes); give an intact copy.")
    return data


def _read_path(name: str, subject: str) -> bytes:
    path = expand(name)
    kind = kind_of(path, error=ImageError)
    if kind == "folder":
        raise ImageError(f"{subject} is a folder; name an image in it.")
    if kind == "":
        if _URL.search(str(name)):
            raise ImageError(f"{subject} is a URL, not a file; download the image first, and give the file's path.")
        raise ImageError(f"{subject} does not exist; check the name of the image.")
    with open_input(path, error=ImageError, pipes=True) as stream:
        return read_limited(stream, MAX_BYTES, subject, error=ImageError)


def _read_open(stream: Any, subject: str) -> bytes:
    """All of an open file from its beginning, as Pillow does, or a stream from where it is."""
    try:
        if getattr(stream, "seekable", bool)():
            stream.seek(0)
    except (OSError, ValueError) as error:  # ValueError: it is closed
        raise ImageError(f"{subject} can't be read ({error}); open the file again.") from error
    data = read_limited(stream, MAX_BYTES, subject, error=ImageError)
    if not isinstance(data, bytes):
        raise TypeError(f"a file that holds an image is opened for reading bytes; {type(stream).__name__} gives text")
    return data


def _from_pixels(source: Any) -> Image.Image:
    import numpy as np
    from PIL import Image

    pixels = np.asarray(source)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise TypeError(f"an array of an image is (H, W, 3) and uint8; this one is {pixels.shape} and {pixels.dtype}")
    if not pixels.size:
        return Image.new("RGB", (pixels.shape[1], pixels.shape[0]))
    return Image.fromarray(np.ascontiguousarray(pixels))


def _check_size(size: tuple[int, int], subject: str, max_pixels: int) -> None:
    """Only the header is read by now, so nothing was allocated yet."""
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{subject} has no pixels ({width}x{height}); give another image.")
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        raise _too_large(subject, f"{width}x{height} pixels", max_pixels)


def _too_large(subject: str, what: str, max_pixels: int) -> ImageError:
    limits = f"at most {max_pixels / 10**6:.3g} million, and {MAX_SIDE} on a side, are accepted"
    return ImageError(f"{subject} declares {what}; {limits}: make it smaller first.")
