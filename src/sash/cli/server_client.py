"""A server of the OpenAI kind, from a terminal: which model it serves, and answers piece by piece. Needs no torch.

Only what every such server knows is sent unless more is asked for: `window` is Sash's own, `top_k` also vLLM's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sash.errors import ServerRefusedError, ServerUnreachableError, UsageError

if TYPE_CHECKING:
    import httpx2

    from sash.sampling import SamplingParams

CONNECT_SECONDS = 5.0
MAX_LINE_BYTES = 1 << 24
"""A line of a stream that is longer is no answer."""

MAX_REASON = 600
"""Characters of a server's reason that are shown."""


def is_url(text: str) -> bool:
    """Whether a model's name is the address of a server.

    >>> is_url("http://127.0.0.1:8000"), is_url("gemma-3-270m"), is_url("org/name")
    (True, False, False)
    """
    return text.startswith(("http://", "https://"))


def base_of(url: str) -> str:
    """The address that paths are put behind; `/v1` at its end is as good as not there.

    Raises:
        UsageError: not an address that begins with http:// or https:// and names a host.

    >>> base_of("http://127.0.0.1:8000/v1/"), base_of("https://example.org/sash")
    ('http://127.0.0.1:8000', 'https://example.org/sash')
    """
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        fine = False
    if not fine or parts.username or parts.query or parts.fragment:
        raise UsageError(f"a server's address looks like http://127.0.0.1:8000; got {url[:80]!r}")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


@dataclass(slots=True)
class Answer:
    """An answer as far as it has come.

    Attributes:
        text: what was written.
        finish_reason: why it ended; "cancelled" until the server says more.
        usage, timings, window: what the server tells of it at the end; empty where it does not.
        logprobs: one value a piece, as the server gives them.
    """

    text: str = ""
    finish_reason: str = "cancelled"
    usage: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, Any] = field(default_factory=dict)
    window: dict[str, Any] = field(default_factory=dict)
    logprobs: list[Any] = field(default_factory=list)

    def take(self, chunk: Mapping[str, Any]) -> str:
        """Add a chunk of the stream; its text."""
        for name in ("usage", "timings", "window"):
            told = chunk.get(name)
            if isinstance(told, dict):
                setattr(self, name, told)
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return ""
        choice = choices[0]
        if isinstance(choice.get("finish_reason"), str):
            self.finish_reason = choice["finish_reason"]
        if choice.get("logprobs"):
            self.logprobs.append(choice["logprobs"])
        delta = choice.get("delta")
        text = delta.get("content") if isinstance(delta, dict) else choice.get("text")
        if not isinstance(text, str):
            return ""
        self.text += text
        return text


def fields_of(params: SamplingParams) -> dict[str, Any]:
    """How to sample, as fields of a request; those that only some servers know are sent only if they matter."""
    fields: dict[str, Any] = {
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    wanted: dict[str, tuple[Any, Any]] = {
        "seed": (params.seed, None),
        "stop": (list(params.stop), []),
        "top_k": (params.top_k, 0),
        "min_p": (params.min_p, 0.0),
        "repetition_penalty": (params.repetition_penalty, 1.0),
        "ignore_eos": (params.ignore_eos, False),
    }
    return fields | {name: value for name, (value, usual) in wanted.items() if value != usual}


class Server:
    """One server, and the model that it serves.

    Attributes:
        url: where it is.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        """Connects to nothing yet.

        Raises:
            UsageError: not an address, or a key that cannot be sent.
        """
        import httpx2

        self.url = base_of(url)
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip()):
            raise UsageError("--api-key is a word of plain letters, digits and signs")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # Reading has no bound: a prompt may take minutes before its first token. Ctrl-C ends the wait.
        timeout = httpx2.Timeout(None, connect=CONNECT_SECONDS)
        # What runs on this machine is never reached by way of a proxy.
        near = (httpx2.URL(self.url).host or "") in ("localhost", "127.0.0.1", "::1")
        self._client = httpx2.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=not near)
        self._card: dict[str, Any] | None = None

    @property
    def card(self) -> dict[str, Any]:
        """What the server tells of its first model; `id` is its name.

        Raises:
            ServerUnreachableError: nobody answers.
            ServerRefusedError: the server says no, or serves no model.
        """
        if self._card is None:
            found = self._ask("/v1/models")
            cards = found.get("data")
            if not isinstance(cards, list) or not cards or not isinstance(cards[0], dict) or "id" not in cards[0]:
                raise ServerRefusedError(f"{self.url} tells of no model that it serves")
            self._card = cards[0]
        return self._card

    @property
    def model(self) -> str:
        """The name of its first model; see `card`."""
        return str(self.card["id"])

    @property
    def has_chat(self) -> bool:
        """Whether its model has a chat format, as far as the server says."""
        capabilities = self.card.get("capabilities")
        return not isinstance(capabilities, dict) or capabilities.get("completion_chat") is not False

    @property
    def windows(self) -> list[int | None]:
        """The window of every layer of its model, None for a full one; empty where it does not tell."""
        attention = self.card.get("attention")
        found = attention.get("windows") if isinstance(attention, dict) else None
        if not isinstance(found, list) or not all(size is None or isinstance(size, int) for size in found):
            return []
        return found

    @property
    def tells_windows(self) -> bool:
        """Whether it knows of windows, as servers of Sash do: others pass over the field of that name."""
        return bool(self.windows)

    def stream(self, path: str, body: Mapping[str, Any], answer: Answer) -> Iterator[str]:
        """The text of an answer piece by piece; `answer` is filled on the way. Closing it ends the answer.

        Raises:
            ServerUnreachableError: nobody answers, or the connection breaks.
            ServerRefusedError: the server says no, or breaks the answer off.
        """
        import httpx2

        try:
            with self._client.stream("POST", path, json=dict(body)) as response:
                if response.status_code != 200:
                    response.read()
                    raise self._refusal(response)
                for data in events(response.iter_bytes()):
                    if data == b"[DONE]":
                        return
                    text = answer.take(self._chunk(data))
                    if text:
                        yield text
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error
        if answer.finish_reason == "cancelled":
            raise ServerRefusedError(f"{self.url} ended the answer in its midst")

    def _chunk(self, data: bytes) -> dict[str, Any]:
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ServerRefusedError(f"{self.url} sent something that is no JSON") from error
        if not isinstance(chunk, dict):
            raise ServerRefusedError(f"{self.url} sent something that is no chunk of an answer")
        if chunk.get("error"):
            raise ServerRefusedError(f"{self.url} broke the answer off: {reason_of(chunk)}")
        return chunk

    def _ask(self, path: str) -> dict[str, Any]:
        import httpx2

        try:
            response = self._client.get(path)
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error
        if response.status_code != 200:
            raise self._refusal(response)
        try:
            found = response.json()
        except ValueError as error:
            raise ServerRefusedError(f"{self.url} does not speak JSON: is it a server of models?") from error
        return found if isinstance(found, dict) else {}

    def _refusal(self, response: httpx2.Response) -> ServerRefusedError:
        try:
            reason = reason_of(response.json())
        except ValueError:
            reason = response.reason_phrase or "no reason given"
        hints = {401: ": give --api-key, or set SASH_API_KEY", 404: ": is it a server of models?"}
        hint = hints.get(response.status_code, "")
        return ServerRefusedError(f"{self.url} refused ({response.status_code}): {reason}{hint}")

    def _unreachable(self, error: Exception) -> ServerUnreachableError:
        return ServerUnreachableError(
            f"{self.url} cannot be reached ({str(error)[:200] or type(error).__name__}): is `sash serve` running there?"
        )


def reason_of(found: Any) -> str:
    """What a server's error says, in OpenAI's shape or in another's."""
    error = found.get("error", found) if isinstance(found, dict) else found
    message = error.get("message", error.get("detail")) if isinstance(error, dict) else error
    return " ".join(str(message or "no reason given").split())[:MAX_REASON]


def events(blocks: Iterable[bytes]) -> Iterator[bytes]:
    r"""The data of server-sent events, of one line each, as they arrive.

    Lines end at a line feed and nowhere else: a text may hold whatever else ends lines in Unicode.

    Raises:
        ServerRefusedError: a line without end.

    >>> list(events([b'data: {"a"', b': 1}\r\n\r\n: ping\n\ndata: [DONE]\n\n']))
    [b'{"a": 1}', b'[DONE]']
    """
    held = b""
    for block in blocks:
        *lines, held = (held + block).split(b"\n")
        if len(held) > MAX_LINE_BYTES:
            raise ServerRefusedError("the server sent a line without end")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
