"""What whoever starts the server decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DEFAULT_PORT = 8642


@dataclass(frozen=True)
class ServerSettings:
    """How the server listens, what it allows, and its limits.

    Attributes:
        host, port: where it listens; port 0 takes a free one.
        api_key: what requests must show; None asks for nothing, and then `host` is this machine alone.
        cors_origins: origins of foreign pages that may use it, as `https://example.org`.
        trusted_hosts: names that a request may call it by, beside its own.
        allow_image_urls: whether images are fetched from public addresses that a request names.
        inline_images: whether a chat that is asked for a picture answers with one.
        max_queue: jobs that wait at most; more are refused with status 429.
        max_waiting_bytes: memory of the images of waiting jobs.
        max_side: of a picture, in pixels.
        max_steps: denoising steps.
        max_pictures: of one request.
        max_body: bytes of a request.
        max_pixels: of an image in a request.
        batch: seeds of one request that are drawn together.
        pictures: the folder of finished pictures; None keeps them in memory while the server runs.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    api_key: str | None = None
    cors_origins: Sequence[str] = ()
    trusted_hosts: Sequence[str] = ()
    allow_image_urls: bool = False
    inline_images: bool = False
    max_queue: int = 128
    max_waiting_bytes: int = 2**30
    max_side: int = 2048
    max_steps: int = 200
    max_pictures: int = 10
    max_body: int = 32 * 2**20
    max_pixels: int = 40_000_000
    batch: int = 1
    pictures: Path | None = None
