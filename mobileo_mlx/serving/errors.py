"""Errors as OpenAI's API gives them: a status, and a body whose fields its clients read."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from ..errors import ImageError, MobileOError, OptionError, PromptError

log = logging.getLogger(__name__)

_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_FOLDERS = re.compile(r"(?<=')(?:[A-Za-z]:)?[/\\][^']*[/\\](?=[^'/\\]+')")  # of a path in quotes
_INTERNAL = "The server failed on this request; its log says why."


class ApiError(Exception):
    """What a request is refused with.

    Attributes:
        status: of HTTP.
        message: one sentence, with the remedy.
        param: the field that is at fault.
        code: for programs.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def fields(self) -> dict[str, Any]:
        """The object `error` of a body."""
        kind = "server_error" if self.status >= 500 else _KINDS.get(self.status, "invalid_request_error")
        return {"message": self.message, "type": kind, "param": self.param, "code": self.code}

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse({"error": self.fields}, self.status, self.headers)


def api_error(error: BaseException) -> ApiError:
    """What a client hears of an error: 400 where the request is at fault, 500 where the server is.

    What no user can cause is logged with its traceback, and the client hears nothing of it.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, OptionError | PromptError | ImageError):
        return ApiError(400, str(error), code="invalid_value")
    if isinstance(error, MobileOError):
        log.error("%s", error)
        return ApiError(500, _FOLDERS.sub("", str(error)))  # where a file lies is nothing to those who ask a server
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        full = "the disk for temporary files is full; free some space, or set TMPDIR to a folder on another disk."
        log.error("%s", full)
        return ApiError(507, f"The server can't take the request: {full}", code="disk_full")
    log.error("a request failed", exc_info=error)
    return ApiError(500, _INTERNAL)


async def handle_error(request: Request, error: Exception) -> JSONResponse:
    """For Starlette's table of handlers."""
    status = getattr(error, "status_code", None)  # of Starlette's own HTTPException
    if isinstance(status, int):
        return _http_error(request, status, error).response()
    return api_error(error).response()


def _http_error(request: Request, status: int, error: Exception) -> ApiError:
    headers = getattr(error, "headers", None)
    if status == 404:
        return ApiError(404, f"There is no {request.url.path} here; /docs lists what there is.", code="not_found")
    if status == 405:
        return ApiError(
            405, f"{request.url.path} does not take {request.method}; /docs lists what it takes.", headers=headers
        )
    return ApiError(status, str(getattr(error, "detail", "")) or "The request can't be answered.", headers=headers)
