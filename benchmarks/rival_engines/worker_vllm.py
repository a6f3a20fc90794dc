"""vLLM for CPUs, as a worker: its engine stepped in this very process."""

from __future__ import annotations

import os
from typing import Any

from worker import Ran, Run, serve


def load(options: dict[str, Any]) -> tuple[Run, dict[str, Any]]:
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0))[: options["threads"]])),
        "VLLM_NO_USAGE_STATS": "1",
    }
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=options["model"],
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=options["context"],
        max_num_seqs=options["streams"],
        enable_prefix_caching=False,
        disable_log_stats=True,
    )
    engine = llm.llm_engine
    count = 0

    def run(prompts: list[list[int]], n_write: int) -> Ran:
        nonlocal count
        params = SamplingParams(temperature=0, max_tokens=n_write, ignore_eos=True, detokenize=False)
        streams, known = {}, [0] * len(prompts)
        ran = Ran(len(prompts))
        for index, ids in enumerate(prompts):
            streams[str(count)] = index
            engine.add_request(str(count), {"prompt_token_ids": ids}, params)
            count += 1
        while engine.has_unfinished_requests():
            for output in engine.step():
                index = streams[output.request_id]
                tokens = list(output.outputs[0].token_ids)
                ran.wrote(index, tokens[known[index] :])
                known[index] = len(tokens)
            ran.step()
        return ran

    return run, {}


if __name__ == "__main__":
    serve(load)
