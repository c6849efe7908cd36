"""Every op's plain torch on a device that is not the CPU: no devices mixed, nothing to wait for.

The meta device stands in for a GPU: its tensors have no numbers, so whatever must look at one
(``.item()``, ``nonzero``, a branch on a tensor) raises, where on a GPU it would wait; a mode sees
every call of torch and raises where tensors of the CPU are among the others, or numbers travel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparsekern import ops
from sparsekern.ops import OPS, Op, Sample
from sparsekern.testing import all_tensors, has_gradient, tensors, written

_ = ops
META = torch.device("meta")
DTYPES = (torch.float32, torch.float64, torch.bfloat16)

# References that look at numbers; all belong to a change of topology, outside of the training path.
LOOKS_AT_NUMBERS = {
    "csr_from_mask": "nonzero, and nnz is compared with what the mask has",
    "csr_rebuild_": "the count of the new mask is compared with that of the old one",
    "mask_topk": "k is compared with the number of candidates",
    "mask_topk_bits": "k is compared with the number of candidates",
    "mask_topk_rows": "the counts are compared with the numbers of candidates",
}


class OneDevice(TorchDispatchMode):
    """Raises where a call of torch takes tensors of the CPU, numbers (no dimension) excepted."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        result = func(*args, **kwargs)
        made = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
        devices = {each.device.type for each in (*given, *made) if each.ndim > 0}
        if len(devices) > 1:
            raise AssertionError(f"{func} mixes {' and '.join(sorted(devices))}")
        return result


def elsewhere(value: Any, needs_grad: bool, device: torch.device = META) -> Any:
    """The same argument without its numbers on another device."""
    if isinstance(value, (list, tuple)):
        return [elsewhere(each, needs_grad, device) for each in value]
    if not isinstance(value, Tensor):
        return value
    copy = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
    return copy.requires_grad_(needs_grad and value.is_floating_point())


def check(op: Op, sample: Sample, run: Callable[..., Any], **options: Any) -> None:
    """Calls ``run`` forward and, where there is a gradient, backward; everything is on META."""
    differentiable = has_gradient(op)
    args = elsewhere(sample.args, differentiable)
    if not all_tensors(args):
        return
    refusal = AssertionError("torch.tensor copies numbers from the host, which waits for a GPU")
    with OneDevice(), mock.patch.object(torch, "tensor", side_effect=refusal):
        outputs = [*tensors(run(*args, **sample.kwargs, **options)), *written(op, args)]
        assert all(output.device == META for output in outputs)
        outputs = [each for each in outputs if each.requires_grad]
        if not outputs:
            return
        inputs = [each for each in all_tensors(args) if each.requires_grad]
        weights = [torch.empty_like(output) for output in outputs]
        gradients = torch.autograd.grad(outputs, inputs, weights, allow_unused=True)
    assert all(gradient is None or gradient.device == META for gradient in gradients)


def samples(op: Op) -> Iterator[Sample]:
    for dtype in DTYPES:
        for sample in op.samples(torch.device("cpu"), dtype):
            try:
                op.check(*sample.args, **sample.kwargs)
            except TypeError:
                break  # not a dtype of this op
            yield sample


@pytest.mark.parametrize("name", [name for name in OPS if name not in LOOKS_AT_NUMBERS])
def test_plain_torch(name: str) -> None:
    """The reference, and what runs in its place where there is no kernel for a device."""
    op = OPS[name]
    for sample in samples(op):
        check(op, sample, op.reference)
        if op.plain_torch is not op.reference:
            check(Op(**{**vars(op), "backward": "none"}), sample, op.plain_torch)


@pytest.mark.parametrize("name", list(OPS))
def test_whole_calls(name: str) -> None:
    """Checks, the variant that is chosen, those that are plain torch, and the gradient formula."""
    op = OPS[name]
    for sample in samples(op):
        check(op, sample, op)
        for variant in op.variants.values():
            if variant.run is not None and variant.name != "reference":
                check(op, sample, op, variant=variant.name)


@pytest.mark.parametrize("name", [name for name in OPS if OPS[name].select])
def test_the_choice_on_cuda_can_run_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were a GPU."""
    monkeypatch.setattr("sparsekern.kernels.launch.reason_on", lambda device: None)
    op = OPS[name]
    assert op.select is not None
    choices = set()
    for sample in samples(op):
        with FakeTensorMode():
            args = elsewhere(sample.args, False, torch.device("cuda", 0))
            chosen = op.select(*args, **sample.kwargs)
            assert op.variants[chosen].supports(*args, **sample.kwargs) is None
            choices.add(chosen)
    assert op.triton is None or "triton" in choices
