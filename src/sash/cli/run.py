"""`sash run`: read a prompt or files through the window and write on."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sash.cli import kept_session, pin_options
from sash.cli import model_options as options
from sash.cli.answer_account import draw_account, logprobs_json
from sash.cli.interrupt import Interrupt
from sash.cli.kept_run import Keeping, is_model, keeping_of
from sash.cli.pin_options import Watched
from sash.cli.prompt_reader import Prompt, Reading, read
from sash.cli.remembering import Remembering
from sash.cli.remote_run import Asked, run_at
from sash.cli.remote_talk import window_field
from sash.cli.server_client import Server
from sash.cli.talk import show
from sash.cli.window_words import overflow_note, tell_note, window_json
from sash.errors import UsageError
from sash.explain.audit import Audit, draw_audit
from sash.text.template import start_early

if TYPE_CHECKING:
    from sash.completion import Completion
    from sash.lm import LM
    from sash.sampling import SamplingParams

INTERRUPTED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """An answer with all that is told about it.

    Attributes:
        lm: who wrote it.
        completion: the answer; its statistics count the whole prompt.
        params: how it was sampled.
        chat: whether the prompt went through the chat format.
        after_input: seconds from the end of the input to the first token.
        audit: what the first and the last token written could know of the prompt, if asked for.
    """

    lm: LM
    completion: Completion
    params: SamplingParams
    chat: bool
    after_input: float
    audit: tuple[Audit, Audit] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        done = self.completion
        audits = None if self.audit is None else dict(zip(("first", "last"), self.audit, strict=True))
        return {
            "model": self.lm.name,
            "text": done.text,
            "token_ids": list(done.token_ids),
            "finish_reason": done.finish_reason,
            "logprobs": logprobs_json(done, self.lm.tokenizer),
            "chat": self.chat,
            "seed": self.params.seed,
            "dtype": str(self.lm.dtype).removeprefix("torch."),
            "window": window_json(self.lm.config, done.stats.view),
            "stats": done.stats.to_json() | {"first_token_after_input_seconds": self.after_input},
            **({} if audits is None else {"audit": {name: one.to_json() for name, one in audits.items()}}),
        }


def write(
    lm: LM, reading: Reading, params: SamplingParams, *, chat: bool, show_text: bool, interrupt: Interrupt
) -> Answered:
    """Write an answer to what was read; its text goes to standard output piece by piece if `show_text`."""
    n_prompt, n_read, began = reading.session.tokens, reading.session.tokens_read, time.perf_counter()
    stream = reading.session.stream(params, cancelled=interrupt, continues=not chat)
    if show_text:
        show(stream)
    else:
        for _ in stream:
            pass
    completion = stream.completion
    stats = replace(
        completion.stats,
        prompt_tokens=n_prompt - reading.first,
        read_seconds=reading.seconds + completion.stats.read_seconds,
        tokens_read=n_read + completion.stats.tokens_read,
        first_token_seconds=began - reading.began + completion.stats.first_token_seconds,
    )
    after_input = began - reading.ended + completion.stats.first_token_seconds
    last = n_prompt + max(0, len(completion.token_ids) - 1)
    return Answered(
        lm=lm,
        completion=replace(completion, stats=stats),
        params=params,
        chat=chat,
        after_input=after_input,
        audit=(reading.audit(n_prompt), reading.audit(last)) if reading.parts else None,
    )


def answer(
    lm: LM,
    prompt: Prompt,
    params: SamplingParams,
    *,
    may_slide: bool,
    as_json: bool,
    show_stats: bool,
    watched: Watched | None = None,
    keeping: Keeping | None = None,
) -> int:
    """Read, write and report, and keep what was read; the exit code."""
    going = None if keeping is None else keeping.begin(lm, prompt)
    resumed = going is not None and going.session is not None
    chat = going.kept.chat if going is not None else prompt.is_chat(lm.tokenizer, lm.name)
    writes = keeping is None or keeping.writes(prompt)
    with Interrupt() as interrupt:
        reading = read(
            lm, prompt, chat=chat, may_slide=may_slide, interrupt=interrupt, watched=watched, going=going, whole=writes
        )  # fmt: skip
        tell_note(overflow_note(lm.config, reading.session.tokens, overlaps=lm.overlap is not None))
        tell_note(None if watched is None else watched.sight_note)
        unknown = resumed or not writes
        instructions = reading.marks or ([] if unknown else prompt.instructions(lm.tokenizer, reading.head, chat=chat))
        warned = tell_note(reading.leaving(instructions))
        unheard: OSError | None = None
        try:
            if writes:
                answered = write(lm, reading, params, chat=chat, show_text=not as_json, interrupt=interrupt)
                if not warned:
                    tell_note(reading.leaving(instructions))
                report(answered, as_json=as_json, show_stats=show_stats, live=prompt.size is None)
        except OSError as error:  # nobody takes the answer: what was read is saved all the same
            unheard = error
    if keeping is not None and going is not None:
        keeping.save(lm, reading, going, answered=writes)
    if unheard is not None:
        raise unheard
    return INTERRUPTED if writes and interrupt.requested else 0


def report(answered: Answered, *, as_json: bool, show_stats: bool, live: bool) -> None:
    """What is told of an answer beside its text; `live` says that the input came as it was written."""
    if as_json:
        typer.echo(json.dumps(answered.to_json(), ensure_ascii=False, indent=2))
    elif answered.audit is not None:
        typer.echo(draw_audit(*answered.audit), err=True)
    if show_stats:
        awaited, done = answered.after_input if live else None, answered.completion
        typer.echo(draw_account(answered.lm.config, done.stats, done.finish_reason, awaited), err=True)


Name = Annotated[str | None, typer.Argument(metavar="MODEL", help="A model's name, folder or GGUF file.")]
Text = Annotated[str | None, typer.Argument(metavar="[PROMPT]", help="Text; it comes after the files.")]
File = Annotated[
    list[str] | None, typer.Option("-f", "--file", metavar="FILE", help="Read a file; - is standard input; repeatable.")
]
Logprobs = Annotated[int | None, typer.Option("--logprobs", metavar="K", help="With --json: K alternatives a token.")]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Go on after an end of text.")]
AsChat = Annotated[
    bool | None, typer.Option("--chat/--raw", help="Use the chat template or not; by default if there is one.")
]
Overflow = Annotated[str, typer.Option("--overflow", help="slide or error, for a prompt over the window.")]
At = Annotated[str | None, typer.Option("--server", metavar="URL", help="Ask a server; MODEL may be left out then.")]
Stats = Annotated[bool, typer.Option("--stats", help="Tell speeds, window and cache below the answer.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object at the end.")]


def command(
    model: Name = None,
    prompt: Text = None,
    file: File = None,
    max_tokens: options.MaxTokens = 256,
    temperature: options.Temperature = 0.7,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.Seed = None,
    stop: options.Stop = None,
    logprobs: Logprobs = None,
    ignore_eos: IgnoreEos = False,
    system: options.System = None,
    safe_prompt: options.SafePrompt = False,
    chat: AsChat = None,
    window: options.Window = None,
    pins: options.Pins = "0",
    pin: pin_options.Pin = None,
    pin_budget: pin_options.Budget = None,
    pin_overflow: pin_options.PinOverflow = "error",
    global_: pin_options.Global = None,
    instruction: pin_options.Instruction = None,
    mark: pin_options.Mark = None,
    audit: pin_options.Audit = False,
    overlap: options.Overlap = None,
    hierarchy: options.Hierarchy = None,
    recall: options.Recall = None,
    chunk: options.Chunk = "512",
    overflow: Overflow = "slide",
    dtype: options.Dtype = None,
    weights: options.Weights = "auto",
    kv: options.KV = "auto",
    device: options.Device = "cpu",
    threads: options.Threads = None,
    speculate: options.Speculate = None,
    server: At = None,
    api_key: options.ApiKey = None,
    save: kept_session.Save = None,
    resume: kept_session.Resume = None,
    stats: Stats = False,
    as_json: AsJson = False,
) -> int:
    """Read a prompt or files through the window and write on.

    Files come first, then PROMPT; without either, standard input is read. Instruct models get all of it as one user
    message, base models as plain text. With --server URL a server does it, and what is said without MODEL is the
    PROMPT. Ctrl-C ends the answer, and the exit code is then 130.

    A text that is read once can be asked about many times: `sash run MODEL -f book.txt --save book.session` reads it
    and writes nothing, `sash run --resume book.session "Who ...?"` goes on from there. With a PROMPT, --save keeps the
    answer too.
    """
    may_slide = _may_slide(overflow, tells_logprobs=logprobs is None or as_json)
    params = options.sampling(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p,
        repetition_penalty=repetition_penalty, seed=seed, stop=stop, logprobs=logprobs, ignore_eos=ignore_eos,
    )  # fmt: skip
    watched = Watched.of(pin, pin_budget, pin_overflow, instruction, mark, audit, global_, max_tokens)
    kept = keeping_of(save, resume, server, watched, may_slide=may_slide)
    if prompt is None and (server is not None or (resume is not None and not is_model(model, kept))):
        model, prompt = None, model
    given = Prompt.check(_files(file, prompt), prompt, chat=chat, system=system, safe_prompt=safe_prompt)
    loading: dict[str, Any] = {"chunk": chunk, "dtype": dtype, "device": device, "threads": threads}
    loading |= {"kv": kv, "weights": weights, "speculate": speculate}
    if server is not None:
        options.check_unsaid({**loading, "overlap": overlap, "hierarchy": hierarchy, "recall": recall})
        field = window_field(*options.parse_view(window, pins), may_slide=may_slide)
        return run_at(Server(server, api_key), given, params, Asked(model, field, watched, as_json, stats))
    said = options.parse_view(window, pins) if kept else None
    telling: dict[str, Any] = {"may_slide": may_slide, "as_json": as_json, "show_stats": stats, "watched": watched}
    if chat is not False:
        start_early()
    if said is None:
        loading |= {"window": window, "pins": pins, "overlap": overlap, "hierarchy": hierarchy}
        loading["recall"] = recall
        return answer(options.load_lm(_named(model), **loading), given, params, **telling)
    if overlap is not None or hierarchy is not None or recall is not None:
        ways = Remembering.of(overlap, hierarchy, recall, speculate=speculate)
        raise UsageError(f"what is saved holds a window that rolls, and nothing beside it: leave out {ways.option}")
    keeping = Keeping.of(kept, loading, *said)
    return answer(keeping.load_lm(model), given, params, **telling, keeping=keeping)


def _files(file: list[str] | None, prompt: str | None) -> list[str]:
    return file or ([] if prompt is not None or sys.stdin.isatty() else ["-"])


def _named(model: str | None) -> str:
    if model is None:
        raise UsageError("name a MODEL: `sash ls` lists those that are here")
    return model


def _may_slide(overflow: str, *, tells_logprobs: bool) -> bool:
    if not tells_logprobs:
        raise UsageError("--logprobs is part of the JSON object: add --json")
    choices: dict[str, Literal[True, False]] = {"slide": True, "error": False}
    if overflow not in choices:
        raise UsageError(f"--overflow is slide or error; got {overflow!r}")
    return choices[overflow]
