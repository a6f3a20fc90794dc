"""`sash chat`: talk with a model in the terminal, or with lines from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from sash.cli import model_options as options
from sash.cli import pin_options
from sash.cli.chat_commands import COMMANDS, AnyTalk, Leave, run_command
from sash.cli.chat_input import plain_messages, terminal_messages, unfenced
from sash.cli.remote_talk import RemoteTalk
from sash.cli.server_client import Server, is_url
from sash.cli.talk import Talk
from sash.cli.window_words import ablation_note, windows_by_layer
from sash.errors import SashError


def converse(talk: AnyTalk, messages: Iterator[str], *, stops_at_errors: bool) -> None:
    """Answer messages and obey commands until one says goodbye or there are no more.

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
        except Leave:
            return
        except SashError as error:
            if stops_at_errors:
                raise
            typer.echo(f"error: {error}", err=True)


def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL|URL", help="A model's name, folder or GGUF file; or a server's address.")
    ],
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
    chunk: options.Chunk = "512",
    dtype: options.Dtype = None,
    weights: options.Weights = "auto",
    kv: options.KV = "auto",
    device: options.Device = "cpu",
    threads: options.Threads = None,
    api_key: options.ApiKey = None,
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
    watched = pin_options.Watched.of(pin, pin_budget, pin_overflow)
    talk: AnyTalk
    loading = {"chunk": chunk, "dtype": dtype, "device": device, "threads": threads, "kv": kv, "weights": weights}
    if is_url(model):
        options.check_unsaid(loading)
        talk = RemoteTalk(Server(model, api_key), params, **how, watched=watched)
        greeting = f"{talk.server.model} at {talk.server.url}"
    else:
        lm = options.load_lm(model, **loading)  # type: ignore[arg-type]
        talk = Talk(lm, params, **how, contract=watched.contract)
        ablation = ablation_note(talk.lm.config)
        if ablation is not None:
            typer.echo(f"note: {ablation}", err=True)
        greeting = f"{model}: window {windows_by_layer(talk.lm.config)}"
    _converse(talk, greeting)


def _converse(talk: AnyTalk, greeting: str) -> None:
    if sys.stdin.isatty() and sys.stderr.isatty():
        typer.echo(f"{greeting}. /help lists commands, Ctrl-D leaves.", err=True)
        converse(talk, terminal_messages(list(COMMANDS)), stops_at_errors=False)
    else:
        converse(talk, plain_messages(sys.stdin), stops_at_errors=True)
