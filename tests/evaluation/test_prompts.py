"""Prompts are what they say: so long, so deep, so far, and the same ones at every call."""

from __future__ import annotations

import random

import pytest

from sash.errors import EmptyPromptError, UsageError
from sash.evaluation.prompts import TASKS, Planted, Source, plant

TEXT = "It was late,\nand the rain fell. " * 40 + "\n\nShe went home.\n"
PLANTED = Planted(facts=("The key is 7.", "The cat is red.", "The dog is blue."), question="The key is", answer="7")


@pytest.fixture
def source(byte_tokenizer) -> Source:  # type: ignore[no-untyped-def]
    return Source(byte_tokenizer, TEXT)


def text_of(ids) -> str:  # type: ignore[no-untyped-def]
    return bytes(i - 3 for i in ids if i >= 3).decode()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 1.0])
def test_a_prompt_is_so_long_and_holds_at_its_depth_what_it_asks_for(source: Source, task: str, depth: float):
    rng = random.Random(1)
    planted = plant(task, rng)
    trial = source.at_depth(planted, rng, 900, depth)
    assert len(trial.ids) == 900
    assert text_of(trial.ids[trial.span.start : trial.span.stop]) == planted.facts[0] + "\n\n"
    assert text_of(trial.ids).endswith("\n\n" + planted.question)
    assert all(fact in text_of(trial.ids) for fact in planted.facts)
    head, end = 1, 900 - len("\n\n" + planted.question)
    if depth == 0:
        assert trial.span.start == head
    if depth == 1:
        assert trial.span.stop == end
    if task != "needles":
        room = end - head - len(trial.span)
        assert trial.span.start - head == round(room * depth)


@pytest.mark.parametrize("distance", [64, 127, 128, 129, 500])
def test_what_is_asked_for_stands_so_far_back(source: Source, distance: int):
    trial = source.at_distance(PLANTED, random.Random(0), distance, before=30)
    assert trial.distance == distance == len(trial.ids) - 1 - (trial.span.stop - 1)
    assert trial.span.start == 1 + 30
    assert "The cat" not in text_of(trial.ids)


def test_the_same_seed_gives_the_same_prompts_and_another_gives_others(source: Source):
    def made(seed: int) -> list[tuple[int, ...]]:
        rng = random.Random(seed)
        return [source.at_depth(plant(task, rng), rng, 700, 0.5).ids for task in TASKS]

    assert made(3) == made(3)
    assert all(one != other for one, other in zip(made(3), made(4), strict=True))


def test_a_short_text_begins_anew_and_its_lines_are_joined(byte_tokenizer):  # type: ignore[no-untyped-def]
    source = Source(byte_tokenizer, "one\ntwo\n\nthree")
    assert text_of(source.filler(4, 20)) == "two\n\nthree\n\none two\n"


def test_answers_are_right_by_their_words_and_not_by_their_white_space(source: Source):
    trial = source.at_depth(
        Planted(facts=("a b",), question="a", answer="two words"), random.Random(0), 100, 0.0
    )  # fmt: skip
    assert trial.right(" two\nwords and more")
    assert not trial.right("not two words")
    assert not trial.right("two")


def test_every_task_has_its_answer_in_its_fact_and_never_in_its_question():
    for task in TASKS:
        for seed in range(50):
            planted = plant(task, random.Random(seed))
            assert planted.answer in planted.facts[0]
            assert planted.answer not in planted.question
            assert not any(planted.answer in fact for fact in planted.facts[1:])


def test_what_cannot_be_is_refused(source: Source, byte_tokenizer):  # type: ignore[no-untyped-def]
    rng = random.Random(0)
    with pytest.raises(UsageError, match="no task"):
        plant("juggling", rng)
    with pytest.raises(UsageError, match="facts"):
        plant("needles", rng, 0)
    with pytest.raises(UsageError, match="depths run from 0"):
        source.at_depth(PLANTED, rng, 500, 1.5)
    needed = 1 + sum(len(fact) + 2 for fact in PLANTED.facts) + len("\n\nThe key is")
    with pytest.raises(UsageError, match=f"takes {needed} or more"):
        source.at_depth(PLANTED, rng, needed - 1, 0.5)
    assert len(source.at_depth(PLANTED, rng, needed, 0.5).ids) == needed
    with pytest.raises(UsageError, match="too short for the question"):
        source.at_distance(PLANTED, rng, 11, before=5)
    with pytest.raises(EmptyPromptError):
        Source(byte_tokenizer, " \n")
