"""What every tokenizer is to the rest of Sash, and how one is opened.

A tokenizer turns text into token ids and back. Three rules hold for all of them:

- Control tokens come from Sash, never from text: a control token's spelling inside a text or a message stays text.
- `decode` is the concatenation of `token_bytes`, read as UTF-8, so a stream of tokens can be shown as it arrives
  (`sash.text.stream.Detokenizer`) and ends up as the very same string.
- A text never starts with two begin-of-text ids.

Needs no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sash.errors import SashError, TextEncodingError, TokenizerError

if TYPE_CHECKING:
    from sash.text.tools import ToolFormat

GUARDRAIL = (
    "Always assist with care, respect, and truth. Respond with utmost utility yet securely. Avoid harmful, unethical, "
    "prejudiced, or negative content. Ensure replies promote fairness and positivity."
)
"""The system prompt of `safe_prompt` (Mistral 7B, arXiv 2310.06825, section 5.1)."""

ROLES = ("system", "user", "assistant", "tool")
"""Who may speak in a conversation."""

MAX_VOCABULARY = 1 << 20
"""Entries that a vocabulary may have; the largest in use (Gemma's) has 262,144."""

TURN_ENDS = frozenset(
    {"</s>", "<eos>", "<EOT>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>"}
    | {"<|eot_id|>", "<|eom_id|>", "<|end|>"}
)
"""Spellings of control tokens that end a turn or a text, whatever else a file declares as its end."""

REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()


class Tokenizer(ABC):
    """Text to ids and back.

    Attributes:
        vocab_size: ids run from 0 to vocab_size - 1.
        bos_id: the id that begins every text; None where the model was trained without one, whatever its file names.
        eos_ids: every id that ends a turn or a text.
        mask_id: the id of a masked-LM model's mask; None where there is none.
        control_ids: ids that stand for structure rather than text; no text ever encodes to one.
        kind: a few words for people, such as "SentencePiece v1 (mistral-common)".
    """

    vocab_size: int
    bos_id: int | None
    eos_ids: frozenset[int]
    mask_id: int | None
    control_ids: frozenset[int]
    kind: str

    @property
    def has_chat(self) -> bool:
        """Whether `encode_chat` knows how this model was taught to read a conversation."""
        return False

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """The ids of a text.

        Args:
            text: any text; control tokens spelled in it stay text.
            bos: whether to put `bos_id` in front, for models that have one.

        Raises:
            TextEncodingError: the text has lone surrogates, so no UTF-8 exists for it.
            TokenizerError: the tokenizer's own code failed.
        """
        check_unicode(text)
        ids = self._encode_text(text) if text else []
        return [self.bos_id, *ids] if bos and self.bos_id is not None else ids

    @abstractmethod
    def _encode_text(self, text: str) -> list[int]:
        """The ids of a text that is not empty, without a begin-of-text id and without any control id."""

    @abstractmethod
    def token_bytes(self, token_id: int, *, first: bool = False) -> bytes:
        """What one token adds to a text: UTF-8, perhaps a part of a character. A control token's own spelling.

        Args:
            token_id: 0 or more. Past the vocabulary (a model's output may be wider) it is U+FFFD.
            first: whether the text starts here; SentencePiece then drops the space that it put in front.
        """

    def decode(self, ids: Sequence[int], *, skip_control: bool = True, continues: bool = False) -> str:
        """The text of some ids.

        Bytes that are no UTF-8 become U+FFFD, one for each maximal invalid part (as Unicode recommends). A control
        token ends a character even where it is not shown.

        Args:
            ids: token ids.
            skip_control: whether control tokens are left out rather than spelled.
            continues: whether the ids follow text that was decoded before, so that a leading space is kept.

        Raises:
            TokenizerError: a negative id.
        """
        parts: list[str] = []
        run: list[bytes] = []
        first = not continues
        for token_id in ids:
            if token_id in self.control_ids:
                parts.append(b"".join(run).decode("utf-8", errors="replace"))
                run.clear()
                if not skip_control:
                    parts.append(self.token_text(token_id))
                continue
            run.append(self.token_bytes(token_id, first=first))
            first = False
        parts.append(b"".join(run).decode("utf-8", errors="replace"))
        return "".join(parts)

    def token_text(self, token_id: int) -> str:
        """A label for one token: its text, or its bytes as "<0xE2>" where they are only a part of a character."""
        raw = self.token_bytes(token_id)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in raw)

    @property
    def tool_format(self) -> ToolFormat | None:
        """How this model writes calls of tools; None where its chat format knows no tools."""
        return None

    @property
    def has_tools(self) -> bool:
        """Whether `encode_chat` can show tools to this model."""
        return self.tool_format is not None

    @property
    def has_fim(self) -> bool:
        """Whether `encode_fim` knows how this model fills in the middle."""
        return False

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        continue_final: bool = False,
        safe_prompt: bool = False,
    ) -> list[int]:
        """The ids of a conversation, begin-of-text and the cue for the assistant's answer included.

        Args:
            messages: mappings with a "role" (system, user, assistant or tool) and a "content"; an assistant's may have
                "tool_calls" and, if it is the last, "prefix"; a tool's has "tool_call_id". All as OpenAI has them.
            tools: functions that the model may call, as OpenAI has them; shown to it unless the choice is "none".
            tool_choice: "none", "auto", "required" (or "any"), or {"type": "function", "function": {"name": ...}}. It
                is checked here; `sash.text.tool_grammar` makes the model obey it.
            continue_final: leave the last message, the assistant's, open, so that the model goes on writing it.
            safe_prompt: put `GUARDRAIL` in front as a system message, or before the user's own system message; where
                the model knows no system role, before the first user message.

        Raises:
            UsageError: a message or a tool is malformed, or `continue_final` without an assistant's message to
                continue.
            TokenizerError: the model has no chat format, or its format refuses this conversation, or knows no tools.
        """
        raise TokenizerError("this model has no chat template: use an instruct model, or give it plain text")

    def encode_fim(self, prompt: str, suffix: str = "") -> list[int]:
        """The ids of a text with a gap, begin-of-text and the cue to fill it included.

        Args:
            prompt: what stands in front of the gap.
            suffix: what stands behind it.

        Raises:
            TextEncodingError: lone surrogates.
            TokenizerError: the model was not made for this.
        """
        raise TokenizerError(
            "this model's tokenizer has no tokens for filling in the middle: use a model made for code"
        )


def check_unicode(text: str) -> None:
    """Refuses text that has no UTF-8.

    Raises:
        TextEncodingError: lone surrogates.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TextEncodingError(
            f"the text is not valid Unicode: lone surrogate {text[error.start]!a} at character {error.start:,}"
        ) from None


def check_vocabulary_size(size: int) -> None:
    """Refuses a vocabulary that is empty or absurdly large.

    Raises:
        TokenizerError: see `MAX_VOCABULARY`.
    """
    if not 0 < size <= MAX_VOCABULARY:
        raise TokenizerError(f"a vocabulary of {size:,} entries is refused: 1 to {MAX_VOCABULARY:,} are accepted")


def check_id(token_id: int) -> None:
    """Refuses ids that no model can produce.

    Raises:
        TokenizerError: a negative id.
    """
    if token_id < 0:
        raise TokenizerError(f"token ids are 0 or more; got {token_id}")


@contextmanager
def foreign_code(doing: str) -> Iterator[None]:
    """Turns whatever a tokenizer library raises into one TokenizerError.

    Rust panics arrive as a BaseException that is no Exception, hence the wide net; an interrupt passes through.
    """
    try:
        yield
    except (SashError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise TokenizerError(f"{doing} failed: {detail}") from error
