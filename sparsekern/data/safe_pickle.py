"""Pickled data without unpickling: plain containers and uint8 arrays are read, nothing is run.

Python's ``pickle`` calls whatever a file names. Here ``pickletools`` only splits the file into
opcodes, and the few that plain data needs are interpreted; anything else is refused.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

CONTENT = "a pickle of plain dicts, lists, numbers, text and uint8 arrays"
PROTOCOLS = (2, 3, 4)


def read_pickle(path: Path) -> Any:
    """The object in a pickle file of protocol 2 to 4, of Python 2 or 3.

    Dicts, lists, tuples, whole numbers, booleans, None, text, bytes and numpy's uint8 arrays.
    Text of Python 2 comes as bytes.

    Raises:
        ValueError: the file is damaged, or holds anything else; the sentence names the file and
            the opcode or the global that was refused. Nothing of the file is ever executed.
        OSError: the file cannot be read.
    """
    machine = _Machine()
    for opcode, argument, position in _opcodes(path):
        where = f"at byte {position}"
        try:
            machine.run(opcode, argument)
        except _RefusedError as refused:
            raise ValueError(f"Expected {path} to be {CONTENT}. Got {refused} {where}.") from None
        except _DAMAGE:
            raise ValueError(
                f"Expected {path} to be {CONTENT}. Got a damaged file: the opcode {opcode} "
                f"{where} does not fit what comes before."
            ) from None
    return machine.result


class _RefusedError(Exception):
    """What the file holds and must not."""


@dataclass(frozen=True)
class _Global:
    """A name that the file wants to import. It stays a name."""

    name: str


_RECONSTRUCT = {"numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"}
_ARRAY, _DTYPE, _ENCODE = "numpy ndarray", "numpy dtype", "_codecs encode"
_GLOBALS = _RECONSTRUCT | {_ARRAY, _DTYPE, _ENCODE}
_KEYS = (str, bytes, int)
_DAMAGE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


@dataclass
class _Dtype:
    """``numpy.dtype('u1')``."""


@dataclass
class _Array:
    """An array whose content comes with a BUILD."""

    value: np.ndarray | None = None


def _opcodes(path: Path) -> Iterator[tuple[str, Any, int | None]]:
    try:
        for opcode, argument, position in pickletools.genops(path.read_bytes()):
            yield opcode.name, argument, position
    except ValueError as error:
        raise ValueError(f"Expected {path} to be a whole pickle file. Got: {error}.") from None


@dataclass
class _Machine:
    """The stack of a pickle, without any call."""

    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    result: Any = None

    def run(self, opcode: str, argument: Any) -> None:
        """One opcode. Raises _RefusedError, or whatever a damaged file leads to."""
        if opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode]())
        elif opcode in _VALUES:
            self.stack.append(_VALUES[opcode](argument))
        elif opcode in _TUPLES:
            self._push_tuple(_TUPLES[opcode])
        elif opcode in _ACTIONS:
            _ACTIONS[opcode](self, argument)
        else:
            raise _RefusedError(f"the opcode {opcode}")

    def _pop(self) -> Any:
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise IndexError("nothing since the last mark")
        return self.stack.pop()

    def _pop_marked(self) -> list[Any]:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def _push_tuple(self, size: int) -> None:
        items = [self._pop() for _ in range(size)]
        self.stack.append(tuple(reversed(items)))

    def protocol(self, version: int) -> None:
        if version not in PROTOCOLS:
            raise _RefusedError(f"protocol {version}")

    def frame(self, size: int) -> None:
        """Only says how much to read at once."""

    def mark(self, _: None) -> None:
        self.marks.append(len(self.stack))

    def tuple(self, _: None) -> None:
        self.stack.append(tuple(self._pop_marked()))

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def append(self, _: None) -> None:
        self._extend([self._pop()])

    def appends(self, _: None) -> None:
        self._extend(self._pop_marked())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise TypeError("no list")
        target.extend(items)

    def set_item(self, _: None) -> None:
        value, key = self._pop(), self._pop()
        self._update([key, value])

    def set_items(self, _: None) -> None:
        self._update(self._pop_marked())

    def _update(self, items: list[Any]) -> None:
        target, keys = self.stack[-1], items[::2]
        if type(target) is not dict or not all(isinstance(key, _KEYS) for key in keys):
            raise TypeError("no dict, or keys that are not plain")
        target.update(zip(keys, items[1::2], strict=True))

    def push_global(self, argument: str) -> None:
        if argument not in _GLOBALS:
            raise _RefusedError(f"the global {argument.replace(' ', '.')!r}, which could run code,")
        self.stack.append(_Global(argument))

    def push_stack_global(self, _: None) -> None:
        name, module = self._pop(), self._pop()
        self.push_global(f"{module} {name}")

    def reduce(self, _: None) -> None:
        """What numpy's three functions would return, made by hand."""
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, _Global):
            raise TypeError("no function")
        if function.name in _RECONSTRUCT and arguments[0] == _Global(_ARRAY):
            self.stack.append(_Array())
        elif function.name == _DTYPE:
            if arguments[0] not in (b"u1", "u1"):
                kind = arguments[0] if isinstance(arguments[0], (str, bytes)) else "another kind"
                raise _RefusedError(f"an array of dtype {kind!r}")
            self.stack.append(_Dtype())
        elif function.name == _ENCODE and arguments[1] in (b"latin1", "latin1"):
            self.stack.append(arguments[0].encode("latin-1"))
        else:
            raise TypeError("arguments of another kind")

    def build(self, _: None) -> None:
        """The content of an array: ``(version, shape, dtype, whether by columns, bytes)``."""
        state, target = self._pop(), self.stack[-1]
        if isinstance(target, _Dtype):
            return  # byte order and the like, which one byte does not have
        if not isinstance(target, _Array):
            raise TypeError("nothing that is built")
        _, shape, dtype, by_columns, content = state
        if not isinstance(dtype, _Dtype) or not isinstance(content, bytes):
            raise TypeError("no uint8 array")
        if any(size < 0 for size in shape) or math.prod(shape) != len(content):
            raise ValueError("bytes of another number")
        flat = np.frombuffer(content, np.uint8)
        target.value = flat.reshape(shape, order="F" if by_columns else "C")

    def stop(self, _: None) -> None:
        result = self._pop()
        if self.stack or self.marks:
            raise ValueError("more than one object")
        self.result = _finished(result)


def _finished(result: Any) -> Any:
    """The object with arrays in place of what they were built in.

    Every container is visited once: a file may nest them without end.
    """
    outer = [result]
    to_visit: list[Any] = [outer]
    seen = set()
    while to_visit:
        container = to_visit.pop()
        if id(container) in seen:
            continue
        seen.add(id(container))
        pairs = container.items() if isinstance(container, dict) else enumerate(container)
        for key, value in list(pairs):
            if isinstance(value, (dict, list, tuple)):
                to_visit.append(value)
            elif isinstance(value, _Array) and value.value is not None:
                container[key] = value.value  # a TypeError in a tuple
            elif isinstance(value, (_Global, _Dtype, _Array)):
                raise TypeError("a name in place of a value")
    return outer[0]


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
}
_VALUES: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1"), int),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE"), str),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES"), bytes),
    # Python 2's text, of which pickletools makes text by latin-1
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING"), lambda text: text.encode("latin-1")),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.protocol,
    "FRAME": _Machine.frame,
    "MARK": _Machine.mark,
    "TUPLE": _Machine.tuple,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.push_global,
    "STACK_GLOBAL": _Machine.push_stack_global,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
    "STOP": _Machine.stop,
}
