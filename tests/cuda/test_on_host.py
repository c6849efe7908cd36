"""The device code of the update ops, run on the host: against the ops' references, and where its
work lies. Launches and machine code are confirmed on a GPU alone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsekern import ops
from sparsekern._extension import native
from sparsekern.ops import OPS, Sample
from sparsekern.ops.mask.bits import pack_bits
from sparsekern.testing import (
    assert_close_to_oracle,
    leaves,
    tensors,
    to_oracle,
    to_plain,
    written,
)
from tests.cuda import on_host
from tests.cuda.on_host import COMPILER, DTYPES, OPS_ON_HOST, HostTensor

_ = ops
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
CPU = torch.device("cpu")
IN_PLACE = ("update_masked_adamw_", "update_masked_sgd_")


def _cases(names: tuple[str, ...], dtypes: tuple[torch.dtype, ...]) -> Iterator[Any]:
    for name in names:
        for dtype in dtypes:
            for sample in OPS[name].samples(CPU, dtype):
                case_id = f"{name}-{str(dtype).replace('torch.', '')}-{sample.id}"
                yield pytest.param(name, sample, id=case_id)


def _outputs(name: str, args: list[Any], result: Any) -> tuple[Tensor, ...]:
    return (*written(OPS[name], args), *tensors(result))


@pytest.mark.parametrize(("name", "sample"), list(_cases(tuple(OPS_ON_HOST), DTYPES)))
def test_matches_the_oracle(name: str, sample: Sample) -> None:
    op = OPS[name]
    args, plain_args, oracle_args = (
        leaves(map(change, sample.args), False) for change in (lambda x: x, to_plain, to_oracle)
    )
    got = _outputs(name, args, OPS_ON_HOST[name](*args, **sample.kwargs))
    plain = _outputs(name, plain_args, op.reference(*plain_args, **sample.kwargs))
    oracle = _outputs(name, oracle_args, op.reference(*oracle_args, **sample.kwargs))
    for i, (g, p, o) in enumerate(zip(got, plain, oracle, strict=True)):
        assert_close_to_oracle(g, p, o, f"output {i}")


# Those in float64 run in the CPU's scalar body, which is not fused.
FUSED = list(_cases(IN_PLACE, (torch.float32, torch.bfloat16, torch.float16)))


@pytest.mark.parametrize(("name", "sample"), FUSED)
def test_same_bits_as_on_the_cpu(name: str, sample: Sample) -> None:
    """The vector bodies take the same steps, fused multiply-add for fused multiply-add."""
    if native.isa not in ("avx2", "avx512"):
        pytest.skip("no vector body with fused multiply-add here")
    args, cpu_args = leaves(sample.args, False), leaves(sample.args, False)
    OPS_ON_HOST[name](*args, **sample.kwargs)
    OPS[name](*cpu_args, **sample.kwargs)
    for got, expected in zip(written(OPS[name], args), written(OPS[name], cpu_args), strict=True):
        assert torch.equal(got.nan_to_num(7), expected.nan_to_num(7))


COUNTS = {
    "nothing": [],
    "ugly": [1, 2, 3, 4, 5, 0, 1023, 1024, 1025, 8191, 8192, 8193, 3 * 8192 + 5],
    "full_table": [5] * 36,
    "two_tables": [8192 * (1 + i % 3) - i for i in range(37)],
    "many_tables": [1 + 7 * i for i in range(100)],
    "empty_ones": [0, 0, 17, 0],
}


@pytest.mark.parametrize("name", list(COUNTS))
def test_every_weight_is_visited_once(name: str) -> None:
    counts = COUNTS[name]
    seen = torch.zeros(sum(counts), dtype=torch.int32)
    rows = (ctypes.c_int64 * (len(counts) + 1))()
    launches = on_host.library().walk_on_host(
        (ctypes.c_int64 * len(counts))(*counts),
        ctypes.c_int64(len(counts)),
        rows,
        ctypes.c_void_p(seen.data_ptr()),
    )
    assert bool((seen == 1).all())
    filled = sum(count > 0 for count in counts)
    limit = on_host.library().rows_of_a_launch()
    assert launches == -(-filled // limit)
    assert sum(rows) == filled
    assert max(rows) <= limit


def test_arguments_fit_a_launch() -> None:
    assert on_host.library().argument_bytes() <= 4096


# Where the weights, gradients and both states begin: each alone may keep units from being whole.
OFFSETS = [(n, n, n, n) for n in range(5)] + [
    tuple(int(i == n) for i in range(4)) for n in range(4)
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offsets", OFFSETS)
@pytest.mark.parametrize("count", [8189, 8192, 8192 + 35])
def test_slices_of_larger_memory(dtype: torch.dtype, offsets: tuple[int, ...], count: int) -> None:
    """Any alignment, the mask's too, and nothing outside of the slice is written."""
    guard, zero_masked = 7.5, count % 2 == 1
    state = torch.float64 if dtype == torch.float64 else torch.float32

    def inside(kind: torch.dtype, offset: int) -> tuple[Tensor, Tensor]:
        whole = torch.full((count + 16,), guard, dtype=kind)
        part = whole[offset : offset + count]
        part.copy_(torch.rand(count))
        return whole, part

    wholes, parts = zip(*map(inside, (dtype, dtype, state, state), offsets), strict=True)
    bits = torch.full((count // 8 + 20,), 255, dtype=torch.uint8)
    own = bits[sum(offsets) : sum(offsets) + (count + 7) // 8]
    own.copy_(pack_bits(torch.rand(count) < 0.3))
    mask = ops.mask.unpack_bits(own, (count,))
    before = [part.clone() for part in parts]
    copies = [torch.empty(0)] if dtype != torch.float32 else [torch.empty(count).half()]
    lists = [[part] for part in parts]
    more = [torch.tensor(3.0)], [own], copies, None, None, None
    options = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "lr": 0.1}
    flags = {"decoupled": True, "maximize": False, "zero_masked": zero_masked}
    on_host.masked_adamw_(*lists, *more, **options, **flags)

    for whole, offset in zip(wholes, offsets, strict=True):
        assert bool((whole[:offset] == guard).all())
        assert bool((whole[offset + count :] == guard).all())
    assert torch.equal(parts[1], before[1])
    param, first, second = parts[0], parts[2], parts[3]
    unchanged = torch.zeros_like(param) if zero_masked else before[0]
    assert torch.equal(param[~mask], unchanged[~mask])
    assert torch.equal(first[~mask], before[2][~mask])
    assert torch.equal(second[~mask], before[3][~mask])
    assert bool((param[mask] != before[0][mask]).all())
    if copies[0].numel() > 0:
        assert torch.equal(copies[0], param.half())
    norm = on_host.masked_norm([parts[1]], [own], None)
    assert norm.item() == pytest.approx(parts[1][mask].double().norm().item(), rel=1e-6)


@pytest.mark.parametrize("flags", [(True, False), (False, False)])
def test_masked_units_are_not_read(flags: tuple[bool, bool]) -> None:
    """There is no memory behind the arrays of a tensor whose weights are all masked."""
    bits = torch.zeros(2000, dtype=torch.uint8)
    step = torch.ones(())
    rows = [HostTensor(bits=bits.data_ptr(), count=16_000, step=step.data_ptr())]
    one = on_host.scalar(None, 1), on_host.scalar(None, 0), on_host.scalar(None, 0.1)
    on_host._run("adamw_on_host", rows, one, [0.9, 0.99, 1e-8, 0.1], [*flags, False])
    on_host._run("sgd_on_host", rows, one, [0.9, 0.0, 0.1], [*flags, False])
    norm = on_host.library().norm_on_host(
        (HostTensor * 1)(*rows), ctypes.c_int64(1), ctypes.byref(one[0])
    )
    assert norm == 0


def test_scalars_in_double() -> None:
    """Numbers on the device may be float64 ones, and steps too."""

    def run(kind: torch.dtype) -> list[Tensor]:
        torch.manual_seed(0)
        lists = [[torch.rand(100)] for _ in range(4)]
        more = [torch.tensor(3.0, dtype=kind)], [torch.empty(0, dtype=torch.uint8)], []
        scalars = torch.tensor(0.5, dtype=kind), None, torch.tensor(0.25, dtype=kind)
        options = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "lr": 9.0}
        flags = {"decoupled": True, "maximize": False, "zero_masked": False}
        on_host.masked_adamw_(*lists, *more, *scalars, **options, **flags)
        return [each[0] for each in lists]

    for single, double in zip(run(torch.float32), run(torch.float64), strict=True):
        assert torch.equal(single, double)


def test_a_norm_of_many_chunks_is_exact_enough() -> None:
    """Sums over more chunks than the last block has threads; each partial sum counts once."""
    count = 1100 * on_host.library().chunk_weights() + 3
    grads, bits = [torch.ones(count)], [torch.empty(0, dtype=torch.uint8)]
    assert on_host.masked_norm(grads, bits, None).item() == pytest.approx(count**0.5, rel=1e-7)


def test_a_norm_of_many_tensors() -> None:
    """Several launches, for more rows than one takes and for each dtype."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    grads = [torch.rand(40 * i).to(dtypes[i % 3]) for i in range(240)]
    bits = [torch.empty(0, dtype=torch.uint8) for _ in grads]
    expected = torch.cat([grad.double() for grad in grads]).norm().item()
    assert on_host.masked_norm(grads, bits, None).item() == pytest.approx(expected, rel=1e-6)
