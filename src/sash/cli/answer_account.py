"""The account under an answer: how fast it was read and written, what the window showed, what the cache holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sash.cli.window_words import ablation_note, view_words
from sash.explain.budget import binary
from sash.explain.labels import table
from sash.network.config import ModelConfig

if TYPE_CHECKING:
    from sash.completion import Completion, Statistics
    from sash.text.tokenizer import Tokenizer


def draw_account(config: ModelConfig, stats: Statistics, finish_reason: str, after_input: float | None = None) -> str:
    """Statistics as lines for people.

    Args:
        config: of the model that wrote, a forced window included.
        stats: of the answer.
        finish_reason: why it ended.
        after_input: seconds from the end of the input to the first token, where the input was awaited.
    """
    speeds = table(
        [
            speed_row("prompt", stats.prompt_tokens, stats.read_seconds, stats.read_speed),
            speed_row("answer", stats.completion_tokens, stats.write_seconds, stats.write_speed),
        ],
        right=[False, True, True, True],
    )
    first = f"   first token {stats.first_token_seconds:.2f} s" if stats.completion_tokens else ""
    if first and after_input is not None:
        first += f" ({after_input:.2f} s after the end of the input)"
    ablation = ablation_note(config)
    lines = [
        speeds[0] + first,
        f"{speeds[1]}   {finish_reason}",
        f"window  {view_words(config, stats.view)}" + (f" ({ablation})" if ablation else ""),
        f"KV      {binary(stats.kv_bytes)}, {stats.kv_dtype} (a full cache holds {binary(stats.kv_bytes_full)} by now)",
    ]
    if stats.overlap is not None:
        asked = stats.prompt_tokens + stats.completion_tokens
        read = f"{stats.tokens_read:,} tokens went through the network for {asked:,}"
        lines.insert(2, f"overlap {read}, at most {stats.overlap:,} new ones a reading")
    if stats.drafted_tokens:
        right = stats.accepted_tokens / stats.drafted_tokens
        lines.insert(
            2, f"guesses {stats.drafted_tokens:,} tokens, {stats.accepted_tokens:,} of them right ({right:.0%})"
        )
    return "\n".join(lines)


def speed_row(what: str, tokens: int, seconds: float, speed: float) -> list[str]:
    """A row of the table of speeds."""
    return [
        what,
        f"{tokens:,} tok",
        f"{seconds:.2f} s",
        f"{speed:,.1f} tok/s" if speed < 1000 else f"{speed:,.0f} tok/s",
    ]


def logprobs_json(completion: Completion, tokenizer: Tokenizer) -> list[dict[str, Any]] | None:
    """Log-probabilities of every token written, with its alternatives, as plain values."""
    if completion.logprobs is None:
        return None
    return [
        {
            "id": token.token_id,
            "token": tokenizer.token_text(token.token_id),
            "logprob": token.logprob,
            "top": [
                {"id": token_id, "token": tokenizer.token_text(token_id), "logprob": logprob}
                for token_id, logprob in token.top
            ],
        }
        for token in completion.logprobs
    ]
