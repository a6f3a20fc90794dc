"""`sash eval`: measure a model: how well it predicts a text, what it still knows of it, is it what others compute."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sash import hub
from sash.cli import eval_recall, eval_windows
from sash.cli import eval_retrieval as retrieval
from sash.cli import model_options as options
from sash.cli.group import verb_app
from sash.cli.live_text import check_file, read_pieces
from sash.cli.live_tokens import encode_live
from sash.cli.reading_bar import ReadingBar
from sash.cli.remembering import Remembering
from sash.cli.sizes import parse_tokens
from sash.cli.window_words import ablation_note, window_json, windows_by_layer
from sash.errors import EmptyPromptError
from sash.explain.labels import table

if TYPE_CHECKING:
    from sash.evaluation.perplexity import Perplexity
    from sash.lm import LM

app = verb_app()

Text = Annotated[str, typer.Option("--text", metavar="FILE", help="The text; - is standard input.")]
Json = Annotated[bool, typer.Option("--json", help="Print a JSON object.")]

RANDOM_SEED = 0


@app.callback(invoke_without_command=True)
def overview(context: typer.Context) -> None:
    """Measure a model: perplexity, what it still knows at a distance, parity with transformers."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def read_ids(lm: LM, text: str, most: int | None) -> list[int]:
    """The tokens of a text, no more than `most`; what comes after them is not read.

    Raises:
        EmptyPromptError: there are none.
        InputNotFoundError, TextEncodingError: a text that cannot be read.
    """
    parts = encode_live(lm.tokenizer, read_pieces(text))
    ids = list(itertools.islice(itertools.chain.from_iterable(parts), most))
    if not any(token_id not in lm.tokenizer.control_ids for token_id in ids):
        raise EmptyPromptError(f"{text} is empty: give a text to measure with")
    return ids


@app.command(name="perplexity")
def perplexity_command(
    model: options.Model,
    text: Text,
    max_tokens: Annotated[
        str | None, typer.Option("-n", "--max-tokens", metavar="N", help="Read the first N tokens only.")
    ] = None,
    window: options.Window = None,
    pins: options.Pins = "0",
    overlap: options.Overlap = None,
    hierarchy: options.Hierarchy = None,
    recall: options.Recall = None,
    chunk: options.Chunk = "512",
    dtype: options.Dtype = None,
    weights: options.Weights = "auto",
    kv: options.KV = "auto",
    device: options.Device = "cpu",
    threads: options.Threads = None,
    as_json: Json = False,
) -> None:
    """Measure how well a model predicts a text, read once through its rolling buffer."""
    most = None if max_tokens is None else parse_tokens(max_tokens)
    size, n_pins = options.parse_view(window, pins)
    Remembering.of(overlap, hierarchy, recall, window=size, pins=n_pins)
    check_file(text)
    lm = options.load_lm(
        model, window=window, pins=pins, chunk=chunk, dtype=dtype, device=device, threads=threads, kv=kv,
        weights=weights, overlap=overlap, hierarchy=hierarchy, recall=recall,
    )  # fmt: skip
    from sash.evaluation.perplexity import perplexity

    ids = read_ids(lm, text, most)
    with ReadingBar(len(ids), None) as bar:
        found = perplexity(lm, ids, progress=bar.advance)
    if as_json:
        data: dict[str, Any] = {"model": model, "text": text} | found.to_json()
        data |= {"dtype": str(lm.dtype).removeprefix("torch."), "kv_dtype": lm.kv_dtype}
        data |= {"window": window_json(lm.config), "overlap": None if lm.overlap is None else asdict(lm.overlap)}
        data["hierarchy"] = None if lm.config.hierarchy is None else asdict(lm.config.hierarchy)
        data["recall"] = None if lm.recall is None else {**asdict(lm.recall), "slots": lm.config.n_annex}
        typer.echo(json.dumps(data, indent=2, ensure_ascii=False))
        return
    _draw_perplexity(lm, found)


def _draw_perplexity(lm: LM, found: Perplexity) -> None:
    bits = found.bits_per_byte
    rows = [
        ["perplexity", f"{found.perplexity:,.4f}"],
        ["mean NLL", f"{found.nll:.4f} nats a token"],
        ["bits per byte", "-" if bits is None else f"{bits:.4f}"],
        ["tokens", f"{found.n_tokens:,}"],
        ["window", windows_by_layer(lm.config)],
    ]
    rows += [["keys and values", lm.kv_dtype]] if lm.kv != "auto" else []
    n_pins = max(pattern.pins for pattern in lm.config.patterns)
    rows += [["pins", f"{n_pins:,}"]] if n_pins else []
    summed = lm.config.hierarchy
    if summed is not None:
        rows += [
            [
                "summaries",
                f"{summed.per_level:,} of {summed.block:,} tokens, {summed.per_level:,} of twice as many, ...",
            ]
        ]
    if lm.recall is not None:
        rows += [["recall", f"{lm.config.n_annex:,} slots a layer, blocks of {lm.recall.block} tokens"]]
    if lm.overlap is not None:
        again = f"at most {lm.overlap.window:,} tokens a reading, {lm.overlap.stride:,} of them new"
        rows += [["overlap", f"{again}: {found.reads_a_token:.2f} tokens read for each one predicted"]]
    typer.echo("\n".join(table(rows, right=[False, False])))
    note = ablation_note(lm.config)
    if note is not None:
        typer.echo(note)
    typer.echo(f"{found.n_read:,} tokens read in {found.seconds:.2f} s, {found.speed:,.1f} tok/s", err=True)


@app.command(name="parity")
def parity_command(
    model: options.Model,
    text: Annotated[
        str | None, typer.Option("--text", metavar="FILE", help="The text; without it, tokens drawn at random.")
    ] = None,
    max_tokens: Annotated[str, typer.Option("-n", "--max-tokens", metavar="N", help="Tokens to read.")] = "512",
    chunk: options.Chunk = "512",
    threads: options.Threads = None,
    as_json: Json = False,
) -> None:
    """Compare with transformers, where it is installed, on the same files: every logit, in float32."""
    most = parse_tokens(max_tokens)
    if text is not None:
        check_file(text)
    options.obtain(model)
    path = hub.resolve(model)
    from sash.evaluation.parity import check_comparable, parity

    check_comparable(path)
    lm = options.load_lm(model, chunk=chunk, dtype="float32", threads=threads)
    ids = _random_ids(lm, most) if text is None else read_ids(lm, text, most)
    with ReadingBar(len(ids), None) as bar:
        found = parity(lm, path, ids, progress=bar.advance)
    if as_json:
        typer.echo(json.dumps({"model": model, "text": text} | found.to_json(), indent=2, ensure_ascii=False))
        return
    rows = [
        ["tokens", f"{found.n_tokens:,} ({text or 'drawn at random'}), {found.vocab_size:,} logits each"],
        ["largest difference", f"{found.max_difference:.2e}"],
        ["mean difference", f"{found.mean_difference:.2e}"],
        ["same likeliest token", f"{100 * found.argmax_agreement:.2f}% of positions"],
        ["mean NLL, Sash", f"{found.nll:.6f}"],
        [f"mean NLL, transformers {found.transformers}", f"{found.nll_other:.6f}"],
    ]
    typer.echo("\n".join(table(rows, right=[False, False])))


def _random_ids(lm: LM, count: int) -> list[int]:
    """Begin-of-text where the model has it, then tokens that are text, always the same."""
    plain = [token_id for token_id in range(lm.tokenizer.vocab_size) if token_id not in lm.tokenizer.control_ids]
    plain = [token_id for token_id in plain if token_id < lm.config.vocab_size]
    bos = [] if lm.tokenizer.bos_id is None else [lm.tokenizer.bos_id]
    return [*bos, *random.Random(RANDOM_SEED).choices(plain, k=count)][:count]


app.command(name="passkey")(retrieval.passkey_command)
app.command(name="needles")(retrieval.needles_command)
app.command(name="distance")(retrieval.distance_command)
app.command(name="influence")(eval_windows.influence_command)
app.command(name="ablate")(eval_windows.ablate_command)
app.command(name="positions")(eval_windows.positions_command)
app.command(name="recall")(eval_recall.recall_command)
app.command(name="methods")(retrieval.methods_command)
