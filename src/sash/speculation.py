"""What guesses the tokens to come, as a user asks for it: by looking in the text so far, or by a smaller model."""

from __future__ import annotations

from sash.engine.draft_model import DraftNetwork, Follower
from sash.engine.proposer import PromptLookup, Speculation
from sash.errors import UsageError
from sash.reading import Reader

PROBE = "The quick brown fox, 1234567890 (naïve, 東京)!\n\tdef f(x): return {x: 'y'}"

__all__ = ("DraftModel", "PromptLookup", "Speculation", "speculation_of")


class DraftModel:
    """Guesses by a smaller model, which reads along; see `sash.engine.draft_model`."""

    def __init__(self, model: Reader, k: int = 4, least: float = 0.4) -> None:
        """`k` tokens are guessed at once at most, each only if the model gives it this probability at `least`."""
        self.model = model
        self._drafts = DraftNetwork(model.decoder, model.cache, k, least, model.chunk)

    def open(self) -> Follower:
        """What guesses for one new sequence."""
        return self._drafts.open()


def speculation_of(wanted: object, model: Reader) -> Speculation | None:
    """What guesses for `model`, as `LM.with_speculation` is asked for it.

    Raises:
        UsageError: nothing that could, a model of another vocabulary, or one whose windows overlap or bring back
            what left them.
    """
    if wanted is None or wanted == "off":
        return None
    if getattr(model, "overlap", None) is not None:
        raise UsageError("windows that overlap are read again before any guess could be: leave the guessing out")
    if model.config.n_annex:
        raise UsageError("what is brought back into sight is chosen anew for every token: leave the guessing out")
    if wanted == "lookup":
        return PromptLookup()
    if isinstance(wanted, int) and not isinstance(wanted, bool):
        return PromptLookup(k=wanted)
    if isinstance(wanted, Reader):
        wanted = DraftModel(wanted)
    if isinstance(wanted, DraftModel):
        _check_vocabulary(wanted.model, model)
    if callable(getattr(wanted, "open", None)):
        return wanted  # type: ignore[return-value]
    raise UsageError(f"speculate is 'lookup', a number of guesses, or a smaller model; got {wanted!r}")


def _check_vocabulary(small: Reader, large: Reader) -> None:
    if (
        small.tokenizer.vocab_size != large.tokenizer.vocab_size
        or small.config.vocab_size != large.config.vocab_size
        or small.tokenizer.encode(PROBE) != large.tokenizer.encode(PROBE)
    ):
        raise UsageError(
            f"{small.name or 'the smaller model'} has another vocabulary than {large.name or 'the model'}:"
            " only a model of the same tokenizer can guess for it"
        )
