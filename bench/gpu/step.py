"""Suite `step`: whole training steps of an encoder like ViT-L's, over its dense twin.

24 blocks of width 1024 with 16 heads and an MLP of 4096, random tokens, autocast to bfloat16,
AdamW. The two layers of every MLP keep blocks of 64 x 64 at density 0.1 (a static mask); attention,
norms and the loss are dense and part of the step, as are the gaps between launches. The dense twin
steps with torch's fused AdamW, the sparse one with ours and with torch's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.gpu.session import Case, Comparison, Maker, Measure, Run, Session, Work
from bench.timing import training_step
from sparsekern.models.transformer import Block, initialize
from sparsekern.optim import MaskedAdamW
from sparsekern.patterns import Block as Blocks
from sparsekern.prune import Pruner, Static

OPS = ("bsr_linear", "bsr_linear_backward", "update_masked_adamw_")
DENSITY = 0.10
RATE = 1e-4


@dataclass(frozen=True)
class Size:
    """Of the encoder, its input and the blocks that are kept."""

    depth: int = 24
    width: int = 1024
    heads: int = 16
    batch: int = 32
    tokens: int = 256
    side: int = 64


TINY = Size(depth=2, width=32, heads=2, batch=2, tokens=8, side=16)


class Encoder(nn.Module):
    """Blocks with norms first, and a norm behind them."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(size.width, size.heads, 4 * size.width, 0.0, norm_first=True)
            for _ in range(size.depth)
        )
        self.norm = nn.LayerNorm(size.width)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def cases(tiny: bool) -> Iterator[Case]:
    """The encoder of ViT-L, at two batch sizes."""
    sizes = (TINY,) if tiny else (Size(), Size(batch=8))
    for size in sizes:
        yield Case(f"batch {size.batch}", _step(size))


def sparse_step(dense: nn.Module, size: Size, x: Tensor, optimizer: Callable[..., object]) -> Run:
    """A training step of the twin whose MLPs are block-sparse."""
    model = copy.deepcopy(dense)
    stepping = optimizer(model.parameters())
    pruner = Pruner(
        model,
        stepping,  # type: ignore[arg-type]
        Static(density=DENSITY, distribution="uniform", pattern=Blocks(size.side, size.side)),
        total_steps=10**9,
        exclude=["*.attention.*"],
        format="bsr",
    )
    return training_step(lambda: loss(model, x), pruner.optimizer, pruner.step)


def loss(model: nn.Module, x: Tensor) -> Tensor:
    """Under autocast; any loss will do, for nothing is learned."""
    with torch.autocast(x.device.type, torch.bfloat16):
        y = model(x)
    return y.float().square().mean()


def flops(size: Size) -> float:
    """Of the dense step's matrix products: three times the forward pass."""
    tokens = size.batch * size.tokens
    layers = 2 * tokens * size.width**2 * 12
    attention = 4 * tokens * size.tokens * size.width
    return 3.0 * size.depth * (layers + attention)


def _step(size: Size) -> Measure:
    def measure(session: Session) -> None:
        device = session.device
        dense = Encoder(size).to(device)
        x = torch.randn(size.batch, size.tokens, size.width, device=device)

        def fused(parameters: object) -> torch.optim.Optimizer:
            return torch.optim.AdamW(parameters, lr=RATE, fused=True)  # type: ignore[arg-type]

        def dense_step() -> Run:
            model = copy.deepcopy(dense)
            return training_step(lambda: loss(model, x), fused(model.parameters()))

        makers: dict[str, Maker] = {
            "dense": dense_step,
            "dense_again": dense_step,
            "sparsekern_bsr": lambda: sparse_step(
                dense, size, x, lambda p: MaskedAdamW(p, lr=RATE)
            ),
            "sparsekern_bsr_torch_adamw": lambda: sparse_step(dense, size, x, fused),
        }
        fields = {"op": "encoder", "pass": "step", "shape": [size.batch, size.tokens, size.width]}
        shown = {**fields, "pattern": f"{size.side}x{size.side}", "density": DENSITY}
        works = {name: Work(flops=flops(size)) for name in ("dense", "dense_again")}
        what = Comparison({**shown, "dtype": "autocast"}, works, cold=False, ahead=False, seconds=2)
        session.compare(what, makers)

    return measure
