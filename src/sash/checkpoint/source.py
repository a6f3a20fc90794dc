"""One face over every layout of a model on disk: which files there are, which tensors, and how to read one.

Layouts: a Hugging Face folder (`config.json` with `model.safetensors`, or with shards and their index), a
Mistral-native folder (`params.json` with `consolidated*.safetensors`), a GGUF file or a folder that holds one, a folder
of packed weights that `sash quantize` wrote (`sash.json` with `model.safetensors`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sash.checkpoint import header
from sash.checkpoint.binary_file import BinaryFile
from sash.checkpoint.gguf import GgufFile
from sash.checkpoint.json_object import read_object
from sash.checkpoint.refusals import PICKLES, pickle_error, unrecognised
from sash.checkpoint.safetensors import SafetensorsFile
from sash.checkpoint.stored import StoredTensor, quoted
from sash.errors import CheckpointError, ModelNotFoundError

if TYPE_CHECKING:
    from types import TracebackType

    import torch
    from torch import Tensor

logger = logging.getLogger(__name__)

Kind = Literal["huggingface", "mistral", "gguf", "sash"]

MAX_CONFIG_BYTES = 2**20
MAX_CONFIG_VALUES = 100_000
MAX_INDEX_BYTES = 16 * 2**20
MAX_INDEX_VALUES = 200_000
MAX_SHARDS = 1_024

_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,199}\.safetensors")
_NUMBERED = re.compile(r"consolidated[.-](\d{1,5})-of-(\d{1,5})\.safetensors")


class Checkpoint:
    """A model on disk: its configuration and its tensors. A context manager.

    Attributes:
        kind: the layout.
        path: the folder or file that was opened.
        config: `config.json`, `params.json`, `sash.json`, or the metadata of the GGUF file.
    """

    __slots__ = ("_files", "_tensors", "config", "kind", "path")

    def __init__(
        self,
        *,
        kind: Kind,
        path: Path,
        config: Mapping[str, object],
        files: Iterable[BinaryFile],
        tensors: Mapping[str, tuple[BinaryFile, StoredTensor]],
    ) -> None:
        self.kind: Kind = kind
        self.path = path
        self.config = config
        self._tensors = tensors
        self._files = tuple(files)

    def names(self) -> frozenset[str]:
        """Names of all tensors, as the files spell them."""
        return frozenset(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, in torch's order. Raises CheckpointError where there is no such tensor."""
        return self._entry(name)[1].shape

    def dtype_name(self, name: str) -> str:
        """Storage type of a tensor: "BF16", "F32", "Q4_K". Raises CheckpointError where there is no such tensor."""
        return self._entry(name)[1].dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors on disk."""
        return sum(stored.nbytes for _, stored in self._tensors.values())

    @property
    def n_parameters(self) -> int:
        """Values in all tensors; one that is stored twice counts twice, and tables that are no weights count too."""
        return sum(stored.n_elements for _, stored in self._tensors.values())

    @property
    def main_dtype_name(self) -> str:
        """The storage type that most of its values have; "BF16" where there are none."""
        sizes: dict[str, int] = {}
        for name in self.names():
            kind = self.dtype_name(name)
            sizes[kind] = sizes.get(kind, 0) + prod(self.shape(name))
        return max(sizes, key=lambda kind: sizes[kind], default="BF16")

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """Read a tensor.

        Args:
            name: one of `names()`.
            dtype: of the result. None, or the type it is stored in: a view of the mapped file, which stays mapped as
                long as the tensor lives; writing to it changes this process's copy only, which all such views share.
                Any other: a fresh tensor, converted from the file slice by slice. Quantised tensors are float32 by
                default.

        Returns:
            The tensor, of `shape(name)`.

        Raises:
            CheckpointError: there is no such tensor, or the file changed since it was opened.
            UnsupportedError: a quantisation that is not read.
        """
        from sash.checkpoint.reading import read_tensor

        file, stored = self._entry(name)
        return read_tensor(file, stored, dtype)

    def read_rows(self, name: str, first: int, count: int) -> Tensor:
        """Some rows of a tensor as float32, [count, last dimension]; all dimensions but the last count as one.

        Raises:
            CheckpointError: there is no such tensor, it has no such rows, or the file changed since it was opened.
            UnsupportedError: a quantisation that is not read.
        """
        from sash.checkpoint.reading import read_rows

        file, stored = self._entry(name)
        return read_rows(file, stored, first, count)

    def read_row_bytes(self, name: str, first: int, count: int) -> Tensor:
        """The bytes of some rows of a tensor as they are stored, uint8 [count, bytes a row]; see `read_rows`."""
        from sash.checkpoint.reading import read_row_bytes

        file, stored = self._entry(name)
        return read_row_bytes(file, stored, first, count)

    def close(self) -> None:
        """Let go of the files. Tensors that were read stay valid."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _entry(self, name: str) -> tuple[BinaryFile, StoredTensor]:
        try:
            return self._tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.path} holds no tensor {quoted(name)}: it belongs to another model") from None


def open_checkpoint(path: Path) -> Checkpoint:
    """Recognise the layout at `path`, read its configuration and tables, and check them against the files.

    Args:
        path: a model's folder, or a `.gguf` file.

    Raises:
        ModelNotFoundError: nothing is there.
        CheckpointError: a file that belongs to the layout is missing, broken, or contradicts another.
        UnsupportedError: pickled weights, or a format that Sash does not read.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise ModelNotFoundError(f"there is no {path}: give a model's folder or a .gguf file")
        if not path.is_dir():
            return _open_file(path)
        files = {entry.name for entry in path.iterdir()}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot look into {quoted(str(path))}: {error}") from error
    if header.FILE in files:
        return _open_shards("sash", path, header.read_header(path), [header.WEIGHTS_FILE])
    if "config.json" in files and files & {"model.safetensors", "model.safetensors.index.json"}:
        return _open_huggingface(path, files)
    consolidated = sorted(name for name in files if re.fullmatch(r"consolidated([.-].*)?\.safetensors", name))
    if "params.json" in files and consolidated:
        return _open_mistral(path, consolidated)
    ggufs = sorted(name for name in files if name.lower().endswith(".gguf"))
    if len(ggufs) == 1:
        return _open_gguf(path / ggufs[0])
    raise unrecognised(path, files, ggufs)


def _open_file(path: Path) -> Checkpoint:
    suffix = path.suffix.lower()
    if suffix in PICKLES:
        raise pickle_error(path)
    if suffix == ".safetensors":
        raise CheckpointError(f"{path} holds weights without a configuration: give the folder that it belongs to")
    return _open_gguf(path)


def _open_gguf(path: Path) -> Checkpoint:
    gguf = GgufFile.open(path)
    tensors = {name: (gguf.file, stored) for name, stored in gguf.tensors.items()}
    return Checkpoint(kind="gguf", path=path, config=gguf.metadata, files=(gguf.file,), tensors=tensors)


def _open_huggingface(path: Path, files: set[str]) -> Checkpoint:
    config = read_object(path / "config.json", max_bytes=MAX_CONFIG_BYTES, max_values=MAX_CONFIG_VALUES)
    if "model.safetensors" in files:
        return _open_shards("huggingface", path, config, ["model.safetensors"])
    weight_map = _weight_map(path / "model.safetensors.index.json")
    return _open_shards("huggingface", path, config, sorted(set(weight_map.values())), weight_map)


def _open_mistral(path: Path, consolidated: list[str]) -> Checkpoint:
    config = read_object(path / "params.json", max_bytes=MAX_CONFIG_BYTES, max_values=MAX_CONFIG_VALUES)
    shards = ["consolidated.safetensors"] if "consolidated.safetensors" in consolidated else consolidated
    numbers = [match for match in map(_NUMBERED.fullmatch, shards) if match]
    if numbers:
        total, present = int(numbers[0][2]), {int(match[1]) for match in numbers}
        first = 0 if 0 in present else 1
        missing = set(range(first, first + min(total, MAX_SHARDS))) - present
        if missing:
            raise CheckpointError(f"{path} lacks part {min(missing)} of the {total} of its weights: download it again")
    return _open_shards("mistral", path, config, shards)


def _open_shards(
    kind: Kind,
    path: Path,
    config: Mapping[str, object],
    shards: list[str],
    weight_map: Mapping[str, str] | None = None,
) -> Checkpoint:
    """Open all files of weights; no tensor may be in two. With a `weight_map`, only what it lists, where it says."""
    if len(shards) > MAX_SHARDS:
        raise CheckpointError(f"{path} has its weights in {len(shards)} files; at most {MAX_SHARDS} are read")
    tensors: dict[str, tuple[BinaryFile, StoredTensor]] = {}
    opened: list[BinaryFile] = []
    try:
        for shard in shards:
            part = SafetensorsFile.open(path / shard)
            opened.append(part.file)
            for name, stored in part.tensors.items():
                if name in tensors:
                    raise CheckpointError(f"tensor {quoted(name)} is in two files of {path}: remove the one left over")
                tensors[name] = (part.file, stored)
        if weight_map is not None:
            tensors = _select(path, tensors, weight_map)
    except BaseException:
        for file in opened:
            file.close()
        raise
    return Checkpoint(kind=kind, path=path, config=config, files=opened, tensors=tensors)


def _weight_map(path: Path) -> dict[str, str]:
    """Which file each tensor is in; file names are bare names that cannot lead out of the folder."""
    index = read_object(path, max_bytes=MAX_INDEX_BYTES, max_values=MAX_INDEX_VALUES)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map that says which tensor is in which file")
    for name, shard in weight_map.items():
        if isinstance(shard, str) and Path(shard).suffix.lower() in PICKLES:
            raise pickle_error(path.parent)
        if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
            shown = quoted(shard) if isinstance(shard, str) else "something else"
            raise CheckpointError(
                f"{path} says that tensor {quoted(name)} is in {shown}: only .safetensors files beside it are read"
            )
    return weight_map


def _select(
    path: Path, tensors: dict[str, tuple[BinaryFile, StoredTensor]], weight_map: Mapping[str, str]
) -> dict[str, tuple[BinaryFile, StoredTensor]]:
    """The tensors that the index lists, each where the index says that it is."""
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name][0].path.name != shard:
            raise CheckpointError(
                f"the index of {path} says that tensor {quoted(name)} is in {shard}, and it is not: "
                "download the model again"
            )
    extra = len(tensors) - len(weight_map)
    if extra:
        logger.warning("%s: %d tensors that the index does not list are left out", path, extra)
    return {name: tensors[name] for name in weight_map}
