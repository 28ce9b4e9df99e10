"""The server's pictures: a list, uploads, files, thumbnails, and a bin."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from .errors import ApiError
from .pictures import Picture, UnknownPictureError
from .requests import read_query
from .service import Service

Result = TypeVar("Result")

# One picture of 40 million pixels takes several times its 120 megabytes while it is decoded. Reading files does not
# wait for that.
_DECODERS = ThreadPoolExecutor(2, thread_name_prefix="mobileo-pictures")

# A picture of an id never changes; and whoever may not see others' pictures has no cache in common with them.
_FOREVER = {"Cache-Control": "private, max-age=31536000, immutable"}


def routes(service: Service) -> list[BaseRoute]:
    """The routes of this module."""
    api = _Pictures(service)
    return [
        Route("/v1/pictures", api.pictures, methods=["GET", "POST"]),
        Route("/v1/pictures/{id}", api.picture, methods=["GET", "DELETE"]),
        Route("/v1/pictures/{id}/content", api.content, methods=["GET"]),
        Route("/v1/pictures/{id}/thumbnail", api.thumbnail, methods=["GET"]),
        Route("/v1/pictures/{id}/restore", api.restore, methods=["POST"]),
    ]


class _Pictures:
    def __init__(self, service: Service) -> None:
        self._pictures, self._settings = service.pictures, service.settings

    async def pictures(self, request: Request) -> Response:
        return await (self._upload if request.method == "POST" else self._list)(request)

    async def picture(self, request: Request) -> Response:
        id = request.path_params["id"]
        if request.method == "DELETE":
            await _run(self._pictures.delete, id)
            return JSONResponse({"id": id, "object": "picture", "deleted": True})
        return JSONResponse((await _run(self._pictures.get, id)).as_json())

    async def _list(self, request: Request) -> Response:
        limit = read_query(request.query_params, "limit", 40, 1, 100)
        before = request.query_params.get("before") or None
        found, more = await _run(self._pictures.page, limit, before, param="before")
        return JSONResponse({"object": "list", "data": [one.as_json() for one in found], "has_more": more})

    async def _upload(self, request: Request) -> Response:
        """Takes the bytes of an image as they are, or the part `image` of a form."""
        data = await _read_body(request)
        picture: Picture = await _run(
            self._pictures.upload, data, max_pixels=self._settings.max_pixels, threads=_DECODERS
        )
        return JSONResponse(picture.as_json(), 201, headers={"Location": f"/v1/pictures/{picture.id}"})

    async def restore(self, request: Request) -> Response:
        return JSONResponse((await _run(self._pictures.restore, request.path_params["id"])).as_json())

    async def content(self, request: Request) -> Response:
        return _file(request, *await _run(self._pictures.content, request.path_params["id"]))

    async def thumbnail(self, request: Request) -> Response:
        return _file(request, *await _run(self._pictures.thumbnail, request.path_params["id"], threads=_DECODERS))


def _file(request: Request, data: bytes, media_type: str) -> Response:
    name = f"{request.path_params['id']}.{media_type.removeprefix('image/')}"
    return Response(
        data, media_type=media_type, headers={**_FOREVER, "Content-Disposition": f'inline; filename="{name}"'}
    )


async def _run(
    call: Callable[..., Result],
    *args: Any,
    param: str | None = None,
    threads: ThreadPoolExecutor | None = None,
    **options: Any,
) -> Result:
    """A call of `Pictures`, which reads files and decodes, outside of the event loop.

    Raises:
        ApiError: there is no such picture; `param` is the parameter that named it, None for the path.
    """
    try:
        return await asyncio.get_running_loop().run_in_executor(threads, partial(call, *args, **options))
    except UnknownPictureError as error:
        code = "picture_not_found"
        raise ApiError(404 if param is None else 400, str(error), param=param, code=code) from None


async def _read_body(request: Request) -> bytes:
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        return await request.body()
    async with request.form(max_files=1, max_fields=10) as form:
        part = form.get("image")
        if not isinstance(part, UploadFile):
            raise ApiError(400, "The form has no file 'image'.", param="image", code="missing_parameter")
        return await part.read()
