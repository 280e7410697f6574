"""The attention function that the model's own layers call.

transformers lets a model's attention be anything that is registered under a name. Ours is told, by
the ``Step`` that is being computed, whose token each row of the forward pass is. It appends each
row's key and value to the tensors of its sequence and lets the row look at that sequence alone.

*In one piece* or row by row: a chunk of a prompt is attended in one piece, always of the same
shape; where exactness is asked for, all else goes row by row, in calls whose shape depends on the
row's own position only. So the bits of a row do not depend on what else is in the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from aios.drivers.cores.transformers.cells import Layer, Layout, Tensors

NAME = "aios"


class Segment:
    """Rows [row, row + count) of a forward pass: positions [start, start + count) of a sequence."""

    __slots__ = ("count", "row", "start", "tensors")

    def __init__(self, tensors: Tensors, row: int, start: int, count: int) -> None:
        self.tensors, self.row, self.start, self.count = tensors, row, start, count


class Step:
    """One forward pass: its segments, and whether each is attended in one piece."""

    def __init__(self, segments: list[Segment], *, in_one_piece: bool) -> None:
        self.segments, self.in_one_piece = segments, in_one_piece
        self._masks: dict[tuple[int, int, int | None, Any], Any] = {}

    def mask(self, start: int, count: int, window: int | None, device: Any) -> Any:
        """What each of *count* rows from *start* on may look at, shape (count, start + count)."""
        key = start, count, window, device
        if key not in self._masks:
            own = torch.arange(start, start + count, device=device)[:, None]
            others = torch.arange(start + count, device=device)[None]
            allowed = others <= own
            self._masks[key] = allowed & (others > own - window) if window else allowed
        return self._masks[key]


class Now:
    """What the model computes at the moment; None while it is only asked what its layers are."""

    def __init__(self) -> None:
        self.step: Step | None = None
        self.layout: Layout = {}


def attach(model: Any) -> Now:
    """Let every attention of the model know where to look; engines of one model share that."""
    now: Now = getattr(model, "aios_now", None) or Now()
    model.aios_now = now
    for module in model.modules():
        if hasattr(module, "layer_idx"):
            module.aios_now = now
    return now


def attend(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Any = None,
    **_: Any,
) -> tuple[Any, None]:
    """Shapes: query (1, heads, rows, size), key and value (1, their heads, rows, size)."""
    now, number = module.aios_now, module.layer_idx
    queries, keys, values = (t[0].transpose(0, 1) for t in (query, key, value))
    if now.step is None:
        now.layout[number] = Layer(
            tuple(keys.shape[1:]), tuple(values.shape[1:]), keys.dtype, keys.device
        )
        return queries.new_zeros((1, *queries.shape[:2], values.shape[2])), None
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    look = _look if softcap is None and s_aux is None else _Spelt(softcap, s_aux)
    out = queries.new_zeros((*queries.shape[:2], values.shape[2]))
    for segment in now.step.segments:
        row, start, count = segment.row, segment.start, segment.count
        own_keys, own_values = segment.tensors.keys[number], segment.tensors.values[number]
        end = start + count
        if count == 1:
            own_keys[start], own_values[start] = keys[row], values[row]
        else:
            own_keys[start:end] = keys[row : row + count]
            own_values[start:end] = values[row : row + count]
        if now.step.in_one_piece and count > 1:
            mask = now.step.mask(start, count, sliding_window, queries.device)
            out[row : row + count] = look(
                queries[row : row + count], own_keys[:end], own_values[:end], mask, scaling
            )
            continue
        for place in range(count):
            last = start + place + 1
            first = max(0, last - sliding_window) if sliding_window else 0
            out[row + place] = look(
                queries[row + place : row + place + 1],
                own_keys[first:last],
                own_values[first:last],
                None,
                scaling,
            )
    return out[None], None


def _look(queries: Any, keys: Any, values: Any, mask: Any, scaling: float) -> Any:
    """Softmax attention of some rows of one sequence; (rows, heads, size) in and out."""
    rows, heads, size = queries.shape
    group = heads // keys.shape[1]
    if rows == 1:
        # the heads that share a key are its queries: nothing is repeated, nothing is masked
        found = scaled_dot_product_attention(
            queries.view(1, keys.shape[1], group, size),
            keys.transpose(0, 1)[None],
            values.transpose(0, 1)[None],
            scale=scaling,
        )
        return found.reshape(heads, -1)
    found = scaled_dot_product_attention(
        queries.transpose(0, 1)[None],
        _repeated(keys, group),
        _repeated(values, group),
        attn_mask=mask,
        scale=scaling,
    )
    return found[0].transpose(0, 1)


class _Spelt:
    """The same, written out: for scores that are capped, and for sinks (scores of no token)."""

    def __init__(self, softcap: float | None, sinks: Any) -> None:
        self._softcap, self._sinks = softcap, sinks

    def __call__(self, queries: Any, keys: Any, values: Any, mask: Any, scaling: float) -> Any:
        rows, heads, _ = queries.shape
        group = heads // keys.shape[1]
        keys, values = _repeated(keys, group)[0], _repeated(values, group)[0]
        scores = torch.matmul(queries.transpose(0, 1), keys.transpose(1, 2)) * scaling
        if self._softcap is not None:
            scores = torch.tanh(scores / self._softcap) * self._softcap
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        scores = scores.float()
        if self._sinks is not None:
            sinks = self._sinks.float().view(heads, 1, 1).expand(heads, rows, 1)
            scores = torch.cat([scores, sinks], dim=-1)
        weights = scores.softmax(dim=-1)
        if self._sinks is not None:
            weights = weights[..., :-1]
        found = torch.matmul(weights.to(values.dtype), values).transpose(0, 1)
        return found if rows > 1 else found[0]


def _repeated(kv: Any, group: int) -> Any:
    """(positions, heads, size) as (1, heads * group, positions, size)."""
    found = kv.transpose(0, 1)
    return (found if group == 1 else found.repeat_interleave(group, dim=0))[None]
