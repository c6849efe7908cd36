"""What tests and benchmarks share: devices, the tolerance rule, and running op samples."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from sparsekern.ops import Op, Sample

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ROUNDINGS = 4  # the "few units of rounding" of the tolerance rule


def devices() -> list[torch.device]:
    """Devices of this machine that ops are tested on."""
    found = [torch.device("cpu")]
    if torch.cuda.is_available():
        found.append(torch.device("cuda"))
    return found


def to_oracle(value: Any) -> Any:
    """The same argument in float64, lists of tensors too."""
    if isinstance(value, (list, tuple)):
        return [to_oracle(each) for each in value]
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().double()
    return value


def to_plain(value: Any) -> Any:
    """The same argument for plain torch, whose error is the measure: float64 as float32, since
    nothing here tells the error of float64."""
    if isinstance(value, (list, tuple)):
        return [to_plain(each) for each in value]
    if isinstance(value, Tensor) and value.dtype == torch.float64:
        return value.detach().float()
    return value


def tensors(result: Any) -> tuple[Tensor, ...]:
    """The tensors of an op's result."""
    if result is None:
        return ()
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def all_tensors(args: Iterable[Any]) -> list[Tensor]:
    """The tensors among the arguments, those in lists too."""
    found = []
    for value in args:
        if isinstance(value, (list, tuple)):
            found += all_tensors(value)
        elif isinstance(value, Tensor):
            found.append(value)
    return found


def written(op: Op, args: list[Any]) -> tuple[Tensor, ...]:
    """The tensors that an in-place op writes, by its schema."""
    fields = zip(op.overload._schema.arguments, args, strict=False)
    return tuple(all_tensors(v for f, v in fields if f.alias_info and f.alias_info.is_write))


def assert_close_to_oracle(got: Tensor, plain: Tensor, oracle: Tensor, what: str) -> None:
    """The one tolerance rule: error at most twice that of plain torch, plus a few roundings.

    ``plain`` is torch's own result in the dtype of ``got``, ``oracle`` the same in float64. For a
    float64 ``got``, the error of a float32 ``plain`` counts, scaled by the ratio of the roundings,
    and once more for the oracle, which is then no more exact than ``got``.
    """
    assert got.shape == oracle.shape, f"{what}: shape {tuple(got.shape)}, not {tuple(oracle.shape)}"
    if not got.is_floating_point():
        assert torch.equal(got, oracle), f"{what}: not equal to the reference"
        return
    if got.numel() == 0:
        return
    finite = oracle.isfinite()
    assert torch.equal(got.isfinite().cpu(), finite.cpu()), f"{what}: finite elsewhere"
    exact = oracle.where(finite, 0)
    error = (got.double() - exact).where(finite, 0).abs().max()
    plain_error = (plain.double() - exact).where(finite, 0).abs().max()
    plain_error *= torch.finfo(got.dtype).eps / torch.finfo(plain.dtype).eps
    oracle_error = plain_error if got.dtype == torch.float64 else 0.0
    rounding = torch.finfo(got.dtype).eps * exact.abs().max()
    allowed = 2 * plain_error + oracle_error + ROUNDINGS * rounding
    assert error <= allowed, f"{what}: error {error:.3g} above {allowed:.3g}"


def leaves(args: Iterable[Any], needs_grad: bool) -> list[Any]:
    """Fresh copies of the arguments (strides kept); floating ones are leaves of a graph."""
    copies: list[Any] = []
    for value in args:
        if isinstance(value, (list, tuple)):
            copies.append(leaves(value, needs_grad))
        elif not isinstance(value, Tensor):
            copies.append(value)
        elif value.is_floating_point():
            copies.append(copy_strided(value).requires_grad_(needs_grad))
        else:
            copies.append(value.clone())
    return copies


def copy_strided(value: Tensor) -> Tensor:
    """A copy with the same strides, gaps and overlaps included."""
    value = value.detach()
    if value.numel() == 0:
        return value.clone()
    span = 1 + sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True))
    storage = value.as_strided((span,), (1,)).clone()
    return storage.as_strided(value.shape, value.stride())


def has_gradient(op: Op) -> bool:
    """Whether the op can be differentiated."""
    return not isinstance(op.backward, str)


def run_with_gradients(
    function: Any, sample: Sample, args: list[Any], **kwargs: Any
) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
    """Outputs, and the gradients of every floating argument for fixed output gradients."""
    outputs = tensors(function(*args, **sample.kwargs, **kwargs))
    inputs = [a for a in args if isinstance(a, Tensor) and a.requires_grad]
    weights = [
        torch.linspace(-1, 1.5, o.numel(), device=o.device).view(o.shape).to(o) for o in outputs
    ]
    gradients = torch.autograd.grad(outputs, inputs, weights, allow_unused=True)
    return tuple(o.detach() for o in outputs), gradients


def run_on_ranks(
    work: Callable[[int, Path], None], folder: Path, ranks: int = 2, timeout_s: float = 300.0
) -> None:
    """Calls ``work(rank, folder)`` in gloo processes of one thread each, with the group set up.

    Raises the first process's exception, or TimeoutError, after which no process is left.
    """
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    context = mp.spawn(_rank, (work, folder, ranks), nprocs=ranks, join=False)
    deadline = time.monotonic() + timeout_s
    try:
        while not context.join(timeout=1.0):
            if time.monotonic() > deadline:
                raise TimeoutError(f"Expected {ranks} ranks to end in {timeout_s} s. Got none.")
    finally:
        for process in context.processes:
            process.kill()


def _rank(rank: int, work: Callable[[int, Path], None], folder: Path, ranks: int) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)
    work(rank, folder)
    (folder / f"left{rank}").touch()
    while not all((folder / f"left{other}").exists() for other in range(ranks)):
        time.sleep(0.01)
    # NOTE: taking gloo's groups and DDP's reducers down aborts or hangs in about one exit of seven
    # (torch 2.13, without a line of ours), so the process ends here.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
