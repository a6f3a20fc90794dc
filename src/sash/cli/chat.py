"""`sash chat`: talk with a model in the terminal, or with lines from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from sash.cli import kept_session, pin_options
from sash.cli import model_options as options
from sash.cli.chat_commands import COMMANDS, AnyTalk, Leave, run_command
from sash.cli.chat_input import plain_messages, terminal_messages, unfenced
from sash.cli.kept_session import Kept, conversation_of
from sash.cli.remembering import Remembering
from sash.cli.remote_talk import RemoteTalk
from sash.cli.server_client import Server, is_url
from sash.cli.talk import Talk
from sash.cli.window_words import ablation_note, tell_note, windows_by_layer
from sash.errors import SashError, UsageError
from sash.sampling import SamplingParams
from sash.text.template import start_early


def converse(
    talk: AnyTalk, messages: Iterator[str], *, stops_at_errors: bool, keep: Callable[[], None] = lambda: None
) -> None:
    """Answer messages and obey commands until one says goodbye or there are no more; `keep` is called after each.

    Raises:
        SashError: something that cannot be done, if `stops_at_errors`; otherwise it is told, and the chat goes on.
    """
    for message in messages:
        text, is_block = unfenced(message)
        if not text:
            continue
        try:
            if text.startswith("/") and not is_block:
                run_command(talk, text)
            else:
                talk.say(text)
            keep()
        except Leave:
            return
        except OSError:  # nobody takes the answer: what was said is kept all the same
            keep()
            raise
        except SashError as error:
            if stops_at_errors:
                raise
            typer.echo(f"error: {error}", err=True)


def command(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL|URL", help="A model's name, folder or GGUF file; or a server's address. --resume knows it."
        ),
    ] = None,
    max_tokens: options.MaxTokens = 1024,
    temperature: options.Temperature = 0.7,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.Seed = None,
    stop: options.Stop = None,
    system: options.System = None,
    safe_prompt: options.SafePrompt = False,
    window: options.Window = None,
    pins: options.Pins = "0",
    pin: pin_options.Pin = None,
    pin_budget: pin_options.Budget = None,
    pin_overflow: pin_options.PinOverflow = "error",
    global_: pin_options.Global = None,
    overlap: options.Overlap = None,
    hierarchy: options.Hierarchy = None,
    recall: options.Recall = None,
    chunk: options.Chunk = "512",
    dtype: options.Dtype = None,
    weights: options.Weights = "auto",
    kv: options.KV = "auto",
    device: options.Device = "cpu",
    threads: options.Threads = None,
    speculate: options.Speculate = None,
    api_key: options.ApiKey = None,
    save: kept_session.Save = None,
    resume: kept_session.Resume = None,
    stats: Annotated[bool, typer.Option("--stats", help="Tell of every answer: speeds, window, cache.")] = False,
) -> None:
    """Talk with a model: every turn reads only what is new. /help lists what can be typed beside messages.

    An address such as http://127.0.0.1:8000 talks with the model of a server instead, of `sash serve` or any other that
    speaks OpenAI's protocol. Ctrl-C ends an answer, Ctrl-D the chat. Without a terminal each line of standard input is
    a message, and the first error ends it.
    """
    params = options.sampling(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p,
        repetition_penalty=repetition_penalty, seed=seed, stop=stop,
    )  # fmt: skip
    size, n_pins = options.parse_view(window, pins)
    how: dict[str, Any] = {"window": size, "pins": n_pins, "system": system, "safe_prompt": safe_prompt}
    how["show_stats"] = stats
    watched = pin_options.Watched.of(pin, pin_budget, pin_overflow, global_=global_, n_written=max_tokens)
    ways = Remembering.of(overlap, hierarchy, recall, window=size, pins=n_pins, speculate=speculate)
    loading: dict[str, Any] = {"chunk": chunk, "dtype": dtype, "device": device, "threads": threads, "kv": kv}
    loading |= {"weights": weights, "speculate": speculate}
    if model is not None and is_url(model):
        options.check_unsaid({**loading, "overlap": overlap, "hierarchy": hierarchy, "recall": recall})
        if save is not None or resume is not None:
            raise UsageError("--save and --resume need the model here; /save FILE.jsonl keeps what was said")
        tell_note(watched.sight_note)
        remote = RemoteTalk(Server(model, api_key), params, **how, watched=watched)
        return _converse(remote, f"{remote.server.model} at {remote.server.url}")
    kept = Kept.of(save, resume)
    if kept and ways and ways.overlap is None:
        raise UsageError(f"what is saved holds no summaries and nothing that was recalled: leave out {ways.option}")
    if kept.resume is not None and (system is not None or safe_prompt or watched.contract or watched.sight):
        raise UsageError(
            "what is pinned or global and the system prompt are the saved chat's: leave them out (/system changes it)"
        )
    size, n_pins = how["window"], how["pins"] = kept.view(size, n_pins)
    if not ways and kept.number("overlap") is not None:
        ways = Remembering.of(str(kept.number("overlap")), window=size, pins=n_pins, speculate=speculate)
    name = kept.named(model)
    how |= {"contract": watched.contract, "sight": watched.sight, "ways": ways}
    tell_note(watched.sight_note)
    talk = _talk_here(name, params, how, kept, kept.loading(loading), seed)
    _converse(talk, f"{name}: window {windows_by_layer(talk.lm.config)}{_so_far(talk)}", kept.save)


def _talk_here(
    name: str, params: SamplingParams, how: dict[str, Any], kept: Kept, loading: dict[str, Any], seed: int | None
) -> Talk:
    """A talk with a model that is loaded here, from its beginning or from where it was saved."""
    start_early()
    talk = Talk(options.load_lm(name, **loading), params, **how, loading=loading)
    if kept.resume is not None:
        talk.resume(conversation_of(kept.resume, talk.lm), kept.number("answers") or 0)
        if seed is None and kept.number("seed") is not None:
            talk.params = replace(talk.params, seed=kept.number("seed"))
    tell_note(ablation_note(talk.lm.config))
    return talk


def _so_far(talk: Talk) -> str:
    session, count = talk.conversation.session, len(talk.conversation.messages)
    tokens = "" if session is None else f" ({session.tokens:,} tokens)"
    return f", {count} messages{tokens} go on" if count else ""


def _converse(talk: AnyTalk, greeting: str, place: Path | None = None) -> None:
    unsaved = False

    def keep() -> None:
        nonlocal unsaved
        if place is not None and isinstance(talk, Talk):
            unsaved = True
            talk.save(place)
            unsaved = False

    if sys.stdin.isatty() and sys.stderr.isatty():
        typer.echo(f"{greeting}. /help lists commands, Ctrl-D leaves.", err=True)
        converse(talk, terminal_messages(list(COMMANDS)), stops_at_errors=False, keep=keep)
    else:
        converse(talk, plain_messages(sys.stdin), stops_at_errors=True, keep=keep)
    if unsaved:  # the disk may have room by now
        keep()
