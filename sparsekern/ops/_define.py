"""``define_op``: the life of an op in one call, and the only user of ``torch.library``.

An op is one mathematical sentence. Its plain-torch reference is oracle, fallback and first
documentation; native and Triton kernels only ever replace the reference, behind the same schema.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd import forward_ad

from sparsekern._registry import Registry
from sparsekern.kernels.launch import Launcher

NAMESPACE = "sparsekern"


@dataclass(frozen=True)
class Sample:
    """Arguments the contract suite calls an op with."""

    args: tuple[Any, ...]
    id: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    small: bool = False  # small enough for gradcheck and opcheck
    promise: bool = False  # the inputs keep a promise that finite differences would break


@dataclass(frozen=True)
class Cost:
    """What a call must do at least, for rooflines."""

    flops: int
    bytes_read: int
    bytes_written: int


@dataclass(frozen=True)
class Variant:
    """One row of an op's table: a kernel that can be asked for by name.

    ``supports(*args)`` returns None, or the reason why the kernel cannot take these arguments.
    ``run`` is set for variants written in plain torch; the others are native or Triton kernels
    behind the op's schema.
    """

    name: str
    supports: Callable[..., str | None]
    run: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Op:
    """A defined op. Calling it checks the arguments and runs the chosen variant."""

    name: str
    overload: Any
    reference: Callable[..., Any]
    plain_torch: Callable[..., Any]  # what runs on devices without a kernel: mostly the reference
    check: Callable[..., None]
    backward: Callable[..., Any] | str
    variants: dict[str, Variant]
    select: Callable[..., str] | None
    samples: Callable[[torch.device, torch.dtype], Iterable[Sample]]
    errors: Callable[[], Iterable[tuple[Any, type[Exception], str]]]
    cost: Callable[..., Cost]
    deterministic: bool
    triton: Launcher | None
    function: type[torch.autograd.Function] | None
    written: tuple[int, ...]  # arguments that it changes in place, so that autograd must know

    def __call__(self, *args: Any, variant: str = "auto", **kwargs: Any) -> Any:
        self.check(*args, **kwargs)
        if self.select is None:
            return self._run(args, kwargs)
        name = self.select(*args, **kwargs) if variant == "auto" else self.known(variant)
        row = self.variants[name]
        reason = row.supports(*args, **kwargs)
        if reason is not None:
            raise NotImplementedError(
                f"Expected a variant of {self.name} that fits. Got {name!r}: {reason}"
            )
        if row.run is not None:
            return row.run(*args, **kwargs)
        return self._run(args, {**kwargs, "variant": name})

    def _run(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if self.function is None or torch.compiler.is_compiling():
            result = self.overload(*args, **options)
            if self.written and not torch.compiler.is_compiling():
                self._tell_autograd(args)
            return result
        if _transforming():
            if any(_is_tracked(value) for value in args):
                raise NotImplementedError(
                    f"Expected no torch.func.grad through {self.name}. Got one: use backward(), or "
                    "sparsekern.densify(model), whose layers are plain torch."
                )
            return self.overload(*args, **options)
        if not torch.is_grad_enabled() and forward_ad._current_level < 0:
            with torch._C._AutoDispatchBelowAutograd():  # PERF: 4.9 us, not 9.1
                return self.overload(*args, **options)
        return self.function.apply(*args, options)

    def _tell_autograd(self, args: tuple[Any, ...]) -> None:
        """Backward passes that have saved what was written refuse to run from now on."""
        values = [args[i] for i in self.written]
        lists = [value if isinstance(value, (list, tuple)) else [value] for value in values]
        torch.autograd.graph.increment_version([tensor for each in lists for tensor in each])

    def without_gradient(self, *args: Any, **options: Any) -> Any:
        """The op without its autograd entry, for gradient formulas; with it when a second
        derivative is wanted, so that a refusal is heard."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or _transforming():
            return self.overload(*args, **options)
        with torch._C._AutoDispatchBelowAutograd():
            return self.overload(*args, **options)

    def known(self, variant: str) -> str:
        """The name itself, if it is a row of the table. Raises ValueError otherwise."""
        if variant not in self.variants:
            raise ValueError(
                f"Expected variant of {self.name} to be auto or one of "
                f"{', '.join(self.variants)}. Got {variant!r}."
            )
        return variant


OPS: Registry[Op] = Registry("op")


def define_op(
    schema: str,
    *,
    reference: Callable[..., Any],
    check: Callable[..., None],
    fake: Callable[..., Any],
    setup: Callable[..., None] | None,
    backward: Callable[..., Any] | str,
    samples: Callable[[torch.device, torch.dtype], Iterable[Sample]],
    errors: Callable[[], Iterable[tuple[Any, type[Exception], str]]],
    cost: Callable[..., Cost],
    deterministic: bool = True,
    variants: tuple[Variant, ...] = (),
    select: Callable[..., str] | None = None,
    kernel: Callable[..., Any] | None = None,
    triton: Launcher | None = None,
) -> Op:
    """Defines ``sparsekern::<name>`` from its schema and parts, and registers it for the suites.

    ``backward`` is the gradient formula, or the reason why there is none: differentiating such an
    op raises NotImplementedError with that sentence. ``select`` chooses a variant for
    ``variant="auto"``; ops without variants run native code where it is loaded, else the reference.
    ``errors`` yields wrong arguments (a tuple, or a :class:`Sample` with keywords), the exception
    and how its sentence begins. ``kernel`` is plain torch that runs in place of the reference where
    it is faster. ``triton`` launches Triton kernels: a row "triton" of the table; an op without
    variants runs them wherever they can run and no native kernel is registered for the device.
    """
    name = schema.split("(", 1)[0]
    torch.library.define(f"{NAMESPACE}::{name}", schema[len(name) :])
    overload = getattr(getattr(torch.ops, NAMESPACE), name).default
    plain_torch = reference if kernel is None else kernel
    _register_kernels(name, plain_torch, check, fake, triton, has_variants=select is not None)
    _register_gradient(name, overload, setup, backward, has_options=select is not None)
    function = None
    if setup is not None and not isinstance(backward, str):
        function = _eager_function(name, overload, setup, backward)
    plain = Variant("reference", lambda *_, **__: None, reference)
    ours = () if triton is None else (Variant("triton", triton.supports),)
    rows = {} if select is None else {row.name: row for row in (*variants, *ours, plain)}
    op = Op(
        name=name,
        overload=overload,
        reference=reference,
        plain_torch=plain_torch,
        check=check,
        backward=backward,
        variants=rows,
        select=select,
        samples=samples,
        errors=errors,
        cost=cost,
        deterministic=deterministic,
        triton=triton,
        function=function,
        written=tuple(
            i
            for i, argument in enumerate(overload._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ),
    )
    return OPS.add(name, op)


def _register_kernels(
    name: str,
    kernel: Callable[..., Any],
    check: Callable[..., None],
    fake: Callable[..., Any],
    triton: Launcher | None,
    has_variants: bool,
) -> None:
    """Triton or plain torch for every device without a native kernel, and the fake for tracing."""

    def fallback(*args: Any, variant: str = "auto", **kwargs: Any) -> Any:
        run = kernel
        if triton is not None and (
            variant == "triton" if has_variants else triton.supports(*args, **kwargs) is None
        ):
            run = triton
        if not torch.is_autocast_enabled("cpu") and not torch.is_autocast_enabled("cuda"):
            return run(*args, **kwargs)
        # The schema's fake has fixed the dtypes: autocast must not change them inside of the op.
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return run(*args, **kwargs)

    def checked_fake(*args: Any, variant: str = "auto", **kwargs: Any) -> Any:
        check(*args, **kwargs)
        return fake(*args, **kwargs)

    torch.library.impl(f"{NAMESPACE}::{name}", "CompositeExplicitAutograd")(fallback)
    torch.library.register_fake(f"{NAMESPACE}::{name}")(checked_fake)


def _register_gradient(
    name: str,
    overload: Any,
    setup: Callable[..., None] | None,
    backward: Callable[..., Any] | str,
    has_options: bool,
) -> None:
    """The gradient of the registered op, or its refusal; in-place ops have neither."""
    if any(argument.alias_info is not None for argument in overload._schema.arguments):
        return
    formula = _refuse(name, backward) if isinstance(backward, str) else backward
    torch.library.register_autograd(
        f"{NAMESPACE}::{name}", formula, setup_context=_with_options(setup, has_options)
    )


def _refuse(name: str, reason: str) -> Callable[..., Any]:
    def formula(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(f"Expected no gradient through {name}: {reason}")

    return formula


def _with_options(setup: Callable[..., None] | None, has_options: bool) -> Callable[..., None]:
    """The signature torch wants depends on whether the schema has keyword-only arguments."""

    def with_keywords(ctx: Any, inputs: Any, keyword_only_inputs: Any, output: Any) -> None:
        if setup is not None:
            ctx.options = keyword_only_inputs
            setup(ctx, inputs, output)

    def plain(ctx: Any, inputs: Any, output: Any) -> None:
        if setup is not None:
            setup(ctx, inputs, output)

    return with_keywords if has_options else plain


def _eager_function(
    name: str, overload: Any, setup: Callable[..., None], backward: Callable[..., Any]
) -> type[torch.autograd.Function]:
    """The same setup and backward as an autograd.Function.

    PERF: in eager mode forward and backward through it cost 80 us instead of 126 us through
    register_autograd (11 tensor arguments); torch.compile, torch.export and vmap take
    the registered op. The keyword-only arguments travel as one dict behind the positional
    ones, so that ``ctx.needs_input_grad`` has the same meaning in both.
    """

    class EagerFunction(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            args, options = inputs[:-1], inputs[-1]
            with torch._C._AutoDispatchBelowAutograd():
                output = overload(*args, **options)
            ctx.options = options
            setup(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            gradients = backward(ctx, *grads)
            return (*(gradients if isinstance(gradients, tuple) else (gradients,)), None)

    EagerFunction.__name__ = EagerFunction.__qualname__ = f"{name}_function"
    return EagerFunction


def _is_tracked(value: Any) -> bool:
    """Whether torch.func.grad (or vjp, jacrev, ...) differentiates by this argument."""
    return isinstance(value, torch.Tensor) and torch._C._functorch.is_gradtrackingtensor(value)


def _transforming() -> bool:
    """Whether a functorch transform (torch.func.grad, vmap, ...) is running."""
    return torch._C._functorch.maybe_current_level() is not None
