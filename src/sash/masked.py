"""MaskedLM: what a user holds of an encoder. It reads whole texts, and finds the words that are masked in them.

Shape suffixes: T tokens, D dim, M masks, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from sash.errors import TokenizerError, UnsupportedError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sash.attention.segment import Backend
    from sash.checkpoint import Checkpoint
    from sash.families import Description
    from sash.network.encoder_config import EncoderConfig
    from sash.network.longformer import Longformer


class MaskTokenizer(Protocol):
    """What is asked of a tokenizer here; every `sash.text.tokenizer.Tokenizer` does it."""

    bos_id: int | None
    mask_id: int | None

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """The ids of a text; control tokens spelled in it stay text."""

    def decode(self, ids: Sequence[int], *, skip_control: bool = True, continues: bool = False) -> str:
        """The text of some ids; with `continues` a leading space is kept."""

    def token_text(self, token_id: int) -> str:
        """A label for one token: a control token's own spelling."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One word for a mask.

    Attributes:
        token_id: its id.
        text: its text, with the space in front that it brings along, if any.
        probability: among all words of the vocabulary.
    """

    token_id: int
    text: str
    probability: float


def encode_masked(tokenizer: MaskTokenizer, text: str, end_id: int | None = None) -> list[int]:
    """The ids of a text in which the mask token's spelling stands for the mask.

    The text is cut at the masks and the pieces are encoded, so that no tokenizer has to see control tokens in a text.
    Spaces before a mask belong to the word that is masked, as RoBERTa's tokenizer has it.

    Args:
        tokenizer: one with a mask token.
        text: masks spelled as the tokenizer spells them, "<mask>" for RoBERTa's.
        end_id: the token that ends every sequence; None for none.

    Raises:
        TokenizerError: the tokenizer has no mask token.
        UsageError: there is no mask in the text.
    """
    if tokenizer.mask_id is None:
        raise TokenizerError("this model's tokenizer has no mask token: only a masked-LM model fills masks")
    spelling = tokenizer.token_text(tokenizer.mask_id)
    pieces = text.split(spelling)
    if len(pieces) == 1:
        raise UsageError(f"there is no {spelling} in the text: write {spelling} where a word is to be found")
    ids: list[int] = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    for index, piece in enumerate(pieces):
        if index:
            ids.append(tokenizer.mask_id)
        ids += tokenizer.encode(piece.rstrip() if index + 1 < len(pieces) else piece, bos=False)
    return ids if end_id is None else [*ids, end_id]


def fill(
    model: Longformer,
    tokenizer: MaskTokenizer,
    text: str,
    *,
    top_k: int = 5,
    global_positions: Sequence[int] | None = None,
) -> list[list[Candidate]]:
    """The likeliest words for each mask of a text, the masks in their order, the likeliest word first.

    Args:
        model: an encoder with a masked-LM head.
        tokenizer: the model's own, with a mask token.
        text: with a mask, "<mask>" for RoBERTa's tokenizer, for every word to be found.
        top_k: words a mask, at most as many as the vocabulary has.
        global_positions: tokens that see all and are seen by all; by default the first, if it begins every text.

    Raises:
        TokenizerError: the tokenizer has no mask token.
        UsageError: no mask in the text, a `top_k` below 1, or a position outside of the text.
        PromptOverflowError: more tokens than the model has positions.
        UnsupportedError: the model has no masked-LM head.
    """
    import torch

    from sash.network.longformer import encode

    if top_k < 1:
        raise UsageError(f"top_k counts words, so it is 1 or more; got {top_k}")
    ids = encode_masked(tokenizer, text, model.config.end_id)
    if global_positions is None:
        global_positions = () if tokenizer.bos_id is None else (0,)
    masks = [index for index, token in enumerate(ids) if token == tokenizer.mask_id]
    with torch.inference_mode():
        logits_MV = model.lm_logits(encode(model, ids, global_positions)[masks])
        best = logits_MV.softmax(-1).topk(min(top_k, logits_MV.shape[-1]))
    return [
        [
            Candidate(token, tokenizer.decode([token], skip_control=False, continues=True), probability)
            for token, probability in zip(tokens, probabilities, strict=True)
        ]
        for tokens, probabilities in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


class MaskedLM:
    """An encoder with its tokenizer.

    Attributes:
        config: what the network is.
        network: the encoder.
        tokenizer: text to ids and back.
        name: what it was loaded as.
    """

    def __init__(self, network: Longformer, tokenizer: MaskTokenizer, *, name: str = "") -> None:
        self.config: EncoderConfig = network.config
        self.network, self.tokenizer, self.name = network, tokenizer, name

    @staticmethod
    def build(
        description: Description,
        checkpoint: Checkpoint,
        tokenizer: MaskTokenizer,
        dtype: torch.dtype,
        device: torch.device,
        name: str = "",
        backend: Backend | None = None,
    ) -> MaskedLM:
        """Load an encoder's weights.

        Args:
            description: what the checkpoint holds.
            checkpoint: open.
            tokenizer: the model's own.
            dtype: of the weights.
            device: where they are to be.
            name: what it is loaded as.
            backend: what computes attention; None for the torch backend.

        Raises:
            UnsupportedError: the checkpoint holds no encoder that Sash knows.
            CheckpointError: a tensor is missing or of another shape than the configuration says.
        """
        from sash.attention.torch_backend import attend_segment
        from sash.checkpoint.load import load_weights
        from sash.network.encoder_config import EncoderConfig
        from sash.network.longformer import Longformer

        config = description.config
        if not isinstance(config, EncoderConfig):
            raise UnsupportedError(f"{config.architecture} is no encoder that Sash knows: longformer is")
        build = partial(Longformer, config, backend or attend_segment)
        network = load_weights(build, description, checkpoint, dtype, device)
        if not isinstance(network, Longformer):
            raise UnsupportedError("the checkpoint did not build an encoder")
        return MaskedLM(network, tokenizer, name=name)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.network.tok_embeddings.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.network.tok_embeddings.weight.dtype

    def encode(self, ids: Sequence[int], global_positions: Sequence[int] = ()) -> Tensor:
        """Hidden states of one sequence, [T, D].

        Args:
            ids: token ids, special tokens included.
            global_positions: indices of the tokens that see all and are seen by all, in any order.

        Raises:
            EmptyPromptError: no tokens.
            UsageError: an id outside of the vocabulary, or a global position outside of the sequence.
            PromptOverflowError: more tokens than the model has positions.
        """
        from sash.network.longformer import encode

        return encode(self.network, ids, global_positions)

    def fill(
        self, text: str, *, top_k: int = 5, global_positions: Sequence[int] | None = None
    ) -> list[list[Candidate]]:
        """The likeliest words for each mask of a text; see `fill`."""
        return fill(self.network, self.tokenizer, text, top_k=top_k, global_positions=global_positions)
