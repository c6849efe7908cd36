"""The contract of every op, over everything that is registered.

A new op is tested here because it is registered; its samples and errors come from its own file.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsekern import ops
from sparsekern._extension import ISAS, native
from sparsekern.kernels.launch import INTERPRETING
from sparsekern.ops import OPS, Op, Sample
from sparsekern.testing import (
    all_tensors,
    assert_close_to_oracle,
    devices,
    has_gradient,
    leaves,
    run_with_gradients,
    tensors,
    to_oracle,
    to_plain,
    written,
)
from tests.background import BACKGROUND, Command

_ = ops
# Triton's interpreter computes nonsense in bfloat16.
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
if INTERPRETING:
    DTYPES = (torch.float32, torch.float16)
# Of one family alone: samples of all ops take the interpreter a minute to make.
FAMILY = os.environ.get("SPARSEKERN_TEST_FAMILY", "")
NAMES = [name for name in OPS if name.startswith(FAMILY)]


def _mutates(op: Op) -> bool:
    assert bool(op.written) == op.name.endswith("_")
    return bool(op.written)


def _takes(op: Op, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the op accepts this dtype (index ops are run once, for float32)."""
    sample = next(iter(op.samples(device, dtype)))
    floats = [a for a in all_tensors(sample.args) if a.is_floating_point()]
    if not floats:
        return dtype == torch.float32
    try:
        op.check(*sample.args, **sample.kwargs)
    except TypeError:
        return False
    return True


def _variants(op: Op) -> list[str]:
    """What is run by name: every row of the table, under the interpreter Triton's alone."""
    if not op.variants:
        return ["auto"]
    return ["triton"] if INTERPRETING else list(op.variants)


def _cases() -> Iterator[Any]:
    for name in NAMES:
        op = OPS[name]
        if INTERPRETING and op.triton is None:
            continue
        for device in devices():
            for dtype in DTYPES:
                if not _takes(op, dtype, device):
                    continue
                for sample in op.samples(device, dtype):
                    for variant in _variants(op):
                        yield (
                            op,
                            variant,
                            sample,
                            f"{name}-{variant}-{device.type}-{dtype}-{sample.id}",
                        )


CASES = [pytest.param(op, v, s, id=i.replace("torch.", "")) for op, v, s, i in _cases()]
SMALL = [
    pytest.param(op, s, id=f"{op.name}-{s.id}")
    for op in (OPS[name] for name in NAMES)
    for s in op.samples(torch.device("cpu"), torch.float64)
    if s.small
]


def _call(op: Op, variant: str, sample: Sample, args: list[Any]) -> tuple[Tensor, ...]:
    options = {"variant": variant} if op.variants else {}
    result = op(*args, **sample.kwargs, **options)
    return _outputs(op, args, result)


def _outputs(op: Op, args: list[Any], result: Any) -> tuple[Tensor, ...]:
    """What an op returns, behind the arguments that it writes into."""
    return (*written(op, args), *(() if result is None else tensors(result)))


def _skip_unsupported(op: Op, variant: str, sample: Sample) -> None:
    if variant in op.variants:
        reason = op.variants[variant].supports(*sample.args, **sample.kwargs)
        if reason is not None:
            pytest.skip(reason)


def _reference(op: Op, sample: Sample, args: list[Any]) -> tuple[Tensor, ...]:
    return _outputs(op, args, op.reference(*args, **sample.kwargs))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(("op", "variant", "sample"), CASES)
def test_matches_the_oracle(op: Op, variant: str, sample: Sample) -> None:
    """Outputs and the gradient of every input against the reference in float64."""
    _skip_unsupported(op, variant, sample)
    differentiable = has_gradient(op)
    double = any(a.dtype == torch.float64 for a in all_tensors(sample.args))
    oracle_args = leaves(map(to_oracle, sample.args), differentiable)
    plain_args = leaves(map(to_plain, sample.args), differentiable)
    args = leaves(sample.args, differentiable)
    if not differentiable:
        got = _call(op, variant, sample, args)
        plain = _reference(op, sample, plain_args)
        oracle = _reference(op, sample, oracle_args)
        for i, (g, p, o) in enumerate(zip(got, plain, oracle, strict=True)):
            assert g.dtype == (o if double else p).dtype
            assert_close_to_oracle(g, p, o, f"output {i}")
        return
    options = {"variant": variant} if op.variants else {}
    plain_torch = op.variants["dense"].run if variant == "dense" else op.reference
    got, got_grads = run_with_gradients(op, sample, args, **options)
    plain, plain_grads = run_with_gradients(plain_torch, sample, plain_args)
    oracle, oracle_grads = run_with_gradients(op.reference, sample, oracle_args)
    for i, (g, p, o) in enumerate(zip(got, plain, oracle, strict=True)):
        assert g.dtype == (o if double else p).dtype
        assert_close_to_oracle(g, p, o, f"output {i}")
    for i, (gg, pg, og) in enumerate(zip(got_grads, plain_grads, oracle_grads, strict=True)):
        assert gg is not None
        assert pg is not None
        assert og is not None
        assert_close_to_oracle(gg, pg, og, f"gradient {i}")


@pytest.mark.parametrize(("op", "variant", "sample"), CASES)
def test_twice_and_any_threads_bitwise(op: Op, variant: str, sample: Sample) -> None:
    """Deterministic ops give the same bits twice, and native ones for any number of threads."""
    _skip_unsupported(op, variant, sample)
    if not op.deterministic:
        pytest.skip("declared non-deterministic")
    first = _call(op, variant, sample, leaves(sample.args, False))
    again = _call(op, variant, sample, leaves(sample.args, False))
    for a, b in zip(first, again, strict=True):
        assert torch.equal(_bits(a), _bits(b))
    if variant in ("reference", "dense") or not native.loaded:
        return  # torch's own kernels: torch's business
    if op.name.startswith(("mask_linear", "mask_conv2d")):
        return
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        other = _call(op, variant, sample, leaves(sample.args, False))
        for a, b in zip(first, other, strict=True):
            assert torch.equal(_bits(a), _bits(b)), f"{threads} threads"


def _bits(value: Tensor) -> Tensor:
    flat = value.contiguous().flatten()
    return flat.view(torch.uint8) if flat.numel() else value


GRADCHECK = [p for p in SMALL if has_gradient(p.values[0]) and not p.values[1].promise]


@pytest.mark.parametrize(("op", "sample"), GRADCHECK)
def test_gradcheck(op: Op, sample: Sample) -> None:
    """Finite differences in float64."""
    for variant in op.variants or ["auto"]:
        row = op.variants.get(variant)
        if row is not None and row.supports(*sample.args, **sample.kwargs) is not None:
            continue
        args = leaves(sample.args, True)
        floats = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.requires_grad]
        options = {"variant": variant} if op.variants else {}

        assert torch.autograd.gradcheck(
            functools.partial(_with_floats, op, sample, args, floats, options),
            [args[i] for i in floats],
        )


def _with_floats(
    op: Op, sample: Sample, args: list[Any], at: list[int], options: dict[str, str], *inputs: Tensor
) -> Any:
    """The op with its floating arguments replaced, as gradcheck wants to call it."""
    replaced = dict(zip(at, inputs, strict=True))
    return op(*(replaced.get(i, a) for i, a in enumerate(args)), **sample.kwargs, **options)


@pytest.mark.parametrize(("op", "sample"), SMALL)
def test_opcheck(op: Op, sample: Sample) -> None:
    """Schema, fake, autograd registration and AOT dispatch, by torch's own checker."""
    options = {"variant": op.select(*sample.args, **sample.kwargs)} if op.select else {}
    args = leaves(sample.args, has_gradient(op))
    torch.library.opcheck(op.overload, tuple(args), {**sample.kwargs, **options})


def _first_samples() -> list[Any]:
    device = torch.device("cpu")
    cases = []
    for name in NAMES:
        samples = list(OPS[name].samples(device, torch.float32))
        chosen = next((s for s in samples if s.id == "typical"), samples[-1])
        cases.append(pytest.param(OPS[name], chosen, id=name))
    return cases


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("op", "sample"), _first_samples())
def test_compiled_equals_eager(op: Op, sample: Sample, backend: str) -> None:
    """The whole call compiles without a graph break; outputs and gradients keep their bits."""
    torch._dynamo.reset()
    differentiable = has_gradient(op)

    def call(*args: Any, **kwargs: Any) -> Any:
        return op(*args, **kwargs)

    compiled = torch.compile(call, fullgraph=True, backend=backend)
    if _mutates(op):
        eager_args, compiled_args = leaves(sample.args, False), leaves(sample.args, False)
        eager = _outputs(op, eager_args, call(*eager_args, **sample.kwargs))
        result = _outputs(op, compiled_args, compiled(*compiled_args, **sample.kwargs))
        for a, b in zip(eager, result, strict=True):
            assert torch.equal(_bits(a), _bits(b))
        return
    if not differentiable:
        eager = tensors(call(*sample.args, **sample.kwargs))
        result = tensors(compiled(*sample.args, **sample.kwargs))
    else:
        eager, eager_grads = run_with_gradients(call, sample, leaves(sample.args, True))
        result, grads = run_with_gradients(compiled, sample, leaves(sample.args, True))
        for a, b in zip(eager_grads, grads, strict=True):
            assert torch.equal(_bits(a), _bits(b))
    for a, b in zip(eager, result, strict=True):
        assert torch.equal(_bits(a), _bits(b))


@pytest.mark.parametrize("name", [n for n in NAMES if OPS[n].written])
def test_writing_is_noticed_by_autograd(name: str) -> None:
    """A backward pass that saved a tensor refuses it once an op has changed it in place."""
    op = OPS[name]
    sample = next(iter(op.samples(torch.device("cpu"), torch.float32)))
    args = leaves(sample.args, False)
    before = [tensor._version for tensor in written(op, args)]
    op(*args, **sample.kwargs)
    assert all(t._version > v for t, v in zip(written(op, args), before, strict=True))


ERRORS = [
    pytest.param(OPS[name], args, kind, sentence, id=f"{name}-{i}")
    for name in NAMES
    for i, (args, kind, sentence) in enumerate(OPS[name].errors())
]


@pytest.mark.parametrize(("op", "args", "kind", "sentence"), ERRORS)
def test_errors(op: Op, args: Any, kind: type[Exception], sentence: str) -> None:
    """Every declared error is raised with its sentence."""
    sample = args if isinstance(args, Sample) else Sample(args, id="")
    with pytest.raises(kind, match="^" + _escaped(sentence)):
        op(*sample.args, **sample.kwargs)


def _escaped(sentence: str) -> str:
    return "".join("\\" + c if c in "()[]{}^$.*+?|\\" else c for c in sentence)


@pytest.mark.parametrize("name", [n for n in NAMES if OPS[n].variants])
def test_unknown_variant(name: str) -> None:
    sample = next(iter(OPS[name].samples(torch.device("cpu"), torch.float32)))
    with pytest.raises(
        ValueError, match=r"Expected variant of .* to be auto or one of .*reference"
    ):
        OPS[name](*sample.args, **sample.kwargs, variant="fastest")


@pytest.mark.parametrize("name", NAMES)
def test_cost_is_positive_and_finite(name: str) -> None:
    for sample in OPS[name].samples(torch.device("cpu"), torch.float32):
        cost = OPS[name].cost(*sample.args, **sample.kwargs)
        assert min(cost.flops, cost.bytes_read, cost.bytes_written) >= 0


@pytest.mark.parametrize("name", [n for n in NAMES if isinstance(OPS[n].backward, str)])
def test_no_gradient_says_why(name: str) -> None:
    """Differentiating an op without a gradient raises its reason."""
    op = OPS[name]
    for sample in op.samples(torch.device("cpu"), torch.float32):
        args = leaves(sample.args, True)
        if _mutates(op) or not any(isinstance(a, Tensor) and a.requires_grad for a in args):
            return
        outputs = [o for o in tensors(op(*args, **sample.kwargs)) if o.requires_grad]
        if not outputs:
            return
        with pytest.raises(NotImplementedError, match=f"Expected no gradient through {name}"):
            outputs[0].sum().backward()
        return


def of_isa(isa: str) -> Command | None:
    """The oracle tests of all ops with vector bodies, on one that this process does not run."""
    if not native.loaded or isa == native.isa:
        return None
    layers = "(csr_linear and panel or condensed_linear or csr_conv2d and patch or update)"
    masks = "(mask_topk or mask_pack_bits or csr_from_mask or csr_rebuild)"
    selection = f"({layers} or {masks}) and not every_isa and not gradcheck and not compiled"
    arguments = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    return Command([*arguments, __file__, "-k", selection], {"SPARSEKERN_ISA": isa})


@pytest.mark.background(command=of_isa)
@pytest.mark.parametrize("isa", ISAS)
def test_every_isa_of_this_machine(isa: str, request: pytest.FixtureRequest) -> None:
    """The oracle tests again, each body in a process of its own.

    A body that this processor cannot run is unconfirmed here and skipped by name.
    """
    if not native.loaded:
        pytest.skip(f"no native library: {native.reason}")
    if isa == native.isa:
        pytest.skip("this process runs it already")
    code, output = BACKGROUND.result(request.node.nodeid)
    if "Expected SPARSEKERN_ISA to name an instruction set of this machine" in output:
        pytest.skip(f"{isa}: unconfirmed, this processor does not have it")
    assert code == 0, output
