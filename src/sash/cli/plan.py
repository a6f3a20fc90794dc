"""`sash plan`: whether a model fits, weights and keys and values together, full against rolling."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from sash.cli.known_model import ITEMSIZE, Dtype, KnownModel, look_up, parse_dtype
from sash.cli.sizes import parse_size, parse_window
from sash.errors import DoesNotFitError, UnsupportedError, UsageError
from sash.explain.budget import binary
from sash.explain.labels import table
from sash.memory import available_memory
from sash.network.config import ModelConfig
from sash.network.shapes import n_parameters
from sash.network.sizing import KV_BYTES, check_kv, kv_bytes, kv_numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a model and its caches take. All sizes in bytes.

    Attributes:
        config: the model, a forced window included.
        dtype: of weights.
        kv: of keys and values: "int8", or as `dtype` has it.
        context: tokens of each sequence.
        batch: sequences at once.
        weights: of the whole model.
        kv_rolling: of all sequences, with the model's windows.
        kv_full: of all sequences, if every layer kept everything.
        available: memory that can be had; None where the system does not say.
    """

    config: ModelConfig
    dtype: Dtype
    kv: str
    context: int
    batch: int
    weights: int
    kv_rolling: int
    kv_full: int
    available: int | None

    def fits(self, kv: int) -> bool | None:
        """Whether weights and `kv` bytes of cache fit; None where that is not known."""
        return None if self.available is None else self.weights + kv <= self.available

    def to_json(self) -> dict[str, Any]:
        """All sizes in bytes."""
        columns = {
            name: {"kv_bytes": kv, "total_bytes": self.weights + kv, "fits": self.fits(kv)}
            for name, kv in (("full", self.kv_full), ("rolling", self.kv_rolling))
        }
        return {
            "parameters": n_parameters(self.config),
            "dtype": self.dtype,
            "kv_dtype": self.kv,
            "context": self.context,
            "batch": self.batch,
            "windows": list(self.config.windows),
            "forced_window": self.config.forced_window,
            "weights_bytes": self.weights,
            **columns,
            "available_bytes": self.available,
        }


def make_plan(config: ModelConfig, context: int, batch: int, dtype: Dtype, kv: str = "auto") -> Plan:
    """The plan for `batch` sequences of `context` tokens each; `kv` as `sash.load` has it.

    Raises:
        UsageError: no tokens, no sequences, or a `kv` that is not known.
    """
    if context < 1:
        raise UsageError(f"--context counts tokens, so it is 1 or more; got {context}")
    if batch < 1:
        raise UsageError(f"--batch counts sequences, so it is 1 or more; got {batch}")
    check_kv(kv, "--kv")
    numbers = kv_numbers(kv, dtype)
    return Plan(
        config=config,
        dtype=dtype,
        kv=numbers,
        context=context,
        batch=batch,
        weights=n_parameters(config) * ITEMSIZE[dtype],
        kv_rolling=batch * kv_bytes(config, context, *KV_BYTES[numbers]),
        kv_full=batch * kv_bytes(config.with_window("full"), context, *KV_BYTES[numbers]),
        available=available_memory(),
    )


def draw_plan(plan: Plan, name: str) -> str:
    """The plan as a table for people."""
    verdicts = {True: "fits", False: "does not fit", None: "?"}
    kvs = (plan.kv_full, plan.kv_rolling)
    sequences = f"{plan.batch} x {plan.context:,}"
    rows = [
        ["", "full cache", "rolling buffer"],
        [f"weights, {plan.dtype}", *(binary(plan.weights) for _ in kvs)],
        [f"KV, {sequences} tokens, {plan.kv}", *(binary(kv) for kv in kvs)],
        ["total", *(binary(plan.weights + kv) for kv in kvs)],
        ["", *(verdicts[plan.fits(kv)] for kv in kvs)],
    ]
    lines = [f"{name}: {n_parameters(plan.config):,} parameters", *table(rows, right=[False, True, True])]
    lines.append("available: " + ("unknown" if plan.available is None else binary(plan.available)))
    lines.append("weights and cache only: reading takes some working memory on top")
    if plan.config.window is None:
        lines.append("no layer has a window, so the rolling buffer saves nothing")
    if plan.config.forced_window is not None:
        lines.append(f"--window {plan.config.forced_window} is an ablation: the model was not trained so")
    return "\n".join(lines)


def _decoder(model: KnownModel) -> ModelConfig:
    if not isinstance(model.config, ModelConfig):
        raise UnsupportedError(f"{model.name} is an encoder and keeps no cache: plan is for models that write")
    return model.config


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model's name, folder or GGUF file, or mistral-7b.")],
    context: Annotated[str, typer.Option("--context", metavar="N", help="Tokens of a sequence, e.g. 128K.")] = "32K",
    batch: Annotated[str, typer.Option("--batch", metavar="N", help="Sequences at once.")] = "1",
    dtype: Annotated[str | None, typer.Option("--dtype", help="auto, float32, float16 or bfloat16.")] = None,
    window: Annotated[str | None, typer.Option("--window", metavar="N|full", help="Force a window.")] = None,
    pins: Annotated[str, typer.Option("--pins", metavar="N", help="First positions that stay visible.")] = "0",
    kv: Annotated[str, typer.Option("--kv", help="What the cache keeps: auto (as computed), bf16 or int8.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object, sizes in bytes.")] = False,
) -> int:
    """Tell whether a model fits: weights and KV, full against rolling. Exits with 3 where it does not."""
    known = look_up(model)
    config = _decoder(known).with_window(parse_window(window), parse_size(pins, "--pins"))
    sizes = parse_size(context, "--context"), parse_size(batch, "--batch")
    plan = make_plan(config, *sizes, parse_dtype(dtype, known.dtype), kv)
    typer.echo(json.dumps({"model": model} | plan.to_json(), indent=2) if as_json else draw_plan(plan, model))
    return DoesNotFitError.exit_code if plan.fits(plan.kv_rolling) is False else 0
