"""`sash run --server URL`: the prompt is read here and sent whole; the answer comes piece by piece. Needs no torch."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from sash.cli.interrupt import Interrupt
from sash.cli.remote_account import Clock, audits, draw, leaving_note, overflow_note
from sash.cli.remote_talk import CHAT, show
from sash.cli.server_client import Answer, Server, fields_of
from sash.cli.window_words import tell_note
from sash.errors import UnsupportedError
from sash.explain.audit import draw_audit

if TYPE_CHECKING:
    from sash.cli.pin_options import Watched
    from sash.cli.prompt_reader import Prompt
    from sash.sampling import SamplingParams

TEXT = "/v1/completions"
INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of a server.

    Attributes:
        model: its name; None for whatever the server has.
        window: the field of that name; empty for none.
        watched: what of the prompt is pinned, and what is looked after.
        as_json: print a JSON object at the end, and no text before.
        show_stats: tell speeds and window below the answer.
    """

    model: str | None
    window: dict[str, Any]
    watched: Watched
    as_json: bool
    show_stats: bool


def run_at(server: Server, prompt: Prompt, params: SamplingParams, asked: Asked) -> int:
    """Ask, show and report; the exit code.

    Raises:
        SashError: as `Server.stream` does, or a prompt that cannot be read.
    """
    chat = is_chat(server, prompt)
    with Interrupt() as interrupt:
        text = "".join(prompt.pieces(chat=chat, interrupt=interrupt))
    body = {"model": asked.model or server.model, **fields_of(params)}
    window = asked.watched.fields(server, asked.window)
    if not chat and window.get("watch") is True:
        del window["watch"]  # plain text does not say what in it is an instruction
    body |= {"window": window} if window else {}
    if chat:
        messages = [] if prompt.system is None else [{"role": "system", "content": prompt.system}]
        body["messages"] = [*messages, {"role": "user", "content": text}]
        body |= {"safe_prompt": True} if prompt.safe_prompt else {}
        body |= {} if params.logprobs is None else {"logprobs": True, "top_logprobs": params.logprobs}
    else:
        body["prompt"] = text
        body |= {} if params.logprobs is None else {"logprobs": params.logprobs}
    answer, clock = Answer(), Clock(time.perf_counter())
    stopped = show(server.stream(CHAT if chat else TEXT, body, answer), clock, quiet=asked.as_json)
    if asked.as_json:
        told = to_json(server, answer, params, chat=chat, model=str(body["model"]))
        typer.echo(json.dumps(told, ensure_ascii=False, indent=2))
    for note in (overflow_note(answer), asked.watched.sight_note, leaving_note(answer)):
        tell_note(note)
    audited = audits(answer)
    if audited is not None and not asked.as_json:
        typer.echo(draw_audit(*audited), err=True)
    if asked.show_stats and not stopped:
        typer.echo(draw(answer, clock), err=True)
    return INTERRUPTED if stopped else 0


def is_chat(server: Server, prompt: Prompt) -> bool:
    """Whether the prompt goes through the chat format of the server's model.

    Raises:
        UnsupportedError: that is asked for, and the model has none.
    """
    wanted = prompt.chat or prompt.system is not None or prompt.safe_prompt
    if wanted and not server.has_chat:
        raise UnsupportedError(f"{server.model} has no chat template: leave out --chat, --system and --safe-prompt")
    return server.has_chat if prompt.chat is None else prompt.chat


def to_json(server: Server, answer: Answer, params: SamplingParams, *, chat: bool, model: str) -> dict[str, Any]:
    """All that is known of an answer, as plain values."""
    return {
        "model": model,
        "server": server.url,
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "logprobs": answer.logprobs or None,
        "chat": chat,
        "seed": params.seed,
        "usage": answer.usage,
        "timings": answer.timings,
        "window": answer.window,
    }
