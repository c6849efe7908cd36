"""The house error sentences: ``Expected <what> <must>. Got <value>.``"""

from __future__ import annotations

import inspect
import math
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

_INNER = tuple(str(Path(file).parent) + os.sep for file in (__file__, str(torch.__file__)))


def warn(text: str) -> None:
    """A UserWarning that points at the first line outside of this package and of torch."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_code.co_filename.startswith(_INNER):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level)


def describe(value: object) -> str:
    """Short text for the 'Got' half of a sentence."""
    if isinstance(value, Tensor):
        return f"a {tuple(value.shape)} tensor of {value.dtype} on {value.device}"
    return repr(value)


def check_tensor(value: object, name: str, *, ndim: int | None = None) -> None:
    """Raises TypeError unless ``value`` is a tensor, ValueError unless it has ``ndim`` dims."""
    if not isinstance(value, Tensor):
        raise TypeError(f"Expected {name} to be a tensor. Got {type(value).__name__}.")
    if ndim is not None and value.ndim != ndim:
        raise ValueError(f"Expected {name} to have {ndim} dimensions. Got shape {shape(value)}.")


def check_dtype(value: Tensor, name: str, allowed: tuple[torch.dtype, ...]) -> None:
    """Raises TypeError unless the tensor has one of the dtypes."""
    if value.dtype not in allowed:
        names = " or ".join(str(dtype) for dtype in allowed)
        raise TypeError(f"Expected {name} to have dtype {names}. Got {value.dtype}.")


def check_weight_dtype(dtype: object) -> None:
    """Raises TypeError unless ``dtype`` is a floating one, or None for torch's default."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"Expected dtype to be a floating torch.dtype. Got {dtype!r}.")


def check_size(value: object, name: str) -> None:
    """Raises unless ``value`` is a whole number of at least 0 (a symbolic one of a trace is)."""
    if isinstance(value, torch.SymInt):
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"Expected {name} to be an integer. Got {value!r}.")
    if value < 0:
        raise ValueError(f"Expected {name} to be at least 0. Got {value}.")


def check_device(value: Tensor, name: str, device: torch.device, other: str) -> None:
    """Raises ValueError unless the tensor is on ``device``, where the tensor ``other`` is."""
    if value.device != device:
        raise ValueError(f"Expected {name} to be on {device} like {other}. Got {value.device}.")


def check_shape(value: Tensor, name: str, expected: Sequence[int]) -> None:
    """Raises ValueError unless the tensor has exactly this shape."""
    if value.shape != expected:
        raise ValueError(f"Expected {name} to have shape {tuple(expected)}. Got {shape(value)}.")


def check_mask(value: object, expected: Sequence[int], device: torch.device) -> None:
    """Raises unless ``value`` is a bool tensor shaped like a weight, on that weight's device."""
    check_tensor(value, "mask")
    assert isinstance(value, Tensor)
    check_dtype(value, "mask", (torch.bool,))
    check_shape(value, "mask", expected)
    check_device(value, "mask", device, "weight")


def check_model(value: object) -> None:
    """Raises TypeError unless ``value`` is a module."""
    if not isinstance(value, nn.Module):
        raise TypeError(f"Expected model to be a torch.nn.Module. Got {type(value).__name__}.")


def check_texts(value: Collection[str], name: str) -> tuple[str, ...]:
    """A list of texts as a tuple. Raises TypeError for anything else, one text alone included."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Collection):
        raise TypeError(f"Expected {name} to be a list of texts. Got {value!r}.")
    for i, each in enumerate(value):
        if not isinstance(each, str):
            raise TypeError(f"Expected {name}[{i}] to be text. Got {each!r}.")
    return tuple(value)


def check_seed(value: int, name: str) -> None:
    """Raises unless ``value`` is a whole number that can seed a generator."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"Expected {name} to be an integer. Got {value!r}.")
    if not 0 <= value < 2**64:
        raise ValueError(f"Expected {name} to be in [0, 2**64). Got {value}.")


def check_fraction(value: float, name: str) -> None:
    """Raises unless ``value`` is a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"Expected {name} to be a number. Got {value!r}.")
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"Expected {name} to be in [0, 1]. Got {value!r}.")


def check_numbers(**numbers: float) -> None:
    """Raises unless every one is a finite number of at least 0."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"Expected {name} to be a number. Got {value!r}.")
        if not 0 <= value < math.inf:
            raise ValueError(f"Expected {name} to be at least 0 and finite. Got {value!r}.")


def check_positive(value: int, name: str) -> None:
    """Raises unless ``value`` is a whole number above zero."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"Expected {name} to be an integer. Got {value!r}.")
    if value <= 0:
        raise ValueError(f"Expected {name} to be above 0. Got {value}.")


def shape(value: Tensor) -> tuple[int, ...]:
    """The tensor's shape as a plain tuple (prints without torch.Size)."""
    return tuple(value.shape)


def as_rows(value: Tensor) -> Tensor:
    """``[..., n]`` as ``[batch, n]``, also for one vector and for no elements."""
    return value.reshape(math.prod(value.shape[:-1]), value.shape[-1])
