"""Parity: the same files read by Sash and by transformers, logit by logit, in float32.

Shape suffixes: N tokens of a slice, T tokens, D dim, V vocabulary.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sash.checkpoint import open_checkpoint
from sash.errors import EmptyPromptError, SashError, UnsupportedError
from sash.evaluation.perplexity import chosen
from sash.lm import LM
from sash.reading import HEAD_ROWS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How far two readings of a text are apart.

    Attributes:
        n_tokens: tokens of the text.
        vocab_size: logits of each.
        max_difference: largest absolute difference of a logit.
        mean_difference: mean absolute difference of a logit.
        argmax_agreement: fraction of positions at which both find the same token the likeliest.
        nll: mean negative log-likelihood of a token by Sash, in nats.
        nll_other: the same by transformers.
        transformers: its version.
    """

    n_tokens: int
    vocab_size: int
    max_difference: float
    mean_difference: float
    argmax_agreement: float
    nll: float
    nll_other: float
    transformers: str

    def to_json(self) -> dict[str, Any]:
        """Fields, and the difference of the two likelihoods."""
        return asdict(self) | {"nll_difference": self.nll - self.nll_other}


def check_comparable(path: Path) -> None:
    """See that transformers is installed and reads this layout, before anything large is loaded.

    Raises:
        UnsupportedError: it is not, or does not.
        CheckpointError: the files are broken.
    """
    with open_checkpoint(path) as checkpoint:
        kind = checkpoint.kind
    if kind == "mistral":
        raise UnsupportedError(f"{path} has Mistral's own layout, which transformers does not read: convert it first")
    needed = ["transformers", "gguf", "accelerate"] if kind == "gguf" else ["transformers"]
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise UnsupportedError(
            f"parity compares with transformers; missing: {', '.join(missing)}: run `python -m pip install "
            f"{' '.join(needed)}`"
        )


def parity(lm: LM, path: Path, ids: list[int], *, progress: Callable[[int], None] | None = None) -> Parity:
    """Compare the logits of `lm`, which was loaded from `path` in float32, with those of transformers.

    transformers reads the text in one forward, Sash in chunks through its rolling buffer. Hidden states of the whole
    text are held, logits of a slice of rows only: never T x V of them.

    Args:
        lm: the model, with its own windows.
        path: the folder or GGUF file that it was loaded from.
        ids: token ids.
        progress: called with the number of tokens compared after each slice.

    Raises:
        EmptyPromptError: fewer than 2 tokens.
        UnsupportedError: see `check_comparable`; or the model is one that transformers does not know.
    """
    if len(ids) < 2:
        raise EmptyPromptError("parity needs 2 tokens or more: give a longer text")
    check_comparable(path)
    if lm.config.forced_window is not None or lm.dtype != torch.float32:
        raise UnsupportedError("parity is for models as they were trained, in float32: leave window and dtype out")
    hidden_TD, head, version = _read_by_transformers(path, ids)
    wanted_T = torch.tensor(ids[1:])
    sums = _Sums()
    done = 0
    for ours_CD in lm.hidden(ids, lm.chunk):
        for start in range(0, len(ours_CD), HEAD_ROWS):
            rows_ND = ours_CD[start : start + HEAD_ROWS]
            places = slice(done, done + len(rows_ND))
            with torch.inference_mode():
                sums.add(lm.decoder.logits(rows_ND).cpu(), head(hidden_TD[places]).float(), wanted_T[places])
            done = places.stop
            if progress is not None:
                progress(len(rows_ND))
    return sums.result(len(ids), version)


class _Sums:
    """What is left of the logits of each slice."""

    def __init__(self) -> None:
        self.largest = self.total = self.nll = self.nll_other = 0.0
        self.agreed = self.vocab_size = 0

    def add(self, ours_NV: Tensor, theirs_NV: Tensor, next_N: Tensor) -> None:
        """Take a slice of rows; the text's last row has no next token."""
        if ours_NV.shape[1] != theirs_NV.shape[1]:
            raise SashError(f"transformers has {theirs_NV.shape[1]} logits a token, Sash {ours_NV.shape[1]}")
        self.vocab_size = ours_NV.shape[1]
        difference_NV = (ours_NV - theirs_NV).abs()
        # max of a tensor carries NaN along, which the builtin would lose.
        self.largest = float(torch.tensor([self.largest, float(difference_NV.max())]).max())
        self.total += float(difference_NV.double().mean(-1).sum())
        self.agreed += int((ours_NV.argmax(-1) == theirs_NV.argmax(-1)).sum())
        n = len(next_N)
        self.nll -= float(chosen(ours_NV[:n], next_N).double().sum())
        self.nll_other -= float(chosen(theirs_NV[:n], next_N).double().sum())

    def result(self, n_tokens: int, version: str) -> Parity:
        """The means."""
        return Parity(
            n_tokens=n_tokens,
            vocab_size=self.vocab_size,
            max_difference=self.largest,
            mean_difference=self.total / n_tokens,
            argmax_agreement=self.agreed / n_tokens,
            nll=self.nll / (n_tokens - 1),
            nll_other=self.nll_other / (n_tokens - 1),
            transformers=version,
        )


def _read_by_transformers(path: Path, ids: list[int]) -> tuple[Tensor, Callable[[Tensor], Tensor], str]:
    """Hidden states of all tokens, [T, D], the output head, and the version of transformers."""
    transformers: Any = importlib.import_module("transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder, file = (path, None) if path.is_dir() else (path.parent, path.name)
    if path.is_dir() and not (path / "config.json").is_file():
        file = next(entry.name for entry in path.iterdir() if entry.suffix.lower() == ".gguf")
    options = {} if file is None else {"gguf_file": file}
    try:
        model: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=torch.float32, local_files_only=True, attn_implementation="sdpa", **options
        ).eval()
    except (ValueError, KeyError, OSError, NotImplementedError) as error:
        raise UnsupportedError(f"transformers does not load {path}: {error}") from error
    with torch.inference_mode():
        hidden_TD = model.base_model(torch.tensor([ids]), use_cache=False).last_hidden_state[0]  # type: ignore[operator]
    head: Callable[[Tensor], Tensor] = model.get_output_embeddings()  # type: ignore[operator]
    logger.info("transformers %s read %s", transformers.__version__, path)
    return hidden_TD, head, str(transformers.__version__)
