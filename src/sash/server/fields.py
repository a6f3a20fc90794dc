"""Fields that several routes share, as pydantic models: OpenAI's names, Mistral's, and the extensions in wide use.

Values are taken strictly: no string becomes a number. Fields that are not known are kept apart and reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field

from sash.sampling import SamplingParams
from sash.server.errors import ApiError, bad_field

MAX_N = 16
MAX_INT = 2**63 - 1

TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Text = str


class Fields(BaseModel):
    """A JSON object of a request."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    def unknown(self, prefix: str = "") -> Iterator[str]:
        """Names of the fields, here and inside, that nothing reads."""
        yield from (prefix + name for name in self.model_extra or {})
        for name in type(self).model_fields:
            value = getattr(self, name)
            for item in value if isinstance(value, list) else (value,):
                if isinstance(item, Fields):
                    yield from item.unknown(f"{prefix}{name}.")


class Delivery(TypedDict):
    """What a `Plan` takes over from every request."""

    n: int
    stream: bool
    wants_usage: bool
    progress: bool


class StreamOptions(Fields):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


Rules = Annotated[list[Annotated[str, Field(min_length=1, max_length=2000)]], Field(min_length=1, max_length=16)]
"""Parts of a prompt, in the words of `sash.text.pins`: "system", "user:1", "message:3", "text:WORDS", "10:40"."""


class Pins(Fields):
    """Which tokens never leave the window: the first so many, those of some messages, of some roles, or by rules.

    `budget` is how many there may be, by default as many as the smallest window has keys; `overflow` what becomes of
    more: they are refused, or the first, the last, or half and half are kept.
    """

    first: Annotated[int, Field(ge=0, le=1 << 20)] | None = None
    messages: Annotated[list[Annotated[int, Field(ge=0, le=1 << 20)]], Field(max_length=4096)] | None = None
    roles: Annotated[list[Annotated[str, Field(max_length=20)]], Field(max_length=8)] | None = None
    rules: Rules | None = None
    budget: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    overflow: Literal["error", "head", "tail", "head+tail"] | None = None


class Window(Fields):
    """A smaller window for this request, pins, and what to do with a prompt that is longer than the window.

    `audit` asks what the first and the last token written could know of every sentence of the prompt, or of the parts
    that rules name; `watch`, whether the system prompt (or else the first message), or what rules name, is in sight.
    `global` names what stays as pins do and sees all that was read; "answer" is what is written.
    """

    size: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    pins: Pins | None = None
    overflow: Literal["slide", "error"] | None = None
    audit: bool | Rules | None = None
    watch: bool | Rules | None = None
    global_: Rules | None = Field(default=None, alias="global")


class SamplingFields(Fields):
    """How to write on; see `sash.sampling.SamplingParams` for what each means."""

    model: Annotated[str, Field(max_length=500)] | None = None
    max_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Annotated[float, Field(ge=-100, le=100)]],
                  Field(max_length=1024)] | None
    ) = None  # fmt: skip
    seed: Annotated[int, Field(ge=-MAX_INT - 1, le=MAX_INT)] | None = None
    random_seed: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None
    stop: Annotated[str, Field(max_length=1000)] | list[Annotated[str, Field(max_length=1000)]] | None = None
    ignore_eos: bool | None = None
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_progress: bool | None = None
    user: Annotated[str, Field(max_length=10_000)] | None = None
    metadata: dict[str, Any] | None = None
    window: Window | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk that only carries the account."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def delivery(self) -> Delivery:
        """How many answers there are to be, and how they are handed over."""
        return Delivery(
            n=self.n or 1,
            stream=bool(self.stream),
            wants_usage=self.wants_usage,
            progress=bool(self.return_progress),
        )

    @property
    def wanted_tokens(self) -> int | None:
        """Tokens to write at most, where the request says."""
        return self.max_tokens

    def params(self, max_tokens: int, logprobs: int | None) -> SamplingParams:
        """What the engine is told.

        Raises:
            UsageError: a value out of its range.
            ApiError: two seeds.
        """
        given: dict[str, Any] = {"max_tokens": max_tokens, "logprobs": logprobs}
        names = ("min_tokens", "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty")
        for name in (*names, "frequency_penalty", "ignore_eos"):
            value = getattr(self, name)
            if value is not None:
                given[name] = value
        if self.top_k is not None:
            given["top_k"] = max(self.top_k, 0)
        if self.logit_bias:
            given["logit_bias"] = tuple((int(token), bias) for token, bias in self.logit_bias.items())
        if self.stop:
            given["stop"] = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        given["seed"] = self._seed()
        return SamplingParams(**given)

    def _seed(self) -> int | None:
        if self.seed is not None and self.random_seed is not None and self.seed != self.random_seed:
            raise bad_field("seed and random_seed are two names of one thing: give one of them", "random_seed")
        seed = self.seed if self.seed is not None else self.random_seed
        return None if seed is None else seed & MAX_INT


def ignored(fields: Fields, strict: bool) -> str:
    """Names of the fields that nothing reads, for the header x-sash-ignored.

    Raises:
        ApiError: 400, there are some, and `strict` forbids them.
    """
    names = sorted({_printable(name) for name in fields.unknown()})
    if names and strict:
        raise ApiError(400, f"unknown field: {names[0]}", code="unknown_field", param=names[0])
    return ", ".join(names[:20])


def _printable(name: str) -> str:
    """A field's name as it may stand in a header, which neither begins nor ends with a space.

    >>> _printable("a b "), _printable(""), _printable("a,")
    ('a?b?', '?', 'a?')
    """
    return "".join(c if c.isascii() and c.isprintable() and c not in ", " else "?" for c in name[:60]) or "?"
