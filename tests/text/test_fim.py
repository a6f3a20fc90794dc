"""Filling in the middle: the right markers in the right order, and never out of what somebody typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mistral_common.protocol.fim.request import FIMRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer as Common
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from sash.errors import TextEncodingError, TokenizerError
from sash.text.byte_spelling import CHARACTER_TO_BYTE
from sash.text.fim import SPELLINGS
from sash.text.mistral import MistralTokenizer
from sash.text.opening import from_folder, from_gguf
from sash.text.tokenizer import Tokenizer
from tests.text.conftest import MISTRAL_FILES, _byte_pairs  # type: ignore[import-not-found]


def folder_with(tmp_path: Path, markers: tuple[str, ...], *, special: bool) -> Tokenizer:
    backend = Backend(models.BPE(vocab={one: index for index, one in enumerate(CHARACTER_TO_BYTE)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(one, special=special, normalized=False) for one in markers])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({}))
    return from_folder(tmp_path)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("markers", SPELLINGS)
def test_prefix_and_suffix_stand_before_the_middle(tmp_path: Path, markers: tuple[str, ...], special: bool) -> None:
    tokenizer = folder_with(tmp_path, markers, special=special)
    assert tokenizer.has_fim
    before, after, middle = markers
    ids = tokenizer.encode_fim("def f(", "): pass")
    assert tokenizer.decode(ids, skip_control=False) == f"{before}def f({after}): pass{middle}"
    assert [one for one in ids if one in tokenizer.control_ids] == [256, 257, 258]
    assert tokenizer.decode(tokenizer.encode_fim("x"), skip_control=False) == f"{before}x{after}{middle}"
    typed = f"a{middle}b{before}{after}"
    ids = tokenizer.encode_fim(typed, typed)
    assert [one for one in ids if one in tokenizer.control_ids] == [256, 257, 258]
    assert tokenizer.decode(ids, skip_control=False) == f"{before}{typed}{after}{typed}{middle}"
    assert tokenizer.control_ids.isdisjoint(tokenizer.encode(typed))


def test_a_gguf_vocabulary_with_begin_of_text_keeps_it_in_front() -> None:
    tokens, merges = _byte_pairs()
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [*tokens, *SPELLINGS[0]],
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3) + [3] * 3,
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
    }
    tokenizer = from_gguf(metadata)
    size = len(tokens)
    ids = tokenizer.encode_fim("a<|im_end|>", "b")
    assert [one for one in ids if one in tokenizer.control_ids] == [1, size, size + 1, size + 2]


@pytest.mark.parametrize("name", ["v3", "v7"])
def test_mistrals_gaps_are_mistral_commons(name: str) -> None:
    (path,) = [one for one in MISTRAL_FILES.iterdir() if one.name.endswith(f".model.{name}")]
    common: Any = Common.from_file(str(path))
    tokenizer = MistralTokenizer(path)
    assert tokenizer.has_fim
    for prompt, suffix in (("def f(", "): pass"), ("x = ", ""), ("", " y"), ("é\n", "  \n")):
        expected = common.encode_fim(FIMRequest(prompt=prompt, suffix=suffix or None)).tokens
        assert tokenizer.encode_fim(prompt, suffix) == expected


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=st.text(max_size=20), suffix=st.text(max_size=20) | st.just("[MIDDLE][PREFIX]"))
def test_tekken_keeps_every_word_of_a_gap(tekken: Tokenizer, prompt: str, suffix: str) -> None:
    ids = tekken.encode_fim(prompt, suffix)
    control = [one for one in ids if one in tekken.control_ids]
    assert [tekken.token_text(one) for one in control] == ["<s>", "[SUFFIX]", "[PREFIX]"]
    cut = ids.index(control[2])
    assert tekken.decode(ids[2:cut]) == suffix
    assert tekken.decode(ids[cut + 1 :]) == prompt


def test_models_that_were_not_made_for_it_say_so(byte_level: Tokenizer, spaced: Tokenizer) -> None:
    for tokenizer in (byte_level, spaced, MistralTokenizer(MISTRAL_FILES / "tokenizer.model.v1")):
        assert not tokenizer.has_fim
        with pytest.raises(TokenizerError, match="filling in the middle"):
            tokenizer.encode_fim("a", "b")


def test_lone_surrogates_are_refused(tekken: Tokenizer) -> None:
    with pytest.raises(TextEncodingError):
        tekken.encode_fim("a", "\ud800")
