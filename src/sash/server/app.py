"""The application: every route, behind the guard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from sash.server import page, text_routes
from sash.server.account import to_json
from sash.server.answering import Answering
from sash.server.chat import plan_chat
from sash.server.completions import plan_completion
from sash.server.errors import INVALID, UNAVAILABLE, ApiError
from sash.server.fim import plan_fim
from sash.server.limits import Guard
from sash.server.metrics import CONTENT_TYPE
from sash.server.models import card, cards
from sash.server.place import Place, owner_of
from sash.server.plan import Plan, Shape
from sash.server.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    FimRequest,
    TokenizeRequest,
    WindowRequest,
)
from sash.server.settings import Settings

if TYPE_CHECKING:
    from sash.engine.service import Service
    from sash.lm import LM

BODIES: tuple[type[BaseModel], ...] = (
    ChatRequest,
    CompletionRequest,
    FimRequest,
    TokenizeRequest,
    DetokenizeRequest,
    WindowRequest,
)

Planner = Callable[[Place, bytes], tuple[Plan, Shape]]


def create_app(lm: LM | None, service: Service | None, settings: Settings) -> FastAPI:
    """The server of one model.

    Args:
        lm: the model; None while it is still being loaded: every route then answers 503, and
            `app.state.place.open(lm, service)` opens the doors.
        service: the engine, started.
        settings: how to serve.
    """
    from sash import __version__

    place = Place(lm, service, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        place.close()

    app = FastAPI(
        title="Sash",
        version=__version__,
        description="The OpenAI and Mistral APIs over a sliding-window language model.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"auto_configure": False, "tracing": False, "metrics": False, "logs": False},
        lifespan=lifespan,
    )
    app.state.place = place
    app.add_middleware(Guard, settings=settings, refused=place.metrics.refused)
    app.add_exception_handler(HTTPException, _http_error)
    _add_writing(app, place)
    _add_text(app, place)
    _add_models(app, place)
    _add_sessions(app, place)
    _add_operation(app, place)
    app.include_router(page.routes(app))
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(to_json(value), status, headers, "application/json")


async def _body(request: Request) -> bytes:
    """The body, if it says that it is JSON. What a page elsewhere can send without asking never does."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "send the body with Content-Type: application/json", code="unsupported_media_type")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "compressed bodies are not read", code="unsupported_media_type")
    return await request.body()


def _takes(model: type[BaseModel]) -> dict[str, Any]:
    """What OpenAPI says of a route's body."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _add_writing(app: FastAPI, place: Place) -> None:
    async def write(request: Request, plan: Planner) -> Response:
        raw = await _body(request)
        service = place.service  # refuses while the model is being loaded
        if service.health.state != "ready":
            raise not_ready(place)
        planned, shape = await place.prepare(plan, place, raw)
        return await Answering(place, planned, shape).respond(request)

    @app.post("/v1/chat/completions", openapi_extra=_takes(ChatRequest), response_class=Response)
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        return await write(request, plan_chat)

    @app.post("/v1/completions", openapi_extra=_takes(CompletionRequest), response_class=Response)
    async def completions(request: Request) -> Response:
        """Continue a text, or several; prompts may be token ids."""
        return await write(request, plan_completion)

    @app.post("/v1/fim/completions", openapi_extra=_takes(FimRequest), response_class=Response)
    async def fim_completions(request: Request) -> Response:
        """Fill the gap between a prompt and a suffix, with models that were made for it."""
        return await write(request, plan_fim)


def _add_text(app: FastAPI, place: Place) -> None:
    async def work(request: Request, doing: Callable[[Place, bytes], text_routes.Answer]) -> Response:
        raw = await _body(request)
        answer, headers = await place.prepare(doing, place, raw)
        return _json(answer, headers=headers)

    @app.post("/tokenize", openapi_extra=_takes(TokenizeRequest), response_class=Response)
    async def tokenize(request: Request) -> Response:
        """Token ids of a text, or of a conversation as the model reads it."""
        return await work(request, text_routes.tokenize)

    @app.post("/detokenize", openapi_extra=_takes(DetokenizeRequest), response_class=Response)
    async def detokenize(request: Request) -> Response:
        """The text of token ids, control tokens spelled out."""
        return await work(request, text_routes.detokenize)

    @app.post("/v1/window", openapi_extra=_takes(WindowRequest), response_class=Response)
    async def window(request: Request) -> Response:
        """How much of each message the next token could see: directly, pinned, through deeper layers, or not at all."""
        return await work(request, text_routes.window)


def _add_models(app: FastAPI, place: Place) -> None:
    @app.get("/v1/models", response_class=Response)
    async def models() -> Response:
        """What is served."""
        return _json({"object": "list", "data": cards(place)})

    @app.get("/v1/models/{name:path}", response_class=Response)
    async def model(name: str) -> Response:
        """One model by its name."""
        place.check_model(name)
        return _json(card(place, name))


def _add_sessions(app: FastAPI, place: Place) -> None:
    @app.get("/v1/sessions", response_class=Response)
    async def sessions(request: Request) -> Response:
        """Names under which chats were kept, the last used first."""
        data = [session.to_json() for session in place.sessions.of(owner_of(request))]
        return _json({"object": "list", "data": data})

    @app.get("/v1/sessions/{name}", response_class=Response)
    async def session(request: Request, name: str) -> Response:
        """One session."""
        return _json(place.sessions.find(owner_of(request), name).to_json())

    @app.post("/v1/sessions/{name}/save", response_class=Response)
    async def save_session(request: Request, name: str) -> Response:
        """Keep a session over a restart: wait until what was read is on disk, and note how far it has got."""
        session = await asyncio.to_thread(place.sessions.save, owner_of(request), name, place.service.settle)
        return _json(session.to_json())

    @app.delete("/v1/sessions/{name}", response_class=Response)
    async def delete_session(request: Request, name: str) -> Response:
        """Forget a session."""
        place.sessions.drop(owner_of(request), name)
        return _json({"id": name, "object": "session", "deleted": True})


def _add_operation(app: FastAPI, place: Place) -> None:
    @app.get("/health", response_class=Response)
    async def health() -> Response:
        """200 while requests are taken; 503 while the model is loaded, while the server ends, and if it is dead."""
        state, body = health_of(place)
        return _json(body, 200 if state == "ready" else 503)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(place.metrics.page(), headers={"content-type": CONTENT_TYPE})


def health_of(place: Place) -> tuple[str, dict[str, Any]]:
    """The state of the engine, and what is said of it."""
    if not place.loaded:
        return "loading", {"status": "loading", "model": place.settings.name}
    health = place.service.health
    state = str(health.state)
    if state in ("ready", "draining") and health.heartbeat_seconds > place.settings.heartbeat_seconds:
        state = "dead"
    body = {"status": "ok" if state == "ready" else state, "model": place.settings.name}
    return state, {**body, "heartbeat_seconds": round(health.heartbeat_seconds, 3)}


def not_ready(place: Place) -> ApiError:
    """Why requests are not taken now."""
    state, _ = health_of(place)
    words = {
        "draining": "the server is ending",
        "dead": "the engine has failed",
        "loading": "the model is being loaded",
    }
    return ApiError(
        503,
        words.get(state, state),
        code=state,
        kind=UNAVAILABLE,
        headers={"retry-after": str(place.metrics.retry_after())},
    )


async def _http_error(request: Request, error: Exception) -> Response:
    """No such route, or not with this method."""
    if not isinstance(error, HTTPException):
        raise error
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    shown = ApiError(error.status_code, str(error.detail), code=code, kind=INVALID)
    return _json(shown.body, error.status_code, dict(error.headers or {}))


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The API's description, with the bodies that the routes read themselves."""
    if app.openapi_schema is None:
        schema = FastAPI.openapi(app)
        _, models = models_json_schema(
            [(model, "validation") for model in BODIES], ref_template="#/components/schemas/{model}"
        )
        schema.setdefault("components", {}).setdefault("schemas", {}).update(models["$defs"])
        app.openapi_schema = schema
    return app.openapi_schema
