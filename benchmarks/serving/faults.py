"""Clients that go away, read slowly, or stop in the middle of what they send; and well-behaved ones beside them.

Each fault is a function of a port, a request and a source of chance. None of them may cost another client its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from .load import Load, answer
from .requests import Answer, Request
from .wire import Connection, Dropped, Refused

LONG = 0.4  # seconds within which a client leaves
SLOW_PIECE = 2048  # bytes that a slow reader takes at a time
SLOW_PAUSE = 0.02  # seconds between them
HELD = 5.0  # seconds for which a half-sent body is held open

Fault = Callable[[int, Request, random.Random], Awaitable[None]]


async def leaves_while_waiting(port: int, request: Request, chance: random.Random) -> None:
    """Sends its request and is killed before there is an answer, or in the middle of it."""
    async with Connection(port) as connection:
        with contextlib.suppress(asyncio.TimeoutError, Refused):
            await asyncio.wait_for(request.ask(connection), chance.random() * LONG)
        connection.abort()


async def leaves_while_reading(port: int, request: Request, chance: random.Random) -> None:
    """Reads so many bytes of the answer and closes."""
    async with Connection(port) as connection:
        left = chance.randrange(1, 2000)
        with contextlib.suppress(Refused):
            async for piece in await connection.request("POST", request.path, request.body, request.content_type):
                left -= len(piece)
                if left <= 0:
                    break


async def leaves_in_the_head(port: int, request: Request, chance: random.Random) -> None:
    """Closes before its headers are complete."""
    async with Connection(port) as connection:
        whole = connection.head("POST", request.path, len(request.body), request.content_type)
        await connection.send(whole[: chance.randrange(1, len(whole))])


async def leaves_in_the_body(port: int, request: Request, chance: random.Random) -> None:
    """Closes, or is killed, before its body is complete."""
    async with Connection(port) as connection:
        whole = connection.head("POST", request.path, len(request.body), request.content_type) + request.body
        await connection.send(whole[: -chance.randrange(1, len(request.body))])
        if chance.random() < 0.5:
            connection.abort()


async def holds_half_a_body(port: int, request: Request, chance: random.Random) -> None:
    """Sends half of its body, and then nothing for a while."""
    async with Connection(port) as connection:
        whole = connection.head("POST", request.path, len(request.body), request.content_type) + request.body
        await connection.send(whole[: -len(request.body) // 2])
        await asyncio.sleep(HELD * chance.random())


async def sends_no_http(port: int, request: Request, chance: random.Random) -> None:
    """Sends bytes of chance, as a port scanner does."""
    async with Connection(port) as connection:
        await connection.send(chance.randbytes(200) + b"\r\n\r\n")
        with contextlib.suppress(Dropped, Refused, ValueError, IndexError):
            await connection.read("GET", "/health")


async def reads_slowly(port: int, request: Request, chance: random.Random) -> None:
    """Takes its answer in small pieces, with pauses; the whole of it."""
    async with Connection(port, receive_buffer=SLOW_PIECE) as connection:
        with contextlib.suppress(Refused):
            async for _ in await connection.request("POST", request.path, request.body, request.content_type):
                await asyncio.sleep(SLOW_PAUSE)


async def cancels_its_job(port: int, request: Request, chance: random.Random) -> None:
    """Makes a job and deletes it a little later."""
    async with Connection(port) as connection:
        value = {"task": "generate", "prompt": "a red circle", "steps": 40, "seed": chance.randrange(1000)}
        with contextlib.suppress(Refused):  # it is finished, or the queue is full
            job = await connection.json("POST", "/v1/jobs", value)
            await asyncio.sleep(chance.random() * LONG)
            await connection.json("DELETE", f"/v1/jobs/{job['id']}")


async def leaves_its_job(port: int, request: Request, chance: random.Random) -> None:
    """Makes a job, listens to its events for a moment, and is killed. The job goes on."""
    async with Connection(port) as connection:
        value = {"task": "generate", "prompt": "a blue square", "steps": 4, "seed": chance.randrange(1000)}
        with contextlib.suppress(Refused):
            job = await connection.json("POST", "/v1/jobs", value)
            events = connection.events("GET", f"/v1/jobs/{job['id']}/events")
            await anext_event(events)
        connection.abort()


async def anext_event(events: Any) -> None:
    async for _ in events:
        return


FAULTS: dict[str, Fault] = {
    "leaves while it waits": leaves_while_waiting,
    "leaves while it reads": leaves_while_reading,
    "leaves in the headers": leaves_in_the_head,
    "leaves in the body": leaves_in_the_body,
    "holds half a body open": holds_half_a_body,
    "sends no HTTP": sends_no_http,
    "reads slowly": reads_slowly,
    "cancels its job": cancels_its_job,
    "leaves its job": leaves_its_job,
}


async def provoke(
    port: int,
    requests: Sequence[Request],
    expected: Mapping[str, Answer],
    *,
    count: int,
    clients: int,
    honest: Sequence[Request],
    seed: int = 0,
) -> tuple[Counter[str], Load]:
    """So many faulty clients, `clients` at a time, and a quarter as many honest ones, whose answers are compared.

    Returns:
        How often each fault was tried, and what came of the honest requests.
    """
    chance = random.Random(seed)
    tried: Counter[str] = Counter()
    plan = iter([(name, chance.choice(requests), random.Random(chance.random())) for name in _names(chance, count)])
    found, waiting = Load(), iter(honest)

    async def faulty() -> None:
        for name, request, own in plan:
            with contextlib.suppress(Dropped):  # the server may close on who sends nonsense
                await FAULTS[name](port, request, own)
            tried[name] += 1

    async def good(number: int) -> None:
        async with Connection(port, f"honest client {number}") as connection:
            for request in waiting:
                await answer(connection, request, expected, found)

    await asyncio.gather(*(faulty() for _ in range(clients)), *(good(i) for i in range(max(1, clients // 4))))
    return tried, found


async def settled(port: int, *, within: float = 120.0) -> dict[str, Any]:
    """The queue, once nothing waits and nothing runs.

    Raises:
        RuntimeError: it did not come to rest in that many seconds.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + within
    async with Connection(port) as connection:
        while True:
            queue: dict[str, Any] = await connection.json("GET", "/v1/queue")
            if not queue["waiting"] and not queue["running"]:
                return queue
            if loop.time() > end:
                raise RuntimeError(f"the queue is not empty: {json.dumps(queue)}")
            await asyncio.sleep(0.2)


def _names(chance: random.Random, count: int) -> list[str]:
    names = [*FAULTS] * -(-count // len(FAULTS))
    chance.shuffle(names)
    return names[:count]
