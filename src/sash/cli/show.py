"""`sash show`: what a model is, read from the tables of its files: windows, reach, cache, tokenizer, licence."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sash.cli.known_model import KnownModel, look_up
from sash.cli.window_words import windows_by_layer
from sash.errors import TokenizerError
from sash.explain.budget import binary, decimal
from sash.explain.labels import table
from sash.network.config import ModelConfig
from sash.network.encoder_config import encoder_shapes
from sash.network.shapes import n_active_parameters, n_parameters
from sash.network.sizing import KV_BYTES, kv_bytes

if TYPE_CHECKING:
    pass

CONTEXTS = {"4K": 4096, "32K": 32_768, "128K": 131_072}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What the files of a model say beside its configuration.

    Attributes:
        kind: the layout: "huggingface", "mistral", "gguf", or "sash" for a folder of packed weights.
        nbytes: of all tensors.
        dtypes: how many numbers are stored in each type, most first.
        licence: its name; None where nothing says.
        tokenizer: what kind it is; None where there is none that can be read, and `why` says why.
        has_chat: whether there is a chat template.
    """

    kind: str
    nbytes: int
    dtypes: dict[str, int]
    licence: str | None
    tokenizer: str | None
    has_chat: bool
    why: str = ""


def examine(known: KnownModel, path: Path) -> Stored:
    """Read the tables of a model's files; no weights, and no torch.

    Raises:
        CheckpointError: the files are broken.
    """
    from sash.checkpoint.companions import licence_of
    from sash.checkpoint.header import storage_sizes
    from sash.checkpoint.source import open_checkpoint

    with open_checkpoint(path) as checkpoint:
        dtypes: Counter[str] = Counter()
        for name in checkpoint.names():
            dtypes[checkpoint.dtype_name(name)] += prod(checkpoint.shape(name))
        if checkpoint.kind == "sash":
            dtypes = Counter(storage_sizes(checkpoint.config))
        kind, nbytes, licence = checkpoint.kind, checkpoint.nbytes, licence_of(checkpoint)
    tokenizer, has_chat, why = None, False, ""
    try:
        opened = known.tokenizer()
        tokenizer, has_chat = opened.kind, opened.has_chat
    except TokenizerError as error:
        why = str(error)
    return Stored(
        kind=kind,
        nbytes=nbytes,
        dtypes=dict(dtypes.most_common()),
        licence=licence,
        tokenizer=tokenizer,
        has_chat=has_chat,
        why=why,
    )


def cache_sizes(config: ModelConfig, numbers: str) -> dict[str, dict[str, int]]:
    """Bytes of one sequence's keys and values at several lengths, rolling and if every layer kept everything."""
    full, size = config.with_window("full"), KV_BYTES[numbers]
    return {
        name: {"rolling": kv_bytes(config, length, *size), "full": kv_bytes(full, length, *size)}
        for name, length in CONTEXTS.items()
    }


def to_json(known: KnownModel, stored: Stored | None) -> dict[str, Any]:
    """All that is known, as plain values; sizes in bytes."""
    config = known.config
    facts: dict[str, Any] = {
        "model": known.name,
        "path": None if known.path is None else str(known.path),
        "architecture": config.architecture,
        "kind": "decoder" if isinstance(config, ModelConfig) else "encoder",
        "layers": config.n_layers,
        "dim": config.dim,
        "heads": config.n_heads,
        "head_dim": config.head_dim,
        "hidden_dim": config.hidden_dim,
        "vocab_size": config.vocab_size,
        "context": config.context or None,
        "windows": list(config.windows),
        "reach": config.reach,
    }
    if isinstance(config, ModelConfig):
        facts |= {
            "kv_heads": config.n_kv_heads,
            "parameters": n_parameters(config),
            "active_parameters": n_active_parameters(config),
            "kv_dtype": known.dtype,
            "kv_bytes": cache_sizes(config, known.dtype),
            "kv_bytes_int8": cache_sizes(config, "int8"),
        }
    else:
        facts["parameters"] = sum(prod(shape) for shape in encoder_shapes(config).values())
    if stored is not None:
        facts |= {
            "layout": stored.kind,
            "stored_bytes": stored.nbytes,
            "stored_dtypes": stored.dtypes,
            "tokenizer": stored.tokenizer,
            "chat_template": stored.has_chat,
            "licence": stored.licence,
        }
    return facts | {"notes": notes(known)}


def notes(known: KnownModel) -> list[str]:
    """What must be said of a model beside its figures."""
    found = []
    if known.path is None:
        found.append("known by its figures only: there are no files of it here")
    if isinstance(known.config, ModelConfig) and known.config.window is None:
        found.append(
            "this checkpoint has no sliding window; --window N would be an ablation: the model was not trained so"
        )
    return found


def draw(known: KnownModel, stored: Stored | None) -> str:
    """All that is known, for people."""
    facts = to_json(known, stored)
    config = known.config
    heads = (
        f"GQA {config.n_heads}/{config.n_kv_heads}" if isinstance(config, ModelConfig) else f"{config.n_heads} heads"
    )
    parameters = _count(facts["parameters"])
    if facts.get("active_parameters", facts["parameters"]) != facts["parameters"]:
        parameters += f", {_count(facts['active_parameters'])} active a token"
    rows = [
        ["architecture", f"{config.architecture} ({facts['kind']}, {heads}, head {config.head_dim})"],
        ["parameters", f"{parameters} ({facts['parameters']:,})"],
        [
            "layers",
            f"{config.n_layers}, dim {config.dim:,}, hidden {config.hidden_dim:,}, vocabulary {config.vocab_size:,}",
        ],
        ["context", f"trained on {config.context:,} positions" if config.context else "not stated"],
        *_attention_rows(known),
    ]
    if stored is not None:
        rows += [
            ["stored as", f"{_dtypes(stored.dtypes)}; {binary(stored.nbytes)} ({stored.kind})"],
            ["tokenizer", stored.tokenizer or stored.why],
            ["chat template", "yes" if stored.has_chat else "no"],
            ["licence", stored.licence or "not stated"],
        ]
    lines = table(rows, right=[False, False])
    lines += ["", *_cache_table(config, known)] if isinstance(config, ModelConfig) else []
    lines += ["", *notes(known)] if notes(known) else []
    return "\n".join(lines)


def _count(parameters: int) -> str:
    """A number of parameters as people write it: 7.24 B."""
    return decimal(parameters).replace("G", "B")


def _attention_rows(known: KnownModel) -> list[list[str]]:
    config = known.config
    if not isinstance(config, ModelConfig):
        half = config.window // 2
        counts = Counter(config.windows)
        words = ", ".join(f"{size:,} in {count} of {config.n_layers} layers" for size, count in sorted(counts.items()))
        return [
            ["window", words],
            ["", f"W counts both sides and the token itself: query i sees keys i-{half:,} .. i+{half:,}"],
            [
                "reach",
                "everything, through global tokens" if config.reach is None else f"{config.reach:,} to either side",
            ],
        ]
    rows = [["window", windows_by_layer(config)]]
    if config.window is not None:
        back = max(pattern.reach_back or 0 for pattern in config.patterns)
        rows.append(["", f"W counts the token itself: query i sees keys i-{back:,} .. i"])
    if config.reach is not None:
        rows.append(["reach", f"{config.reach:,} positions back through {config.n_layers} layers (at most, in theory)"])
    else:
        rows.append(["reach", "every earlier position, by the full layers"])
    return rows


def _cache_table(config: ModelConfig, known: KnownModel) -> list[str]:
    sizes, small = cache_sizes(config, known.dtype), cache_sizes(config, "int8")
    head = [f"KV cache, {known.dtype}", *(f"{name} tokens" for name in sizes)]
    body = [[kind, *(binary(pair[kind]) for pair in sizes.values())] for kind in ("rolling", "full")]
    body.append(["rolling, int8", *(binary(pair["rolling"]) for pair in small.values())])
    return table([head, *body], right=[False, True, True, True])


def _dtypes(dtypes: dict[str, int]) -> str:
    whole = sum(dtypes.values()) or 1
    return ", ".join(f"{name} {100 * count / whole:.0f}%" for name, count in dtypes.items() if count * 200 >= whole)


def layer_table(known: KnownModel) -> list[str]:
    """A row a layer: its window, its rotary base, its experts."""
    config = known.config
    if not isinstance(config, ModelConfig):
        rows = [[str(number), f"{size:,}"] for number, size in enumerate(config.windows, start=1)]
        return table([["layer", "window"], *rows], right=[True, True])
    rows = [
        [
            str(number),
            "full" if layer.pattern.window is None else f"{layer.pattern.window:,}",
            f"{layer.rope.theta:,.0f}",
            layer.rope.scaling.kind if layer.rope.scaling else "-",
            f"{layer.moe.top_k} of {layer.moe.n_experts}" if layer.moe else "-",
        ]
        for number, layer in enumerate(config.layers, start=1)
    ]
    return table(
        [["layer", "window", "rope base", "scaling", "experts"], *rows], right=[True, True, True, False, False]
    )


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model's name, folder or GGUF file, or mistral-7b.")],
    layers: Annotated[bool, typer.Option("--layers", help="Tell of every layer.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object, sizes in bytes.")] = False,
) -> None:
    """Show a model: architecture, the window of every layer, reach, KV bytes, tokenizer, licence."""
    known = look_up(model)
    stored = None if known.path is None else examine(known, known.path)
    if as_json:
        typer.echo(json.dumps(to_json(known, stored), indent=2, ensure_ascii=False))
        return
    typer.echo(draw(known, stored))
    if layers:
        typer.echo("\n" + "\n".join(layer_table(known)))
