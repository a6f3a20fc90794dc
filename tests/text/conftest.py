"""Vocabularies that the tests of this room share: synthetic ones, and the files that mistral-common ships."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import mistral_common
import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from sash.text.byte_spelling import CHARACTER_TO_BYTE
from sash.text.mistral import MistralTokenizer
from sash.text.opening import from_gguf
from sash.text.tokenizer import Tokenizer

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MISTRAL_FILES = Path(mistral_common.__file__).parent / "data"


@lru_cache
def _byte_pairs() -> tuple[list[str], list[str]]:
    tokens = [*CONTROL, *CHARACTER_TO_BYTE]
    merges = ["Ġ t", "h e", "i n", "Ġt he", "Ġ Ġ", "Ċ Ċ", "ð Ł", "ðŁ ĺ", "l l", "Ġ 1", "1 2", "| >", "< |"]
    tokens += [merge.replace(" ", "") for merge in merges]
    return tokens, merges


@pytest.fixture
def byte_level_metadata() -> dict[str, Any]:
    """A small byte-level GGUF vocabulary with ChatML."""
    tokens, merges = _byte_pairs()
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.token_type": [3] * len(CONTROL) + [1] * (len(tokens) - len(CONTROL)),
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHATML,
    }


@lru_cache
def _mistral_v1() -> tuple[SentencePieceProcessor, list[str], list[float], list[int]]:
    model = SentencePieceProcessor(model_file=str(MISTRAL_FILES / "tokenizer.model.v1"))
    ids = range(model.vocab_size())
    types = [2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1 for i in ids]
    return model, [model.id_to_piece(i) for i in ids], [model.get_score(i) for i in ids], types


@pytest.fixture
def sentencepiece_oracle() -> SentencePieceProcessor:
    """Mistral's own v1 model, read by SentencePiece."""
    return _mistral_v1()[0]


@pytest.fixture
def sentencepiece_metadata() -> dict[str, Any]:
    """The same vocabulary, as a GGUF file would hold it."""
    _, tokens, scores, types = _mistral_v1()
    return sentencepiece_entries(tokens, scores, types)


def sentencepiece_entries(tokens: list[str], scores: list[float], types: list[int]) -> dict[str, Any]:
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.scores": list(scores),
        "tokenizer.ggml.token_type": list(types),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


@pytest.fixture
def byte_level_folder(tmp_path: Path) -> Path:
    """A Hugging Face folder: byte-level, a begin-of-text token added by the post-processor, a mask, ChatML."""
    tokens, merges = _byte_pairs()
    vocabulary = {token: index for index, token in enumerate([*tokens, "<s>", "<mask>"])}
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    backend = Backend(models.BPE(vocab=vocabulary, merges=pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in [*CONTROL, "<s>"]])
    backend.add_special_tokens([AddedToken("<mask>", special=True, normalized=False, lstrip=True)])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])])
    backend.enable_truncation(5)
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {
        "bos_token": {"__type": "AddedToken", "content": "<s>"},
        "eos_token": "<|im_end|>",
        "mask_token": "<mask>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": CHATML}))
    return tmp_path


@pytest.fixture(scope="session")
def tekken() -> Tokenizer:
    """Tekken v3, from mistral-common's own file."""
    return MistralTokenizer(MISTRAL_FILES / "tekken_240718.json")


@pytest.fixture
def byte_level(byte_level_metadata: dict[str, Any]) -> Tokenizer:
    """The small byte-level vocabulary."""
    return from_gguf(byte_level_metadata)


@lru_cache
def _spaced() -> Tokenizer:
    _, tokens, scores, types = _mistral_v1()
    return from_gguf(sentencepiece_entries(tokens, scores, types))


@pytest.fixture
def spaced() -> Tokenizer:
    """Mistral's v1 vocabulary as a GGUF file would hold it: a space goes in front of texts."""
    return _spaced()
