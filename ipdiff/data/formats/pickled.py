"""The arrays inside a batch of CIFAR-10's python version, without executing its pickle.

A pickle is a program, and Python's `pickle` runs it: it may call anything. The published batches need only a
few of its instructions (protocol 2, written by Python 2): text, numbers, lists, tuples, one dict, and numpy's
way of saying "array". Those few are followed here on plain values; a call is not made but written down, and
every other instruction or name is refused.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class _Call:
    """What the pickle wanted called: never called. `state` is what it wanted to set afterwards."""

    name: str
    arguments: Any
    state: Any = field(default=None)


_NAMES = {"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}
_MARK = object()
_VALUES = {"BININT", "BININT1", "BININT2", "BINSTRING", "SHORT_BINSTRING"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_batch(data: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The images and labels of a batch.

    Args:
        data: a pickle of {"data": uint8 array, "labels": list of whole numbers, ...}.

    Returns:
        data [n, m] uint8, of the shape that the pickle says, and labels [k] int64.

    Raises:
        ValueError: it is damaged, or holds anything but such a dict.
    """
    batch = _follow(data)
    if not isinstance(batch, dict) or not {"data", "labels"} <= set(batch):
        raise ValueError("no dict with 'data' and 'labels'")
    labels = batch["labels"]
    if not isinstance(labels, list) or not labels or not all(type(label) is int for label in labels):
        raise ValueError("'labels' is no list of whole numbers")
    return _array(batch["data"]), np.array(labels, np.int64)


def _array(value: Any) -> NDArray[np.uint8]:
    """The array that numpy would have rebuilt: C order, uint8, nothing else."""
    match value:
        case _Call("numpy.core.multiarray _reconstruct", ("numpy ndarray", (0,), "b"), (1, shape, kind, False, raw)):
            pass
        case _:
            raise ValueError("'data' is no numpy array in C order")
    match kind:
        case _Call("numpy dtype", ("u1", 0, 1), (3, "|", None, None, None, -1, -1, 0)):
            pass
        case _:
            raise ValueError("'data' is no array of uint8")
    if not isinstance(raw, str) or not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("'data' has no shape or no bytes")
    flat = np.frombuffer(raw.encode("latin-1"), np.uint8)
    return flat.reshape(shape)


def _follow(data: bytes) -> Any:
    """Follow the instructions and return what they leave at the end."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for instruction, argument, place in pickletools.genops(data):
        name = instruction.name
        if name == "PROTO" and argument == 2 and place == 0:
            continue
        if name == "STOP":
            break
        try:
            _step(name, argument, stack, memo)
        except (IndexError, KeyError, TypeError, AttributeError):
            raise ValueError(f"byte {place}: {name} finds nothing to work on") from None
    if len(stack) != 1:
        raise ValueError("it does not end with one value")
    return stack[0]


def _step(name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    if name in _VALUES:
        stack.append(argument)
    elif name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
    elif name in ("EMPTY_DICT", "EMPTY_LIST", "MARK"):
        stack.append({"EMPTY_DICT": {}, "EMPTY_LIST": [], "MARK": _MARK}[name])
    elif name in ("BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name == "TUPLE":
        stack.append(tuple(_since_mark(stack)))
    elif name in _TUPLES:
        stack.append(tuple(_pop(stack, _TUPLES[name])))
    elif name in ("APPEND", "APPENDS"):
        values = _pop(stack, 1) if name == "APPEND" else _since_mark(stack)
        _top(stack, list).extend(values)
    elif name in ("SETITEM", "SETITEMS"):
        pairs = _pop(stack, 2) if name == "SETITEM" else _since_mark(stack)
        if not all(isinstance(key, str) for key in pairs[::2]):
            raise ValueError("a key of a dict is no text")
        _top(stack, dict).update(zip(pairs[::2], pairs[1::2], strict=True))
    elif name == "GLOBAL":
        if argument not in _NAMES:
            raise ValueError(f"asks for {argument}; only numpy arrays are read: it is not the published file")
        stack.append(argument)
    elif name == "REDUCE":
        function, arguments = _pop(stack, 2)
        stack.append(_Call(function, arguments))
    elif name == "BUILD":
        (state,) = _pop(stack, 1)
        _top(stack, _Call).state = state
    else:
        raise ValueError(f"has the instruction {name}, which the published file does not need")


def _pop(stack: list[Any], count: int) -> list[Any]:
    values = stack[-count:]
    if len(values) < count or any(value is _MARK for value in values):
        raise IndexError
    del stack[-count:]
    return values


def _since_mark(stack: list[Any]) -> list[Any]:
    values: list[Any] = []
    while (value := stack.pop()) is not _MARK:
        values.append(value)
    return values[::-1]


def _top(stack: list[Any], kind: type[Any]) -> Any:
    if not isinstance(stack[-1], kind):
        raise TypeError
    return stack[-1]
