"""Folders of packed weights: written part by part, read back in place.

What is written appears whole or not at all: in a folder beside the wanted one first, which then gets its name. What is
read is mapped: no part is copied, and nothing is believed before it agrees with the configuration and the file's size.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from sash.checkpoint.companions import copy_licence, copy_tokenizer, licence_of
from sash.checkpoint.config_json import read_typed
from sash.checkpoint.header import FILE, WEIGHTS_FILE, Header, Origin
from sash.checkpoint.packed_parts import PartPlan, plan_parts, source_digest
from sash.checkpoint.reading import PLAIN
from sash.checkpoint.source import Checkpoint
from sash.errors import (
    CheckpointError,
    ConfigError,
    DiskFullError,
    InputNotFoundError,
    UnsupportedError,
    UsageError,
    is_disk_full,
)
from sash.families import Description
from sash.hub import size_text
from sash.hub.store import SPARE_BYTES
from sash.kernels.packed import PackedForm, PackedWeight
from sash.network.parts import Weights, parts_of

ALIGNMENT = 64
"""Tensors begin at multiples of so many bytes, as far as their sizes allow."""

Parts = dict[str, PackedWeight | Tensor]

_NAMES = {dtype: name for name, dtype in PLAIN.items()}


def save_quantized(
    checkpoint: Checkpoint,
    description: Description,
    target: Path,
    *,
    weights: Weights,
    group: int | None = None,
    name: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Header:
    """Quantise a checkpoint into a folder that holds all that is needed to run it.

    Args:
        checkpoint: open; its weights are read part by part.
        description: what it holds.
        target: a folder that does not exist yet, or is empty.
        weights, group: see `sash.checkpoint.packed_parts`.
        name: what the model is called, for people.
        progress: called with the values done and all values, after each part.

    Returns:
        What the folder says of itself.

    Raises:
        UsageError: `target` holds something, or arguments that cannot be.
        UnsupportedError: the checkpoint is quantised by Sash already, or no decoder.
        CheckpointError: it is broken.
        DiskFullError: no room; nothing is left of what was written.
    """
    if checkpoint.kind == "sash":
        raise UnsupportedError(f"{checkpoint.path} is quantised already: give the model that it was made from")
    plans = plan_parts(checkpoint, description, weights, group)
    with whole_folder(target, sum(plan.nbytes for plan in plans)) as work:
        origin = Origin(
            name=name or checkpoint.path.name,
            tensors_sha256=source_digest(checkpoint),
            licence=licence_of(checkpoint),
            tokenizer=copy_tokenizer(checkpoint, work),
        )
        copy_licence(checkpoint, work)
        parts = {plan.name: asdict(plan.form) for plan in plans if plan.form is not None}
        header = Header(weights=weights, origin=origin, config=description.decoder, parts=parts)
        write_packed(work, header, plans, progress)
    return header


def write_packed(
    work: Path,
    header: Header,
    plans: list[PartPlan],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write what a folder says of itself, and its weights, each part as its plan makes it.

    Args:
        work: the folder, which is there; see `whole_folder`.
        header: of the same parts.
        plans: all parts.
        progress: as in `save_quantized`.
    """
    (work / FILE).write_text(json.dumps(header.to_json(), indent=1), encoding="utf-8")
    with (work / WEIGHTS_FILE).open("wb") as file:
        _write_weights(file, plans, progress)
        file.flush()
        os.fsync(file.fileno())


def read_parts(checkpoint: Checkpoint) -> Parts:
    """The parts of a quantised folder, in place: they view the mapped file, which stays mapped while they live.

    Raises:
        CheckpointError: the file does not hold what the configuration asks for.
        ConfigError: a configuration that cannot be.
    """
    header = Header.from_json(checkpoint.config)
    forms = _forms(header)
    _check_tensors(checkpoint, _expected(header, forms))
    found: Parts = {}
    for name in parts_of(header.config):
        form = forms.get(name)
        if form is None:
            found[name] = checkpoint.read(name).clone()
        else:
            parts = {part: _aligned(checkpoint.read(f"{name}.{part}")) for part in form.tensors()}
            found[name] = PackedWeight.of(form, parts)
    return found


def nbytes_of(checkpoint: Checkpoint) -> int:
    """Bytes of a quantised folder's parts, once they have been checked against the file.

    Raises:
        CheckpointError, ConfigError: as `read_parts`.
    """
    header = Header.from_json(checkpoint.config)
    expected = _expected(header, _forms(header))
    _check_tensors(checkpoint, expected)
    return sum(dtype.itemsize * prod(shape) for dtype, shape in expected.values())


def _forms(header: Header) -> dict[str, PackedForm]:
    """How each packed part is packed, checked against the network."""
    wanted = {name: part for name, part in parts_of(header.config).items() if part.join != "plain"}
    odd = sorted(set(wanted) ^ set(header.parts))
    if odd:
        raise CheckpointError(f"{FILE} does not describe the parts of its network: see {odd[0][:80]!a}")
    forms = {}
    for name, part in wanted.items():
        try:
            form: PackedForm = read_typed(PackedForm, header.parts[name], name)
        except ConfigError as error:
            raise CheckpointError(f"{FILE} is broken: {error}") from error
        if (form.n, form.k) != (part.n, part.k):
            raise CheckpointError(f"{FILE} has {name} as {form.n} x {form.k}, and its network as {part.n} x {part.k}")
        forms[name] = form
    return forms


def _expected(header: Header, forms: Mapping[str, PackedForm]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of every tensor that the file should hold."""
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name, part in parts_of(header.config).items():
        if part.join == "plain":
            expected[name] = (torch.float32, part.shape)
        else:
            expected |= {f"{name}.{tensor}": form for tensor, form in forms[name].tensors().items()}
    return expected


def _check_tensors(checkpoint: Checkpoint, expected: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
    odd = sorted(checkpoint.names() ^ set(expected))
    if odd:
        state = "lacks" if odd[0] in expected else "has a tensor that does not belong there,"
        raise CheckpointError(f"{checkpoint.path / WEIGHTS_FILE} {state} {odd[0][:80]!a}: quantise the model again")
    for name, (dtype, shape) in expected.items():
        stored = (checkpoint.dtype_name(name), checkpoint.shape(name))
        if stored != (_NAMES[dtype], shape):
            raise CheckpointError(
                f"tensor {name} of {checkpoint.path / WEIGHTS_FILE} is {stored[0]} {list(stored[1])}, "
                f"and should be {_NAMES[dtype]} {list(shape)}: quantise the model again"
            )


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor itself where kernels can read it in place, else a copy."""
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def _write_weights(file: IO[bytes], plans: list[PartPlan], progress: Callable[[int, int], None]) -> None:
    """The safetensors file: a header that says where each tensor will be, then each part at its place."""
    offsets, entries, end = {}, {}, 0
    for name, (dtype, shape) in _in_order(plans):
        nbytes = dtype.itemsize * prod(shape)
        entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [end, end + nbytes]}
        offsets[name] = end
        end += nbytes
    text = json.dumps({"__metadata__": {"format": "sash"}, **entries}, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    done, total = 0, sum(plan.n_values for plan in plans)
    for plan in plans:
        made = plan.make()
        tensors = (
            {f"{plan.name}.{name}": part for name, part in made.tensors().items()}
            if isinstance(made, PackedWeight)
            else {plan.name: made}
        )
        for name, tensor in tensors.items():
            file.seek(8 + len(text) + offsets[name])
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
        done += plan.n_values
        progress(done, total)


def _in_order(plans: list[PartPlan]) -> list[tuple[str, tuple[torch.dtype, tuple[int, ...]]]]:
    """All tensors; those whose sizes are no multiple of the alignment come last, so that the others stay aligned."""
    tensors = [item for plan in plans for item in plan.tensors().items()]
    return sorted(tensors, key=lambda item: item[1][0].itemsize * prod(item[1][1]) % ALIGNMENT != 0)


@contextmanager
def whole_folder(target: Path, nbytes: int) -> Iterator[Path]:
    """A folder to write into, which becomes `target` once all is written, and vanishes if anything fails."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} is there already: name a folder that does not exist yet, or remove it")
    _check_writable(target)
    free = shutil.disk_usage(target.parent).free
    if free < nbytes + SPARE_BYTES:
        raise DiskFullError(
            f"{size_text(nbytes)} are needed in {target.parent} and {size_text(free)} are free: make room, "
            "or name a folder on another disk"
        )
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        work.chmod(0o777 & ~_umask())
        yield work
        work.replace(target)
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise DiskFullError(
            f"the disk of {target.parent} is full: make room, or name a folder on another disk"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_writable(target: Path) -> None:
    """Make the folder that `target` goes to, and refuse one that takes none."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent).cleanup()
    except OSError as error:
        if is_disk_full(error):
            raise
        raise InputNotFoundError(
            f"{target} cannot be written ({error.strerror}): name a folder where you may write"
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
