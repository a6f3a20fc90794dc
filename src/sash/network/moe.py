"""Sparse mixture of experts (Mixtral, arXiv 2401.04088, section 2.1): y = sum over the top k of softmax(g)_i E_i(x).

Only chosen experts are computed: tokens are grouped by expert, each expert runs once on its group. An expert may
itself be a mixture.

Shape suffixes: T packed tokens, D dim, E experts, k chosen experts a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from sash.network.config import ModelConfig, MoEConfig
from sash.network.layers import FeedForward


def mix(
    x_TD: Tensor, logits_TE: Tensor, top_k: int, experts: Iterable[Callable[[Tensor], Tensor]]
) -> tuple[Tensor, Tensor]:
    """Send each token to its likeliest experts, and weigh what they answer.

    Returns:
        [T, D], and the experts chosen for each token [T, k], best first.
    """
    logits_Tk, choice_Tk = logits_TE.float().topk(top_k, dim=-1)
    gates_Tk = logits_Tk.softmax(dim=-1)
    order = choice_Tk.flatten().argsort(stable=True)
    counts = choice_Tk.flatten().bincount(minlength=logits_TE.shape[-1]).tolist()
    token = order // top_k
    groups = torch.split(x_TD[token], counts)
    outs = [expert(group) for expert, group in zip(experts, groups, strict=True) if len(group)]
    weighed = torch.cat(outs) * gates_Tk.flatten()[order, None].to(x_TD.dtype)
    return torch.zeros_like(x_TD).index_add_(0, token, weighed), choice_Tk


class MoE(nn.Module):
    """A layer of experts behind a router.

    Attributes:
        expert_tokens_E: how many tokens each expert was sent since the last `reset_statistics`, int64.
        last_choice_Tk: the experts chosen for each token of the last forward, best first.
    """

    expert_tokens_E: Tensor
    last_choice_Tk: Tensor | None

    def __init__(self, config: ModelConfig, moe: MoEConfig) -> None:
        super().__init__()
        self.top_k = moe.top_k
        self.gate = nn.Linear(config.dim, moe.n_experts, bias=False)
        inner = moe.expert
        self.experts = nn.ModuleList(
            FeedForward(config) if inner is None else MoE(config, inner) for _ in range(moe.n_experts)
        )
        self.register_buffer("expert_tokens_E", torch.zeros(moe.n_experts, dtype=torch.int64), persistent=False)
        self.last_choice_Tk = None

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        out_TD, choice_Tk = mix(x_TD, self.gate(x_TD), self.top_k, self.experts)
        self._record(choice_Tk)
        return out_TD

    def _record(self, choice_Tk: Tensor) -> None:
        with torch.no_grad():
            self.last_choice_Tk = choice_Tk.detach()
            self.expert_tokens_E += choice_Tk.flatten().bincount(minlength=len(self.experts))

    def reset_statistics(self) -> None:
        """Count from zero again, here and in experts that are mixtures."""
        self.expert_tokens_E.zero_()
        self.last_choice_Tk = None
        for expert in self.experts:
            if isinstance(expert, MoE):
                expert.reset_statistics()


class Mixture:
    """A layer of experts behind a router, whatever computes the experts; see `MoE`.

    Attributes:
        expert_tokens_E, last_choice_Tk: as of `MoE`.
    """

    def __init__(self, gate_ED: Tensor, experts: Sequence[Callable[[Tensor], Tensor]], top_k: int) -> None:
        self._gate_ED, self._experts, self._top_k = gate_ED, experts, top_k
        self.last_choice_Tk: Tensor | None = None
        self.reset_statistics()

    def __call__(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        # A row at a time: a product of one row has the same bits whoever shares the step.
        logits_TE = torch.stack([self._gate_ED @ x_D for x_D in x_TD])
        out_TD, choice_Tk = mix(x_TD, logits_TE, self._top_k, self._experts)
        self.last_choice_Tk = choice_Tk
        self.expert_tokens_E += choice_Tk.flatten().bincount(minlength=len(self._experts))
        return out_TD

    def reset_statistics(self) -> None:
        """Count from zero again, here and in experts that are mixtures."""
        self.expert_tokens_E = torch.zeros(len(self._experts), dtype=torch.int64)
        self.last_choice_Tk = None
        for expert in self._experts:
            if isinstance(expert, Mixture):
                expert.reset_statistics()
