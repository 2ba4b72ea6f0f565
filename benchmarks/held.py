"""What Kronecker factors take in memory for the layers of a Llama, in float32 weights of these layers, without anchors.

python -m benchmarks.held    prints the table: by arithmetic at full size, and counted in a keeper of a small one
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import holdfast as hf
from holdfast.retention import Keeper


@dataclass(frozen=True)
class Sizes:
    """Of a block: its width, that of its keys and values (several heads of queries share one), that of its MLP."""

    width: int
    keys: int
    inner: int

    @property
    def layers(self) -> dict[str, tuple[int, int, str]]:
        """Name -> out, in, and what it reads."""
        width, keys, inner = self.width, self.keys, self.inner
        return {
            "q": (width, width, "attention"),
            "k": (keys, width, "attention"),
            "v": (keys, width, "attention"),
            "o": (width, width, "mixed"),
            "gate": (inner, width, "mlp"),
            "up": (inner, width, "mlp"),
            "down": (width, inner, "gated"),
        }


LLAMA = Sizes(2048, 256, 5632)
SMALL = Sizes(64, 8, 176)


class LlamaBlock(nn.Module):
    """The layers of one block, their norms left out; its keys and values are repeated for groups of queries."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        for name, (out, width, _) in sizes.layers.items():
            setattr(self, name, nn.Linear(width, out, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unsqueeze(1) for layer in (self.q, self.k, self.v))
        q = q.unflatten(-1, (-1, k.shape[-1])).transpose(1, -2).squeeze(-2)
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


def expected(sizes: Sizes, *, shared: bool, num_bytes: int) -> float:
    """Bytes of bases and spectra over those of the weights in float32."""
    weights = sum(out * width for out, width, _ in sizes.layers.values())
    inputs = {reads if shared else name: width for name, (_, width, reads) in sizes.layers.items()}
    bases = sum(n * n for n in inputs.values()) + sum(out * out for out, _, _ in sizes.layers.values())
    return (weights + bases) * num_bytes / (4 * weights)


def counted(keeper: Keeper) -> float:
    """The same of what a keeper does hold, every piece of memory once."""
    layers = keeper.held.layers
    parts = {part.data_ptr(): part.nbytes for layer in layers.values() for part in layer.tensors().values()}
    return sum(parts.values()) / sum(4 * layer.spectrum.numel() for layer in layers.values())


def small_keeper(*, shared: bool, form: str) -> Keeper:
    """Of a small block, two tasks retained."""
    torch.manual_seed(0)
    model = nn.Sequential(LlamaBlock(SMALL))
    keeper = hf.EWC(model, strength=1.0, every=1, importance_dtype=form)  # pyright: ignore[reportArgumentType]
    for _ in range(2):
        data = [(torch.randn(4, 6, SMALL.width), torch.randint(0, SMALL.width, (4, 6)))]
        keeper.retain(hf.kfac(model, data, kind="sampled", share_inputs=shared))
    return keeper


def table() -> str:
    """A row for each way to hold them."""
    lines = ["| held in | inputs | width 2048, MLP 5632 | small: by arithmetic | small: counted |", "|" + " --- |" * 5]
    for form, num_bytes in (("float32", 4), ("bfloat16", 2)):
        for shared in (False, True):
            large, small = (expected(sizes, shared=shared, num_bytes=num_bytes) for sizes in (LLAMA, SMALL))
            found = counted(small_keeper(shared=shared, form=form))
            held = "one basis" if shared else "a basis a layer"
            lines.append(f"| {form} | {held} | {large:.2f} | {small:.2f} | {found:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table())
