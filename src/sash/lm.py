"""LM: the one object a user holds. Load it, read with it, write with it, ask it for numbers."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sash import saved
from sash.answer import Answer, Stream
from sash.asked import Asked, Marks, Wishes, audit_at
from sash.completion import Completion
from sash.conversation import Conversation
from sash.engine.engine import Engine
from sash.engine.overlap import Held
from sash.engine.request import Recalled, Request
from sash.errors import EmptyPromptError, UsageError
from sash.network.sizing import log_bytes
from sash.sampling import SamplingParams
from sash.session import Session
from sash.session_state import check_ids, pin_room
from sash.text.pins import Contract
from sash.text.sight import Sight
from sash.variants import Variants

Prompt = str | list[int]


class LM(Variants):
    """A decoder language model with its tokenizer: what reads (`Reader`), in several ways (`Variants`), and writes."""

    def generate(
        self,
        prompt: Prompt | list[Prompt],
        *,
        pins: Marks = (),
        pin_budget: int | None = None,
        pin_overflow: str = "error",
        global_: Marks = (),
        audit: bool | Marks = False,
        speculate: object = None,
        **sampling: Any,
    ) -> Any:
        """Continue a prompt, or several at once.

        Args:
            prompt: text, token ids, or a list of such; texts get the model's begin-of-text id.
            pins: parts of each prompt that stay visible to all that is read and written later: "text:WORDS" or ranges
                of positions; see `sash.text.pins`.
            pin_budget: tokens that may be pinned or global; by default half of the smallest window.
            pin_overflow: "error" refuses a prompt over the budget; "head", "tail" and "head+tail" cut its pins.
            global_: parts of each prompt, named like pins, that stay visible as pins do and that also see all that came
                before them, however long ago ("answer" is what is written); see `AttentionPattern.holds_global`. What
                they see lies in a log on the host, so memory grows with the text.
            audit: tell what the first and the last token written could know of every sentence of the prompt, or of the
                parts that are named like pins; see `Completion.audit`.
            speculate: what guesses the tokens to come, as in `with_speculation`; None for the model's own.
            **sampling: fields of `SamplingParams`: max_tokens, temperature, top_p, top_k, min_p, repetition_penalty,
                seed, stop, logprobs, ignore_eos.

        Returns:
            A `Completion`, or a list of them in the order of the prompts.

        Raises:
            EmptyPromptError: a prompt of no tokens.
            UsageError: a sampling field or token id that cannot be, or a part that is not in the prompt.
            PinsError: pins that are over the budget, or that no window needs.
        """
        several = isinstance(prompt, list) and (not prompt or not isinstance(prompt[0], int))
        prompts: list[Prompt] = list(prompt) if several else [prompt]  # type: ignore[list-item,arg-type]
        wishes = self._wishes(pins, pin_budget, pin_overflow, audit, global_)
        params = SamplingParams(**_as_tuple(sampling))
        asked = [
            wishes.ask(self.config, self.tokenizer, self._encode(one), n_written=params.max_tokens) for one in prompts
        ]
        completions = self._guessing(speculate)._complete(asked, params)
        return completions if several else completions[0]

    def _wishes(
        self, pins: Marks, pin_budget: int | None, pin_overflow: str, audit: bool | Marks, global_: Marks
    ) -> Wishes:
        """What is asked of every prompt; what this model cannot do together is refused before any token is counted."""
        wishes = Wishes.of(pins, pin_budget, pin_overflow, audit, self.config, global_)
        if wishes.sight:
            self._check_alone("global tokens", guesses=False)
        return wishes

    def _complete(self, asked: list[Asked], params: SamplingParams, *, continues: bool = True) -> list[Completion]:
        if not asked:
            return []
        n_flagged, sees = max(one.n_flagged for one in asked), any(one.seers for one in asked)
        if n_flagged > pin_room(self.config, sees=sees):
            return self._pinning(n_flagged, sees=sees)._complete(asked, params, continues=continues)
        cache = self.cache(min(len(asked), MAX_SEQUENCES))
        engine = Engine(self.decoder, cache, chunk=self.chunk)
        answers = {}
        for one in asked:
            held = None if self.overlap is None else Held(self.overlap, self.tokenizer.bos_id)
            if held is not None and one.pins:
                held.check_room(len(one.pinned))
            request = Request(
                prompt_ids=tuple(one.ids),
                params=params,
                stop_ids=self.tokenizer.eos_ids,
                pins=one.pins,
                seers=one.seers,
                audits=one.parts is not None,
                held=held,
                proposer=None if self.speculation is None else self.speculation.open(),
            )
            sequence = engine.submit(request)
            answer = Answer(
                sequence, self.tokenizer, cache, stop=params.stop, continues=continues,
                pinned=one.pinned, seers=one.global_positions,
            )  # fmt: skip
            answers[id(sequence)] = (sequence, answer)
        while not engine.idle:
            for event in engine.step():
                sequence, answer = answers[id(event.sequence)]
                answer.take(event)
                if answer.stopped:
                    engine.cancel(sequence, "stop")
        begins = self.tokenizer.bos_id
        return [
            self._audited(one, answer.completion(), sequence.recalled, leads=one.ids[0] == begins)
            for one, (sequence, answer) in zip(asked, answers.values(), strict=True)
        ]

    def _audited(
        self, asked: Asked, completion: Completion, recalled: tuple[Recalled | None, Recalled | None], *, leads: bool
    ) -> Completion:
        """The completion with its audit, if one was asked for; `leads` as `Overlap.in_sight` has it."""
        if asked.parts is None:
            return completion
        flags = asked.pinned, asked.global_positions
        pair = [
            audit_at(self.config, self.overlap, at, asked.parts, *flags, leads=leads, recalled=brought)
            for at, brought in zip(asked.ends(completion), recalled, strict=True)
        ]
        return replace(completion, audit=(pair[0], pair[1]))

    def stream(
        self,
        prompt: Prompt,
        *,
        pins: Marks = (),
        pin_budget: int | None = None,
        pin_overflow: str = "error",
        global_: Marks = (),
        audit: bool | Marks = False,
        speculate: object = None,
        **sampling: Any,
    ) -> Stream:
        """Continue a prompt piece by piece; the stream's `completion` holds the whole afterwards.

        Args:
            prompt: text or token ids.
            pins, pin_budget, pin_overflow, global_, audit, speculate: as in `generate`.
            **sampling: fields of `SamplingParams`.

        Raises:
            EmptyPromptError, UsageError, PinsError: as `generate` does.
        """
        params = SamplingParams(**_as_tuple(sampling))
        wishes = self._wishes(pins, pin_budget, pin_overflow, audit, global_)
        asked = wishes.ask(self.config, self.tokenizer, self._encode(prompt), n_written=params.max_tokens)
        session = self._guessing(speculate).session(asked.n_flagged, sees=bool(asked.seers))
        session.feed(asked.ids, pins=asked.pins, seers=asked.seers)
        stream = session.stream(params)

        def completion() -> Completion:
            done = stream.completion
            if asked.parts is None:
                return done
            first, last = (session.audit(asked.parts, end) for end in asked.ends(done))
            return replace(done, audit=(first, last))

        return Stream(iter(stream), completion, stream.close)

    def chat(
        self,
        messages: Many[Mapping[str, str]],
        *,
        safe_prompt: bool = False,
        pins: Marks = (),
        pin_budget: int | None = None,
        pin_overflow: str = "error",
        global_: Marks = (),
        audit: bool | Marks = False,
        speculate: object = None,
        **sampling: Any,
    ) -> Completion:
        """Answer the last of `messages`, each a mapping with "role" and "content".

        Args:
            messages: the conversation so far.
            safe_prompt: put the guardrail of the Mistral 7B paper (section 5.1) in front.
            pins, pin_budget, pin_overflow, global_, audit, speculate: as in `generate`; "system", "user:1" and
                "message:3" name messages.
            **sampling: fields of `SamplingParams`.

        Raises:
            TokenizerError: the model has no chat template, or it refuses the messages.
            UsageError, PinsError: as `generate` does.
        """
        params = SamplingParams(**_as_tuple(sampling))
        wishes = self._wishes(pins, pin_budget, pin_overflow, audit, global_)
        ids = self.tokenizer.encode_chat(messages, safe_prompt=safe_prompt)
        asked = wishes.ask(
            self.config, self.tokenizer, ids, messages, n_written=params.max_tokens, safe_prompt=safe_prompt
        )
        return self._guessing(speculate)._complete([asked], params, continues=False)[0]

    def session(self, pins: int = 0, *, sees: bool = False, log: bool | int = False) -> Session:
        """An open rolling buffer: feed it forever, let it write at any point.

        Args:
            pins: tokens that may be pinned as they are fed, in place of the first ones that the model pins, if any.
            sees: whether tokens may be global, too; they take the places of pins.
            log: keep what leaves the window, all of it or so many bytes: the session can go back as far as it reaches
                (`Session.rewind`).
        """
        return self.open_session(pins, sees=sees, log=log)

    def open_session(
        self, pins: int = 0, *, sees: bool = False, log: bool | int = False, history: bool = False
    ) -> Session:
        """As `session`; with `history` it keeps all token ids, 4 bytes each, log or not."""
        if pins:
            return self._pinning(pins, sees=sees).open_session(log=log, history=history)
        return Session(
            self.decoder,
            self.tokenizer,
            self.cache(log=log) if log else self.cache(),
            chunk=self.chunk,
            overlap=self.overlap,
            speculation=self.speculation,
            history=history or bool(log),
        )

    def conversation(
        self,
        system: str | None = None,
        *,
        safe_prompt: bool = False,
        pins: Marks = (),
        pin_budget: int | None = None,
        pin_overflow: str = "error",
        global_: Marks = (),
        log: bool | int | None = None,
    ) -> Conversation:
        """A chat that reads only what is new in each turn; what is pinned, as in `chat`, stays in sight in all turns.

        Args:
            system, safe_prompt: as in `chat`.
            pins, pin_budget, pin_overflow, global_: as in `chat`, applied to the whole conversation in each turn.
                "user:-1" is the last message of the user and "answer" what is being written: those of earlier turns are
                ordinary text again, for which the last turn is read once more.
            log: as of `session`: how far `undo`, `retry` and `edit` can go back without reading all again; by default
                `TURNS_BACK` tokens behind the window, and all where tokens are global.

        Raises:
            UsageError, PinsError: pins or global tokens that cannot be.
        """
        wishes = self._wishes(pins, pin_budget, pin_overflow, False, global_)
        return self.converse(wishes.contract, wishes.sight, system=system, safe_prompt=safe_prompt, log=log)

    def converse(
        self,
        contract: Contract,
        sight: Sight,
        *,
        room: int | None = None,
        system: str | None = None,
        safe_prompt: bool = False,
        log: bool | int | None = None,
    ) -> Conversation:
        """As `conversation`, with rules that are made already, and room for so many tokens that they flag."""
        if room is None:
            room = contract.room(self.config.windows) if contract or sight else 0
        if sight:  # refused before anything is read
            self._check_alone("global tokens", guesses=sight.answer)
            self.config.with_global(room)
        if log is None:
            log = bool(sight) or self.log_of(TURNS_BACK)
        return Conversation(
            lambda: self.open_session(room, sees=bool(sight), history=True, log=log),
            self.tokenizer,
            system=system,
            safe_prompt=safe_prompt,
            contract=contract,
            sight=sight,
            room=room,
        )

    def log_of(self, tokens: int) -> bool | int:
        """A log from which a session can go back so many tokens, in bytes; False where none is needed."""
        scale = 4 if self.kv_dtype == "int8" else 0
        itemsize: int = getattr(torch, self.kv_dtype).itemsize
        return log_bytes(self.config, tokens, itemsize, scale) if tokens and self.overlap is None else False

    def save_session(
        self,
        what: Session | Conversation,
        path: str | Path,
        *,
        back: int | None = 0,
        notes: Mapping[str, Any] | None = None,
    ) -> int:
        """Write a session or a conversation to a file, whole or not at all, in the place of an older one; its bytes.

        Args:
            what: it stays as it is, and can go on.
            path: the file.
            back: tokens that it can go back after it was loaded, as far as its log reaches now; None for all.
            notes: plain values (as JSON has them) to keep with it.

        Raises:
            UsageError: there is something at `path` that is no saved session.
            InputNotFoundError, DiskFullError, SashError: it cannot be written; an older file is as it was.
        """
        return saved.save(Path(path), what, model=self.name, back=back, notes=notes)

    def load_session(self, path: str | Path) -> Session | Conversation:
        """What `save_session` wrote, to go on where it was; nothing is read again.

        Raises:
            InputNotFoundError, CheckpointError: no such file, or it is torn or damaged.
            UsageError: it was saved with another model, weights, window, pins or numbers; the message says which.
        """
        return saved.load(Path(path), self).what

    def _encode(self, prompt: Prompt) -> list[int]:
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids or (isinstance(prompt, str) and not prompt):
            raise EmptyPromptError("the prompt has no tokens: give some text to read")
        check_ids(ids, self.config.vocab_size)
        return ids


TURNS_BACK = 4096
"""Tokens that a chat can take back without reading all again, unless told otherwise."""

MAX_SEQUENCES = 16
"""Prompts of one call that run at once; more wait for a row."""


def _as_tuple(sampling: dict[str, Any]) -> dict[str, Any]:
    stop = sampling.get("stop")
    if stop is not None:
        sampling = {**sampling, "stop": (stop,) if isinstance(stop, str) else tuple(stop)}
    unknown = set(sampling) - set(SamplingParams.__dataclass_fields__)
    if unknown:
        known = ", ".join(sorted(SamplingParams.__dataclass_fields__))
        raise UsageError(f"{sorted(unknown)[0]!r} is not a sampling field: {known} are")
    return sampling
