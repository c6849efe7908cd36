"""Suite `block`: block-sparse layers forward and backward, over cuBLAS in bfloat16.

One 4096-wide linear layer and the MLP 4096 to 16384 to 4096 with GELU, 8192 rows, density 0.1.
"bfloat16" has weights of that dtype; "autocast" float32 weights under autocast, as most people
train. `sparsekern_bsr` runs what the layer's rule says, `sparsekern_bsr_<name>` a kernel whatever
the rule says. torch's own BSR product has no backward, so it stands in the forward rows alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from bench.gpu.session import Case, Comparison, Maker, Measure, Run, Session, Work
from bench.gpu.torch_sparse import block_mask, torch_bsr
from bench.timing import forward_backward_call, forward_call
from sparsekern.nn import SparseLinear

OPS = ("bsr_linear", "bsr_linear_backward")
DENSITY = 0.10
SIDES, TINY_SIDES = (128, 64, 32, 16), (16,)
ROWS, WIDTH, HIDDEN = 8192, 4096, 16384
TINY_ROWS, TINY_WIDTH, TINY_HIDDEN = 32, 32, 64
DTYPES = ("bfloat16", "autocast")


def cases(tiny: bool) -> Iterator[Case]:
    """The MLP first, large blocks first."""
    rows, width, hidden = (TINY_ROWS, TINY_WIDTH, TINY_HIDDEN) if tiny else (ROWS, WIDTH, HIDDEN)
    sizes = {"mlp": (width, hidden, width), "linear": (width, width)}
    for (op, features), dtype in itertools.product(sizes.items(), DTYPES):
        for side in TINY_SIDES if tiny else SIDES:
            measure = _compare(op, rows, features, side, dtype)
            yield Case(f"{op} {features}, blocks of {side}, {dtype}", measure)


def network(sizes: tuple[int, ...], make: Callable[[int, int], nn.Module]) -> nn.Sequential:
    """Layers of these sizes with GELU between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [make(before, after), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def sparse_twin(dense: nn.Sequential, side: int, variant: str = "auto") -> nn.Sequential:
    """The network with blocks of its linear layers kept at :data:`DENSITY`, at random."""
    layers: list[nn.Module] = []
    for layer in dense:
        if isinstance(layer, nn.Linear):
            shape = (layer.out_features, layer.in_features)
            mask = block_mask(shape, side, DENSITY, layer.weight.device)
            layer = SparseLinear.from_dense(
                layer, mask=mask, format="bsr", block_shape=(side, side)
            )
            layer.format.variant = variant
        layers.append(layer)
    return nn.Sequential(*layers)


def _compare(op: str, rows: int, sizes: tuple[int, ...], side: int, dtype: str) -> Measure:
    def measure(session: Session) -> None:
        device = session.device
        kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        dense = network(sizes, lambda a, b: nn.Linear(a, b, device=device, dtype=kind))
        x = torch.randn(rows, sizes[0], device=device).to(kind)
        variants = sparse_twin(dense, side)[0].format.variants
        for which in ("forward", "forward_backward"):
            fields = {"op": op, "pass": which, "shape": [rows, *sizes], "pattern": f"{side}x{side}"}
            shown = {**fields, "density": DENSITY, "dtype": dtype}
            works = _works(rows, sizes, which, variants)
            what = Comparison(shown, works, rival="torch_bsr")

            def call(layer: nn.Module, which: str = which) -> Run:
                return _call(layer, x, which, autocast=dtype == "autocast")

            makers: dict[str, Maker] = {
                "dense": lambda call=call: call(dense),
                "dense_again": lambda call=call: call(dense),
                "sparsekern_bsr": lambda call=call: call(sparse_twin(dense, side)),
            }
            for name in variants:
                makers[f"sparsekern_bsr_{name}"] = lambda call=call, name=name: call(
                    sparse_twin(dense, side, name)
                )
            if op == "linear" and which == "forward" and dtype == "bfloat16":
                makers["torch_bsr"] = lambda: torch_bsr(x, _kept(dense[0].weight, side), side)
            session.compare(what, makers)

    return measure


def _kept(weight: Tensor, side: int) -> Tensor:
    """The weight with blocks at random."""
    mask = block_mask(tuple(weight.shape), side, DENSITY, weight.device)
    return (weight.detach() * mask).to(weight.dtype)


def _works(
    rows: int, sizes: tuple[int, ...], which: str, variants: tuple[str, ...] = ()
) -> dict[str, Work]:
    """Useful operations: of the kept weights for what is sparse."""
    passes = 1 if which == "forward" else 3
    total = sum(2 * passes * rows * a * b for a, b in itertools.pairwise(sizes))
    sparse = ["sparsekern_bsr", *(f"sparsekern_bsr_{name}" for name in variants), "torch_bsr"]
    parts = {"dense": 1.0, "dense_again": 1.0, **dict.fromkeys(sparse, DENSITY)}
    return {name: Work(flops=total * part) for name, part in parts.items()}


def _call(layer: nn.Module, x: Tensor, which: str, autocast: bool) -> Run:
    called = UnderAutocast(layer, x.device.type) if autocast else layer
    if which == "forward":
        return forward_call(called, x)
    return forward_backward_call(called, x, _grad(called, x))


def _grad(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.randn_like(layer(x))


class UnderAutocast(nn.Module):
    """A layer called under autocast to bfloat16, weights cast at every call."""

    def __init__(self, layer: nn.Module, device_type: str) -> None:
        super().__init__()
        self.layer, self.device_type = layer, device_type

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device_type, torch.bfloat16):
            return self.layer(x)
