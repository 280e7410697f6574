"""The tensors that hold the KV of sequences, and how many positions of them there may be.

A sequence's keys lie in one tensor a layer, its values in another, shape (capacity, heads, size of
a head): a position is a row, so it is appended in place, and the strides never depend on the
capacity. Capacities are multiples of 64; a tensor that is full is replaced by a larger copy.

Forks share tensors. Who is at the end of what is filled may append in place, since the others look
at their own length only; anybody else copies first.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from aios.drivers.cores.kept.disk import Bytes

BLOCK = 64
ROOM = 0.25  # of a sequence's length is left free when its tensors grow


class Layer(NamedTuple):
    """What one position of a layer is: (heads, size) of its key and of its value."""

    key: tuple[int, int]
    value: tuple[int, int]
    dtype: Any
    device: Any

    @property
    def bytes(self) -> int:
        numbers = self.key[0] * self.key[1] + self.value[0] * self.value[1]
        return int(numbers * self.dtype.itemsize)


Layout = dict[int, Layer]  # by the model's own number of the layer


def bytes_per_token(layout: Layout) -> int:
    return sum(layer.bytes for layer in layout.values())


class Tensors:
    """Keys and values of every layer for *capacity* positions, of which some are filled."""

    __slots__ = ("capacity", "filled", "keys", "sharers", "values")

    def __init__(self, layout: Layout, capacity: int) -> None:
        self.capacity, self.filled, self.sharers = capacity, 0, 1
        self.keys: dict[int, Any] = {}
        self.values: dict[int, Any] = {}
        for number, layer in layout.items():
            made = {"dtype": layer.dtype, "device": layer.device}
            # zeros: what masked attention reads beyond the end must be a number
            self.keys[number] = torch.zeros((capacity, *layer.key), **made)
            self.values[number] = torch.zeros((capacity, *layer.value), **made)


class Kv:
    """The first *length* positions of some tensors: the KV of one sequence, or of one beam."""

    __slots__ = ("length", "tensors")

    def __init__(self, tensors: Tensors | None = None, length: int = 0) -> None:
        self.tensors, self.length = tensors, length

    def __repr__(self) -> str:
        capacity = self.tensors.capacity if self.tensors else 0
        return f"<kv: {self.length} of {capacity} positions>"


class Cells:
    """Makes and counts them. *total* is in positions."""

    def __init__(self, layout: Layout, total: int) -> None:
        self.layout, self.total, self.used = layout, total, 0
        self.token_bytes = bytes_per_token(layout)

    def __repr__(self) -> str:
        return f"<cells: {self.used} of {self.total}>"

    def open(self, kv: Kv, count: int) -> bool:
        """Make its next *count* positions writable; False if there is no room for them."""
        old, end = kv.tensors, kv.length + count
        if old and end <= old.capacity and (old.sharers == 1 or old.filled == kv.length):
            old.filled = end
            return True
        own = old.capacity if old and old.sharers == 1 else 0
        room = self.total - self.used + own
        capacity = _rounded(end)
        if capacity > room:
            return False
        new = Tensors(self.layout, min(_rounded(int(end * (1 + ROOM))), room // BLOCK * BLOCK))
        if old:
            for number in self.layout:
                new.keys[number][: kv.length] = old.keys[number][: kv.length]
                new.values[number][: kv.length] = old.values[number][: kv.length]
        length = kv.length
        self.drop(kv)
        self.used += new.capacity
        new.filled = end
        kv.tensors, kv.length = new, length
        return True

    def close(self, kv: Kv, length: int) -> None:
        """Of the positions opened last only those below *length* were filled."""
        assert kv.tensors is not None
        kv.length = kv.tensors.filled = length

    def share(self, kv: Kv) -> Kv:
        """A second sequence with the same KV; nothing is copied."""
        if kv.tensors:
            kv.tensors.sharers += 1
        return Kv(kv.tensors, kv.length)

    def drop(self, kv: Kv) -> None:
        if kv.tensors:
            kv.tensors.sharers -= 1
            if not kv.tensors.sharers:
                self.used -= kv.tensors.capacity
        kv.tensors, kv.length = None, 0

    def read(self, kv: Kv, start: int, end: int) -> Bytes:
        """The bytes of positions [start, end): layer by layer its keys, then its values."""
        found = np.empty((end - start) * self.token_bytes, np.uint8)
        if kv.tensors is None:
            assert start == end
            return found
        at = 0
        for number in self.layout:
            for tensor in (kv.tensors.keys[number], kv.tensors.values[number]):
                part = tensor[start:end].view(torch.uint8).reshape(-1)
                found[at : at + part.numel()] = part.cpu().numpy()
                at += part.numel()
        return found

    def write(self, kv: Kv, data: Bytes, count: int) -> None:
        """Append *count* positions that ``read`` gave; ``open`` made room for them."""
        tensors, start, at = kv.tensors, kv.length, 0
        assert tensors is not None
        source = torch.from_numpy(data)
        for number, layer in self.layout.items():
            for tensor, (heads, size) in (
                (tensors.keys[number], layer.key),
                (tensors.values[number], layer.value),
            ):
                end = at + count * heads * size * layer.dtype.itemsize
                part = source[at:end].view(layer.dtype).view(count, heads, size)
                tensor[start : start + count] = part.to(tensor.device)
                at = end
        kv.length += count


def _rounded(count: int) -> int:
    return -(-count // BLOCK) * BLOCK
