"""llama.cpp, as a worker: its C interface through llama-cpp-python, one context for each number of streams."""

from __future__ import annotations

import ctypes
from typing import Any

from worker import Ran, Run, serve

BATCH = 512


def load(options: dict[str, Any]) -> tuple[Run, dict[str, Any]]:
    import llama_cpp as cpp
    import numpy as np

    cpp.llama_backend_init()
    model_params = cpp.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model = cpp.llama_model_load_from_file(options["model"].encode(), model_params)
    if not model:
        raise SystemExit(f"llama.cpp does not load {options['model']}")
    vocabulary = cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(model))
    contexts: dict[tuple[int, int], Any] = {}
    batch = cpp.llama_batch_init(BATCH, 0, 1)

    def context_for(n_streams: int, length: int) -> Any:
        length = -(-length // 256) * 256
        if (n_streams, length) not in contexts:
            params = cpp.llama_context_default_params()
            params.n_ctx, params.n_seq_max = n_streams * length, n_streams
            params.n_batch = params.n_ubatch = BATCH
            params.n_threads = params.n_threads_batch = options["threads"]
            contexts[n_streams, length] = cpp.llama_init_from_model(model, params)
            if not contexts[n_streams, length]:
                raise SystemExit(f"llama.cpp makes no context of {n_streams} x {length} tokens")
        return contexts[n_streams, length]

    def decode(context: Any, tokens: list[tuple[int, int, int, bool]]) -> None:
        """Compute tokens, each (id, position, stream, whether its logits are wanted)."""
        batch.n_tokens = len(tokens)
        for i, (token, position, stream, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = stream, wanted
        if cpp.llama_decode(context, batch):
            raise SystemExit("llama.cpp failed to decode")

    def likeliest(context: Any, index: int) -> int:
        logits = cpp.llama_get_logits_ith(context, index)
        row = np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), shape=(vocabulary,))
        return int(row.argmax())

    def run(prompts: list[list[int]], n_write: int) -> Ran:
        context = context_for(len(prompts), max(map(len, prompts)) + n_write)
        cpp.llama_memory_clear(cpp.llama_get_memory(context), True)
        ran, last = Ran(len(prompts)), []
        for stream, ids in enumerate(prompts):
            for start in range(0, len(ids), BATCH):
                part = ids[start : start + BATCH]
                ends = start + len(part) == len(ids)
                decode(
                    context,
                    [(t, start + i, stream, ends and i == len(part) - 1) for i, t in enumerate(part)],
                )
            last.append(likeliest(context, -1))
            ran.wrote(stream, last[-1:])
        ran.step()
        for step in range(n_write - 1):
            decode(context, [(t, len(prompts[s]) + step, s, True) for s, t in enumerate(last)])
            last = [likeliest(context, index) for index in range(len(prompts))]
            for stream, token in enumerate(last):
                ran.wrote(stream, [token])
            ran.step()
        return ran

    return run, {"system": cpp.llama_print_system_info().decode()}


if __name__ == "__main__":
    serve(load)
