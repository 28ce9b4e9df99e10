"""Colours as an ICC profile means them, converted to sRGB, in which the model was trained."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image
    from PIL.ImageCms import ImageCmsTransform

_SPACES = {"RGB": "RGB", "CMYK": "CMYK", "L": "GRAY"}  # of the profiles that fit a mode
_TOLERANCE = 1  # of 255; profiles that are sRGB differ by as much


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """The image in sRGB, mode RGB.

    A profile that is broken, for other colours than the image has, or sRGB itself, changes nothing.

    Args:
        image: in mode RGB, CMYK or L.
        profile: an ICC profile, or None.
    """
    transform = None
    if profile:
        try:
            transform = _transform(image.mode, profile)
        except MemoryError:
            raise
        except Exception:  # Pillow's PyCMSError is an Exception, and more can be wrong with a profile
            transform = None
    if transform is not None:
        return transform.apply(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _transform(mode: str, profile: bytes) -> ImageCmsTransform | None:
    """From a profile to sRGB; None where there is nothing to convert."""
    from PIL import ImageCms

    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if source.profile.xcolor_space.strip() != _SPACES.get(mode):
        return None
    transform = ImageCms.buildTransform(
        source,
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    return None if mode == "RGB" and _changes_nothing(transform) else transform


def _changes_nothing(transform: ImageCmsTransform) -> bool:
    import numpy as np
    from PIL import Image

    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    colors = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(9, 81, 3)
    converted = np.asarray(transform.apply(Image.fromarray(colors)))
    return bool(np.abs(converted.astype(int) - colors).max() <= _TOLERANCE)
