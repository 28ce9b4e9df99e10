"""OpenAI's image routes, `/v1/images/generations` and `/v1/images/edits`: one answer, or a stream with previews."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ..generation_options import Task
from .errors import ApiError
from .image_requests import Asked, read_asked
from .jobs import Job
from .service import Service
from .sse import EventStream, run_to_end, sent_event
from .tasks import Drawn

_EVENTS: dict[Task, str] = {"generate": "image_generation", "edit": "image_edit"}
_QUALITIES = ("low", "medium", "high", "auto")  # of which OpenAI's types know all


def routes(service: Service) -> list[BaseRoute]:
    """The routes of this module."""

    async def generations(request: Request) -> Any:
        return await _answer("generate", request, service)

    async def edits(request: Request) -> Any:
        return await _answer("edit", request, service)

    handlers = {"generations": generations, "edits": edits, "variations": _no_variations}
    return [Route(f"/v1/images/{name}", handler, methods=["POST"]) for name, handler in handlers.items()]


async def _no_variations(request: Request) -> Response:
    raise ApiError(
        404,
        "This model makes no variations of an image; send it to /v1/images/edits with an instruction, or draw a prompt "
        "again with another seed.",
        code="not_supported",
    )


async def _answer(task: Task, request: Request, service: Service) -> Any:
    asked = await read_asked(task, request, service)
    job = service.submit(asked.job(service), request)
    if asked.partials is not None:
        events = _stream(asked, job, request, service)
        return EventStream(events, on_gone=lambda: service.worker.cancel(job))
    await run_to_end(service, job, request)
    body = await asyncio.to_thread(_body, asked, job, request, service)  # megabytes of base64
    return Response(body, media_type="application/json")


def _body(asked: Asked, job: Job, request: Request, service: Service) -> str:
    return json.dumps(
        {
            "created": int(time.time()),
            "data": [_item(asked, drawn, request, service) for drawn in job.drawn],
            "background": "opaque",
            "output_format": asked.format,
            "size": asked.size,
            "usage": asked.usage(len(job.drawn), max(1, len(asked.inputs))),
            **({"quality": asked.quality_name} if asked.quality_name in _QUALITIES[:3] else {}),
        }
    )


def _item(asked: Asked, drawn: Drawn, request: Request, service: Service) -> dict[str, Any]:
    """One of the pictures, by its address or its bytes."""
    bytes_ = {} if asked.by_url else {"b64_json": base64.b64encode(drawn.data).decode()}
    return bytes_ | _about(asked, drawn, request, service)


def _about(asked: Asked, drawn: Drawn, request: Request, service: Service) -> dict[str, Any]:
    """Its seed, its address if it has one, what the model said of its candidates, and of several images the number of
    the one that was edited.
    """
    about: dict[str, Any] = {"seed": drawn.seed}
    if "best_of" in drawn.settings:
        about["best_of"] = drawn.settings["best_of"]
    if drawn.record is not None:
        about["url"] = service.url(request, drawn.record["url"])
    if len(asked.inputs) > 1:
        about["image_index"] = drawn.index // len(asked.seeds)
    return about


async def _stream(asked: Asked, job: Job, request: Request, service: Service) -> AsyncIterator[str]:
    """OpenAI's events, and what else is known in fields of their own: `seed`, `index`, `step`."""
    common = {
        "created_at": int(time.time()),
        "size": asked.size,
        "quality": asked.quality_name if asked.quality_name in _QUALITIES else "auto",
        "background": "opaque",
        "output_format": asked.format,
    }

    def told(kind: str, picture: bytes, more: dict[str, Any]) -> str:
        name = f"{_EVENTS[asked.task]}.{kind}"
        data = {"type": name, "b64_json": base64.b64encode(picture).decode(), **common, **more}
        return sent_event(json.dumps(data), event=name)

    partials: Counter[int] = Counter()
    async for event in job.events():
        if event.kind == "preview":
            more = {name: value for name, value in event.data.items() if name != "data"}
            more["partial_image_index"] = partials[more["index"]]
            partials[more["index"]] += 1
            yield await asyncio.to_thread(told, "partial_image", event.data["data"], more)
        elif event.kind == "picture":
            drawn: Drawn = event.data
            more = {"usage": asked.usage(1), "index": drawn.index, **_about(asked, drawn, request, service)}
            yield await asyncio.to_thread(told, "completed", drawn.data, more)
        elif event.kind in ("failed", "cancelled"):
            error = job.error or ApiError(503, "The task was cancelled.", code="cancelled")
            yield sent_event(json.dumps({"type": "error", "error": error.fields}), event="error")
