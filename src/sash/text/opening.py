"""Which tokenizer a model has, by the files it comes with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sash.errors import TokenizerError
from sash.text import gguf_vocabulary, huggingface, mistral
from sash.text.tokenizer import Tokenizer


def from_folder(path: Path) -> Tokenizer:
    """The tokenizer of a model folder.

    Mistral's own files come first (`tekken.json`, `tokenizer.model.v*`, and `tokenizer.model` beside a `params.json` or
    a Mistral `config.json`), for only mistral-common encodes chats as those models were trained. Otherwise
    `tokenizer.json` with its `tokenizer_config.json`, `special_tokens_map.json` and `chat_template.jinja`.

    Raises:
        TokenizerError: no tokenizer in the folder, or a broken one.
    """
    mistral_file = mistral.find_file(path)
    if mistral_file is not None:
        return mistral.MistralTokenizer(mistral_file)
    if (path / "tokenizer.json").is_file():
        return huggingface.HuggingFaceTokenizer(path)
    if (path / "tokenizer.model").is_file():
        raise TokenizerError(
            f"{path.name} has a tokenizer.model but no tokenizer.json: add the tokenizer.json of the same model"
        )
    raise TokenizerError(
        f"no tokenizer in {path}: expected tekken.json, tokenizer.model.v*, tokenizer.model or tokenizer.json"
    )


def from_gguf(metadata: Mapping[str, object]) -> Tokenizer:
    """The tokenizer inside a GGUF file's metadata (keys "tokenizer.ggml.*" and "tokenizer.chat_template").

    Raises:
        TokenizerError: the vocabulary is missing, inconsistent, or of a kind that Sash does not know.
    """
    return gguf_vocabulary.open_vocabulary(metadata)
