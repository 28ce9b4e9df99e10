"""The ASGI application: routes, error bodies, and what surrounds them."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ..errors import MobileOError
from . import chat_api, images_api, jobs_api, meta_api, page_api, pictures_api
from .body_limits import BodyLimits
from .errors import ApiError, handle_error
from .metrics import RequestCounter
from .security import Guard
from .service import Service
from .sse import ClientGone

_MODULES = (chat_api, images_api, jobs_api, pictures_api, meta_api, page_api)


def make_app(service: Service) -> Starlette:
    """The application of a service whose worker has loaded its model."""
    routes = [route for module in _MODULES for route in module.routes(service)]
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(RequestCounter, routes=routes, metrics=service.metrics),
            Middleware(Guard, settings=service.settings),
            Middleware(BodyLimits, max_body=service.settings.max_body),
        ],
        exception_handlers={
            ApiError: handle_error,
            MobileOError: handle_error,
            HTTPException: handle_error,
            ClientGone: _answer_nobody,
            ClientDisconnect: _answer_nobody,
            Exception: handle_error,
        },
    )
    app.state.service = service
    return app


async def _answer_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nginx's "client closed request"; nobody reads it
