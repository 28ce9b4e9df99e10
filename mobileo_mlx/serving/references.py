"""Images that a job's request names: one of the server's pictures, `picture:<id>`, or what `image_inputs` reads."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

from ..errors import ImageError
from .errors import ApiError
from .image_inputs import hold, read_image
from .pictures import UnknownPictureError
from .service import Service

if TYPE_CHECKING:
    from PIL import Image

_PICTURE = "picture:"
_DATA = re.compile(r"data:[^,]{0,100},", re.IGNORECASE)
_SHOWN = 20_000  # characters of a text in the description of a job


async def read_reference(value: Any, service: Service, param: str) -> tuple[Image.Image, str | None]:
    """An image, and the id of the picture that it is, or None.

    Raises:
        ApiError: it is missing, damaged, too large, or nothing of the kind; 503, see `image_inputs.hold`.
    """
    if not isinstance(value, str) or not value:
        raise ApiError(
            400,
            f"The request has no image '{param}'; give picture:<id>, or the image as a data URI.",
            param=param,
            code="missing_parameter",
        )
    if not value.startswith(_PICTURE):
        return await read_image(value, service.settings, param=param), None
    id = value.removeprefix(_PICTURE)
    try:
        return hold(await asyncio.to_thread(service.pictures.image, id)), id
    except UnknownPictureError as error:
        raise ApiError(400, str(error), param=param, code="picture_not_found") from None
    except ImageError as error:
        raise ApiError(400, str(error), param=param, code="invalid_image") from None


def without_images(value: Any) -> Any:
    """What a request asked for, as a job tells it: with `data:image/png,...` for images, and no endless texts."""
    if isinstance(value, dict):
        return {name: without_images(inside) for name, inside in value.items()}
    if isinstance(value, list):
        return [without_images(inside) for inside in value]
    if not isinstance(value, str):
        return value
    if found := _DATA.match(value):
        return f"{found[0]}..."
    return value if len(value) <= _SHOWN else f"{value[:_SHOWN]}..."
