"""The page at /, and /docs: files that were read at the start, so that no request ever names a path to open."""

from __future__ import annotations

import hashlib
import html
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy: nothing but this server's own files, and no inline code."""

NOT_BUILT = "The page is not part of this installation: run `make web` in the source folder to build it.\n"

_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "ico": "image/x-icon",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "md": "text/plain; charset=utf-8",
    "png": "image/png",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
    "webmanifest": "application/manifest+json",
    "woff2": "font/woff2",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of the page."""

    content: bytes
    kind: str
    tag: str
    hashed: bool

    def respond(self, request: Request) -> Response:
        """The file, or nothing where the browser has it already."""
        age = "max-age=31536000, immutable" if self.hashed else "no-cache"
        headers = {"etag": self.tag, "cache-control": age, "content-security-policy": POLICY}
        if request.headers.get("if-none-match") == self.tag:
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers={**headers, "content-type": self.kind})


def read_assets(folder: Traversable | None = None) -> dict[str, Asset]:
    """The built page's files by the path they are asked for; empty where it is not built."""
    root = folder if folder is not None else resources.files("sash.server").joinpath("static")
    found: dict[str, Asset] = {}
    waiting = [("", root)]
    while waiting:
        path, place = waiting.pop()
        if place.is_dir():
            waiting += [(f"{path}/{entry.name}", entry) for entry in place.iterdir()]
        elif place.is_file() and (kind := _TYPES.get(place.name.rpartition(".")[2])):
            content = place.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            found[path] = Asset(content, kind, tag, hashed=path.startswith("/assets/"))
    if "/index.html" in found:
        found["/"] = found["/index.html"]
    return found


def routes(app: FastAPI) -> APIRouter:
    """The page, its files, and a list of all operations."""
    router = APIRouter(include_in_schema=False)
    assets = read_assets()

    def serve(request: Request) -> Response:
        return assets[request.scope["path"]].respond(request)

    async def missing(request: Request) -> Response:
        return PlainTextResponse(NOT_BUILT, status_code=404)

    async def asset(request: Request) -> Response:
        return serve(request)

    for path in assets:
        router.add_api_route(path, asset, methods=["GET", "HEAD"])
    if "/" not in assets:
        router.add_api_route("/", missing, methods=["GET", "HEAD"])

    @router.get("/docs")
    async def docs(request: Request) -> Response:
        headers = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}
        return Response(_docs(app.openapi()), media_type="text/html", headers=headers)

    return router


def _docs(schema: dict[str, Any]) -> str:
    """Every operation with its fields, as one page without scripts."""
    parts = []
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            summary = html.escape(operation.get("description") or operation.get("summary", ""))
            fields = _fields(schema, operation)
            parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{summary}</p>{fields}")
    style = (
        "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        ":root{color-scheme:light dark}"
        "code{font-family:ui-monospace,monospace}h2{font-size:1.1rem;margin:2rem 0 0}dt{float:left;clear:left}"
        "dt{min-width:16rem}dd{margin-left:17rem;overflow-wrap:anywhere}"
    )
    head = f'<meta charset="utf-8"><title>Sash: HTTP API</title><style>{style}</style>'
    link = '<p>The same as <a href="/openapi.json">OpenAPI</a>.</p>'
    return (
        f'<!doctype html><html lang="en"><head>{head}</head><body><h1>HTTP API</h1>{link}{"".join(parts)}</body></html>'
    )


def _fields(schema: dict[str, Any], operation: dict[str, Any]) -> str:
    """The fields of an operation's body."""
    body = operation.get("requestBody")
    if body is None:
        return ""
    name = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    model = schema["components"]["schemas"][name]
    required = set(model.get("required", ()))
    rows = []
    for field, what in model["properties"].items():
        mark = " (required)" if field in required else ""
        rows.append(f"<dt><code>{html.escape(field)}</code>{mark}</dt><dd>{html.escape(_kind(what))}</dd>")
    return f"<dl>{''.join(rows)}</dl>"


def _kind(what: dict[str, Any]) -> str:
    """A field's type in a few words."""
    if "anyOf" in what:
        return " or ".join(dict.fromkeys(_kind(one) for one in what["anyOf"] if one.get("type") != "null"))
    if "$ref" in what:
        return str(what["$ref"]).rpartition("/")[2]
    if "enum" in what:
        return " | ".join(str(value) for value in what["enum"])
    if what.get("type") == "array":
        return f"list of {_kind(what.get('items', {}))}"
    bounds = [f"{sign} {what[key]}" for key, sign in (("minimum", ">="), ("maximum", "<=")) if key in what]
    return " ".join([str(what.get("type", "any")), *bounds])
