"""Mixtures of experts whose bits do not depend on the batch.

How many rows an expert gets depends on who else is in the batch, and the bits of a matrix product
depend on the number of its rows. So in a small batch, whose number of rows is fixed, an expert that
anybody is routed to computes all rows, weighed 0 where it was not chosen: decoding waits for the
weights, not for the arithmetic. In a chunk of a prompt each expert gets its own rows only: which
these are follows from the chunk's own tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import linear

from aios.drivers.cores.transformers.cells import BLOCK

NAME = "aios"


def mix(self: Any, hidden: Any, chosen: Any, weights: Any) -> Any:
    """Shapes: hidden (rows, size), chosen and weights (rows, experts a row)."""
    rows = hidden.shape[0]
    out = torch.zeros_like(hidden)
    for expert in sorted(set(chosen.flatten().tolist())):
        if expert >= self.num_experts:
            continue
        weight = (weights * (chosen == expert)).sum(-1, keepdim=True)
        if rows < BLOCK:
            out += (_expert(self, expert, hidden) * weight).to(out.dtype)
        else:
            own = (chosen == expert).any(-1).nonzero()[:, 0]
            out[own] += (_expert(self, expert, hidden[own]) * weight[own]).to(out.dtype)
    return out


def _expert(self: Any, expert: int, rows: Any) -> Any:
    name = "gate_up" if self.has_gate else "up"
    found = _product(self, name, expert, rows)
    found = self._apply_gate(found) if self.has_gate else self.act_fn(found)
    found = _product(self, "down", expert, found)
    return self.post_expert_norm(found) if self.has_post_expert_norm else found


def _product(self: Any, name: str, expert: int, rows: Any) -> Any:
    weight = getattr(self, f"{name}_proj")[expert]
    bias = getattr(self, f"{name}_proj_bias")[expert] if self.has_bias else None
    return linear(rows, weight.T if self.is_transposed else weight, bias)
