"""`mobileo-mlx serve`: one model for many programs, and for people in a browser."""

from __future__ import annotations

import importlib.util
import os
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypedDict

import typer

from mobileo_mlx.serving.settings import ServerSettings

from . import options, printing, signals

if TYPE_CHECKING:
    from mobileo_mlx.serving.service import Service
    from mobileo_mlx.serving.worker import Worker

NAME = "serve"

_KEY_VARIABLE = "MOBILEO_API_KEY"
_PICTURES = "~/Pictures/mobileo-mlx"
_PACKAGES = ("starlette", "uvicorn", "python_multipart")  # of the extra
_DEFAULTS = ServerSettings()
_LAST_SECONDS = 1.0  # for the thread of the model, after all that was waited for it


class Serving(TypedDict, total=False):
    """What whoever starts the server decides."""

    host: Annotated[
        str | None,
        typer.Option(
            "--host",
            metavar="ADDRESS",
            help="Where to listen: 0.0.0.0 lets other machines in, and needs an API key. "
            f"[default: {_DEFAULTS.host}, this machine alone]",
        ),
    ]
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            "-p",
            metavar="N",
            min=0,
            max=65535,
            help=f"Port to listen on; 0 takes a free one. [default: {_DEFAULTS.port}]",
        ),
    ]
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            help=f"What clients have to show. Better is the variable {_KEY_VARIABLE}: other users of this machine "
            "can't see it in the list of processes.",
        ),
    ]
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--cors-origin",
            metavar="ORIGIN",
            help="Let pages of another server use this one, e.g. http://localhost:3000. May be given several times.",
        ),
    ]
    trusted_host: Annotated[
        list[str] | None,
        typer.Option(
            "--trusted-host",
            metavar="NAME",
            help="Answer to this name, too, e.g. that of a proxy. May be given several times.",
        ),
    ]
    allow_image_urls: Annotated[
        bool | None,
        typer.Option("--allow-image-urls", help="Fetch images from public addresses that requests name."),
    ]
    inline_images: Annotated[
        bool | None,
        typer.Option("--inline-images", help="Let a chat that is asked for a picture answer with one."),
    ]
    queue: Annotated[
        int | None,
        typer.Option(
            "--queue",
            metavar="N",
            min=1,
            max=100_000,
            help=f"Requests that wait at most; more are told to come back later. [default: {_DEFAULTS.max_queue}]",
        ),
    ]
    max_size: Annotated[
        int | None,
        typer.Option(
            "--max-size",
            metavar="PX",
            min=32,
            max=16384,
            help=f"Largest width and height of a picture. [default: {_DEFAULTS.max_side}]",
        ),
    ]
    max_steps: Annotated[
        int | None,
        typer.Option(
            "--max-steps", metavar="N", min=1, max=10_000, help=f"Most steps. [default: {_DEFAULTS.max_steps}]"
        ),
    ]
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            metavar="N",
            min=1,
            max=16,
            help="Pictures of one request that are drawn together: see docs/serving.md for when that pays. "
            f"[default: {_DEFAULTS.batch}]",
        ),
    ]
    pictures: Annotated[
        Path | None,
        typer.Option("--pictures", metavar="DIR", help=f"Where finished pictures are kept. [default: {_PICTURES}]"),
    ]
    no_pictures: Annotated[
        bool | None, typer.Option("--no-pictures", help="Keep pictures in memory, until the server ends.")
    ]
    open: Annotated[bool | None, typer.Option("--open", help="Show the page in the browser.")]
    log_requests: Annotated[
        bool | None, typer.Option("--log-requests", help="Write a line about each request to standard error.")
    ]


@options.takes(options.group(Serving), options.group(options.Loading), [options.keeping("keep-loaded")])
def command(**given: Any) -> None:
    """Serve OpenAI's API and a page for the browser.

    Prints the address when it is ready, and runs until Ctrl-C.
    """
    _require_packages()
    given = options.resolve_preset(given)
    settings = _settings(given)
    loading = {**options.loading(given), "keep_loaded": given["keep_loaded"] is not False}

    from mobileo_mlx.serving import server
    from mobileo_mlx.serving.service import Service
    from mobileo_mlx.serving.worker import Worker

    sockets = server.listen(settings)  # before anything is loaded: it takes a while
    worker = Worker(lambda: options.load(**loading), limit=settings.max_queue, max_bytes=settings.max_waiting_bytes)
    try:
        worker.start()
        service = Service(settings, worker)
        _check_size(settings, service)

        def ready(url: str) -> None:
            printing.out(f"Ready: {url} ({printing.visible(service.model_id)}; Ctrl-C ends)")
            printing.happened("ready", url=url, model=service.model_id)
            if settings.host in server.WILDCARDS:
                port = url.rpartition(":")[2]
                printing.note(f"Other machines find it at http://{socket.gethostname()}:{port}, with the API key.")
            if given["open"]:
                _open(url)

        running = server.Server(
            service, sockets, on_ready=ready, on_request=printing.note if given["log_requests"] else None
        )
        with signals.noted(running.end, running.stop) as numbers:
            running.run()
        if numbers:
            raise signals.interruption(numbers[0])
    except KeyboardInterrupt as interruption:
        _leave(worker, interruption)


def _leave(worker: Worker, interruption: KeyboardInterrupt) -> NoReturn:
    """Ends the process in the usual way; at once if the thread of the model, or one of others, would not let it."""
    import signal

    number = getattr(interruption, "number", signal.SIGINT)
    if not worker.stop(_LAST_SECONDS):  # Python must not take down what that thread still uses
        os._exit(printing.interrupted(number))
    late = threading.Timer(_LAST_SECONDS, os._exit, [128 + number])
    late.daemon = True
    late.start()
    raise interruption


def _require_packages() -> None:
    from mobileo_mlx.errors import OptionError

    if any(importlib.util.find_spec(name) is None for name in _PACKAGES):
        raise OptionError('serve needs packages that are not installed: run `pip install "mobileo-mlx[serve]"`.')


def _settings(given: dict[str, Any]) -> ServerSettings:
    """The settings that the options ask for.

    Raises:
        OptionError: they can't be, or would let other machines in without a key.
    """
    from mobileo_mlx.errors import OptionError
    from mobileo_mlx.files import expand
    from mobileo_mlx.serving.origins import check_origin, check_trusted_host, is_loopback
    from mobileo_mlx.serving.security import check_key

    key, name = given["api_key"], "--api-key"
    if (variable := os.environ.pop(_KEY_VARIABLE, "")) and key is None:  # no process that is started here needs it
        key, name = variable, _KEY_VARIABLE
    host = given["host"] if given["host"] is not None else _DEFAULTS.host
    if key is None and not is_loopback(host):
        raise OptionError(
            f"--host {host} lets other machines in: set an API key, MOBILEO_API_KEY=$(openssl rand -hex 16), or leave "
            "--host out."
        )
    if given["no_pictures"] and given["pictures"] is not None:
        raise OptionError("--pictures and --no-pictures exclude each other; give one of them.")
    picked = {"max_queue": given["queue"], "max_side": given["max_size"], "max_steps": given["max_steps"]}
    return ServerSettings(
        host=host,
        api_key=None if key is None else check_key(key, name),
        cors_origins=tuple(map(check_origin, given["cors_origin"] or ())),
        trusted_hosts=tuple(map(check_trusted_host, given["trusted_host"] or ())),
        allow_image_urls=bool(given["allow_image_urls"]),
        inline_images=bool(given["inline_images"]),
        pictures=None if given["no_pictures"] else given["pictures"] or expand(_PICTURES),
        **options.given(["port", "batch"], given),
        **options.given(picked, picked),
    )


def _check_size(settings: ServerSettings, service: Service) -> None:
    """Whether what is drawn where a request names no size is within the limit.

    Raises:
        OptionError: it is not.
    """
    from mobileo_mlx.errors import OptionError

    width, height = service.model.default_size
    if max(width, height) > settings.max_side:
        raise OptionError(
            f"--max-size {settings.max_side} is less than the model's own size, {width}x{height}; choose more."
        )


def _open(url: str) -> None:
    """Shows a page in the browser, which may take its time, or not be there."""
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
