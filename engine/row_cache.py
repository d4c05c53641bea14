"""The KV cache of the fast sampler: transformers' own keep all rows of a batch at one length."""

import torch
from torch import Tensor
from transformers import Cache


class RowCache(Cache):
    """A KV cache whose rows have lengths of their own: each row is one conversation, which grows by any number of
    tokens at a time and can be replaced by a new one. Keys and values are [rows, heads, capacity, head_dim] per layer.

    `reserve` makes room; before a forward pass `view` says which rows take part, where in each its new tokens go, and
    how much of them to read.
    """

    def __init__(self):
        super().__init__(layers=[])
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.n_rows = self.capacity = 0  # capacity: tokens that fit into a row

    def reserve(self, n_rows: int, length: int, largest: int) -> None:
        """Make room for rows of that length. It grows beyond `largest` tokens in all only where `length` needs it."""
        if length > self.capacity:  # in growing steps, so that the copying does not add up
            self.capacity = max(length, min(2 * self.capacity, largest // n_rows))
        self.n_rows = max(self.n_rows, n_rows)
        for stores in (self.keys, self.values):
            for layer, store in enumerate(stores):
                rows, heads, capacity, head_dim = store.shape
                if rows < self.n_rows or capacity < self.capacity:
                    stores[layer] = store.new_zeros(self.n_rows, heads, self.capacity, head_dim)
                    stores[layer][:rows, :, :capacity] = store

    def view(self, rows: Tensor | None, positions: Tensor, length: int) -> None:
        """rows [b] (None: all); positions [b, t], where the new tokens go; length: of the part to attend to."""
        self.rows, self.positions, self.length = rows, positions, length
        self.write_rows = torch.arange(self.n_rows, device=positions.device) if rows is None else rows  # [b]

    def keep(self, rows: Tensor, length: int) -> None:
        """Drop all but these rows, and of them all that is behind `length`."""
        self.n_rows, self.capacity = len(rows), min(length, self.capacity)
        for stores in (self.keys, self.values):
            for layer, store in enumerate(stores):
                stores[layer] = store[rows, :, :length]  # [rows, heads, length, head_dim], a copy

    def copy(self, row: int, rows: list[int], length: int) -> None:
        """What the first `length` tokens of a row have left there goes into other rows, too."""
        for store in self.keys + self.values:
            store[rows, :, :length] = store[row, :, :length]

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args, **kwargs) -> tuple[Tensor, Tensor]:
        return self._store(self.keys, keys, layer_idx), self._store(self.values, values, layer_idx)

    def _store(self, stores: list[Tensor], new: Tensor, layer: int) -> Tensor:
        """new [b, heads, t, head_dim] -> everything of these rows up to `length`, [b, heads, length, head_dim]."""
        if layer == len(stores):
            stores.append(new.new_zeros(self.n_rows, new.shape[1], self.capacity, new.shape[3]))
        store = stores[layer]
        store[self.write_rows[:, None], :, self.positions] = new.transpose(1, 2)  # so indexed it is [b, t, heads, dim]
        return store[:, :, : self.length] if self.rows is None else store[self.rows, :, : self.length]
