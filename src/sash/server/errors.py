"""One shape for every error, OpenAI's: {"error": {"message", "type", "param", "code"}}, with a true status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from sash.errors import (
    DoesNotFitError,
    DrainingError,
    EmptyPromptError,
    NumericalError,
    PinsError,
    PromptOverflowError,
    QueueFullError,
    SashError,
    TextEncodingError,
    TokenizerError,
    UnsupportedError,
    UsageError,
    WindowError,
)

INVALID = "invalid_request_error"
SERVER = "server_error"
UNAVAILABLE = "unavailable_error"


class ApiError(Exception):
    """An answer that is an error.

    Attributes:
        status: the HTTP status.
        headers: further headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        kind: str = INVALID,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        **details: Any,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self._error = {"message": message, "type": kind, "param": param, "code": code, **details}

    @property
    def body(self) -> dict[str, Any]:
        """The error as the client sees it."""
        return {"error": self._error}


def internal_error(request_id: str | None = None) -> ApiError:
    """What a client learns of a fault of ours: that there was one, and the number under which the log has it."""
    named = f" (request {request_id})" if request_id else ""
    return ApiError(500, f"the server failed at this request{named}", code="internal_error", kind=SERVER)


def bad_field(message: str, param: str | None, code: str = "invalid_value", **details: Any) -> ApiError:
    """A field that cannot be."""
    return ApiError(400, message, code=code, param=param, **details)


def too_long(message: str, n_prompt: int, n_context: int) -> ApiError:
    """A prompt that is too long, with the numbers that clients look for."""
    return bad_field(message, "messages", "context_length_exceeded", n_prompt_tokens=n_prompt, n_ctx=n_context)


_CODES: tuple[tuple[type[SashError], str, str | None], ...] = (
    (EmptyPromptError, "empty_prompt", None),
    (WindowError, "window_not_supported", "window"),
    (PinsError, "window_not_supported", "window"),
    (PromptOverflowError, "context_length_exceeded", "messages"),
    (DoesNotFitError, "context_length_exceeded", "messages"),
    (TokenizerError, "invalid_messages", "messages"),
    (TextEncodingError, "invalid_value", None),
    (UnsupportedError, "unsupported_parameter", None),
    (UsageError, "invalid_value", None),
)


def from_sash(error: SashError, retry_after: int = 1) -> ApiError:
    """An error of ours as an answer: what the client did wrong, what is full, or what broke."""
    message = str(error)
    if isinstance(error, QueueFullError):
        headers = {"retry-after": str(retry_after)}
        return ApiError(429, message, code="queue_full", kind="rate_limit_error", headers=headers)
    if isinstance(error, DrainingError):
        headers = {"retry-after": str(retry_after)}
        return ApiError(503, message, code="draining", kind=UNAVAILABLE, headers=headers)
    if isinstance(error, NumericalError):
        return ApiError(500, message, code="not_finite", kind=SERVER)
    for kind, code, param in _CODES:
        if isinstance(error, kind):
            return ApiError(400, message, code=code, param=param)
    return internal_error()


def from_validation(error: ValidationError) -> ApiError:
    """The first thing that is wrong with a body's fields. The value is not repeated: it may be long, or secret.

    Where a field takes one of several forms, that is the form that came furthest.
    """
    found = error.errors(include_url=False, include_context=False, include_input=False)
    first = max((one for one in found if one["loc"][:1] == found[0]["loc"][:1]), key=lambda one: len(one["loc"]))
    path = [str(part) for part in first["loc"] if not _is_type_name(part)]
    param = ".".join(path) or None
    missing = first["type"] == "missing"
    message = f"{param} is missing" if missing else f"{param or 'the body'}: {first['msg']}"
    return ApiError(400, message, code="missing_field" if missing else "invalid_value", param=param)


def _is_type_name(part: int | str) -> bool:
    """Whether pydantic put the name of a union's branch here, rather than a field or an index."""
    return isinstance(part, str) and ("[" in part or part in ("str", "int", "float", "bool") or part[:1].isupper())
