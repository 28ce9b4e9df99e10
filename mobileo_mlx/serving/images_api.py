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
    """One of the pictures, by its address or its bytes, with its seed; for several images with that image's number."""
    more = {"seed": drawn.seed} | ({"image_index": _image_of(asked, drawn)} if len(asked.inputs) > 1 else {})
    if drawn.record is not None:
        return {"url": service.url(request, drawn.record["url"]), **more}
    return {"b64_json": base64.b64encode(drawn.data).decode(), **more}


def _image_of(asked: Asked, drawn: Drawn) -> int:
    return drawn.index // len(asked.seeds)


async def _stream(asked: Asked, job: Job, request: Request, service: Service) -> AsyncIterator[str]:
    """OpenAI's events, and what else is known in fields of their own: `seed`, `index`, `step`."""
    name = _EVENTS[asked.task]
    common = {
        "created_at": int(time.time()),
        "size": asked.size,
        "quality": asked.quality_name if asked.quality_name in _QUALITIES else "auto",
        "background": "opaque",
        "output_format": asked.format,
    }
    partials: Counter[int] = Counter()
    async for event in job.events():
        kind: str | None = None
        if event.kind == "preview":
            index = event.data["index"]
            kind = f"{name}.partial_image"
            data = {
                "b64_json": base64.b64encode(event.data["data"]).decode(),
                "partial_image_index": partials[index],
                "index": index,
                "step": event.data["step"],
                "steps": event.data["steps"],
            }
            partials[index] += 1
        elif event.kind == "picture":
            kind = f"{name}.completed"
            drawn: Drawn = event.data
            data = {
                "b64_json": base64.b64encode(drawn.data).decode(),
                "usage": asked.usage(1),
                "index": drawn.index,
                **_item(asked, drawn, request, service),
            }
        elif event.kind in ("failed", "cancelled"):
            error = job.error or ApiError(503, "The task was cancelled.", code="cancelled")
            yield sent_event(json.dumps({"type": "error", "error": error.fields}), event="error")
        if kind is not None:
            yield sent_event(json.dumps({"type": kind, **common, **data}), event=kind)
