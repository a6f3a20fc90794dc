"""transformers, as a worker: its model and cache in a plain greedy loop, which costs less than its `generate`."""

from __future__ import annotations

from typing import Any

from worker import Ran, Run, serve


def load(options: dict[str, Any]) -> tuple[Run, dict[str, Any]]:
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    torch.set_num_threads(options["threads"])
    model = AutoModelForCausalLM.from_pretrained(options["model"], dtype=torch.bfloat16).eval()

    @torch.inference_mode()
    def run(prompts: list[list[int]], n_write: int) -> Ran:
        ran = Ran(len(prompts))
        cache = DynamicCache(config=model.config)
        ids = torch.tensor(prompts)
        for _ in range(n_write):
            logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            ids = logits[:, -1].argmax(-1, keepdim=True)
            for stream, token in enumerate(ids[:, 0].tolist()):
                ran.wrote(stream, [token])
            ran.step()
        return ran

    return run, {"attention": model.config._attn_implementation}


if __name__ == "__main__":
    serve(load)
