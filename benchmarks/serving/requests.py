"""What is asked, of each kind in several variants, and what of an answer has to be the same whenever it is asked.

A variant has its own picture, text and seed, so that an answer that belongs to another request shows.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.shapes.edits import EDIT_TYPES, sample_edit
from benchmarks.shapes.questions import QUESTION_TYPES, sample_question
from benchmarks.shapes.text import sample_caption
from benchmarks.shapes.world import CATEGORIES, render

from .wire import Connection, Dropped

SIZE = "64x64"
STEPS = 4  # of each drawing
PARTIAL_IMAGES = 2
TOKENS = 32
BOUNDARY = "the-boundary-of-this-form"

Answer = tuple[str, ...]  # texts, and the digests of pictures


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        kind: one of `KINDS`.
        name: of the kind and the variant.
        path: it is posted to.
        read: asks it on a connection and gives the answer, which is the same each time.
    """

    kind: str
    name: str
    path: str
    body: bytes
    content_type: str
    read: Callable[[Connection, Request], Awaitable[Answer]]

    async def ask(self, connection: Connection) -> Answer:
        return await self.read(connection, self)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


async def read_chat(connection: Connection, request: Request) -> Answer:
    value = await connection.json("POST", request.path, json.loads(request.body))
    (choice,) = value["choices"]
    return choice["message"]["content"], choice["finish_reason"], _tokens(value)


async def read_stream(connection: Connection, request: Request) -> Answer:
    text, reason, tokens, last = "", "", "", ""
    async for _, data in connection.events("POST", request.path, request.body):
        last = data
        if data == "[DONE]":
            continue
        chunk = json.loads(data)
        for choice in chunk["choices"]:
            text += choice["delta"].get("content") or ""
            reason = choice["finish_reason"] or reason
        if chunk.get("usage"):
            tokens = _tokens(chunk)
    if last != "[DONE]":
        raise Dropped(f"the stream ends with {last[:200]!r}")
    return text, reason, tokens


async def read_pictures(connection: Connection, request: Request) -> Answer:
    answer = await connection.read("POST", request.path, request.body, request.content_type)
    return tuple(digest(base64.b64decode(picture["b64_json"])) for picture in json.loads(answer)["data"])


async def read_partial(connection: Connection, request: Request) -> Answer:
    seen: list[str] = []
    async for name, data in connection.events("POST", request.path, request.body):
        value = json.loads(data)
        seen.append(f"{name} {value.get('partial_image_index', '')} {digest(base64.b64decode(value['b64_json']))}")
    if not seen or not seen[-1].startswith("image_generation.completed"):
        raise Dropped("the stream ends without a picture")
    return tuple(seen)


async def read_job(connection: Connection, request: Request) -> Answer:
    """A job from its making to its last event, and the pictures that it made, fetched."""
    job = await connection.json("POST", request.path, json.loads(request.body))
    last, final = "", job
    async for name, data in connection.events("GET", f"{request.path}/{job['id']}/events"):
        last = name
        if name in ("completed", "failed", "cancelled"):
            final = json.loads(data)
    if last != "completed":
        raise Dropped(f"the job's events end with {last!r}: {final.get('error')}")
    pictures = [await connection.read("GET", picture["url"]) for picture in final["pictures"]]
    return (final["text"], *map(digest, pictures))


def _tokens(value: Mapping[str, Any]) -> str:
    return f"{value['usage']['prompt_tokens']} + {value['usage']['completion_tokens']}"


def make_requests(variants: int = 6, *, steps: int = STEPS) -> list[Request]:
    """Each kind in so many variants; the same list each time."""
    rng = np.random.default_rng(12)
    made = []
    for i in range(variants):
        made += _variant(rng, i, steps)
    return made


def _variant(rng: np.random.Generator, i: int, steps: int) -> list[Request]:
    question = sample_question(rng, QUESTION_TYPES[i % len(QUESTION_TYPES)])
    captions = [sample_caption(rng, CATEGORIES[i % len(CATEGORIES)]).text for _ in range(3)]
    edit = sample_edit(rng, EDIT_TYPES[i % len(EDIT_TYPES)])
    shown, before = _png(render(question.scene)), _png(render(edit.before))
    asked = [{"type": "image_url", "image_url": {"url": data_uri(shown)}}, {"type": "text", "text": question.text}]
    chat = {"model": "tiny", "messages": [{"role": "user", "content": asked}], "max_tokens": TOKENS}
    sampled = {**chat, "temperature": 1.0, "seed": i, "stream": True, "stream_options": {"include_usage": True}}
    drawing = {"size": SIZE, "steps": steps, "seed": 100 * i}
    fields = {"prompt": edit.text, **drawing}
    job = {"task": "generate", "prompt": captions[2], "n": 2, **drawing}
    images = "/v1/images/generations"
    return [
        _json("chat", i, "/v1/chat/completions", {**chat, "temperature": 0}, read_chat),
        _json("chat, streamed", i, "/v1/chat/completions", sampled, read_stream),
        _json("draw", i, images, {"prompt": captions[0], "n": 1 + i % 2, **drawing}, read_pictures),
        _json(
            "draw, partial images",
            i,
            images,
            {"prompt": captions[1], "stream": True, "partial_images": PARTIAL_IMAGES, **drawing},
            read_partial,
        ),
        Request(
            "edit",
            f"edit {i}",
            "/v1/images/edits",
            _form(fields, before),
            f"multipart/form-data; boundary={BOUNDARY}",
            read_pictures,
        ),
        _json("job, drawing", i, "/v1/jobs", job, read_job),
        _json("job, question", i, "/v1/jobs", {"task": "answer", "messages": chat["messages"]}, read_job),
    ]


def _json(
    kind: str, i: int, path: str, value: Any, read: Callable[[Connection, Request], Awaitable[Answer]]
) -> Request:
    return Request(kind, f"{kind} {i}", path, json.dumps(value).encode(), "application/json", read)


def _form(fields: Mapping[str, Any], image: bytes) -> bytes:
    parts = [(f'name="{name}"', str(value).encode()) for name, value in fields.items()]
    parts.append(('name="image"; filename="before.png"\r\nContent-Type: image/png', image))
    lines = (f"--{BOUNDARY}\r\nContent-Disposition: form-data; {name}\r\n\r\n".encode() + v for name, v in parts)
    return b"\r\n".join(lines) + f"\r\n--{BOUNDARY}--\r\n".encode()


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
