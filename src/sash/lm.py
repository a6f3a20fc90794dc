"""LM: the one object a user holds. Load it, read with it, write with it, ask it for numbers.

Shape suffixes: T tokens, D dim, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Any, Literal

import torch

from sash import saved
from sash.answer import Answer, Stream
from sash.asked import Asked, Marks, Wishes, audited
from sash.completion import Completion
from sash.conversation import Conversation
from sash.engine.engine import Engine
from sash.engine.lanes import network_with
from sash.engine.overlap import Held, Overlap
from sash.engine.proposer import Speculation
from sash.engine.request import Request
from sash.errors import EmptyPromptError, UsageError
from sash.network import recall_layers
from sash.network.hierarchy import Hierarchy
from sash.network.packed import Network
from sash.network.recall import RecallSettings, recalling
from sash.network.sizing import log_bytes
from sash.reading import Reader
from sash.sampling import SamplingParams
from sash.session import Session
from sash.session_state import check_ids, pin_room
from sash.speculation import speculation_of
from sash.text.pins import Contract

Prompt = str | list[int]


class LM(Reader):
    """A decoder language model with its tokenizer: what reads (see `Reader`), and writes.

    Attributes:
        speculation: what guesses the tokens to come while it writes; None for nothing. See `with_speculation`.
    """

    speculation: Speculation | None = None

    def with_window(
        self,
        window: int | Literal["full"] | None = None,
        pins: int = 0,
        *,
        pin_by: Literal["first", "flag"] = "first",
    ) -> LM:
        """This model over the same weights, with a forced window and pins; see `ModelConfig.with_window`.

        Raises:
            WindowError, PinsError: a window or pins that cannot be.
        """
        return self._over(network_with(self.decoder, self.config.with_window(window, pins, pin_by=pin_by)))

    def _over(self, decoder: Network) -> LM:
        lm = LM(decoder, self.tokenizer, name=self.name, chunk=self.chunk, kv=self.kv)
        lm.speculation, lm.recall = self.speculation, self.recall
        return lm

    def with_recall(self, budget: int | None = None, *, layers: Collection[int] | None = None, **settings: int) -> LM:
        """This model over the same weights, where what slid out of the window is brought back when it is wanted.

        All keys and values are kept in a log on the host. After every step the blocks that the last queries want most
        stand beside the window for the next one; see `sash.network.recall`. Prompts are read in pieces, so that what is
        brought back follows what is read; the last tokens of what is fed are taken for a question and read a few at a
        time. Layers that recall hold the beginning of the text too, if the model pins nothing else.

        Args:
            budget: slots of a layer for what is brought back; by default as many as window and pins leave of twice
                the window.
            layers: which layers recall, counted from 0; by default those that `calibrate_recall` has found for these
                weights, and else those whose window was forced on them, or all with a window if none was.
            **settings: fields of `sash.network.recall.RecallSettings`: block, piece, question, step.

        Raises:
            UsageError: settings that cannot be, or layers without a window.
        """
        self._check_alone("recall")
        how = RecallSettings(**settings)
        layers = recall_layers.kept(self.decoder) if layers is None else layers
        lm = self._over(network_with(self.decoder, recalling(self.config, how, budget, layers)))
        lm.recall = how
        return lm

    def calibrate_recall(self, length: int = 512, *, keep: bool = True) -> tuple[int, ...]:
        """Find the layers whose attention lands on what is asked for, and have `with_recall` use them from now on.

        Four texts with a number in them are read, which takes a few seconds; see `sash.network.recall_layers`. The
        choice is kept beside the models, by a digest of the weights. The same model finds the same layers.

        Args:
            length: tokens of each text, if the model was trained on so many; a model that only has windows reads texts
                that its largest one holds.
            keep: have `with_recall` use them.

        Returns:
            The layers, counted from 0.

        Raises:
            UsageError: texts too short to hide anything in, or no place to keep the choice.
        """
        length = recall_layers.readable(self.config, length)
        begins = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        texts = recall_layers.probes(lambda text: list(self.tokenizer.encode(text, bos=False)), begins, length)
        mass = recall_layers.mass_on(network_with(self.decoder, recall_layers.unforced(self.config, length)), texts)
        layers = recall_layers.choose(mass)
        if keep:
            recall_layers.keep(self.decoder, layers, mass)
        return layers

    def with_speculation(self, speculate: object = "lookup") -> LM:
        """This model, where several tokens are read in one step if they are guessed: the answers are the same.

        Args:
            speculate: "lookup" guesses that the text goes on as it did after the same words before, and a number so
                many tokens at once; a smaller model of the same vocabulary guesses by reading along; None, or "off",
                guesses nothing. Settings are those of `sash.speculation.PromptLookup` and `DraftModel`.

        Raises:
            UsageError: nothing that could guess, or a model of another vocabulary.
        """
        lm = copy.copy(self)
        lm.speculation = speculation_of(speculate, self)
        if lm.speculation is not None:
            lm._check_alone("guessed tokens")
        return lm

    def _guessing(self, speculate: object) -> LM:
        """This model, guessing as one call wants it to; None for as it does anyway."""
        return self if speculate is None else self.with_speculation(speculate)

    def with_overlap(self, stride: int) -> LM:
        """This model, reading by overlapping windows: nothing rolls on, the newest tokens are read again instead.

        A reading has as many tokens as the model's largest window, and their positions begin at 0. Whenever another
        token comes, the newest window - stride of them are read again in a fresh row, so that every token sees between
        window - stride + 1 and window tokens, itself included. Tokens that are pinned, and the model's begin-of-text,
        stand at the head of every reading. Reading costs up to window / stride times as much as it does with a window
        that rolls; of a prompt only what its last reading holds is read.

        Args:
            stride: new tokens of each reading but the first, 1 to window.

        Raises:
            UsageError: a stride that cannot be, or layers without a window: then nothing is lost that could be read
                again.
            PinsError: as many pins as a window has keys.
        """
        self._check_alone("overlapping windows")
        if self.config.window is None or None in self.config.windows:
            raise UsageError("some layers of this model see all that was read: overlapping windows need --window N")
        pins = max(pattern.pins if pattern.pin_by == "first" else 0 for pattern in self.config.patterns)
        overlap = Overlap(window=self.config.window, stride=stride, pins=pins)
        return LM(self.decoder, self.tokenizer, name=self.name, chunk=self.chunk, kv=self.kv, overlap=overlap)

    def with_hierarchy(self, *, per_level: int = 4, block: int = 64, levels: int = 16) -> LM:
        """This model with summaries of what left its windows, in blocks that double with distance.

        A summary is the mean of a block's keys and values, and counts as so many tokens. At most `per_level` of them
        stand for blocks of `block` tokens, next to the window, so many for blocks of twice the size beyond those, and
        so on: slots grow with the logarithm of the length, up to per_level x levels of each layer. See
        `sash.network.summaries`. Rows with summaries cannot be rewound or saved.

        Args:
            per_level: summaries of each size.
            block: tokens of the smallest ones; also the most that are read in one step.
            levels: sizes; the summaries of the largest go on growing.

        Raises:
            UsageError: values that cannot be, or windows that overlap: what is read again has not left.
            ConfigError: no windowed layers besides the first, or windows smaller than a block.
        """
        self._check_alone("summaries")
        hierarchy = Hierarchy(block=block, per_level=per_level, levels=levels)
        return self._over(network_with(self.decoder, self.config.with_hierarchy(hierarchy)))

    def _check_alone(self, what: str) -> None:
        """Refuse ways of remembering that cannot be together."""
        others = {
            "overlapping windows": self.overlap,
            "summaries": self.config.hierarchy,
            "guessed tokens": self.speculation,
            "recall": self.recall,
        }
        taken = next((name for name, there in others.items() if there is not None and name != what), None)
        if taken is not None:
            raise UsageError(f"{what} and {taken} cannot be together: choose one")

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
        wishes = Wishes.of(pins, pin_budget, pin_overflow, audit, self.config, global_)
        params = SamplingParams(**_as_tuple(sampling))
        asked = [
            wishes.ask(self.config, self.tokenizer, self._encode(one), n_written=params.max_tokens) for one in prompts
        ]
        completions = self._guessing(speculate)._complete(asked, params)
        return completions if several else completions[0]

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
        done = [answer.completion() for _, answer in answers.values()]
        begins = self.tokenizer.bos_id
        return [
            audited(self.config, one, completion, self.overlap, leads=one.ids[0] == begins)
            for one, completion in zip(asked, done, strict=True)
        ]

    def _pinning(self, room: int, *, sees: bool = False) -> LM:
        """This model with room for flagged pins, in place of any that it has; `sees`: for global tokens."""
        lm = self.with_global(room) if sees else self.with_window(None, room, pin_by="flag")
        return lm if self.overlap is None else lm.with_overlap(self.overlap.stride)

    def with_global(self, n_tokens: int) -> LM:
        """This model over the same weights, with room for global tokens and pins; see `ModelConfig.with_global`.

        Raises:
            PinsError, ConfigError: what cannot be.
        """
        return self._over(network_with(self.decoder, self.config.with_global(n_tokens)))

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
        wishes = Wishes.of(pins, pin_budget, pin_overflow, audit, self.config, global_)
        asked = wishes.ask(self.config, self.tokenizer, self._encode(prompt), n_written=params.max_tokens)
        session = self._guessing(speculate).session(asked.n_flagged, sees=bool(asked.seers))
        session.feed(asked.ids, pins=asked.pins, seers=asked.seers)
        stream = session.stream(params)
        return Stream(iter(stream), lambda: audited(session.config, asked, stream.completion), stream.close)

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
        wishes = Wishes.of(pins, pin_budget, pin_overflow, audit, self.config, global_)
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
        log: bool | int | None = None,
    ) -> Conversation:
        """A chat that reads only what is new in each turn; what is pinned, as in `chat`, stays in sight in all turns.

        `log` is that of `session`: how far `undo`, `retry` and `edit` can go back without reading all again; by
        default `TURNS_BACK` tokens behind the window.

        Raises:
            UsageError, PinsError: pins that cannot be.
        """
        contract = Wishes.of(pins, pin_budget, pin_overflow, False, self.config).contract
        room = contract.room(self.config.windows) if contract else 0
        return self.converse(contract, room=room, system=system, safe_prompt=safe_prompt, log=log)

    def converse(
        self,
        contract: Contract,
        *,
        room: int,
        system: str | None = None,
        safe_prompt: bool = False,
        log: bool | int | None = None,
    ) -> Conversation:
        """As `conversation`, with a contract that is made already, and room for so many pinned tokens."""
        if log is None:
            log = self.log_of(TURNS_BACK)
        return Conversation(
            lambda: self.open_session(room, history=True, log=log),
            self.tokenizer,
            system=system,
            safe_prompt=safe_prompt,
            contract=contract,
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
