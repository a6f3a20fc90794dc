"""Text that arrives in pieces gives the tokens of the whole, for every kind of tokenizer and every way to cut it."""

from __future__ import annotations

import random
from importlib import resources
from pathlib import Path

import pytest

from sash.cli.live_text import joined, read_pieces, trimmed
from sash.cli.live_tokens import LONGEST_HELD, LiveEncoder, chat_frame, encode_chat_live, encode_live
from sash.text.mistral import MistralTokenizer
from sash.text.tokenizer import Tokenizer

EMMA = Path(__file__).parents[1] / "text" / "emma_beginning.txt"
LAYOUTS = (
    "\n\n\nEmma\r\n\r\nWoodhouse,\n  handsome,\n\n    clever\n\tand rich\n \n\nwith",
    "def f():\n    return 1\n\n\nclass A:\n    pass\n",
    "né à l'été\n日本語の文\n🙂🙂\n\u00a0end",
    " leading\ntrailing \n",
    "\n",
)


def _mistral(name: str) -> Tokenizer:
    return MistralTokenizer(Path(str(resources.files("mistral_common"))) / "data" / name)


@pytest.fixture(scope="module", params=["v1", "v3", "tekken"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    names = {
        "v1": "tokenizer.model.v1",
        "v3": "mistral_instruct_tokenizer_240323.model.v3",
        "tekken": "tekken_240718.json",
    }
    return _mistral(names[request.param])


def pieces(text: str, rng: random.Random, longest: int) -> list[str]:
    cut = []
    while text:
        length = rng.randint(1, longest)
        cut.append(text[:length])
        text = text[length:]
    return cut


@pytest.mark.parametrize("longest", [1, 7, 90, 5000])
def test_pieces_give_the_tokens_of_the_whole(tokenizer: Tokenizer, longest: int):
    rng = random.Random(longest)
    for text in (*LAYOUTS, EMMA.read_text(encoding="utf-8")[:6000]):
        found = [i for part in encode_live(tokenizer, pieces(text, rng, longest)) for i in part]
        assert found == tokenizer.encode(text)


def test_a_text_without_lines_is_still_let_go(tokenizer: Tokenizer):
    text = "word " * LONGEST_HELD
    encoder = LiveEncoder(tokenizer, bos=True)
    early = [i for piece in pieces(text, random.Random(0), 9000) for i in encoder.add(piece)]
    assert len(early) > LONGEST_HELD / 2
    assert [*early, *encoder.finish()] == tokenizer.encode(text)
    assert tokenizer.decode(list(_solid(tokenizer))) == "x" * 3 * LONGEST_HELD


def _solid(tokenizer: Tokenizer) -> list[int]:
    encoder = LiveEncoder(tokenizer, bos=False)
    return [i for _ in range(3) for i in encoder.add("x" * LONGEST_HELD)] + encoder.finish()


def test_a_chat_in_pieces_is_the_chat_in_one(tokenizer: Tokenizer):
    text = "First line\n\nSecond,  with spaces\n[INST] <s> typed by hand [/INST]\nlast"
    for system in ([], [{"role": "system", "content": "Be brief."}]):
        whole = tokenizer.encode_chat([*system, {"role": "user", "content": text}])
        for longest in (3, 1000):
            parts = pieces(text, random.Random(1), longest)
            found = encode_chat_live(tokenizer, system, parts, safe_prompt=False)
            assert [i for part in found for i in part] == whole


def test_a_chat_format_that_cannot_be_taken_apart_waits_for_all(byte_tokenizer: Tokenizer):
    class Counting(type(byte_tokenizer)):  # type: ignore[misc]
        def encode_chat(self, messages, **options):  # type: ignore[no-untyped-def]
            return [len(messages[-1]["content"]), *super().encode_chat(messages, **options)]

    counting = Counting()
    assert chat_frame(byte_tokenizer, [], safe_prompt=False) is not None
    assert chat_frame(counting, [], safe_prompt=False) is None
    found = list(encode_chat_live(counting, [], ["ab", "\ncd"], safe_prompt=False))
    assert found == [counting.encode_chat([{"role": "user", "content": "ab\ncd"}])]


@pytest.mark.parametrize("paragraphs", [True, False])
def test_texts_one_after_the_other(paragraphs: bool):
    texts: list[list[str]] = [[" a", "b \n"], [], ["", "\n"], ["c"], ["d\n"]]
    expected = "ab\n\nc\n\nd" if paragraphs else " ab \n\nc\nd\n"
    assert "".join(joined(texts, paragraphs=paragraphs)) == expected
    assert list(trimmed([" ", "\n"])) == []


def test_a_file_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = "é日🙂\n" * 30_000
    (tmp_path / "text.txt").write_text("\ufeff" + text, encoding="utf-8")
    found = list(read_pieces(str(tmp_path / "text.txt")))
    assert "".join(found) == text
    assert 4 < len(found) < 10
