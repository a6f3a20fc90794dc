"""OpenVINO GenAI, as a worker: its pipeline, timed by its own clock."""

from __future__ import annotations

from typing import Any

from worker import Ran, Run, serve


def load(options: dict[str, Any]) -> tuple[Run, dict[str, Any]]:
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    pipeline = genai.LLMPipeline(options["model"], "CPU", INFERENCE_NUM_THREADS=options["threads"])

    def run(prompts: list[list[int]], n_write: int) -> Ran:
        config = genai.GenerationConfig(max_new_tokens=n_write, min_new_tokens=n_write, ignore_eos=True)
        ids = np.array(prompts, dtype=np.int64)
        inputs = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        ran = Ran(len(prompts))
        results = pipeline.generate(inputs, config)
        for stream, tokens in enumerate(results.tokens):
            ran.wrote(stream, list(tokens)[-n_write:])
        metrics = results.perf_metrics
        first = metrics.get_ttft().mean / 1000
        ran.clocked(first, metrics.get_generate_duration().mean / 1000 - first)
        return ran

    return run, {}


if __name__ == "__main__":
    serve(load)
