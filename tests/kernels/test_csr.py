"""Triton's kernels of compressed rows beyond the contract: a GPU's tiles, wide loads, the rule."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sparsekern.formats import FORMATS
from sparsekern.kernels import launch as launching
from sparsekern.kernels.launch import INTERPRETING, Launch, recording, why_no_triton
from sparsekern.ops import OPS, csr
from sparsekern.ops.csr import CsrIndex
from sparsekern.testing import assert_close_to_oracle, tensors, to_oracle

triton = pytest.importorskip("triton", reason="triton is not installed")

from sparsekern.kernels.csr import batch_panel, dense, sddmm, spmm  # noqa: E402  (need Triton)
from tests.kernels import compiled  # noqa: E402

CUDA = torch.device("cuda", 0)
interpreted = pytest.mark.skipif(not INTERPRETING, reason="runs in a process of its own below")
native = pytest.mark.skipif(INTERPRETING, reason="not what the interpreter is for")


@native
def test_in_the_interpreter() -> None:
    """The tests below that launch kernels."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "SPARSEKERN_NATIVE": "0"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]
    assert "skipped" in result.stdout


@pytest.fixture
def gpu_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles as on a GPU, where the interpreter is given few large ones; short pieces."""
    for module in (batch_panel, dense, sddmm, spmm):
        monkeypatch.setattr(module, "INTERPRETING", False)
    monkeypatch.setattr(sddmm, "LEAST_PIECE", 100)


LINEAR = (
    "tiny",
    "typical",
    "batch_33",
    "sparse_rows",
    "one_output",
    "one_row_batch_1",
)
CONV2D = ("tiny_strided", "pointwise_strided", "grouped", "channels_last", "padding_above_kernel")
CASES = [
    *((name, sample) for name in ("csr_linear", "csr_linear_backward") for sample in LINEAR),
    *((name, sample) for name in ("csr_conv2d", "csr_conv2d_backward") for sample in CONV2D),
    *((name, sample) for name in ("csr_to_dense", "csr_gather") for sample in ("dense", "typical")),
]


@interpreted
@pytest.mark.usefixtures("gpu_tiles", "poisoned_memory")
@pytest.mark.parametrize(("name", "sample"), CASES)
def test_tiles_of_a_gpu(name: str, sample: str) -> None:
    op = OPS[name]
    chosen = next(s for s in op.samples(torch.device("cpu"), torch.float32) if s.id == sample)
    assert op.triton is not None
    got = tensors(op.triton(*chosen.args, **chosen.kwargs))
    plain = tensors(op.reference(*chosen.args, **chosen.kwargs))
    oracle = tensors(op.reference(*map(to_oracle, chosen.args), **chosen.kwargs))
    for i, each in enumerate(zip(got, plain, oracle, strict=True)):
        assert_close_to_oracle(*each, f"output {i}")


@interpreted
@pytest.mark.parametrize(("name", "sample"), [("csr_linear", "typical"), ("csr_conv2d", "strided")])
def test_positions_above_int32(name: str, sample: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits with 64-bit positions, which few machines have the memory to ask for."""
    op = OPS[name]
    chosen = next(s for s in op.samples(torch.device("cpu"), torch.float32) if s.id == sample)
    assert op.triton is not None
    short = op.triton(*chosen.args, **chosen.kwargs)
    monkeypatch.setattr(batch_panel, "LONG", 0)
    assert torch.equal(op.triton(*chosen.args, **chosen.kwargs), short)


@interpreted
@pytest.mark.usefixtures("gpu_tiles")
def test_long_rows_of_a_gpu() -> None:
    """Rows of more entries than a program moves at a time."""
    mask = torch.rand(3, 1500, generator=torch.Generator().manual_seed(0)) < 0.4
    weight = torch.arange(4500.0).view(3, 1500) * mask
    index = csr.index_from_mask(mask)
    assert dense.config(3, index.nnz)[0] == 1
    values = dense.gather(weight, index.crow, index.col)
    assert torch.equal(values, weight[mask])
    assert torch.equal(dense.to_dense(values, index.crow, index.col, 1500), weight)


@interpreted
def test_by_hand() -> None:
    """W = [[0, 2, 0], [3, 0, 4]]: y, dx and dvalues of two rows."""
    index = csr.index_from_mask(torch.tensor([[False, True, False], [True, False, True]]))
    values = torch.tensor([2.0, 3.0, 4.0], requires_grad=True)
    bias = torch.tensor([1.0, -60.0], requires_grad=True)
    x = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]], requires_grad=True)
    y = csr.linear(x, values, index, bias, activation="relu", variant="triton")
    assert y.tolist() == [[5.0, 0.0], [41.0, 90.0]]  # 15 - 60 is below zero
    y.backward(torch.tensor([[1.0, 7.0], [0.5, 2.0]]))  # so 7 does not pass
    assert x.grad is not None
    assert values.grad is not None
    assert bias.grad is not None
    assert x.grad.tolist() == [[0.0, 2.0, 0.0], [6.0, 1.0, 8.0]]
    assert values.grad.tolist() == [2 + 0.5 * 20, 2 * 10.0, 2 * 30.0]
    assert bias.grad.tolist() == [1.5, 2.0]


@interpreted
def test_a_convolution_by_hand() -> None:
    """One tap, above and left of the middle, moves an image down and right, doubled."""
    mask = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    mask[0, 0, 0, 0] = True
    values = torch.tensor([2.0], requires_grad=True)
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]], requires_grad=True)
    index = csr.index_from_mask(mask)
    options: dict[str, Any] = {"kernel_size": (3, 3), "padding": (1, 1), "variant": "triton"}
    y = csr.conv2d(x, values, index, **options)
    assert y.tolist() == [[[[0.0, 0.0], [0.0, 2.0]]]]
    y.backward(torch.tensor([[[[5.0, 6.0], [7.0, 8.0]]]]))
    assert x.grad is not None
    assert values.grad is not None
    assert x.grad.tolist() == [[[[16.0, 0.0], [0.0, 0.0]]]]
    assert values.grad.tolist() == [8.0]


@pytest.mark.parametrize("positions", [0, 1, 127, 128, 1024, 1025, 8896, 10**6])
@pytest.mark.parametrize("tiles", [1, 7, 1000, 5000])
def test_pieces_cover_the_batch_once(positions: int, tiles: int) -> None:
    piece, pieces = sddmm.cut(positions, tiles, 128)
    assert piece % 128 == 0
    assert pieces >= 1
    assert piece * pieces >= positions
    assert positions == 0 or piece * (pieces - 1) < positions
    assert pieces == 1 or pieces * tiles <= sddmm.PROGRAMS


# Machine code


def _launches(name: str, *args: Any) -> dict[str, Launch]:
    op = OPS[name]
    assert op.triton is not None
    with recording() as recorded:
        op.triton(*args)
    return {launch.kernel.fn.__name__: launch for launch in recorded}


@native
@pytest.mark.device_code
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_panels_are_read_by_sixteen_bytes(dtype: torch.dtype) -> None:
    """Without a wait for other threads in a loop, and of an odd batch too."""
    index = csr.index_from_mask(torch.rand(64, 128) < 0.1)
    x, grad = torch.zeros(99, 128, dtype=dtype), torch.zeros(99, 64, dtype=dtype)
    found = _launches("csr_linear", x, torch.zeros(index.nnz), None, None, *index)
    args = (grad, x, torch.zeros(index.nnz), None, *index, [True] * 3)
    found |= _launches("csr_linear_backward", *args)
    for name in ("spmm_kernel", "sddmm_kernel"):
        launch = found[name]
        target = compiled.GPUTarget("cuda", 90, 32)
        options = {"num_warps": launch.warps, "num_stages": launch.stages}
        source = compiled.source_as_called(launch)
        ptx = triton.compile(source, target=target, options=options).asm["ptx"]
        (loop,) = [text for text in _loops(ptx) if "ld.global.v4" in text]
        assert "bar.sync" not in loop
        assert not re.search(r"ld\.global\.b16", loop)


@native
@pytest.mark.device_code
def test_long_rows_compile_without_spills() -> None:
    """No sample of the ops has rows of more than 128 entries."""
    index = csr.index_from_mask(torch.ones(2, 200, dtype=torch.bool))
    values = torch.zeros(400)
    found = _launches("csr_to_dense", values, index.crow, index.col, 200)
    found |= _launches("csr_gather", values.view(2, 200), index.crow, index.col)
    for launch in found.values():
        assert launch.constants["BM"] == 1
        for architecture in compiled.ARCHITECTURES:
            assert compiled.compile_launch(launch, architecture).spilled_bytes == 0


def _loops(ptx: str) -> list[str]:
    """The innermost loops: from a label to the jump back to it."""
    loop = re.compile(r"^(\$L\w+):(?:(?!^\$L).)*?bra[.\w]*\s+\1;", re.S | re.M)
    return [match.group(0) for match in loop.finditer(ptx)]


# The rule


@pytest.fixture
def with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "reason_on", lambda device: None)


def _choice(density: float, rows: int, dtype: torch.dtype = torch.float32) -> str:
    """What csr_linear chooses for a weight of 100 x 100 on CUDA."""
    nnz = round(1e4 * density)
    with FakeTensorMode():
        x = torch.empty(rows, 100, device=CUDA, dtype=dtype)
        values = torch.empty(nnz, device=CUDA, dtype=dtype)
        chosen = OPS["csr_linear"].select(x, values, None, None, *_fake_index(nnz))  # type: ignore[misc]
    assert isinstance(chosen, str)
    return chosen


def _fake_index(nnz: int) -> CsrIndex:
    sizes = (101, nnz, 0, 101, nnz, nnz, 0)
    return CsrIndex(*[torch.empty(n, dtype=torch.int32, device=CUDA) for n in sizes])


@native
@pytest.mark.usefixtures("with_triton")
def test_the_rule_on_cuda() -> None:
    assert [_choice(d, 4096) for d in (0, 0.01, 0.011, 1)] == ["triton"] * 2 + ["dense"] * 2
    assert [_choice(d, 64) for d in (0.05, 0.051)] == ["triton", "dense"]
    assert _choice(0.01, 65) == "triton"
    assert _choice(0.02, 65) == "dense"
    assert _choice(0.001, 64, torch.float64) == "dense"


@native
def test_dense_where_triton_cannot_run() -> None:
    assert _choice(0.001, 4096) == "dense"


@native
@pytest.mark.usefixtures("with_triton")
@pytest.mark.parametrize(("nnz", "running"), [(100, "triton"), (101, "dense")])
def test_a_layer_says_what_many_rows_run(nnz: int, running: str) -> None:
    with FakeTensorMode():
        values: Tensor = torch.empty(nnz, device=CUDA)
        stored = FORMATS["csr"](values, _fake_index(nnz), (100, 100))  # type: ignore[call-arg]
        assert stored.variants == ("dense", "triton")
        assert stored.running == running
        assert stored.fuses == (running == "triton")
        stored.variant = "dense"
        assert stored.running == "dense"
        assert {buffer.device for buffer in stored.buffers()} == {CUDA}


@native
def test_float64_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "reason_on", lambda device: None)
    index = csr.index_from_mask(torch.eye(3, dtype=torch.bool))
    x, values = torch.zeros(2, 3).double(), torch.zeros(3).double()
    with pytest.raises(NotImplementedError, match="Got 'triton': they add up in float32: float64"):
        csr.linear(x, values, index, variant="triton")


@native
def test_the_choice_is_a_constant_of_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch cannot trace the search for a C compiler, and need not."""
    torch._dynamo.reset()
    monkeypatch.setattr(launching, "reason_on", lambda device: shutil.which("no such compiler"))

    def call(x: Tensor) -> Tensor:
        return x + 5 if why_no_triton(x.device) is None else x

    assert torch.compile(call, fullgraph=True, backend="eager")(torch.zeros(1)).item() == 5
