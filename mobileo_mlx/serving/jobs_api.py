"""Jobs: tasks that go on when whoever asked for them has left, and whose events can be read again."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from ..generation_options import OPTIONS
from ..generation_options import Task as TaskName
from .chat_requests import read_answering
from .errors import ApiError
from .image_requests import check_drawing
from .jobs import Event, Job
from .references import read_edited, without_images
from .requests import (
    MAX_PREVIEWS,
    known_fields,
    read_drawing,
    read_json,
    read_query,
    read_text,
    read_whole,
    refuse_unknown,
)
from .service import Service
from .sse import EventStream, sent_event
from .tasks import Drawing, Drawn, Task

_FIELDS = {"task", "prompt", "n", "size", "previews", "image"}


def routes(service: Service) -> list[BaseRoute]:
    """The routes of this module."""
    api = _Jobs(service)
    return [
        Route("/v1/jobs", api.jobs, methods=["GET", "POST"]),
        Route("/v1/jobs/{id}", api.job, methods=["GET", "DELETE"]),
        Route("/v1/jobs/{id}/events", api.events, methods=["GET"]),
    ]


class _Jobs:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def jobs(self, request: Request) -> Response:
        return await (self._create if request.method == "POST" else self._list)(request)

    async def job(self, request: Request) -> Response:
        if request.method == "DELETE":
            return await self._delete(request)
        return JSONResponse(self._find(request).describe())

    async def _create(self, request: Request) -> Response:
        """Checks a request, and puts it into the queue."""
        fields = await read_json(request)
        name = fields.get("task")
        readers: dict[Any, Callable[[Mapping[str, Any]], Any]] = {
            "generate": self._generate,
            "edit": self._edit,
            "answer": self._answer,
        }
        if not isinstance(name, str) or name not in readers:
            raise ApiError(
                400, f"The request has no 'task' of {', '.join(readers)}.", param="task", code="invalid_value"
            )
        task: Task = await readers[name](fields)
        job = self._service.submit(task, request, kept=True)
        await asyncio.sleep(0)  # until its place in the queue is known
        return JSONResponse(job.describe(), 202, headers={"Location": f"/v1/jobs/{job.id}"})

    async def _list(self, request: Request) -> Response:
        limit = read_query(request.query_params, "limit", 50, 1, 200)
        jobs = self._service.jobs.newest()
        return JSONResponse(
            {"object": "list", "data": [job.describe() for job in jobs[:limit]], "has_more": len(jobs) > limit}
        )

    async def _delete(self, request: Request) -> Response:
        """Cancels a job, or forgets one that has ended."""
        job = self._find(request)
        if job.finished:
            self._service.jobs.forget(job.id)
        else:
            self._service.worker.cancel(job)
            await asyncio.sleep(0)  # one that was waiting is cancelled by now
        return JSONResponse(job.describe())

    async def events(self, request: Request) -> Any:
        job = self._find(request)
        after = _event_number(request)
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        return EventStream(_as_text(job, after))  # when its reader leaves, the job goes on

    def _find(self, request: Request) -> Job:
        id = request.path_params["id"]
        job = self._service.jobs.get(id)
        if job is None or not job.kept:
            raise ApiError(
                404, f"There is no job {id[:80]!r}; a server that was restarted has none.", code="job_not_found"
            )
        return job

    async def _generate(self, fields: Mapping[str, Any]) -> Drawing:
        return await self._drawing("generate", fields)

    async def _edit(self, fields: Mapping[str, Any]) -> Drawing:
        task = await self._drawing("edit", fields)
        task.image, task.source = await read_edited(fields.get("image"), self._service, "image")
        return task

    async def _drawing(self, name: TaskName, fields: Mapping[str, Any]) -> Drawing:
        known = _FIELDS | known_fields(OPTIONS[name])
        refuse_unknown(fields, known if name == "edit" else known - {"image"})
        prompt = read_text(fields, "prompt", "instruction" if name == "edit" else "prompt")
        settings = self._service.settings
        options, seeds = read_drawing(name, fields, settings, self._service.model.speeds)
        await asyncio.to_thread(check_drawing, self._service.model, name, prompt, seeds, options)
        return Drawing(
            name=name,
            prompt=prompt,
            seeds=seeds,
            options=options,
            request=without_images({**fields, "seed": seeds[0], "n": len(seeds)}),
            previews=read_whole(fields, "previews", 0, 0, MAX_PREVIEWS),
            batch=settings.batch,
            keep=self._service.keep,
        )

    async def _answer(self, fields: Mapping[str, Any]) -> Task:
        return await read_answering(fields, self._service)


def _event_number(request: Request) -> int:
    """After which event a reader goes on: what its browser says when it connects again, else what the address says."""
    texts = request.headers.get("last-event-id"), request.query_params.get("after")
    given = [text for text in texts if text is not None]
    for text in given:
        if not re.fullmatch("[0-9]{1,9}", text):
            raise ApiError(
                400,
                f"after {text[:40]!r} is not possible; give the number of an event.",
                param="after",
                code="invalid_value",
            )
    return int(given[0]) if given else 0


async def _as_text(job: Job, after: int) -> AsyncIterator[str]:
    async for event in job.events(after):
        yield sent_event(json.dumps(event_data(event)), event=event.kind, number=event.number)


def event_data(event: Event) -> Any:
    """What a reader hears of an event."""
    if isinstance(event.data, Drawn):
        return event.data.record
    if event.kind == "preview":
        data = {name: value for name, value in event.data.items() if name != "data"}
        return {**data, "b64_json": base64.b64encode(event.data["data"]).decode(), "output_format": "jpeg"}
    return event.data
