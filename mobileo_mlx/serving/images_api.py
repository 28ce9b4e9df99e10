"""Routes; see `app`."""

from __future__ import annotations

from starlette.routing import BaseRoute

from .service import Service


def routes(service: Service) -> list[BaseRoute]:
    """The routes of this module."""
    return []
