"""One request's sequences: nothing of an answer is lost, however early it is over."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from sash.engine.request import Request, Sequence
from sash.errors import NumericalError
from sash.sampling import SamplingParams
from sash.server.call import Call, Job
from sash.server.errors import ApiError
from sash.server.mail import Box, Post
from sash.server.writing import Part


def test_an_answer_that_is_over_before_anybody_looks_is_handed_out_whole():
    """A short answer of a fast model is over while its first part is still waited for."""
    sequence = Sequence(Request(prompt_ids=(1,), params=SamplingParams()))

    async def read() -> list[str]:
        box: Box[Part] = Box(Post(asyncio.get_running_loop()))
        call = Call(cast(Any, None), cast(Any, None), box, [cast(Job, None)])
        box.put(Part(index=0, text="all "), 4)
        box.put(Part(index=0, text="of it", ended=sequence, reason="stop"), 5)
        await call.begun(5.0)
        texts = []
        while not call.done:
            texts += [part.text for part in await call.parts()]
        assert call.sequences == {0: sequence}
        return texts

    assert asyncio.run(read()) == ["all ", "of it"]


@pytest.mark.parametrize("begun", [True, False])
def test_what_was_written_before_a_failure_is_handed_out_before_it(begun: bool):
    """Unless the failure is known before anything was sent: then it is all that is said."""
    sequence = Sequence(Request(prompt_ids=(1,), params=SamplingParams()))
    sequence.error = NumericalError("no numbers")

    async def read() -> list[str]:
        box: Box[Part] = Box(Post(asyncio.get_running_loop()))
        call = Call(cast(Any, None), cast(Any, None), box, [cast(Job, None)])
        box.put(Part(index=0, text="some"), 4)
        if begun:
            await call.begun(5.0)
        box.put(Part(index=0, text=" more"), 5)
        box.put(Part(index=0, ended=sequence, reason="error"), 0)
        if not begun:
            with pytest.raises(ApiError, match="no numbers"):
                await call.begun(5.0)
            return []
        texts = [part.text for part in await call.parts()] + [part.text for part in await call.parts()]
        assert not call.done
        with pytest.raises(ApiError, match="no numbers"):
            await call.parts()
        return texts

    assert asyncio.run(read()) == (["some", " more"] if begun else [])
