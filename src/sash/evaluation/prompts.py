"""Prompts that ask for something said far back: made from a text and a seed, the same ones at every call.

Every prompt is filler from the text with something planted in it, and ends with the beginning of a sentence that only
who remembers the planted part goes on with rightly. So base models can be asked too, and greedy tokens are the judge.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from sash.errors import EmptyPromptError, UsageError
from sash.text.tokenizer import Tokenizer

Task = Literal["passkey", "needles", "copying", "format"]
"""What is planted: a key; several facts, of which one is asked for; a line to repeat; the form that answers have."""

TASKS: tuple[Task, ...] = get_args(Task)
KEY_DIGITS = 5
FACTS = 4
LINE_WORDS, CUE_WORDS = 6, 2
"""Words of a line, and how many of them are given again; the others are to follow."""

ROOM = 3
"""Tokens that are written beyond those of the answer, since the same text may be written with more."""

_WORDS = """
apple bridge candle doctor engine flower garden hammer island jacket kitten lemon market needle orange palace
queen river silver table uncle valley window yellow zebra anchor basket circle desert eagle finger guitar
honey insect jungle kettle ladder mirror number ocean pepper rabbit school ticket violin winter bottle cotton
dragon forest ginger helmet iron knife letter monkey napkin oyster pencil ribbon sugar tiger velvet wagon
button
"""
WORDS = tuple(_WORDS.split())
"""Common words, which lines, facts and forms are made of."""

FORMS = (" {a} {b}", "-{a}-{b}", "/{a}/{b}", " ({a} {b})", " [{a}] {b}")
"""What may follow a number where numbers are written in a form of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """What is hidden in a prompt, and how it is asked for.

    Attributes:
        facts: passages to plant; the first is the one that is asked for.
        question: the end of the prompt.
        answer: what a right continuation begins with.
    """

    facts: tuple[str, ...]
    question: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A prompt.

    Attributes:
        ids: its tokens, begin-of-text included where the model has it.
        span: positions of the passage that is asked for.
        question: positions of the question, the last ones.
        answer: what a right continuation begins with.
        n_answer: tokens to write: enough for the answer.
    """

    ids: tuple[int, ...]
    span: range
    question: range
    answer: str
    n_answer: int

    @property
    def distance(self) -> int:
        """How far the passage's last token is behind the prompt's last, at which the answer begins to be drawn."""
        return len(self.ids) - self.span.stop

    def right(self, text: str) -> bool:
        """Whether a continuation gives the answer; how much white space it has does not matter."""
        return " ".join(text.split()).startswith(self.answer)


def plant(task: str, rng: random.Random, n_facts: int = FACTS) -> Planted:
    """Something to remember, drawn from `rng`.

    Args:
        task: of which kind, see `Task`.
        rng: what is drawn from.
        n_facts: how many facts "needles" has; the others have one.

    Raises:
        UsageError: a task that is not known, or a number of facts that cannot be.
    """
    if task not in TASKS:
        raise UsageError(f"{task!r} is no task: use {', '.join(TASKS)}")
    if not 1 <= n_facts <= len(WORDS):
        raise UsageError(f"a prompt hides between 1 and {len(WORDS)} facts; got {n_facts}")
    return _plant_needles(rng, n_facts) if task == "needles" else _PLANT[task](rng)


def _plant_passkey(rng: random.Random) -> Planted:
    key = "".join(rng.choices(string.digits, k=KEY_DIGITS))
    return Planted(
        facts=(f"The pass key is {key}. Remember it: the pass key is {key}.",),
        question="The pass key that was given before, once more: the pass key is",
        answer=key,
    )


def _plant_needles(rng: random.Random, n_facts: int) -> Planted:
    words = rng.sample(WORDS, n_facts)
    numbers = rng.sample(range(1000, 10_000), n_facts)
    return Planted(
        facts=tuple(f"The number of the {word} is {number}." for word, number in zip(words, numbers, strict=True)),
        question=f"As was said before, the number of the {words[0]} is",
        answer=str(numbers[0]),
    )


def _plant_copying(rng: random.Random) -> Planted:
    words = rng.sample(WORDS, LINE_WORDS)
    line = f'The line is: "{" ".join(words)}".'
    return Planted(
        facts=(f"{line} {line}",),
        question=f'The line is: "{" ".join(words[:CUE_WORDS])}',
        answer=" ".join(words[CUE_WORDS:]),
    )


def _plant_format(rng: random.Random) -> Planted:
    a, b = rng.sample(WORDS, 2)
    form = rng.choice(FORMS).format(a=a, b=b)
    first, second, asked = rng.sample(range(1, 10), 3)
    return Planted(
        facts=(f'Prices are written so: "{first}{form}", "{second}{form}".',),
        question=f'Prices are written so: "{asked}',
        answer=form.strip(),
    )


_PLANT: dict[str, Callable[[random.Random], Planted]] = {
    "passkey": _plant_passkey,
    "copying": _plant_copying,
    "format": _plant_format,
}


class Source:
    """A text that prompts are filled with, and the tokenizer that they are made for."""

    def __init__(self, tokenizer: Tokenizer, text: str) -> None:
        """Lines are joined to paragraphs, since where a text breaks its lines is no matter of what it says.

        Raises:
            EmptyPromptError: a text of no tokens.
        """
        self._tokenizer = tokenizer
        self._lead = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        if not text.strip():
            raise EmptyPromptError("the text has no tokens: give some to fill prompts with")
        self._ids = tokenizer.encode(f"{paragraphs(text)}\n\n", bos=False)

    def at_depth(self, planted: Planted, rng: random.Random, n_tokens: int, depth: float) -> Trial:
        """A prompt of `n_tokens` with what is asked for at `depth`: 0 is its head, 1 right before the question.

        Other facts stand at even distances over the whole of it.

        Raises:
            UsageError: a depth that cannot be, or a prompt too short for what it is to hold.
        """
        if not 0 <= depth <= 1:
            raise UsageError(f"depths run from 0, the head of a prompt, to 1, its end; got {depth:g}")
        facts, question = self._encode(planted)
        room = n_tokens - len(self._lead) - len(question) - sum(map(len, facts))
        if room < 0:
            raise UsageError(f"{n_tokens:,} tokens are too few for this prompt: it takes {n_tokens - room:,} or more")
        others = len(facts) - 1
        places = [round(room * depth), *(round(room * (at + 0.5) / others) for at in range(others))]
        return self._trial(planted, rng, room, list(zip(places, facts, strict=True)), question)

    def at_distance(self, planted: Planted, rng: random.Random, distance: int, before: int) -> Trial:
        """A prompt with what is asked for `distance` tokens behind its last one, after `before` tokens of filler.

        Only the fact that is asked for is planted.

        Raises:
            UsageError: a distance within which the question does not fit.
        """
        facts, question = self._encode(planted)
        after = distance - len(question)
        if after < 0:
            raise UsageError(
                f"a distance of {distance:,} tokens is too short for the question: it takes {distance - after}"
            )
        return self._trial(planted, rng, before + after, [(before, facts[0])], question)

    def _encode(self, planted: Planted) -> tuple[list[list[int]], list[int]]:
        """The facts' tokens and the question's."""
        facts = [self._tokenizer.encode(f"{fact}\n\n", bos=False) for fact in planted.facts]
        return facts, self._tokenizer.encode(f"\n\n{planted.question}", bos=False)

    def _trial(
        self, planted: Planted, rng: random.Random, room: int, placed: list[tuple[int, list[int]]], question: list[int]
    ) -> Trial:
        """The prompt; `placed` has each fact's tokens after the tokens of filler before it, the asked one first."""
        start = rng.randrange(self.size)
        ids, done, span = list(self._lead), 0, range(0)
        # Of two at one place the one that is asked for comes first where it is at the head, and last at the end.
        asked = placed[0]
        for place, fact in sorted(placed, key=lambda one: (one[0], (one is asked) == (one[0] == room))):
            ids += self.filler(start + done, place - done)
            done = place
            if fact is asked[1]:
                span = range(len(ids), len(ids) + len(fact))
            ids += fact
        ids += self.filler(start + done, room - done) + question
        answer = len(self._tokenizer.encode(f" {planted.answer}", bos=False))
        asking = range(len(ids) - len(question), len(ids))
        return Trial(ids=tuple(ids), span=span, question=asking, answer=planted.answer, n_answer=answer + ROOM)

    @property
    def size(self) -> int:
        """Tokens of the text."""
        return len(self._ids)

    def stretch(self, start: int, count: int) -> list[int]:
        """`count` tokens of the text from `start` on, after the begin-of-text where the model has it."""
        return [*self._lead, *self.filler(start, count)]

    def filler(self, start: int, count: int) -> list[int]:
        """`count` tokens of the text from `start` on; after its end it begins anew."""
        return [self._ids[at % self.size] for at in range(start, start + count)]


def paragraphs(text: str) -> str:
    r"""The text with single ends of lines made spaces.

    >>> paragraphs("It was\nlate.\n\nShe went.\n")
    'It was late.\n\nShe went.'
    """
    return re.sub(r"(?<!\n)\n(?!\n)", " ", text.replace("\r\n", "\n").strip())
