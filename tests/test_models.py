"""The catalogue's real checkpoints: against transformers reading the same file, alone and in company, piece by piece.

transformers computes in float32, as Sash does here, from its own reading of the GGUF file.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import pytest
import torch
from torch import Tensor, nn

from sash import hub
from sash.lm import LM
from sash.loading import load_decoder
from sash.sampling import SamplingParams

pytestmark = [pytest.mark.models, pytest.mark.timeout(900)]

N_TOKENS = 4096
PROMPT = 700
"""Tokens before the greedy answer: more than Gemma's window of 512, so that its buffer has rolled over."""
NLL_TOLERANCE = 0.005
ROWS = 128
"""Rows of logits that are held at once; all 4,096 of Gemma's 262,144 would be 4 GiB."""

EMMA = Path(__file__).parents[1] / "examples" / "emma_chapters_1_to_5.txt"
SMOL = "smollm2-135m-instruct"


@pytest.fixture(autouse=True)
def _two_threads(_one_thread: None) -> Iterator[None]:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def emma() -> str:
    return EMMA.read_text(encoding="utf-8")


class Pair(NamedTuple):
    """One file, read by Sash and by transformers."""

    lm: LM
    model: nn.Module
    tokenizer: Any


@pytest.fixture(scope="module", params=["gemma-3-270m", SMOL])
def pair(request: pytest.FixtureRequest) -> Pair:
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle of these tests")
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    path = hub.resolve(request.param)
    # What from_pretrained(..., gguf_file=...) does, which would ask for one more package to lay tensors out. It opens
    # the file three times, and each time takes 20 s to read Gemma's vocabulary.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf, "GGUFReader", functools.cache(gguf.GGUFReader))
        config = transformers.AutoConfig.for_model(**load_gguf_checkpoint(str(path))["config"])
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        weights = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model, torch_dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    missing, unexpected = model.load_state_dict(weights["tensors"], strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])  # the head is tied to the embedding
    model.tie_weights()
    return Pair(load_decoder(request.param, dtype="float32"), model, tokenizer)


@torch.inference_mode()
def their_scores(model: nn.Module, ids: list[int]) -> Tensor:
    """What transformers thinks of each token after the first, [T - 1]."""
    hidden_TD = model.model(torch.tensor([ids]), use_cache=False).last_hidden_state[0]
    scores = []
    for start in range(0, len(ids) - 1, ROWS):
        next_N = torch.tensor(ids[start + 1 : start + 1 + ROWS])
        logits_NV = model.lm_head(hidden_TD[start : start + len(next_N)])
        scores.append(logits_NV.gather(1, next_N[:, None]).squeeze(1) - logits_NV.logsumexp(-1))
    return torch.cat(scores)


def test_transformers_reads_the_same_network(pair: Pair) -> None:
    """Its defaults fill in what Gemma's file lacks: the 5:1 pattern, the local base and the scale of the scores."""
    theirs, ours = pair.model.config, pair.lm.config
    kinds = getattr(theirs, "layer_types", None) or ["full_attention"] * ours.n_layers
    rope = theirs.rope_parameters
    windowed = [kind == "sliding_attention" for kind in kinds]
    assert [theirs.sliding_window if has else None for has in windowed] == list(ours.windows)
    assert [rope.get(kind, rope)["rope_theta"] for kind in kinds] == [layer.rope.theta for layer in ours.layers]
    scale = getattr(theirs, "query_pre_attn_scalar", theirs.head_dim) ** -0.5
    assert scale == pytest.approx(ours.attention_scale or ours.head_dim**-0.5)


def test_the_same_tokens(pair: Pair, emma: str) -> None:
    ids = pair.lm.tokenizer.encode(emma)
    assert len(ids) > N_TOKENS
    assert ids == pair.tokenizer(emma).input_ids
    assert pair.lm.tokenizer.decode(ids) == emma


def test_the_same_likelihood_of_emma(pair: Pair, emma: str) -> None:
    ids = pair.lm.tokenizer.encode(emma)[:N_TOKENS]
    ours, theirs = pair.lm.score(ids), their_scores(pair.model, ids)
    assert abs(float(ours.mean() - theirs.mean())) <= NLL_TOLERANCE
    assert (ours - theirs).abs().max() <= 0.05
    assert 2.0 < -float(ours.mean()) < 4.0  # nats a token: it reads English, not noise


def test_the_same_greedy_answer(pair: Pair, emma: str) -> None:
    ids = pair.lm.tokenizer.encode(emma)[:PROMPT]
    found = pair.lm.generate(ids, max_tokens=64, temperature=0, ignore_eos=True)
    pair.model.generation_config.eos_token_id = None
    with torch.inference_mode():
        expected = pair.model.generate(torch.tensor([ids]), max_new_tokens=64, do_sample=False)[0, PROMPT:]
    assert list(found.token_ids) == expected.tolist()
    assert len(found.token_ids) == 64


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def smol(request: pytest.FixtureRequest) -> LM:
    return load_decoder(SMOL, dtype=request.param)


@pytest.fixture(scope="module")
def ragged(emma: str) -> list[str]:
    """Four prompts of very different lengths, the longest of several chunks."""
    return [emma[:2500], "Mr. Knightley", emma[4000:4300], emma[5000:6000]]


def test_company_changes_nothing(smol: LM, ragged: list[str]) -> None:
    greedy: dict[str, Any] = {"max_tokens": 32, "temperature": 0, "ignore_eos": True}
    together = smol.generate(ragged, **greedy)
    alone = [smol.generate(prompt, **greedy) for prompt in ragged]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    assert [one.text for one in together] == [one.text for one in alone]
    assert len({one.text for one in alone}) == 4


def test_the_same_seed_writes_the_same_text_in_any_company(smol: LM, ragged: list[str]) -> None:
    drawn: dict[str, Any] = {"max_tokens": 32, "temperature": 0.8, "top_p": 0.95, "ignore_eos": True}
    together = smol.generate(ragged, seed=7, **drawn)
    alone = [smol.generate(prompt, seed=7, **drawn) for prompt in ragged]
    assert [one.text for one in together] == [one.text for one in alone]
    assert smol.generate(ragged[1], seed=8, **drawn).text != alone[1].text


@pytest.mark.parametrize("window", [None, 96])
def test_a_session_fed_in_pieces_reads_what_one_prompt_reads(window: int | None, emma: str) -> None:
    lm = load_decoder(SMOL, dtype="float32", window=window)
    ids = lm.tokenizer.encode(emma)[:901]
    params = SamplingParams(max_tokens=32, temperature=0, ignore_eos=True)
    whole = lm.generate(ids, max_tokens=32, temperature=0, ignore_eos=True)
    session = lm.session()
    start = 0
    for size in (1, 2, 600, 5, 1, 292):
        session.feed(ids[start : start + size])
        start += size
    assert session.tokens == len(ids) == start
    fork = session.fork()
    assert session.generate(params).token_ids == whole.token_ids
    assert fork.generate(params).token_ids == whole.token_ids


@pytest.mark.parametrize(
    ("system", "questions", "ends"),
    [
        (None, ("What is the capital of France?", "And of Italy?"), "stop"),
        ("You are a terse librarian.", ("Who wrote the novel Emma?", "Name another novel of hers."), "length"),
    ],
    ids=["stop", "length"],
)
def test_a_second_turn_reads_only_what_is_new(system: str | None, questions: tuple[str, str], ends: str) -> None:
    """SmolLM2's template renders earlier turns as it rendered them first, so what was read stays read."""
    lm = load_decoder(SMOL, dtype="float32")
    conversation = lm.conversation(system=system)
    first = conversation.say(questions[0], SamplingParams(max_tokens=24, temperature=0))
    answer = "".join(first)
    read_first = conversation.read_anew
    assert answer == first.completion.text == conversation.messages[-1]["content"]
    assert first.completion.finish_reason == ends

    second = conversation.say(questions[1], SamplingParams(max_tokens=24, temperature=0))
    messages = [dict(message) for message in conversation.messages]
    answer = "".join(second)
    everything = lm.tokenizer.encode_chat(messages)
    assert 0 < conversation.read_anew < len(everything) - read_first
    assert second.completion.stats.prompt_tokens < len(everything)

    cold = lm.chat(messages, max_tokens=24, temperature=0)
    assert cold.stats.prompt_tokens == len(everything)
    assert (answer, second.completion.token_ids) == (cold.text, cold.token_ids)
    if ends == "stop":
        assert "Rome" in answer


@pytest.mark.parametrize("speculate", ["lookup", "itself"])
@pytest.mark.parametrize("name", ["gemma-3-270m", SMOL])
def test_guesses_change_no_token_of_a_real_model(name: str, speculate: str, emma: str) -> None:
    lm = load_decoder(name)
    prompt = lm.tokenizer.encode(emma)[:PROMPT]
    sampling = {"max_tokens": 96, "temperature": 0.0, "ignore_eos": True}
    plain = lm.generate(prompt, **sampling)
    quick = lm.generate(prompt, speculate=lm if speculate == "itself" else "lookup", **sampling)
    assert quick.token_ids == plain.token_ids
    assert quick.stats.accepted_tokens > 0
