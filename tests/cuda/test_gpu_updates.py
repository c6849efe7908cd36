"""The CUDA kernels of the update ops on a GPU: the host's bits, streams, graphs, devices.

Against the oracle they are tested by ``tests/ops/test_contract.py``, as every op on every device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsekern import ops
from sparsekern._extension import cuda
from sparsekern.ops import OPS, Sample
from sparsekern.testing import leaves, tensors, written
from tests.cuda.on_host import COMPILER, DTYPES, OPS_ON_HOST

_ = ops
DEVICE = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(not cuda.loaded, reason=f"no CUDA library: {cuda.reason}"),
]


def _cases() -> Iterator[Any]:
    for name in OPS_ON_HOST:
        for dtype in DTYPES:
            for sample in OPS[name].samples(torch.device("cpu"), dtype):
                case_id = f"{name}-{str(dtype).replace('torch.', '')}-{sample.id}"
                yield pytest.param(name, sample, id=case_id)


def moved(value: Any, device: torch.device | str) -> Any:
    """The argument on that device, lists of tensors too."""
    if isinstance(value, (list, tuple)):
        return [moved(each, device) for each in value]
    return value.to(device) if isinstance(value, Tensor) else value


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize(("name", "sample"), list(_cases()))
def test_same_bits_as_on_the_host(name: str, sample: Sample) -> None:
    """The code that ``test_on_host.py`` tests is the code that runs, and its index walk too."""
    if len(sample.args[0]) == 0:
        pytest.skip("no tensor says which device is meant")
    args, host_args = moved(leaves(sample.args, False), DEVICE), leaves(sample.args, False)
    got = tensors(OPS[name](*args, **sample.kwargs))
    expected = tensors(OPS_ON_HOST[name](*host_args, **sample.kwargs))
    got, expected = (*written(OPS[name], args), *got), (*written(OPS[name], host_args), *expected)
    for ours, theirs in zip(got, expected, strict=True):
        assert torch.equal(ours.cpu().nan_to_num(7), theirs.nan_to_num(7))


OPTIONS: dict[str, Any] = {
    **{"lr": 9.0, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1},
    **{"decoupled": True, "maximize": False, "zero_masked": False},
}


def step_arguments(device: torch.device | str, sizes: tuple[int, ...]) -> list[Any]:
    """Arguments of one AdamW step, all numbers on the device."""
    torch.manual_seed(0)
    lists = [[torch.rand(n).to(device) for n in sizes] for _ in range(4)]
    bits = [ops.mask.pack_bits(torch.rand(n) < 0.5).to(device) for n in sizes]
    steps = [torch.ones((), device=device) for _ in sizes]
    copies = [torch.empty(n, dtype=torch.bfloat16, device=device) for n in sizes]
    factor, found_inf, rate = (torch.full((), x, device=device) for x in (0.5, 0.0, 0.1))
    return [*lists, steps, bits, copies, factor, found_inf, rate]


def test_a_captured_step_follows_its_tensors() -> None:
    """In a CUDA graph: steps, rate and the overflow flag are read when it is replayed."""
    step = OPS["update_masked_adamw_"]
    sizes = (70_001, 33, *range(1, 50))
    args, eager = step_arguments(DEVICE, sizes), step_arguments(DEVICE, sizes)

    def change(values: list[Any], i: int) -> None:
        torch._foreach_add_(values[4], 1.0)
        values[-1].fill_(0.1 / (1 + i))
        values[-2].fill_(float(i == 1))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(*args, **OPTIONS)  # loads the kernel
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(*args, **OPTIONS)
    step(*eager, **OPTIONS)
    for i in range(3):
        change(args, i)
        graph.replay()
        change(eager, i)
        step(*eager, **OPTIONS)
    for ours, theirs in zip(written(step, args), written(step, eager), strict=True):
        assert torch.equal(ours, theirs)


def test_runs_on_the_current_stream() -> None:
    """Behind work that is still to come on another stream than the default one."""
    step, norm = OPS["update_masked_adamw_"], OPS["update_masked_norm"]
    args, expected = (step_arguments(DEVICE, (1 << 20,)) for _ in range(2))
    args[1][0].neg_()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)
        args[1][0].neg_()
        length = norm(args[1], args[5], None)
        step(*args, **OPTIONS)
    torch.cuda.synchronize()
    step(*expected, **OPTIONS)
    assert torch.equal(args[0][0], expected[0][0])
    assert torch.equal(length, norm(expected[1], expected[5], None))


def test_steps_on_the_cpu_do_the_same() -> None:
    args, other = (step_arguments(DEVICE, (5000, 3)) for _ in range(2))
    other[4] = [each.cpu() for each in other[4]]
    for each in (args, other):
        OPS["update_masked_adamw_"](*each, **OPTIONS)
    assert all(map(torch.equal, args[0], other[0]))


def test_another_device_than_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    args, expected = step_arguments("cuda:1", (5000, 3)), step_arguments("cuda:0", (5000, 3))
    for each in (args, expected):
        OPS["update_masked_adamw_"](*each, **OPTIONS)
        assert torch.cuda.current_device() == 0
    for ours, theirs in zip(args[0], expected[0], strict=True):
        assert torch.equal(ours.cpu(), theirs.cpu())


def test_more_tensors_than_one_launch_takes() -> None:
    """Twice the same, and the same as one tensor at a time."""
    step, norm = OPS["update_masked_adamw_"], OPS["update_masked_norm"]
    sizes = tuple(range(1, 3000, 31))
    together, again, alone = (step_arguments(DEVICE, sizes) for _ in range(3))
    for each in (together, again):
        step(*each, **OPTIONS)
    for i in range(len(sizes)):
        step(*([each[i]] for each in alone[:7]), *alone[7:], **OPTIONS)
    for other in (again, alone):
        for ours, theirs in zip(written(step, together), written(step, other), strict=True):
            assert torch.equal(ours, theirs)
    assert torch.equal(*(norm(each[1], each[5], None) for each in (together, again)))


# What is called around Python's checks: argument, what it becomes, and the sentence.
WRONG: list[tuple[int, Any, str]] = [
    (0, lambda each: [each[0], each[1].cpu()], "Expected params to be on cuda:0. Got a tensor on"),
    (0, lambda each: [each[0].int(), each[1]], "Expected params to be float32, float64, bfloat16"),
    (1, lambda each: [each[0].double(), each[1]], "Expected grads to have the dtype of params, or"),
    (1, lambda each: each[:1], "Expected grads to have 2 tensors. Got 1."),
    (2, lambda each: [each[0].half(), each[1]], "Expected exp_avgs to be 70 contiguous elements"),
    (3, lambda each: each[::-1], "Expected exp_avg_sqs to be 70 contiguous elements of the right"),
    (4, lambda each: [torch.ones(2, device=DEVICE)] * 2, "Expected steps to be one float32 or"),
    (5, lambda each: [each[0].cpu(), each[1]], "Expected bits to be on cuda:0. Got a tensor on"),
    (6, lambda each: [each[0].float(), each[1]], "Expected copies to be bfloat16 or float16 ones"),
    (7, lambda each: each.int(), "Expected grad_factor to be float32, float64, bfloat16 or float"),
]


@pytest.mark.parametrize(("at", "change", "sentence"), WRONG)
def test_bad_arguments_are_refused(at: int, change: Any, sentence: str) -> None:
    args = step_arguments(DEVICE, (70, 3))
    args[at] = change(args[at])
    kept = [each.clone() for each in written(OPS["update_masked_adamw_"], args)]
    with pytest.raises(RuntimeError) as error:
        OPS["update_masked_adamw_"].overload(*args, **OPTIONS)
    assert sentence in str(error.value)
    assert all(map(torch.equal, kept, written(OPS["update_masked_adamw_"], args)))
