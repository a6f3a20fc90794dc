"""`sash run --save` and `--resume`: a text that is read once and gone on with, or asked about, many times."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sash.cli.live_tokens import LiveEncoder, LivePrompt, live_chat, live_text
from sash.errors import CheckpointError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from sash.cli.interrupt import Interrupt
    from sash.cli.prompt_reader import Prompt
    from sash.lm import LM
    from sash.session import Session
    from sash.text.tokenizer import Tokenizer

Messages = list[dict[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptText:
    """How far a text had got when it was saved, so that what is said next comes to the same tokens.

    Attributes:
        chat: whether it goes through the model's chat format.
        begun: messages before the user's.
        safe_prompt: whether the guardrail stands in front.
        answered: whether an answer ended it; else the text, or the user's message, is still open.
        bos, context, pending: of the encoder of an open text (`LiveEncoder`).
    """

    chat: bool
    begun: Messages
    safe_prompt: bool
    answered: bool
    bos: bool = False
    context: str = ""
    pending: str = ""

    @staticmethod
    def read_from(path: Path, notes: Mapping[str, Any]) -> KeptText:
        """What was noted.

        Raises:
            UsageError: it is a chat.
            CheckpointError: it is nothing that is known.
        """
        told = notes.get("text")
        if told is None:
            raise UsageError(f"{path} holds no text of `sash run`: go on with it by `sash chat --resume {path}`")
        try:
            kept = KeptText(**told)
        except TypeError as error:
            raise CheckpointError(f"{path} contradicts itself: it has to be made anew") from error
        flags = (kept.chat, kept.safe_prompt, kept.answered, kept.bos)
        texts = (kept.context, kept.pending, *(text for message in kept.begun for text in message.values()))
        if not (all(type(flag) is bool for flag in flags) and all(type(text) is str for text in texts)):
            raise CheckpointError(f"{path} contradicts itself: it has to be made anew")
        return kept

    def check(self, prompt: Prompt) -> None:
        """Refuse what was decided when the text began.

        Raises:
            UsageError: it is asked for again.
        """
        if prompt.system is not None or prompt.safe_prompt or prompt.chat not in (None, self.chat):
            raise UsageError("how a saved text began is settled: leave out --system, --safe-prompt, --chat and --raw")

    def onwards(self, tokenizer: Tokenizer, session: Session) -> LivePrompt:
        """What goes on with it.

        Raises:
            UnsupportedError: the chat format cannot be taken apart.
        """
        if not self.chat:
            encoder = LiveEncoder(tokenizer, bos=self.bos, context=self.context, pending=self.pending)
            return LivePrompt(encoder)
        if not self.answered:
            frame = taken_apart(live_chat(tokenizer, self.begun, safe_prompt=self.safe_prompt))
            encoder = LiveEncoder(tokenizer, bos=False, context=self.context, pending=self.pending)
            return LivePrompt(encoder, (), frame.after)
        asked = [*self.begun, {"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
        so_far = tokenizer.encode_chat(asked, continue_final=True, safe_prompt=self.safe_prompt)
        frame = taken_apart(live_chat(tokenizer, asked, safe_prompt=self.safe_prompt))
        if list(frame.before[: len(so_far)]) != so_far:
            raise UnsupportedError("the model's chat template renders earlier turns differently: begin a chat instead")
        before = list(frame.before[len(so_far) :])
        return LivePrompt(frame.encoder, before[1:] if before[:1] == [session.last] else before, frame.after)

    def pieces(self, pieces: Iterator[str]) -> Iterator[str]:
        """What is said next, with what stands between it and the open text."""
        so_far = self.context + self.pending
        if so_far and not self.answered:
            yield "\n\n" if self.chat else "" if so_far.endswith("\n") else "\n"
        yield from pieces


def taken_apart(prompt: LivePrompt | None) -> LivePrompt:
    """A prompt that can be gone on with.

    Raises:
        UnsupportedError: it cannot.
    """
    if prompt is None:
        raise UnsupportedError(
            "the model's chat template cannot be taken apart around a message, so a text cannot be kept open in it:"
            " use --raw, or `sash chat --save`"
        )
    return prompt


@dataclass(slots=True, kw_only=True)
class Going:
    """A text that is read now: from the beginning, or from where it was saved.

    Attributes:
        kept: where it was; for a text from the beginning, how it began.
        prompt: what encodes it.
        session: what has read it so far; None for a text from the beginning.
    """

    kept: KeptText
    prompt: LivePrompt
    session: Session | None = None

    @staticmethod
    def begin(lm: LM, prompt: Prompt, *, chat: bool) -> Going:
        """A text from the beginning."""
        begun = prompt.messages()
        kept = KeptText(chat=chat, begun=begun, safe_prompt=prompt.safe_prompt, answered=False)
        if not chat:
            return Going(kept=kept, prompt=live_text(lm.tokenizer))
        live = live_chat(lm.tokenizer, begun, safe_prompt=prompt.safe_prompt)
        return Going(kept=kept, prompt=taken_apart(live))

    @staticmethod
    def resume(lm: LM, path: Path, notes: Mapping[str, Any], prompt: Prompt) -> Going:
        """A text where it was saved.

        Raises:
            SashError: as `LM.load_session` does, or what cannot be gone on with.
        """
        from sash.session import Session

        kept = KeptText.read_from(path, notes)
        kept.check(prompt)
        session = lm.load_session(path)
        if not isinstance(session, Session):
            raise UsageError(f"{path} holds a chat: go on with it by `sash chat --resume {path}`")
        return Going(kept=kept, prompt=kept.onwards(lm.tokenizer, session), session=session)

    def ids(self, prompt: Prompt, *, whole: bool, interrupt: Interrupt) -> Iterator[list[int]]:
        """What is to be read; see `LivePrompt.ids`."""
        pieces = prompt.pieces(chat=self.kept.chat, interrupt=interrupt)
        return self.prompt.ids(self.kept.pieces(pieces) if self.session is not None else pieces, whole=whole)

    def noted(self, *, answered: bool) -> dict[str, Any]:
        """What is to be noted of it now."""
        kept, encoder = self.kept, self.prompt.encoder
        fixed = {"chat": kept.chat, "begun": kept.begun, "safe_prompt": kept.safe_prompt, "answered": answered}
        if answered:
            return {"text": fixed}
        return {"text": {**fixed, "bos": encoder.bos, "context": encoder.context, "pending": encoder.pending}}


def settled(parts: Iterator[list[int]], whole: Sequence[int]) -> int:
    """How many of the tokens of a whole prompt are settled, by `LivePrompt.ids`.

    Raises:
        UnsupportedError: they are others.
    """
    ids = [token for part in parts for token in part]
    if list(whole[: len(ids)]) != ids:
        raise UnsupportedError("the text cannot be kept open: its tokens depend on what follows")
    return len(ids)
