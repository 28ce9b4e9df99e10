"""Images that a job's request names: one of the server's pictures, `picture:<id>`, or what `image_inputs` reads."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

from ..errors import ImageError
from ..images import source_of
from .errors import ApiError
from .image_inputs import hold, read_image
from .pictures import UnknownPictureError
from .service import Service

if TYPE_CHECKING:
    from PIL import Image

_PICTURE = "picture:"
_DATA = re.compile(r"data:[^,]{0,100},", re.IGNORECASE)
_SHOWN = 20_000  # characters of a text in the description of a job
_SHOWN_IN_ALL = 2**20  # of all that it holds: jobs are remembered, and listed with it


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


async def read_edited(value: Any, service: Service, param: str) -> tuple[Image.Image, dict[str, str]]:
    """An image that is to be edited, and what is recorded of it.

    Raises:
        ApiError: see `read_reference`.
    """
    image, id = await read_reference(value, service, param)
    return image, await asyncio.to_thread(source_of, image, picture=id)


def without_images(value: Any) -> Any:
    """What a request asked for, as a job tells it: with `data:image/png,...` for images, and no endless texts."""
    return _Shortened().of(value)


class _Shortened:
    """A value without what is too long; what comes after too much is left out."""

    def __init__(self) -> None:
        self._left = _SHOWN_IN_ALL

    def of(self, value: Any) -> Any:
        self._left -= 1
        if isinstance(value, dict):
            return {self.of(name): self.of(inside) for name, inside in value.items() if self._left > 0}
        if isinstance(value, list):
            return [self.of(inside) for inside in value if self._left > 0]
        if not isinstance(value, str):
            return value
        found = _DATA.match(value)
        most = min(_SHOWN, self._left)
        text = f"{found[0]}..." if found else value if len(value) <= most else f"{value[:most]}..."
        self._left -= len(text)
        return text
