"""One request's sequences: nothing of an answer is lost, however early it is over."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from sash.engine.request import Request, Sequence
from sash.sampling import SamplingParams
from sash.server.call import Call, Job
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
