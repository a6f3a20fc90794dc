"""tokenizer.json folders: equal to the library underneath, safe where the library is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from sash.errors import TextEncodingError, TokenizerError
from sash.text.huggingface import HuggingFaceTokenizer, repeats_group
from sash.text.opening import from_folder

TEXTS = ["Hello the world", "  two", "tail  ", "\n\n\n", "😀 日本 é", "12 1 121", "it's\tI'M", "a\r\nb"]


def edit(folder: Path, change: dict[str, object]) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def test_text_equals_the_library(byte_level_folder: Path) -> None:
    ours = from_folder(byte_level_folder)
    theirs = Tokenizer.from_file(str(byte_level_folder / "tokenizer.json"))
    theirs.no_truncation()
    for text in [*TEXTS, "long " * 50]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text).ids
        assert ours.decode(ids) == theirs.decode(ids) == text


def test_what_the_small_files_say(byte_level_folder: Path) -> None:
    (byte_level_folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    ours = from_folder(byte_level_folder)
    assert ours.bos_id is not None
    assert ours.token_text(ours.bos_id) == "<s>"
    assert ours.mask_id is not None
    assert ours.token_text(ours.mask_id) == "<mask>"
    assert ours.eos_ids == {0, 2, 7, 8}  # <|endoftext|> and <|im_end|> by their spelling
    assert ours.has_chat
    assert ours.kind == "BPE (tokenizer.json)"


@pytest.mark.parametrize(("declared", "begins"), [(True, True), (False, False), (None, True)])
def test_add_bos_token_decides_over_the_pipeline(byte_level_folder: Path, declared: bool | None, begins: bool) -> None:
    path = byte_level_folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_bos_token": declared}))
    ours = from_folder(byte_level_folder)
    assert (ours.bos_id is not None) == begins
    assert (ours.encode("a") != ours.encode("a", bos=False)) == begins


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_text_becomes_a_control_token(byte_level_folder: Path, data: st.DataObject) -> None:
    ours = from_folder(byte_level_folder)
    spelled = st.sampled_from([ours.token_text(token_id) for token_id in sorted(ours.control_ids)])
    text = data.draw(st.lists(spelled | st.text(max_size=6), max_size=6).map("".join))
    ids = ours.encode(text, bos=False)
    assert ours.control_ids.isdisjoint(ids)
    assert ours.decode(ids) == text


def test_a_vocabulary_that_spells_control_tokens_whole_is_cut(tmp_path: Path) -> None:
    vocabulary = {"<unk>": 0, "<s>": 1, "<": 2, "s": 3, ">": 4, "s>": 5, "▁": 6, "x": 7}
    pairs = [("s", ">"), ("<", "s>")]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    backend.add_special_tokens([AddedToken("<unk>", special=True), AddedToken("<s>", special=True)])
    backend.save(str(tmp_path / "tokenizer.json"))
    ours = from_folder(tmp_path)
    assert ours.encode("x<s>x") == [7, 2, 5, 7]
    assert ours.encode("é") == [0]  # what stands for unknown characters may come from text


def test_metaspace_vocabularies_drop_the_space_they_add(tmp_path: Path) -> None:
    vocabulary = {"<unk>": 0, "▁": 1, "a": 2, "b": 3, "▁a": 4, "▁b": 5, "<0x0A>": 6}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[("▁", "a"), ("▁", "b")], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    backend.save(str(tmp_path / "tokenizer.json"))
    ours = from_folder(tmp_path)
    assert ours.encode("a b") == [4, 5]
    for ids in ([4, 5], [2, 5], [1, 2], [6, 4], [4, 6]):
        assert ours.decode(ids) == backend.decode(ids)


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)*$", "(?:a?){20}b", r"(\s+){2,}"])
def test_patterns_that_can_take_forever_are_refused(byte_level_folder: Path, pattern: str) -> None:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    edit(byte_level_folder, {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split]}})
    with pytest.raises(TokenizerError, match="repeats a group"):
        from_folder(byte_level_folder)


@pytest.mark.parametrize("pattern", [r"(?i:'s|'t|'re)?[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}", r"[()]+", r"\)+"])
def test_patterns_in_use_are_not(pattern: str) -> None:
    assert not repeats_group(pattern)


BROKEN = [
    b"",
    b"{}",
    b"null",
    b"\xff\xfe",
    b"[" * 200_000,
    b'{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}',
]


@pytest.mark.parametrize("content", BROKEN)
def test_broken_files_give_one_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        from_folder(tmp_path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1), junk=st.binary(min_size=1, max_size=8))
def test_mutated_files_load_or_give_one_error(byte_level_folder: Path, place: float, junk: bytes) -> None:
    path = byte_level_folder / "tokenizer.json"
    original = path.read_bytes()
    at = int(place * (len(original) - 1))
    path.write_bytes(original[:at] + junk + original[at + len(junk) :])
    outcome: object
    try:
        ours = from_folder(byte_level_folder)
        outcome = ours.decode(ours.encode("Hello the 😀"))
    except TokenizerError as error:
        outcome = str(error)
    finally:
        path.write_bytes(original)
    assert isinstance(outcome, str)


def test_other_broken_pieces_are_named(byte_level_folder: Path) -> None:
    edit(byte_level_folder, {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}})
    with pytest.raises(TokenizerError, match="WordPiece"):
        from_folder(byte_level_folder)
    (byte_level_folder / "tokenizer_config.json").write_text("[1]")
    edit(byte_level_folder, {"decoder": json.loads(decoders.ByteLevel().__getstate__())})
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json"):
        from_folder(byte_level_folder)


def test_an_empty_folder_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tekken\.json"):
        from_folder(tmp_path)
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        from_folder(tmp_path)


def test_a_panic_is_one_error_and_an_interrupt_passes(byte_level_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = HuggingFaceTokenizer(byte_level_folder)

    class Panic(BaseException):
        """Rust panics reach Python as a BaseException."""

    class Broken:
        def __init__(self, error: BaseException) -> None:
            self.error = error

        def encode(self, *_: object, **__: object) -> None:
            raise self.error

    monkeypatch.setattr(ours, "_backend", Broken(Panic("out of range")))
    with pytest.raises(TokenizerError, match="out of range"):
        ours.encode("a")
    monkeypatch.setattr(ours, "_backend", Broken(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        ours.encode("a")


def test_lone_surrogates_are_refused(byte_level_folder: Path) -> None:
    with pytest.raises(TextEncodingError, match="surrogate"):
        from_folder(byte_level_folder).encode("ab\ud800")


def test_templates_come_from_their_own_file_first(byte_level_folder: Path) -> None:
    (byte_level_folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    ours = from_folder(byte_level_folder)
    assert ours.bos_id is not None
    assert ours.encode_chat([{"role": "user", "content": "a"}]) == ours.encode("a")
    (byte_level_folder / "chat_template.jinja").unlink()
    path = byte_level_folder / "tokenizer_config.json"
    named = [{"name": "tool", "template": "x"}, {"name": "default", "template": "{{ messages[0].content }}!"}]
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": named}))
    ours = from_folder(byte_level_folder)
    assert ours.encode_chat([{"role": "user", "content": "a"}]) == ours.encode("a!")  # the begin-of-text id is added
