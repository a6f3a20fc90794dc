"""What a request may ask of sampling."""

from __future__ import annotations

from dataclasses import dataclass

from sash.errors import UsageError

MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_STOP_LENGTH = 1000
MAX_BIASES = 1024
MAX_TOKEN_ID = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """What a request may ask of sampling; names and meanings are OpenAI's where it has them.

    Attributes:
        max_tokens: tokens to write at most.
        min_tokens: tokens to write before one may end the text; a grammar that leaves nothing but the end overrules it.
        temperature: logits are divided by it; 0 always takes the likeliest token.
        top_p: keep the likeliest tokens until their probabilities add up to this; 1 keeps all.
        top_k: keep so many of the likeliest tokens (and those tied with the last); 0 keeps all.
        min_p: keep tokens at least this fraction as likely as the likeliest; 0 keeps all.
        repetition_penalty: logits of tokens already in the prompt or the output are divided by it where positive and
            multiplied where negative (CTRL, arXiv 1909.05858, section 4.1); 1 leaves them.
        presence_penalty: taken off the logit of every token already in the output, once; negative adds.
        frequency_penalty: taken off it for every time that the token occurred in the output; negative adds.
        logit_bias: pairs of a token and what is added to its logit, -100 to 100; -100 bans the token.
        seed: the same seed draws the same tokens; None draws a fresh one.
        stop: strings that end the text, and are not part of it.
        logprobs: how many of the likeliest alternatives to report a token; None for no log-probabilities.
        ignore_eos: whether to go on after an end-of-text token.
    """

    max_tokens: int = 256
    min_tokens: int = 0
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _check_integer("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _check_integer("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.min_tokens > self.max_tokens:
            raise UsageError(f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens})")
        _check_number("temperature", self.temperature, 0.0, 100.0)
        _check_number("top_p", self.top_p, 0.0, 1.0, above=True)
        _check_integer("top_k", self.top_k, 0, 2**31 - 1)
        _check_number("min_p", self.min_p, 0.0, 1.0)
        _check_number("repetition_penalty", self.repetition_penalty, 0.0, 100.0, above=True)
        _check_number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_biases(self.logit_bias)
        if self.seed is not None:
            _check_integer("seed", self.seed, 0, 2**63 - 1)
        if self.logprobs is not None:
            _check_integer("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if not isinstance(self.ignore_eos, bool):
            raise UsageError(f"ignore_eos must be True or False; got {self.ignore_eos!r:.40}")
        _check_stops(self.stop)

    @property
    def counts_output(self) -> bool:
        """Whether `sample` needs to know how often each token was written."""
        return self.presence_penalty != 0 or self.frequency_penalty != 0


def _check_biases(biases: object) -> None:
    if not isinstance(biases, tuple) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in biases):
        raise UsageError(f"logit_bias must be a tuple of pairs of a token id and a bias; got {biases!r:.40}")
    if len(biases) > MAX_BIASES:
        raise UsageError(f"logit_bias holds at most {MAX_BIASES:,} tokens; got {len(biases):,}")
    for token_id, bias in biases:
        _check_integer("a token id of logit_bias", token_id, 0, MAX_TOKEN_ID)
        _check_number("a bias of logit_bias", bias, -100.0, 100.0)
    if len({token_id for token_id, _ in biases}) != len(biases):
        raise UsageError("logit_bias names a token twice")


def _check_stops(stops: object) -> None:
    if not isinstance(stops, tuple) or not all(isinstance(stop, str) for stop in stops):
        raise UsageError(f"stop must be a tuple of strings; got {stops!r:.40}")
    if len(stops) > MAX_STOPS:
        raise UsageError(f"stop holds at most {MAX_STOPS} strings; got {len(stops)}")
    for stop in stops:
        if not 1 <= len(stop) <= MAX_STOP_LENGTH:
            raise UsageError(f"a stop string has 1 to {MAX_STOP_LENGTH} characters; got {len(stop)}")


def _check_integer(name: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise UsageError(f"{name} must be a whole number from {low} to {high}; got {value!r:.40}")


def _check_number(name: str, value: object, low: float, high: float, *, above: bool = False) -> None:
    """Refuses what is no number of [low, high], or of (low, high] with `above`; NaN is in neither."""
    numeric = isinstance(value, float | int) and not isinstance(value, bool)
    if not numeric or not low <= value <= high or (above and value == low):  # type: ignore[operator]
        bound = f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
        raise UsageError(f"{name} must be a number {bound}; got {value!r:.40}")
