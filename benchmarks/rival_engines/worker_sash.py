"""Sash, as a worker: through its engine, as its users have it."""

from __future__ import annotations

from typing import Any

from worker import Ran, Run, serve


def load(options: dict[str, Any]) -> tuple[Run, dict[str, Any]]:
    from sash.engine.engine import Engine
    from sash.engine.request import Request
    from sash.loading import load_decoder
    from sash.sampling import SamplingParams

    lm = load_decoder(options["model"], threads=options["threads"], **options["load"])

    def run(prompts: list[list[int]], n_write: int) -> Ran:
        params = SamplingParams(max_tokens=n_write, temperature=0, ignore_eos=True)
        cache = lm.cache(len(prompts))
        rows = [cache.allocate() for _ in prompts]
        ran = Ran(len(prompts))
        engine = Engine(lm.decoder, cache, chunk=lm.chunk, rows=[])
        streams = {}
        for index, (ids, row) in enumerate(zip(prompts, rows, strict=True)):
            request = Request(prompt_ids=tuple(ids), params=params, row=row, keep_row=True)
            streams[engine.submit(request)] = index
        while not engine.idle:
            for event in engine.step():
                if event.token is not None:
                    ran.wrote(streams[event.sequence], [event.token.token_id])
            ran.step()
        return ran

    return run, {}


if __name__ == "__main__":
    serve(load)
