"""Options that `run`, `chat` and `eval` share: which model, how it is loaded, how tokens are chosen."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sash import hub
from sash.attention.pattern import AttentionPattern
from sash.cli.remembering import Remembering
from sash.cli.sizes import parse_size, parse_window
from sash.errors import ModelNotFoundError, UsageError
from sash.explain.presets import PRESETS
from sash.network.parts import check_weights
from sash.network.sizing import check_kv
from sash.sampling import SamplingParams

if TYPE_CHECKING:
    from sash.lm import LM

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model's name, folder or GGUF file.")]
MaxTokens = Annotated[int, typer.Option("-n", "--max-tokens", help="Tokens to write at most.")]
Temperature = Annotated[float, typer.Option("-t", "--temperature", help="0 always takes the likeliest token.")]
TopP = Annotated[float, typer.Option("--top-p", help="Keep the likeliest tokens up to this probability; 1 keeps all.")]
TopK = Annotated[int, typer.Option("--top-k", help="Keep so many of the likeliest tokens; 0 keeps all.")]
MinP = Annotated[float, typer.Option("--min-p", help="Keep tokens this fraction as likely as the likeliest.")]
RepetitionPenalty = Annotated[
    float, typer.Option("--repetition-penalty", help="Above 1, tokens that occurred become less likely.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="The same seed draws the same text.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", metavar="TEXT", help="End the answer here; repeatable.")]
System = Annotated[str | None, typer.Option("-s", "--system", metavar="TEXT", help="The system prompt.")]
SafePrompt = Annotated[
    bool, typer.Option("--safe-prompt", help="Put the guardrail of the Mistral 7B paper in front (section 5.1).")
]
Window = Annotated[
    str | None, typer.Option("--window", metavar="N|full", help="Force a window, the query's own key counted.")
]
Pins = Annotated[str, typer.Option("--pins", metavar="N", help="The first N tokens never slide out.")]
Chunk = Annotated[str, typer.Option("--chunk", metavar="N", help="Tokens of a prompt that are read at once.")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="auto, float32, float16 or bfloat16.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda or mps.")]
Weights = Annotated[
    str,
    typer.Option("--weights", help="What weights are kept as: auto (as they are, if they fit), bf16, int8 or int4."),
]
KV = Annotated[str, typer.Option("--kv", help="What the cache keeps: auto (as computed), bf16 or int8.")]
ApiKey = Annotated[str | None, typer.Option("--api-key", envvar="SASH_API_KEY", help="For a server that asks for one.")]
Overlap = Annotated[
    str | None,
    typer.Option("--overlap", metavar="STRIDE", help="Instead of rolling, read the window anew every STRIDE tokens."),
]
Hierarchy = Annotated[
    int | None,
    typer.Option("--hierarchy", metavar="N", help="Sum up what left the window, N summaries of each doubling size."),
]
Recall = Annotated[
    int | None,
    typer.Option("--recall", metavar="N", help="Bring what left the window back where it is wanted, N slots a layer."),
]
Threads = Annotated[int | None, typer.Option("--threads", help="CPU threads; by default as torch chooses.")]
Speculate = Annotated[
    str | None,
    typer.Option(
        "--speculate",
        metavar="N|lookup|MODEL",
        help="Guess N tokens ahead from the text so far (lookup: 7), or by a smaller MODEL: same answer, sooner.",
    ),
]


def sampling(
    *,
    max_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
    repetition_penalty: float,
    seed: int | None,
    stop: Sequence[str] | None = None,
    logprobs: int | None = None,
    ignore_eos: bool = False,
) -> SamplingParams:
    """Validated parameters. Without a seed one is drawn, so that it can be told and used again.

    Raises:
        UsageError: a value out of its range.
    """
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=secrets.randbits(32) if seed is None else seed,
        stop=tuple(stop or ()),
        logprobs=logprobs,
        ignore_eos=ignore_eos,
    )


def parse_view(window: str | None, pins: str) -> tuple[int | Literal["full"] | None, int]:
    """A window and pins, refused here where no model could have them.

    Raises:
        WindowError, PinsError, UsageError: values that cannot be.
    """
    size, n_pins = parse_window(window), parse_size(pins, "--pins")
    if size is not None or n_pins < 0:
        AttentionPattern(window=None if size == "full" else size, pins=n_pins)
    return size, n_pins


def obtain(name: str) -> None:
    """Make sure that a model is here; one that can be fetched is, after saying its size and licence.

    Raises:
        ModelNotFoundError: neither here nor known.
        SashError: as `hub.pull` does.
    """
    try:
        hub.resolve(name)
    except ModelNotFoundError:
        if name in PRESETS:
            raise ModelNotFoundError(
                f"of {name} only the figures are here (show, plan, explain): name a folder with its weights, or pull"
                " them from the hub by org/name"
            ) from None
        if name not in hub.catalogue() and "/" not in name:
            raise
        from sash.cli.pull import fetch

        fetch(name)


LOADING = {
    "chunk": "512", "dtype": None, "device": "cpu", "threads": None, "kv": "auto", "weights": "auto", "overlap": None,
    "hierarchy": None, "recall": None,
    "speculate": None,
}  # fmt: skip
"""Options that tell how a model is loaded, with what they are unless told."""


def check_unsaid(loading: Mapping[str, object]) -> None:
    """Refuse options of `LOADING`: how its model is loaded is a server's own affair.

    Raises:
        UsageError: one was given.
    """
    for name, value in loading.items():
        if value != LOADING[name]:
            raise UsageError(f"--{name} is decided where the server is started: leave it out")


def load_lm(
    model: str,
    *,
    window: str | None = None,
    pins: str = "0",
    chunk: str = "512",
    dtype: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    kv: str = "auto",
    weights: str = "auto",
    overlap: str | None = None,
    hierarchy: int | None = None,
    recall: int | None = None,
    speculate: str | None = None,
) -> LM:
    """Fetch the model if it is not here, and load it. Imports torch.

    Raises:
        SashError: as `obtain`, `sash.load`, `LM.with_speculation` and `Remembering` do; an encoder is refused.
    """
    size, n_pins = parse_view(window, pins)
    ways = Remembering.of(overlap, hierarchy, recall, window=size, pins=n_pins, speculate=speculate)
    n_chunk = parse_size(chunk, "--chunk")
    if n_chunk < 1:
        raise UsageError(f"--chunk counts tokens, so it is 1 or more; got {n_chunk}")
    if threads is not None and threads < 1:
        raise UsageError(f"--threads counts CPU threads, so it is 1 or more; got {threads}")
    check_kv(kv, "--kv")
    check_weights(weights, "--weights")
    obtain(model)
    from sash.loading import load_decoder

    lm = load_decoder(
        model, window=size, pins=n_pins, chunk=n_chunk, dtype=dtype, device=device, threads=threads, kv=kv,
        weights=weights,
    )  # fmt: skip
    if speculate is not None:
        known = guesses(speculate)
        lm = lm.with_speculation(load_lm(speculate, chunk=chunk, device=device) if known is None else known)
    return ways.over(lm)


def guesses(speculate: str) -> str | int | None:
    """What --speculate names, where it is not a model: "lookup", or how many tokens are guessed.

    >>> guesses("lookup"), guesses("5"), guesses("smollm2-135m-instruct")
    ('lookup', 5, None)
    """
    return "lookup" if speculate == "lookup" else int(speculate) if speculate.isdecimal() else None
