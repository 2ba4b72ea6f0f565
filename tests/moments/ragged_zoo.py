"""Models whose layers see rows that are no reshape of the batch, each with batches of many lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from tests.moments.zoo import Apply
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

D, C, V, T = 5, 3, 11, 6

Batch = tuple[tuple[Tensor, ...], Tensor]


def there(ids: Tensor, lengths: Tensor) -> Tensor:
    """[B, T]: which positions are no padding."""
    return torch.arange(ids.shape[1])[None] < lengths[:, None]


def pooled(rows: Tensor, mask: Tensor) -> Tensor:
    """[B, D]: sums of the rows of each example."""
    return torch.zeros(len(mask), rows.shape[1], dtype=rows.dtype).index_add(0, mask.nonzero()[:, 0], rows)


def unpadded() -> nn.Module:
    """Tokens without padding through an embedding, a Linear layer that is used twice, and a norm."""

    def forward(self: nn.Module, ids: Tensor, lengths: Tensor) -> Tensor:
        mask = there(ids, lengths)
        h = self.norm(self.a(self.a(self.tokens(ids[mask])).tanh()))
        return self.head(pooled(h, mask))

    modules = {"a": nn.Linear(D, D), "norm": nn.LayerNorm(D), "head": nn.Linear(D, C)}
    return Apply(forward, tokens=nn.Embedding(V, D, padding_idx=2), **modules)


def joined_by_cat() -> nn.Module:
    """Pieces cut by numbers that Python reads, put together, with a raw scale and shift."""

    def forward(self: nn.Module, ids: Tensor, lengths: Tensor) -> Tensor:
        pieces = [row[:n] for row, n in zip(ids, lengths.tolist())]
        h = self.a(self.tokens(torch.cat(pieces)) * self.scale + self.shift).relu()
        return self.head(torch.stack([piece.mean(0) for piece in h.split([len(piece) for piece in pieces])]))

    model = Apply(forward, tokens=nn.Embedding(V, D), a=nn.Linear(D, D), head=nn.Linear(D, C))
    model.scale, model.shift = nn.Parameter(torch.rand(D)), nn.Parameter(torch.rand(1, D))
    return model


def tied_unpadded() -> nn.Module:
    """An embedding tied to a Linear layer on the same rows."""

    def forward(self: nn.Module, ids: Tensor, lengths: Tensor) -> Tensor:
        mask = there(ids, lengths)
        return pooled(F.linear(self.mix(self.tokens(ids[mask])).tanh(), self.tokens.weight), mask)[:, :C]

    return Apply(forward, tokens=nn.Embedding(V, D), mix=nn.Linear(D, D))


def by_length() -> nn.Module:
    """Examples sorted by their length and put back: as many rows, elsewhere."""

    def forward(self: nn.Module, ids: Tensor, lengths: Tensor) -> Tensor:
        order = lengths.argsort()
        h = self.a(self.tokens(ids[order])).tanh().mean(1)
        return self.head(h[order.argsort()])

    return Apply(forward, tokens=nn.Embedding(V, D), a=nn.Linear(D, D), head=nn.Linear(D, C))


def top_one() -> nn.Module:
    """Each token through one of two experts, by indices."""
    return experts(1)


def top_two() -> nn.Module:
    """Each token through two of three experts, of which every one takes at most as many as there are examples."""
    return experts(2)


def experts(k: int) -> nn.Module:
    def forward(self: nn.Module, ids: Tensor, lengths: Tensor) -> Tensor:
        h = self.tokens(ids).flatten(0, 1)
        weights, chosen = self.gate(h).softmax(-1).topk(k, dim=-1)
        out = h
        for number, expert in enumerate(self.experts):
            rows, place = (chosen == number).nonzero(as_tuple=True)
            if len(rows):
                out = out.index_add(0, rows, expert(h[rows]) * weights[rows, place, None])
        return self.head(out.view(*ids.shape, D).mean(1))

    layers = nn.ModuleList(nn.Sequential(nn.Linear(D, 4), nn.GELU(), nn.Linear(4, D)) for _ in range(k + 1))
    return Apply(forward, tokens=nn.Embedding(V, D), gate=nn.Linear(D, k + 1), experts=layers, head=nn.Linear(D, C))


def by_one_hot() -> nn.Module:
    """Top-1 experts of a fixed room, filled by a product with zeros and ones: no function that indexes anything."""

    def forward(self: nn.Module, ids: Tensor, lengths: Tensor) -> Tensor:
        h = self.tokens(ids).flatten(0, 1)
        chosen = F.one_hot(self.gate(h).argmax(-1), 2).to(h.dtype)
        place = F.one_hot(((chosen.cumsum(0) - 1) * chosen).sum(-1).long(), len(h)).to(h.dtype)
        sent = torch.einsum("ne,nc->ecn", chosen, place)
        seen = torch.stack([expert(rows) for expert, rows in zip(self.experts, sent @ h)])
        return self.head((h + torch.einsum("ecn,ecd->nd", sent, seen)).view(*ids.shape, D).mean(1))

    layers = nn.ModuleList(nn.Linear(D, D) for _ in range(2))
    return Apply(forward, tokens=nn.Embedding(V, D), gate=nn.Linear(D, 2), experts=layers, head=nn.Linear(D, C))


def distinct() -> nn.Module:
    """Every distinct token goes through the layers once: some rows belong to several examples."""

    def forward(self: nn.Module, ids: Tensor, lengths: Tensor) -> Tensor:
        found, places = ids.unique(return_inverse=True)
        return self.head(self.a(self.tokens(found)).tanh()[places].mean(1))

    return Apply(forward, tokens=nn.Embedding(V, D), a=nn.Linear(D, D), head=nn.Linear(D, C))


def graphs() -> nn.Module:
    """Graphs of many sizes as one: messages along edges, then sums over the nodes of each."""

    def forward(self: nn.Module, ids: Tensor, lengths: Tensor) -> Tensor:
        mask = there(ids, lengths)
        h = self.tokens(ids[mask])
        edges = (mask[:, :, None] & mask[:, None, :] & ((ids[:, :, None] + ids[:, None, :]) % 3 == 0)).nonzero()
        number = torch.zeros_like(ids)
        number[mask] = torch.arange(len(h))
        source, target = number[edges[:, 0], edges[:, 1]], number[edges[:, 0], edges[:, 2]]
        for layer in (self.a, self.b):
            messages = layer(torch.cat([h[source], h[target]], dim=-1)).relu()
            h = self.norm(h + torch.zeros_like(h).index_add(0, target, messages))
        return self.head(pooled(h, mask))

    modules = {name: nn.Linear(2 * D, D) for name in ("a", "b")}
    return Apply(forward, tokens=nn.Embedding(V, D), norm=nn.LayerNorm(D), head=nn.Linear(D, C), **modules)


def regions() -> nn.Module:
    """As many regions as an image has through a convolution, a norm of channels and a head."""

    def forward(self: nn.Module, ids: Tensor, lengths: Tensor) -> Tensor:
        mask = there(ids, lengths)
        images = torch.sin(ids[:, :, None, None] + torch.arange(16.0).view(4, 4)).to(self.head.weight)
        patches = images[mask].unsqueeze(1)
        return pooled(self.head(self.norm(self.conv(patches)).relu().flatten(1)), mask)

    return Apply(forward, conv=nn.Conv2d(1, 2, 3), norm=nn.GroupNorm(1, 2), head=nn.Linear(8, C))


def last_token() -> nn.Module:
    """The last token of each example through the head, as language models classify."""

    def forward(self: nn.Module, ids: Tensor, lengths: Tensor) -> Tensor:
        h = self.a(self.tokens(ids)).tanh().cumsum(1)
        return self.head(h[torch.arange(len(ids)), lengths - 1])

    return Apply(forward, tokens=nn.Embedding(V, D), a=nn.Linear(D, D), head=nn.Linear(D, C))


def tagger() -> nn.Module:
    """A recurrent tagger whose outputs are as long as the longest of the batch."""

    def forward(self: nn.Module, ids: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.tokens(ids), lengths, batch_first=True, enforce_sorted=False)
        return self.head(pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0])

    return Apply(forward, tokens=nn.Embedding(V, D), lstm=nn.LSTM(D, 4, batch_first=True), head=nn.Linear(4, C))


def trimmed() -> nn.Module:
    """A tagger of plain layers that cuts the padding which all of the batch have."""

    def forward(self: nn.Module, ids: Tensor, lengths: Tensor) -> Tensor:
        h = self.tokens(ids[:, : int(lengths.max())])
        return self.head(self.a(h).tanh())

    return Apply(forward, tokens=nn.Embedding(V, D), a=nn.Linear(D, D), head=nn.Linear(D, C))


RAGGED: dict[str, Callable[[], nn.Module]] = {
    each.__name__: each
    for each in (unpadded, joined_by_cat, tied_unpadded, by_length, top_one, top_two, by_one_hot, distinct, graphs)
} | {"regions": regions, "last_token": last_token}

LONGEST: dict[str, Callable[[], nn.Module]] = {"tagger": tagger, "trimmed": trimmed}


def batch(lengths: Sequence[int], *, positions: bool = False, longest: bool = False) -> Batch:
    """A batch of texts of these lengths; labels for each text or, of a tagger, for each position."""
    size, width = len(lengths), max(lengths) if longest else T
    labels = torch.randint(0, C, (size, width) if positions else (size,))
    return (torch.randint(0, V, (size, width)), torch.tensor(lengths)), labels


def singles(batches: Sequence[Batch]) -> list[Batch]:
    """Every example as a batch of its own."""
    return [
        (tuple(tensor[b : b + 1] for tensor in inputs), labels[b : b + 1])
        for inputs, labels in batches
        for b in range(len(labels))
    ]


def truth(model: nn.Module, batches: Sequence[Batch], score: Callable[[Any, Tensor], Tensor], phi: str) -> Any:
    """Name -> mean over the examples of phi(gradient), each from a forward and backward pass of its own."""
    named, examples = dict(model.named_parameters()), singles(batches)
    totals = {name: torch.zeros_like(p) for name, p in named.items()}
    for inputs, labels in examples:
        rows = score(model(*inputs), labels)
        for row in rows if rows.ndim else [rows]:
            found = torch.autograd.grad(row, list(named.values()), allow_unused=True, retain_graph=True)
            for name, g in zip(named, found):
                if g is not None:
                    totals[name] += g.square() if phi == "square" else g.abs()
    return {name: total / len(examples) for name, total in totals.items()}
