"""Rules that say what is pinned, and budgets that say how much."""

from __future__ import annotations

from typing import Any

import pytest

from sash.errors import PinsError, UsageError
from sash.text.opening import from_gguf
from sash.text.pins import Contract, Pin
from sash.text.tokenizer import Tokenizer

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One."},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Three."},
]


@pytest.mark.parametrize(
    ("words", "indices"),
    [("system", [0]), ("user", [1, 3]), ("user:1", [1]), ("user:-1", [3]), ("message:3", [2]), ("user:5", []),
     ("message:-4", [0]), ("assistant:2", []), ("tool", [])],
)  # fmt: skip
def test_messages_are_named_by_role_and_number(words: str, indices: list[int]):
    assert Pin.parse(words).messages(CHAT) == indices


@pytest.mark.parametrize("words", ["", "sistem", "user:0", "message", "text:", "text: ", "5:5", "9:3", "user:x", "a:b"])
def test_what_is_no_rule_is_refused(words: str):
    with pytest.raises(UsageError, match="does not say what to pin"):
        Pin.parse(words)


def test_rules_choose_tokens_of_a_chat(byte_level_metadata: dict[str, Any]):
    tokenizer = from_gguf(byte_level_metadata)
    ids = tokenizer.encode_chat(CHAT)
    contract = Contract.of(["system", "user:1", "text:Two.", range(2)])
    chosen = contract.choose(tokenizer, ids, CHAT)

    def said(words: str) -> list[str]:
        return [tokenizer.decode(ids[span.start : span.stop], skip_control=False) for span in chosen[words]]

    assert said("system") == ["<|im_start|>system\nBe brief.<|im_end|>\n"]
    assert said("user:1") == ["<|im_start|>user\nOne.<|im_end|>\n"]
    assert said("text:Two.") == ["Two."]
    assert chosen["0:2"] == (range(2),)
    runs = contract.fit(chosen, 1000)
    assert runs[0].start == 0
    assert runs[0].stop == chosen["user:1"][0].stop
    assert sum(map(len, runs)) == len({at for spans in chosen.values() for span in spans for at in span})


def test_plain_text_is_pinned_by_words_and_positions(byte_tokenizer: Tokenizer):
    ids = byte_tokenizer.encode("Be brief. What is it?")
    contract = Contract.of(["text:Be brief.", "12:14"], first=1)
    assert contract.fit(contract.choose(byte_tokenizer, ids), 12) == (range(10), range(12, 14))
    with pytest.raises(UsageError, match="plain text has no messages, so 'system'"):
        Contract.of("system").choose(byte_tokenizer, ids)
    with pytest.raises(UsageError, match="no tokens 10:99 to pin: the prompt has 22"):
        Contract.of("10:99").choose(byte_tokenizer, ids)
    with pytest.raises(UsageError, match="does not say"):
        Contract.of("text:brief!").choose(byte_tokenizer, ids)


def test_a_prompt_over_budget_is_refused_with_the_figures():
    chosen = {"system": (range(20),), "user:1": (range(30, 35),)}
    with pytest.raises(PinsError, match=r"25 tokens .*system: 20, user:1: 5.* budget is 24: .*--pin-budget 25.*head"):
        Contract.of(["system", "user:1"]).fit(chosen, 24)
    assert Contract.of("system").fit(chosen, 25) == (range(20), range(30, 35))


@pytest.mark.parametrize(
    ("overflow", "runs"),
    [
        ("head", (range(7),)),
        ("tail", (range(18, 20), range(30, 35))),
        ("head+tail", (range(3), range(31, 35))),
    ],
)
def test_a_prompt_over_budget_is_cut_by_rule(overflow: str, runs: tuple[range, ...]):
    chosen = {"system": (range(20),), "user:1": (range(30, 35),)}
    assert Contract.of("system", overflow=overflow).fit(chosen, 7) == runs


def test_the_budget_is_half_of_the_smallest_window():
    assert Contract.of("system").room([None, 512, 1024]) == 256
    assert Contract.of("system", budget=300).room([512]) == 300
    assert Contract.of("system").room([1]) == 1
    with pytest.raises(PinsError, match="600 pins does not fit the window of 512"):
        Contract.of("system", budget=600).room([512])
    with pytest.raises(PinsError, match="no window"):
        Contract.of("system").room([None])


def test_what_cannot_be_is_refused():
    with pytest.raises(PinsError, match="1 or more; got 0"):
        Contract.of("system", budget=0)
    with pytest.raises(PinsError, match="0 or more; got -1"):
        Contract.of(first=-1)
    with pytest.raises(UsageError, match="error, head, tail, head"):
        Contract.of("system", overflow="middle")
    assert not Contract.of()
    assert Contract.of(first=4)
    assert Contract.of("system")
