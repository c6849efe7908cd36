"""Triton's block kernels beyond the contract: order and place of programs, tiles, the rule."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsekern.kernels.launch import INTERPRETING, recording
from sparsekern.ops import OPS, bsr
from sparsekern.ops._activation import activate
from sparsekern.ops.bsr import _conv_variants, _variants

triton = pytest.importorskip("triton", reason="triton is not installed")
tl = pytest.importorskip("triton.language")

from sparsekern.kernels.bsr import conv2d, linear, schedule  # noqa: E402  (they need Triton)
from tests.kernels.compiled import compile_for  # noqa: E402  (it needs Triton)

bsr_conv2d = sys.modules["sparsekern.ops.bsr.conv2d"]  # the package's name is the function
interpreted = pytest.mark.skipif(not INTERPRETING, reason="runs in a process of its own below")


@pytest.mark.skipif(INTERPRETING, reason="is what starts the interpreter")
def test_in_the_interpreter() -> None:
    """The tests below that launch kernels."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "SPARSEKERN_NATIVE": "0"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
    assert "skipped" in result.stdout


@triton.jit
def _note_kernel(p_order, p_out, m_tiles, outputs, tiles: tl.constexpr, group: tl.constexpr):
    program = tl.program_id(0)
    i_row, i_tile, i_m = schedule.place(program, p_order, m_tiles, outputs, tiles, group)
    tl.store(p_out + 3 * program, i_row)
    tl.store(p_out + 3 * program + 1, i_tile)
    tl.store(p_out + 3 * program + 2, i_m)


def _crow(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)


@interpreted
def test_longest_first_by_hand() -> None:
    """Rows of 1, 3, 0 and 3 blocks: the second, the fourth, the first, the third."""
    order = schedule.longest_first(_crow([1, 3, 0, 3]))
    assert order is not None
    assert order.tolist() == [1, 3, 0, 2]
    taps = schedule.longest_first(_crow([1, 0, 1, 2, 2, 0]), taps=2)  # 1 + 2, 0 + 2 and 1 + 0
    assert taps is not None
    assert taps.tolist() == [0, 1, 2]


@interpreted
@pytest.mark.parametrize("rows", [2, 64, 65, 150])
def test_longest_first_is_a_stable_order(rows: int) -> None:
    lengths = torch.randint(0, 9, (rows,), generator=torch.Generator().manual_seed(rows))
    order = schedule.longest_first(_crow(lengths.tolist()))
    assert order is not None
    assert torch.equal(order.long(), torch.sort(lengths, descending=True, stable=True).indices)


def test_few_and_many_rows_keep_their_order() -> None:
    assert schedule.longest_first(_crow([3])) is None
    assert schedule.longest_first(torch.empty(schedule.MOST_ROWS + 2, dtype=torch.int32)) is None


@interpreted
@pytest.mark.parametrize("m_tiles", [1, 7, 8, 19])
def test_uneven_rows_end_together(m_tiles: int) -> None:
    """Every tile is computed once, and workers who take programs as they come are done within a
    third of the mean of each other's time (or with the longest program): Graham's bound for longest
    first, which holds for the last group of tiles."""
    lengths = [30, *([2] * 20), 11, 0, 5, *([1] * 7), 30]
    tiles, rows, workers = 2, len(lengths), 12
    order = schedule.longest_first(_crow(lengths))
    programs = m_tiles * rows * tiles
    out = torch.full((programs, 3), -1)
    _note_kernel[(programs,)](order, out, m_tiles, rows * tiles, tiles, schedule.GROUP)
    assert len({tuple(place) for place in out.tolist()}) == programs
    assert out.max(0).values.tolist() == [rows - 1, tiles - 1, m_tiles - 1]
    last = m_tiles % schedule.GROUP or schedule.GROUP
    work = [lengths[row] for row, _, _ in out.tolist()]
    group = work[-last * rows * tiles :]
    assert group == sorted(group, reverse=True)
    bound = max(max(lengths), 4 / 3 * sum(group) / workers)
    assert _time(group, workers) <= bound + 1
    assert _time(work, workers) <= sum(work[: len(work) - len(group)]) / workers + 2 * bound + 1


def _time(work: list[int], workers: int) -> int:
    """When the last worker is done."""
    busy = [0] * workers
    for each in work:
        busy[busy.index(min(busy))] += each
    return max(busy)


@interpreted
def test_by_hand() -> None:
    """Two outputs of a block at the inputs 16 to 31 see the sum of those; a convolution its tap."""
    index = bsr.index_from_mask(torch.tensor([[False, True]]))
    values = torch.zeros(1, 16, 16)
    values[0, 0], values[0, 3, 5] = 1, 2
    x = torch.arange(32.0).view(1, 32).requires_grad_()
    values.requires_grad_()
    y = bsr.linear(x, values, index, torch.full((16,), 0.5), variant="triton")
    assert y[0, :4].tolist() == [sum(range(16, 32)) + 0.5, 0.5, 0.5, 42.5]
    y.backward(torch.eye(16)[3:4])
    assert x.grad is not None
    assert values.grad is not None
    assert x.grad.nonzero().tolist() == [[0, 21]]
    assert x.grad[0, 21] == 2
    assert torch.equal(values.grad[0, 3], torch.arange(16.0, 32.0))
    assert values.grad[0, [*range(3), *range(4, 16)]].count_nonzero() == 0
    image = torch.arange(48.0).view(1, 3, 16).permute(0, 2, 1)[:, :, None]  # 16 channels, 1 x 3
    out = bsr.conv2d(image, values.detach(), index, kernel_size=(1, 2), variant="triton")
    assert out[0, 0, 0].tolist() == [sum(range(16, 32)), sum(range(32, 48))]
    assert out[0, 3, 0].tolist() == [42, 74]


@interpreted
def test_nothing_of_dropped_blocks_is_read() -> None:
    """NaN at dropped inputs, and in rows beyond, reaches no output."""
    index = bsr.index_from_mask(torch.tensor([[True, False], [False, False]]))
    x = torch.ones(3, 32)
    x[:, 16:] = float("nan")
    y = bsr.linear(x, torch.ones(1, 16, 16), index, variant="triton")
    assert torch.equal(y, torch.tensor([16.0, 0.0]).repeat_interleave(16).expand(3, 32))


@pytest.mark.parametrize("programs", [1, 3, 100, 511, 512])
@pytest.mark.parametrize("batch", [0, 1, 512, 513, 8192, 100_001])
def test_chunks_cover_the_batch(batch: int, programs: int) -> None:
    chunk, chunks = linear.chunks_of(batch, programs)
    assert chunk * (chunks - 1) < max(1, batch) <= chunk * chunks
    assert chunks == 1 or (chunk % 64 == 0 and chunk > 256)
    assert programs * chunks < 2 * linear.PROGRAMS or chunks == 1


def test_float32_is_rounded_as_torch_does() -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for allowed, name in ((False, "ieee"), (True, "tf32")):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            assert linear.precision_of(torch.float32) == name
            assert linear.precision_of(torch.bfloat16) == "ieee"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", [(2, 16, 5, 3), (2, 16, 1, 1), (1, 1, 4, 4), (0, 16, 5, 3)])
def test_images_have_the_format_that_the_op_promises(shape: Any, last: bool) -> None:
    """Off the CPU, outputs follow the input's memory format, as the fake and the reference say."""
    x = torch.empty(shape, device="meta")
    if last:
        x = x.to(memory_format=torch.channels_last)
    n, c, h, w = shape
    images = conv2d.images_of(torch.empty(n, h, w, c, device="meta"), x)
    promised = torch.empty_like(x, memory_format=bsr_conv2d._format(x))
    assert images.shape == promised.shape
    told = zip(images.shape, images.stride(), promised.stride(), strict=True)
    assert images.numel() == 0 or all(a == b for size, a, b in told if size > 1)


def _arguments(block: tuple[int, int], kept: Tensor, dtype: torch.dtype = torch.float32) -> Any:
    index = bsr.index_from_mask(kept)
    values = torch.zeros(index.blocks, *block, dtype=dtype)
    return torch.zeros(3, kept.shape[1] * block[1], dtype=dtype), values, None, None, *index


def test_limits_are_sentences() -> None:
    kept = torch.eye(2, dtype=torch.bool)
    op = OPS["bsr_linear"]
    assert op.triton is not None
    assert op.triton.limits is not None
    assert op.triton.limits(*_arguments((16, 48), kept)) is None
    small = "Triton kernels take blocks with sides of multiples of 16. Got 16 x 8."
    assert op.triton.limits(*_arguments((16, 8), kept)) == small
    double = "Triton kernels take values of float32. Got torch.float64."
    assert op.triton.limits(*_arguments((16, 16), kept, torch.float64)) == double
    limits = _conv_variants.limits
    x, values, _, _, *index = _arguments((16, 16), kept)
    rest = (values, None, None, *index)
    grouped = limits(torch.zeros(1, 64, 3, 3), *rest, kernel_size=(1, 1), groups=2)
    assert grouped == "Triton kernels convolve one group. Got 2 groups."
    wide = torch.zeros(1, 32, 1, 1).expand(1, 32, 2**16, 2**16)
    many = limits(wide, *rest, kernel_size=(1, 1))
    assert many == f"Triton kernels take fewer than {2**31 - 2**16} pixels. Got {2**32}."
    if not INTERPRETING and not torch.cuda.is_available():
        with pytest.raises(NotImplementedError, match="Got 'triton': Triton kernels run on CUDA"):
            bsr.linear(x, values, bsr.BsrIndex(*index), variant="triton")


class _Anywhere:
    """A launcher that runs on every device."""

    def supports(self, *args: Any, **kwargs: Any) -> str | None:
        return _variants.triton_limits(args[1])


@pytest.mark.parametrize(
    ("block", "kept", "chosen"),
    [
        ((64, 64), 2, "triton"),  # of 10
        ((64, 64), 3, "dense"),
        ((64, 16), 0, "triton"),
        ((64, 16), 1, "dense"),
        ((32, 64), 1, "triton"),
        ((128, 128), 4, "triton"),
        ((8, 8), 0, "dense"),  # the kernels do not take it
    ],
)
def test_rule(block: tuple[int, int], kept: int, chosen: str) -> None:
    """The density of the written rule, by the shorter side of a block."""
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask.view(-1)[:kept] = True
    launcher: Any = _Anywhere()
    assert _variants.choose_on_cuda(launcher, *_arguments(block, mask)) == chosen


@interpreted
@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("training", [False, True])
def test_fused_activation_is_torchs(activation: str, training: bool) -> None:
    """With and without gradients, of which GELU's needs what it is taken of."""
    index = bsr.index_from_mask(torch.eye(2, 3, dtype=torch.bool))
    values = torch.linspace(-1, 1, 512).view(2, 16, 16).requires_grad_(training)
    x = torch.linspace(-2, 2, 5 * 48).view(5, 48).requires_grad_(training)
    bias = torch.linspace(0, 1, 32).requires_grad_(training)
    y = bsr.linear(x, values, index, bias, activation=activation, variant="triton")
    right = activate(bsr.linear(x, values, index, bias, variant="reference"), activation)
    torch.testing.assert_close(y, right)
    apart = y.grad_fn is not None and "elu" in y.grad_fn.name().lower()
    assert apart == (training and activation != "relu")
    if training:
        inputs = (x, values, bias)
        got = torch.autograd.grad(y.square().sum(), inputs)
        torch.testing.assert_close(got, torch.autograd.grad(right.square().sum(), inputs))


@pytest.mark.device_code
@pytest.mark.skipif(INTERPRETING, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("side", [16, 64])
def test_tiles_are_read_in_vectors(side: int) -> None:
    """16-bit tiles come as asynchronous copies of 16 bytes, on which their speed depends."""
    kept = torch.rand(8, 12, generator=torch.Generator().manual_seed(0)) < 0.4
    for taps, name in ((1, "bsr_linear"), (9, "bsr_conv2d")):
        index = bsr.index_from_mask(kept.repeat(1, taps))
        values = torch.zeros(index.blocks, side, side)
        shape = (300,) if taps == 1 else (4, 9, 9)
        x, grad = (_sixteen_bits(shape, count * side) for count in (12, 8))
        options = {} if taps == 1 else {"kernel_size": (3, 3), "padding": (1, 1)}
        forward, backward = OPS[name].triton, OPS[f"{name}_backward"].triton
        assert forward is not None
        assert backward is not None
        with recording() as launches:
            forward(x, values, None, None, *index, **options)
            backward(grad, x, values, *index, [True, True, False], **options)
        tiles = [launch for launch in launches if "PRECISION" in launch.constants]
        assert len(tiles) == 3
        for launch in tiles:
            ptx = compile_for(launch, 90).asm["ptx"]
            assert "cp.async.cg.shared.global" in ptx
            assert "ld.global.b16" not in ptx, launch.kernel.fn.__name__
            assert "mma" in ptx
            if "BH" in launch.constants:
                assert "fma.rn.f32" in ptx, "dW is summed by the tensor cores, which cut off"


def _sixteen_bits(shape: tuple[int, ...], features: int) -> Tensor:
    if len(shape) == 1:
        return torch.zeros(*shape, features, dtype=torch.bfloat16)
    return torch.zeros(shape[0], features, *shape[1:], dtype=torch.bfloat16)
