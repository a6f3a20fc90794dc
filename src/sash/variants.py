"""One model in several ways: other windows and pins, guesses, and what is done about what slides out."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Literal, Self

from sash.engine.lanes import network_with
from sash.engine.overlap import Overlap
from sash.engine.proposer import Speculation
from sash.errors import UsageError
from sash.network import recall_layers
from sash.network.hierarchy import Hierarchy
from sash.network.packed import Network
from sash.network.recall import recalling
from sash.network.recall_points import RecallSettings
from sash.reading import Reader
from sash.speculation import speculation_of


class Variants(Reader):
    """A model that gives others over the same weights, each of which reads or writes in another way.

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
    ) -> Self:
        """This model over the same weights, with a forced window and pins; see `ModelConfig.with_window`.

        Raises:
            WindowError, PinsError: a window or pins that cannot be.
        """
        return self._over(network_with(self.decoder, self.config.with_window(window, pins, pin_by=pin_by)))

    def with_global(self, n_tokens: int) -> Self:
        """This model over the same weights, with room for global tokens and pins; see `ModelConfig.with_global`.

        Raises:
            PinsError, ConfigError: what cannot be.
        """
        return self._over(network_with(self.decoder, self.config.with_global(n_tokens)))

    def with_recall(self, budget: int | None = None, *, layers: Collection[int] | None = None, **settings: int) -> Self:
        """This model over the same weights, where what slid out of the window is brought back when it is wanted.

        All keys and values are kept in a log on the host, and the blocks that are wanted most are put beside the
        window; see `sash.network.recall`. Prompts are read in pieces, so that what is brought back follows what is
        read; the last tokens of what is fed are taken for a question and read one at a time, and each of them, and of
        the answer, looks for itself. Layers that recall hold the beginning of the text too, if the model pins nothing
        else.

        Args:
            budget: slots of a layer for what is brought back; by default as many as window and pins leave of twice
                the window.
            layers: which layers recall, counted from 0; by default those that `calibrate_recall` has found for these
                weights, and else those whose window was forced on them, or all with a window if none was.
            **settings: fields of `sash.network.recall_points.RecallSettings`: block, piece, queries, question,
                candidates, shared, stride.

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

    def with_speculation(self, speculate: object = "lookup") -> Self:
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

    def _guessing(self, speculate: object) -> Self:
        """This model, guessing as one call wants it to; None for as it does anyway."""
        return self if speculate is None else self.with_speculation(speculate)

    def with_overlap(self, stride: int) -> Self:
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
        return type(self)(self.decoder, self.tokenizer, name=self.name, chunk=self.chunk, kv=self.kv, overlap=overlap)

    def with_hierarchy(self, *, per_level: int = 4, block: int = 64, levels: int = 16) -> Self:
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

    def _pinning(self, room: int, *, sees: bool = False) -> Self:
        """This model with room for flagged pins, in place of any that it has; `sees`: for global tokens."""
        if sees:
            self._check_alone("global tokens", guesses=False)
        lm = self.with_global(room) if sees else self.with_window(None, room, pin_by="flag")
        return lm if self.overlap is None else lm.with_overlap(self.overlap.stride)

    def _over(self, decoder: Network) -> Self:
        lm = type(self)(decoder, self.tokenizer, name=self.name, chunk=self.chunk, kv=self.kv)
        lm.speculation, lm.recall = self.speculation, self.recall
        return lm

    def _check_alone(self, what: str, *, guesses: bool = True) -> None:
        """Refuse ways of remembering that cannot be together; and, with `guesses`, guessed tokens."""
        others = {
            "overlapping windows": self.overlap,
            "summaries": self.config.hierarchy,
            "guessed tokens": self.speculation if guesses else None,
            "recall": self.recall,
        }
        taken = next((name for name, there in others.items() if there is not None and name != what), None)
        if taken is not None:
            raise UsageError(f"{what} and {taken} cannot be together: choose one")
