"""What a server is told at its start."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sash.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to serve one model.

    Attributes:
        model: the name that the model is loaded by, and served under.
        alias: another name to serve it under, shown instead of `model`.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        api_keys: keys of which every request but `/health` must carry one; none for an open server.
        origins: web origins other than the server's own whose pages may call it, such as "https://example.org".
        kv_memory: bytes for keys and values; None leaves the choice to `run`.
        max_rows: sequences that run at once.
        max_waiting: sequences that may wait for a row; more are refused with 429.
        max_body: bytes of a request's body.
        max_headers: header lines of a request.
        max_messages: messages of one conversation.
        max_choices: answers that one request may ask for, all prompts together.
        max_cost: tokens that one request may ask for, all answers together.
        max_connections: connections that are open at once.
        default_max_tokens: tokens of a chat's answer where the request does not say.
        read_timeout: seconds that a client may take to send its headers, and again to send its body.
        write_timeout: seconds that a client may leave what was sent to it unread.
        keep_alive: seconds that a connection may stay open without a request.
        ping_seconds: seconds without a token after which a stream gets a comment, so that nobody thinks it dead.
        drain_seconds: seconds that accepted requests get to finish once the server was told to stop.
        heartbeat_seconds: seconds after which an engine that has not moved counts as dead.
        strict_fields: refuse fields that are not known, instead of naming them in the header x-sash-ignored.
        snapshot_memory: bytes for snapshots of prefixes.
        snapshot_dir: where snapshots are kept over a restart; None for nowhere.
    """

    model: str
    alias: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    origins: tuple[str, ...] = ()
    kv_memory: int | None = None
    max_rows: int = 32
    max_waiting: int = 128
    max_body: int = 8 << 20
    max_headers: int = 100
    max_messages: int = 2048
    max_choices: int = 64
    max_cost: int = 1 << 20
    max_connections: int = 4096
    default_max_tokens: int = 2048
    read_timeout: float = 20.0
    write_timeout: float = 30.0
    keep_alive: float = 15.0
    ping_seconds: float = 15.0
    drain_seconds: float = 30.0
    heartbeat_seconds: float = 60.0
    strict_fields: bool = False
    snapshot_memory: int = 1 << 30
    snapshot_dir: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            UsageError: a value out of its range.
        """
        if not 0 <= self.port <= 65535:
            raise UsageError(f"a port is a number from 0 to 65535; got {self.port}")
        for name in ("max_rows", "max_body", "max_headers", "max_messages", "max_choices", "max_cost"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be 1 or more; got {getattr(self, name)}")
        for name in ("read_timeout", "write_timeout", "keep_alive", "ping_seconds", "heartbeat_seconds"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} counts seconds above 0; got {getattr(self, name)}")
        if any(not key or not key.isascii() for key in self.api_keys):
            raise UsageError("an API key has one ASCII character or more")
        for origin in self.origins:
            if not origin.startswith(("http://", "https://")) or origin.endswith("/"):
                raise UsageError(f"an origin looks like https://example.org, without a path; got {origin!r}")

    @property
    def name(self) -> str:
        """The name that answers carry."""
        return self.alias or self.model

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that requests may use, the shown one first."""
        return tuple(dict.fromkeys((self.name, self.model)))
