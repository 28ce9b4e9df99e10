"""`mobileo-mlx info`: what a checkpoint or an adapter holds, or how an image was made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from . import options, printing

NAME = "info"


def command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|ADAPTER|IMAGE",
            help="A bundled name, a folder, or a repository on the hub; an adapter's folder; or an image that generate "
            "or edit wrote.",
        ),
    ],
    as_json: options.Json = False,
) -> None:
    """Show what is in a checkpoint or an adapter, or how an image was made.

    Of a checkpoint its parts with their parameters, precision and size on disk; of an adapter what it changes, and the
    options that it draws with; of an image its prompt and settings.
    """
    from mobileo_mlx.checkpoints.adapters import FILES
    from mobileo_mlx.files import expand, is_file

    folder = expand(name)
    if is_file(folder):
        _show_image(folder, as_json)
    elif not is_file(folder / "config.json") and any(is_file(folder / file) for file in FILES):
        _show_adapter(name, as_json)
    else:
        _show_model(name, as_json)


def _show_model(name: str, as_json: bool) -> None:
    from mobileo_mlx.checkpoints.convert import describe
    from mobileo_mlx.errors import format_names

    found = describe(name, progress=printing.draws_bars())
    if found.extra:
        printing.note(
            f"note: '{name}' can't be loaded, as nothing in it asks for the tensors {format_names(found.extra)}."
        )
    if as_json:
        printing.report(found.to_json())
        return
    rows = [("component", "parameters", "precision", "size")]
    for part in found.components:
        precision = f"{part.bits} bits, else {part.dtype}" if part.bits else part.dtype
        rows.append((part.name, f"{part.parameters:,}", precision, printing.size(part.nbytes)))
    rows.append(("total", f"{found.parameters:,}", "", printing.size(found.nbytes)))
    printing.out(printing.table(rows, right=(False, True, False, True)))
    if found.turbo is not None:
        printing.out(f"--speed turbo: {_drawing(found.turbo)}")


def _show_adapter(name: str, as_json: bool) -> None:
    from mobileo_mlx.checkpoints.adapters import Adapter
    from mobileo_mlx.model_speeds import drawing_of

    adapter = Adapter.open(name)
    base = adapter.config.base_model if adapter.config is not None else None
    for note in adapter.notes:
        printing.note(f"note: {note}")
    parts: list[dict[str, Any]] = []
    for component in sorted(adapter.components):
        updates = adapter.low_rank.get(component, {})
        whole = adapter.full.get(component, {}) | adapter.trained.get(component, {})
        tensors = [tensor for update in updates.values() for tensor in update.tensors] + list(whole.values())
        ranks = {update.rank for update in updates.values()}
        parts.append(
            {
                "component": component,
                "layers": len(updates),
                "rank": max(ranks, default=None),
                "tensors_in_full": len(whole),
                "parameters": sum(tensor.size for tensor in tensors),
                "nbytes": sum(tensor.nbytes for tensor in tensors),
            }
        )
    drawing = drawing_of(adapter)
    if as_json:
        printing.report({"path": str(adapter.path), "base_model": base, "components": parts, "drawing": drawing})
        return
    rows = [("component", "layers", "rank", "tensors in full", "parameters", "size")]
    for part in parts:
        counts = (str(part[key] or "-") for key in ("layers", "rank", "tensors_in_full"))
        rows.append((part["component"], *counts, f"{part['parameters']:,}", printing.size(part["nbytes"])))
    printing.out(printing.table(rows, right=(False, True, True, True, True, True)))
    if base is not None:
        printing.out(f"made for: {base}")
    if drawing:
        printing.out(f"draws with: {_drawing(drawing)}")


def _drawing(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {printing.json_text(value)}" for name, value in values.items())


def _show_image(file: Path, as_json: bool) -> None:
    from mobileo_mlx.image_settings import read_metadata

    settings = read_metadata(file)
    if as_json:
        printing.report(settings)
        return
    width = max(map(len, settings), default=0)
    for key, value in settings.items():
        if value is not None:
            printing.out(f"{key.ljust(width)}  {_text(value)}")


def _text(value: Any) -> str:
    return " ".join(value.split()) if isinstance(value, str) else printing.json_text(value)
