"""What the server says of itself: its model, whether it is well, what waits, its counts, its own description."""

from __future__ import annotations

import asyncio
from functools import cached_property
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from .. import identity
from .._version import __version__
from ..capabilities import capabilities
from ..ops import backend
from . import metrics
from .docs_page import docs_page
from .errors import ApiError
from .openapi import make_document
from .service import Service

# The page has no script, and its style is a file.
_DOCS_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'self'; frame-ancestors 'none'"}


def routes(service: Service) -> list[BaseRoute]:
    """The routes of this module."""
    api = _Meta(service)
    return [
        Route("/v1/models", api.models, methods=["GET"]),
        Route("/v1/models/{id:path}", api.model, methods=["GET"]),
        Route("/health", api.health, methods=["GET"]),
        Route("/metrics", api.metrics, methods=["GET"]),
        Route("/v1/queue", api.queue, methods=["GET"]),
        Route("/v1/info", api.info, methods=["GET"]),
        Route("/openapi.json", api.openapi, methods=["GET"]),
        Route("/docs", api.docs, methods=["GET"]),
    ]


class _Meta:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model]})

    async def model(self, request: Request) -> Response:
        """The one that is loaded; a repository's name holds a slash."""
        id = request.path_params["id"]
        if id != self._service.model_id:
            raise ApiError(
                404,
                f"There is no model {id[:80]!r} here; this server runs {self._service.model_id!r}.",
                param="model",
                code="model_not_found",
            )
        return JSONResponse(self._model)

    async def health(self, request: Request) -> Response:
        """Answers while the worker computes: it asks MLX for nothing."""
        alive = self._service.worker.alive
        return JSONResponse({"status": "ok" if alive else "ending"}, 200 if alive else 503)

    async def metrics(self, request: Request) -> Response:
        text = self._service.metrics.text(self._service.worker, self._service.model_id)
        return Response(text, headers={"Content-Type": metrics.MEDIA_TYPE})

    async def queue(self, request: Request) -> Response:
        worker = self._service.worker
        running = worker.running
        waiting = worker.waiting()
        return JSONResponse(
            {
                "object": "queue",
                "waiting": len(waiting),
                "limit": self._service.settings.max_queue,
                "running": None if running is None else _brief(running.id if running.kept else None, running.task.name),
                "jobs": [_brief(job.id if job.kept else None, job.task.name) for job in waiting],
                "seconds_per_turn": round(worker.seconds, 3),
            }
        )

    async def info(self, request: Request) -> Response:
        settings = self._service.settings
        of_the_model = await asyncio.to_thread(lambda: self._of_the_model)  # which reads files, once
        return JSONResponse(
            {
                "object": "info",
                "version": __version__,
                **of_the_model,
                "memory": self._service.worker.memory,
                "seconds_per_turn": round(self._service.worker.seconds, 3),
                "pictures": "memory" if settings.pictures is None else "folder",
                "allow_image_urls": settings.allow_image_urls,
                "inline_images": settings.inline_images,
                "limits": {
                    "max_n": settings.max_pictures,
                    "max_size": settings.max_side,
                    "max_steps": settings.max_steps,
                    "max_queue": settings.max_queue,
                    "max_body": settings.max_body,
                    "max_pixels": settings.max_pixels,
                },
            }
        )

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(self._document)

    async def docs(self, request: Request) -> Response:
        return Response(docs_page(self._document), media_type="text/html", headers=_DOCS_HEADERS)

    @cached_property
    def _model(self) -> dict[str, Any]:
        return {
            "id": self._service.model_id,
            "object": "model",
            "created": int(self._service.started_at),
            "owned_by": "mobileo-mlx",
        }

    @cached_property
    def _of_the_model(self) -> dict[str, Any]:
        """What does not change while the server runs."""
        config = self._service.model.config
        return {
            "model": self._model,
            "identity": identity.of(self._service.model),
            "device": backend.chip_name() or backend.backend(),
            "backend": backend.backend(),
            "default_size": list(config.default_size),
            "size_multiple": config.size_multiple,
            "capabilities": capabilities(self._service.model.speeds),
        }

    @cached_property
    def _document(self) -> dict[str, Any]:
        return make_document(self._service.settings, self._service.model.config.size_multiple)


def _brief(id: str | None, task: str) -> dict[str, Any]:
    """A job of the queue; only those can be asked for that outlive their request."""
    return {"id": id, "task": task}
