"""What comes with weights: the tokenizer, and the licence. Needs no torch."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Literal

from sash import hub
from sash.checkpoint.gguf import GgufFile
from sash.checkpoint.header import Header
from sash.checkpoint.source import Checkpoint
from sash.text import mistral
from sash.text.opening import from_folder, from_gguf
from sash.text.tokenizer import Tokenizer

TOKENIZER_GGUF = "tokenizer.gguf"
TOKENIZER_MODEL = "tokenizer.model"

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
)  # fmt: skip
_ENDS_FILE = "generation_config.json"
_LICENCES = re.compile(r"(?i).*(licen[cs]e|notice|terms|use_policy|copying)[^/]*")
_CARD = "README.md"
_CARD_BYTES = 1 << 14
_MAX_LICENCE_BYTES = 4 << 20

TokenizerKind = Literal["gguf", "mistral", "folder"]


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of any checkpoint.

    Raises:
        TokenizerError: it is missing or broken.
        CheckpointError: a quantised folder lacks the file that it says its tokenizer is in.
    """
    if checkpoint.kind == "gguf":
        return from_gguf(checkpoint.config)
    if checkpoint.kind != "sash":
        return from_folder(checkpoint.path)
    kind = Header.from_json(checkpoint.config).origin.tokenizer
    if kind == "gguf":
        gguf = GgufFile.open(checkpoint.path / TOKENIZER_GGUF)
        gguf.close()
        return from_gguf(gguf.metadata)
    if kind == "mistral":
        return mistral.MistralTokenizer(checkpoint.path / TOKENIZER_MODEL)
    return from_folder(checkpoint.path)


def copy_tokenizer(checkpoint: Checkpoint, target: Path) -> TokenizerKind:
    """Copy the tokenizer's files into a folder, and tell where it is in there, as `Origin.tokenizer` says it.

    Of a GGUF file that is all its metadata, in a GGUF file without tensors.

    Raises:
        TokenizerError: there is none that can be read.
        OSError: a file cannot be written.
    """
    tokenizer = tokenizer_of(checkpoint)
    if checkpoint.kind == "gguf":
        gguf = GgufFile.open(checkpoint.path)
        try:
            (target / TOKENIZER_GGUF).write_bytes(gguf.without_tensors())
        finally:
            gguf.close()
        return "gguf"
    own = mistral.find_file(checkpoint.path)
    if own is not None:
        shutil.copyfile(own, target / own.name)
        return "mistral" if own.name == TOKENIZER_MODEL else "folder"
    for name in _TOKENIZER_FILES:
        if (checkpoint.path / name).is_file():
            shutil.copyfile(checkpoint.path / name, target / name)
    # Ends of texts may stand in config.json, which is not copied: it would describe other weights.
    (target / _ENDS_FILE).write_text(json.dumps({"eos_token_id": sorted(tokenizer.eos_ids)}), encoding="utf-8")
    return "folder"


def copy_licence(checkpoint: Checkpoint, target: Path) -> None:
    """Copy files that are named as licences and their notices are, and a folder's card.

    Raises:
        OSError: a file cannot be written.
    """
    is_folder = checkpoint.path.is_dir()
    for path in sorted((checkpoint.path if is_folder else checkpoint.path.parent).iterdir()):
        named = _LICENCES.fullmatch(path.name) or (is_folder and path.name == _CARD)
        if named and path.is_file() and path.stat().st_size <= _MAX_LICENCE_BYTES:
            shutil.copyfile(path, target / path.name)


def licence_of(checkpoint: Checkpoint) -> str | None:
    """The licence by the store's manifest, the file's own metadata, or the card beside it, in this order."""
    if checkpoint.kind == "sash":
        return Header.from_json(checkpoint.config).origin.licence
    for model in hub.installed():
        if model.path == checkpoint.path:
            return model.licence
    stated = checkpoint.config.get("general.license")
    if isinstance(stated, str) and stated.strip():
        return " ".join(stated.split())[:80]
    card = (checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent) / _CARD
    try:
        with card.open("rb") as file:
            head = file.read(_CARD_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return None
    match = re.match(r"---\n(?:.*\n)*?license:[ \t]*([\w.+-]{1,80})", head)
    return match[1] if match else None
