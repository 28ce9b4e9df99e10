"""Many clients with mixed requests, each answer compared with what the request gets alone."""

from __future__ import annotations

import asyncio
import http.client
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from .process import Server
from .requests import Answer, Request
from .wire import HOST, Connection, Dropped, Refused

HEALTH_EVERY = 0.1  # seconds
MEMORY_EVERY = 1.0
ANSWERED_IN = 900  # seconds after which a request counts as dropped


@dataclass
class Load:
    """What came of the requests.

    Attributes:
        seconds: until each right answer, by kind.
        dropped, mixed_up: what went wrong, a line each.
        busy: how often the server said 429; the client came back as it was told to.
        duration: seconds of all.
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    mixed_up: list[str] = field(default_factory=list)
    busy: int = 0
    duration: float = 0.0

    @property
    def answered(self) -> int:
        return sum(map(len, self.seconds.values()))


@dataclass
class Watched:
    """What was seen of a server meanwhile.

    Attributes:
        health: seconds that GET /health took, each on a connection of its own.
        unhealthy: what it answered else than 200, or why it did not.
        memory: seconds since the beginning, and bytes that the process had in memory.
    """

    health: list[float] = field(default_factory=list)
    unhealthy: Counter[str] = field(default_factory=Counter)
    memory: list[tuple[float, int]] = field(default_factory=list)

    def growth(self) -> float:
        """Bytes that the memory grew over the second half, by the straight line through it; 0 of two points or less."""
        times, _ = zip(*self.memory, strict=True)
        half = [(when, size) for when, size in self.memory if when >= (times[0] + times[-1]) / 2]
        if len(half) < 3:
            return 0.0
        line = statistics.linear_regression(*zip(*half, strict=True))
        return line.slope * (half[-1][0] - half[0][0])


async def alone(port: int, requests: Sequence[Request]) -> dict[str, Answer]:
    """The answer of each request, by name, asked one after the other, and once more."""
    answers: dict[str, Answer] = {}
    async with Connection(port) as connection:
        for _ in range(2):
            for request in requests:
                answer = await request.ask(connection)
                if answers.setdefault(request.name, answer) != answer:
                    raise RuntimeError(f"'{request.name}' has another answer the second time; nothing can be compared.")
    return answers


def mixed(requests: Sequence[Request], count: int, *, seed: int = 0) -> list[Request]:
    """So many of them, each as often as another, in an order of chance."""
    rounds = -(-count // len(requests))
    order = [*requests] * rounds
    random.Random(seed).shuffle(order)
    return order[:count]


async def load(port: int, requests: Sequence[Request], expected: Mapping[str, Answer], *, clients: int) -> Load:
    """Answers all requests, by so many clients at a time, each with a connection that it keeps."""
    found, waiting = Load(), iter(requests)

    async def client(number: int) -> None:
        async with Connection(port, f"client {number}") as connection:
            for request in waiting:
                await answer(connection, request, expected, found)

    begin = time.perf_counter()
    await asyncio.gather(*(client(i) for i in range(clients)))
    found.duration = time.perf_counter() - begin
    return found


async def answer(connection: Connection, request: Request, expected: Mapping[str, Answer], found: Load) -> None:
    """Asks one request, again where the server is busy, and writes down what came of it."""
    while True:
        begin = time.perf_counter()
        try:
            got = await asyncio.wait_for(request.ask(connection), ANSWERED_IN)
        except Refused as error:
            if error.status == 429:
                found.busy += 1
                await asyncio.sleep(float(error.headers.get("retry-after", "1")))
                continue
            found.dropped.append(f"{request.name}: {error}")
        except (Dropped, asyncio.TimeoutError, KeyError, ValueError) as error:
            found.dropped.append(f"{request.name}: {type(error).__name__} {error}")
            connection.abort()
        else:
            if got == expected[request.name]:
                found.seconds.setdefault(request.kind, []).append(time.perf_counter() - begin)
            else:
                found.mixed_up.append(f"{request.name}: {got} in place of {expected[request.name]}")
        return


@contextmanager
def watching(server: Server) -> Iterator[Watched]:
    """Asks for the server's health and looks at its memory meanwhile, from a thread of its own."""
    seen, over = Watched(), threading.Event()

    def look() -> None:
        begin = last = time.perf_counter()
        seen.memory.append((0.0, server.resident_memory()))
        while not over.wait(HEALTH_EVERY):
            now = time.perf_counter()
            try:
                status = health(server.port)
            except OSError as error:
                seen.unhealthy[str(error)] += 1
            else:
                seen.health.append(time.perf_counter() - now)
                if status != 200:
                    seen.unhealthy[str(status)] += 1
            if now - last >= MEMORY_EVERY:
                last = now
                seen.memory.append((now - begin, server.resident_memory()))
        seen.memory.append((time.perf_counter() - begin, server.resident_memory()))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def health(port: int) -> int:
    """The status of GET /health.

    Raises:
        OSError: no answer within 30 seconds.
    """
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()
