"""`/docs`: the document of `openapi` as one page to read, without scripts and without addresses of others."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from typing import Any

from .._version import __version__

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>mobileo-mlx: the API</title>
<link rel="stylesheet" href="/page/docs.css">
</head>
<body>
"""


_OR_NULL = " or null"
_NO_LIMIT = 1e18  # that a number can be held is no limit that anybody needs to read


def docs_page(document: dict[str, Any]) -> str:
    """The page as HTML.

    Args:
        document: see `openapi.make_document`.
    """
    return "\n".join([_HEAD, *_body(document), "</body>", "</html>"])


def _body(document: dict[str, Any]) -> Iterator[str]:
    yield f"<header><h1>mobileo-mlx {_text(__version__)}: the API</h1>"
    yield f"<p>{_text(document['info']['description'])}</p>"
    yield '<p>For programs: <a href="/openapi.json">openapi.json</a>. For people: <a href="/">the page</a>.</p>'
    yield "<nav aria-label='Contents'><ul>"
    for tag in document["tags"]:
        yield f'<li><a href="#{_text(tag["name"])}">{_text(tag["name"])}</a></li>'
    yield '<li><a href="#objects">objects</a></li></ul></nav></header><main>'
    for tag in document["tags"]:
        yield f'<h2 id="{_text(tag["name"])}">{_text(tag["name"])}</h2><p>{_text(tag["description"])}</p>'
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                if tag["name"] in operation["tags"]:
                    yield from _operation(path, method, operation)
    yield '<h2 id="objects">objects</h2>'
    for name, schema in document["components"]["schemas"].items():
        yield f'<section><h3 id="{_text(name)}">{_text(name)}</h3>'
        yield from _object(schema)
        yield "</section>"
    yield "</main>"


def _operation(path: str, method: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f'<section><h3 id="{_text(operation["operationId"])}"><code><b>{method.upper()}</b> {_text(path)}</code></h3>'
    yield f"<p>{_words(operation['summary'])} {_words(operation.get('description', ''))}</p>"
    if parameters := operation.get("parameters"):
        rows = [(one["name"], f"{one['in']}: {_kind(one['schema'])}", one.get("description", "")) for one in parameters]
        yield from _table(("parameter", "value", "meaning"), rows)
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<p>Takes <code>{_text(kind)}</code>: {_kind(content['schema']) or 'the bytes'}</p>"
    rows = []
    for status, answer in operation["responses"].items():
        if "$ref" not in answer:
            kinds = [f"<code>{_text(kind)}</code> {_kind(one['schema'])}" for kind, one in answer["content"].items()]
            rows.append((status, ", ".join(kinds), answer["description"]))
    yield from _table(("status", "answer", "meaning"), rows)
    refused = [status for status, answer in operation["responses"].items() if "$ref" in answer]
    yield f'<p class="errors">Refused with {", ".join(refused)}: <a href="#Error">Error</a></p></section>'


def _object(schema: dict[str, Any]) -> Iterator[str]:
    if words := schema.get("description"):
        yield f"<p>{_words(words)}</p>"
    for one in schema.get("oneOf", ()):
        yield from _object(one)
    required = schema.get("required", ())
    rows = [
        (name, _kind(one), _range(one), one.get("description", ""))
        if name in required
        # That null stands for the default goes without saying.
        else (f"{name}?", _kind(one).removesuffix(_OR_NULL), _range(one), one.get("description", ""))
        for name, one in schema.get("properties", {}).items()
    ]
    yield from _table(("field", "value", "meaning"), [(name, value + more, words) for name, value, more, words in rows])


def _table(heads: tuple[str, ...], rows: list[tuple[str, str, str]]) -> Iterator[str]:
    """Names, values (HTML), and meanings."""
    if not rows:
        return
    yield "<table><thead><tr>" + "".join(f'<th scope="col">{head}</th>' for head in heads) + "</tr></thead><tbody>"
    for name, value, words in rows:
        yield f'<tr><th scope="row"><code>{_text(name)}</code></th><td>{value}</td><td>{_words(words)}</td></tr>'
    yield "</tbody></table>"


def _kind(schema: dict[str, Any]) -> str:
    """What a value is, as HTML; "" where it may be anything."""
    if "$ref" in schema:
        name = _text(schema["$ref"].rsplit("/", 1)[-1])
        return f'<a href="#{name}">{name}</a>'
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(_kind(one) for one in schema[several])
    if "const" in schema:
        return f"<code>{_text(json.dumps(schema['const']))}</code>"
    if "enum" in schema:
        shown = [f"<code>{_text(json.dumps(value))}</code>" for value in schema["enum"] if value not in (None, "")]
        return " or ".join(shown) + (_OR_NULL if None in schema["enum"] else "")
    if "contentSchema" in schema:
        return f"JSON: {_kind(schema['contentSchema'])}"
    kinds = schema.get("type", "")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    hidden = ("null", "string") if {"maxLength", "pattern"} & schema.keys() else ("null",)
    shown = [kind for kind in kinds if kind not in hidden] or ["null"]
    if "items" in schema:
        shown = [f"array of {_kind(schema['items']) or 'anything'}"]
    return " or ".join(shown) + (_OR_NULL if len(kinds) > 1 and "null" in kinds else "")


def _range(schema: dict[str, Any]) -> str:
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "multipleOf": "multiple of"}
    found = [f"{word} {schema[name]}" for name, word in words.items() if abs(schema.get(name, _NO_LIMIT)) < _NO_LIMIT]
    if "default" in schema:
        found.append(f"default {json.dumps(schema['default'])}")
    return f" <small>{_text(', '.join(found))}</small>" if found else ""


def _text(value: Any) -> str:
    return html.escape(str(value))


def _words(value: str) -> str:
    """Text with `code`."""
    parts = _text(value).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))
