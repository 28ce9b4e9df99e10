"""OpenAI's chat route, `/v1/chat/completions`: the next message of a conversation, at once or token by token.

A message that asks for a picture is answered with a call of a tool that the request offers for it; or, where the server
was started with --inline-images, with the picture itself.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route

from .answer_task import usage
from .chat_requests import Asked, answering, drawing, read_asked
from .errors import ApiError
from .jobs import Job
from .requests import read_json
from .service import Service
from .sse import EventStream, run_to_end, sent_event
from .tasks import Drawn, Task

_DONE = "Here is the picture."
_FAILED = "The picture could not be made."


def routes(service: Service) -> list[BaseRoute]:
    """The routes of this module."""

    async def completions(request: Request) -> Any:
        reply, done = await _read(request, service)
        if isinstance(done, _Said):
            return reply.at_once(done)
        return await reply.of_job(service.submit(done, request))

    return [Route("/v1/chat/completions", completions, methods=["POST"])]


@dataclass(frozen=True)
class _Said:
    """A message that nobody has to compute."""

    message: dict[str, Any]
    finish_reason: str


async def _read(request: Request, service: Service) -> tuple[_Reply, Task | _Said]:
    """What is to be done. Megabytes of images in the request are not held while that waits."""
    fields = await read_json(request)
    asked = await read_asked(fields)
    reply = _Reply(asked, request, service)
    if asked.messages.result is not None:
        return reply, _Said({"content": _FAILED if _is_error(asked.messages.result) else _DONE}, "stop")
    if (call := _tool_call(asked)) is not None:
        return reply, _Said({"tool_calls": [call]}, "tool_calls")
    wish = asked.wish() if service.settings.inline_images and not asked.tools.by_task else None
    return reply, await (answering(asked, fields, service) if wish is None else drawing(wish, asked, service))


def _is_error(result: str) -> bool:
    return result.lstrip("{\"' ").lower().startswith("error")


def _tool_call(asked: Asked) -> dict[str, Any] | None:
    """The call that the last message asks for, or `tool_choice`; None where nothing is to be called."""
    tools, messages = asked.tools.by_task, asked.messages
    if not tools or not messages.wish:
        return None
    wish = asked.wish()
    if wish is not None and wish.task not in tools:
        wish = None
    if wish is None and not asked.tools.forced:
        return None
    prompt = messages.wish if wish is None else wish.prompt
    usual = next(iter(tools)) if wish is None else wish.task
    task = asked.tools.named or usual
    image = messages.pictures[-1].url if task == "edit" and messages.pictures else None
    arguments = tools[task].arguments(prompt, image)
    if arguments is None:
        if asked.tools.forced:
            raise ApiError(
                400,
                f"A call of {tools[task].name} needs more than a prompt and the pictures of this conversation.",
                param="tools",
                code="unsupported_parameter",
            )
        return None
    call = {"name": tools[task].name, "arguments": arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": call}


class _Reply:
    """The bodies of an answer, at once or in pieces."""

    def __init__(self, asked: Asked, request: Request, service: Service):
        self._stream, self._with_usage = asked.stream, asked.with_usage
        self._request, self._service = request, service
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time())}
        self._model = service.model_id

    def at_once(self, said: _Said) -> Any:
        """The answer that is known."""
        if not self._stream:
            return JSONResponse(self._body({"content": None, **said.message}, said.finish_reason, usage(0, 0)))
        return EventStream(self._pieces_at_once(said))

    async def of_job(self, job: Job) -> Any:
        """The answer of a job, which ends with the request."""
        if self._stream:
            return EventStream(self._pieces(job), on_gone=lambda: self._service.worker.cancel(job))
        await run_to_end(self._service, job, self._request)
        text = "".join([job.text, *(self._picture(drawn, job) for drawn in job.drawn)])
        return JSONResponse(self._body({"content": text}, *_end(job)))

    def _picture(self, drawn: Drawn, job: Job) -> str:
        """Markdown for a picture."""
        assert drawn.record is not None
        words = "".join(letter for letter in job.task.request["prompt"] if letter not in "[]()\\\n")
        return f"![{words}]({self._service.url(self._request, drawn.record['url'])})"

    async def _pieces(self, job: Job) -> AsyncIterator[str]:
        yield self._piece({"role": "assistant", "content": ""})
        async for event in job.events():
            if event.kind == "text" and event.data["delta"]:
                yield self._piece({"content": event.data["delta"]})
            elif event.kind == "picture":
                yield self._piece({"content": self._picture(event.data, job)})
            elif event.kind == "completed":
                for piece in self._last(*_end(job)):
                    yield piece
            elif event.kind in ("failed", "cancelled"):
                error = job.error or ApiError(503, "The task was cancelled.", code="cancelled")
                yield sent_event(json.dumps({"error": error.fields}))
        yield sent_event("[DONE]")

    async def _pieces_at_once(self, said: _Said) -> AsyncIterator[str]:
        yield self._piece({"role": "assistant", "content": ""})
        calls = said.message.get("tool_calls", [])
        yield self._piece(
            {"tool_calls": [{"index": i, **call} for i, call in enumerate(calls)]} if calls else said.message
        )
        for piece in self._last(said.finish_reason, usage(0, 0)):
            yield piece
        yield sent_event("[DONE]")

    def _last(self, finish_reason: str, account: dict[str, Any]) -> list[str]:
        """Why the answer ends, and the account if it was asked for."""
        pieces = [self._piece({}, finish_reason)]
        if self._with_usage:
            pieces.append(
                sent_event(json.dumps({**self._start("chat.completion.chunk"), "choices": [], "usage": account}))
            )
        return pieces

    def _piece(self, delta: dict[str, Any], finish_reason: str | None = None) -> str:
        chunk = {
            **self._start("chat.completion.chunk"),
            "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}],
        }
        return sent_event(json.dumps(chunk | ({"usage": None} if self._with_usage else {})))

    def _body(self, message: dict[str, Any], finish_reason: str, account: dict[str, Any]) -> dict[str, Any]:
        said = {"role": "assistant", "refusal": None, **message}
        choice = {"index": 0, "message": said, "logprobs": None, "finish_reason": finish_reason}
        return {**self._start("chat.completion"), "choices": [choice], "usage": account}

    def _start(self, kind: str) -> dict[str, Any]:
        return {"id": self._head["id"], "object": kind, "created": self._head["created"], "model": self._model}


def _end(job: Job) -> tuple[str, dict[str, Any]]:
    """Why a finished job's answer has ended, and its account; a picture has none in tokens."""
    return job.outcome.get("finish_reason", "stop"), job.outcome.get("usage", usage(0, 0))
