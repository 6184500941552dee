# SPDX-License-Identifier: Apache-2.0
"""The path from a stored tensor to a view of it: the steps, the form to which they lead, and the
contiguous run of the stored tensor that they need."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Form", "Path", "Step", "Window", "is_transpose", "traced", "window"]

aten = torch.ops.aten


class Step(NamedTuple):
    """One view operation: `function(tensor, *args, **kwargs)`, and which of its results if there
    are several."""

    function: Any
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    part: int | None

    def __call__(self, tensor: Tensor) -> Tensor:
        result: Any = self.function(tensor, *self.args, **dict(self.kwargs))
        one: Tensor = result if self.part is None else result[self.part]
        return one


Path = tuple[Step, ...]


class Form(NamedTuple):
    """Where a stored tensor lies in its buffer, its shape and its type: what compiled code must
    know."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    #: The block format, if it is quantised; the offset is then 0.
    format: str | None = None


def traced(shape: Any, dtype: torch.dtype, path: Path) -> Tensor:
    """Returns a tensor without data, of the form to which a path leads."""
    with torch._C._DisableTorchDispatch():
        seen = torch.empty(shape, dtype=dtype, device="meta")
        for step in path:
            seen = step(seen)
    return seen


def is_transpose(step: Step) -> bool:
    """Returns True for a step that exchanges the two dimensions of a matrix."""
    if step.function is aten.t.default:
        return True
    if step.function is aten.transpose.int:
        return sorted(at % 2 for at in step.args if -2 <= at < 2) == [0, 1]
    return step.function is aten.permute.default and [at % 2 for at in step.args[0]] == [1, 0]


# ---- windows -------------------------------------------------------------------------------------

#: Views that may need more of the storage than the run that earlier steps named.
_WIDE = frozenset((aten.as_strided.default,))


class Window:
    """A contiguous run of a stored tensor: its first element, its shape, and the steps that
    follow."""

    __slots__ = ("first", "path", "shape")

    def __init__(self, first: Any, shape: tuple[Any, ...], path: Path) -> None:
        self.first, self.shape, self.path = first, shape, path


def window(form_shape: tuple[int, ...], path: Path) -> Window:
    """Returns the smallest contiguous run that the first steps of a path name, as far as they
    select or slice along the first axis, or only give another shape."""
    first, shape = 0, tuple(form_shape)
    if not path or any(step.function in _WIDE for step in path):
        return Window(first, shape, path)
    for number, step in enumerate(path):
        found = _narrowed(shape, step)
        if found is None:
            return Window(first, shape, path[number:])
        start, shape = found
        first += start
    return Window(first, shape, ())


def _narrowed(shape: tuple[int, ...], step: Step) -> tuple[int, tuple[int, ...]] | None:
    """Returns where the result of one step begins in a contiguous tensor of `shape`, and its shape;
    None if it is not a contiguous run, or too complicated."""
    if step.kwargs or not shape:
        return None
    function, args = step.function, step.args
    row = math.prod(shape[1:])
    if function is aten.select.int and args[0] in (0, -len(shape)):
        at = args[1] + shape[0] if args[1] < 0 else args[1]
        return at * row, shape[1:]
    if function is aten.slice.Tensor and (not args or args[0] in (0, -len(shape))):
        bounds = [*args[1:], None, None, None][:3]
        start, stop, stride = slice(bounds[0], bounds[1], bounds[2]).indices(shape[0])
        if stride == 1:
            return start * row, (max(stop - start, 0), *shape[1:])
    if function is aten.split.Tensor and step.part is not None and len(args) < 2 and args[0] > 0:
        start = step.part * args[0]
        return start * row, (min(args[0], shape[0] - start), *shape[1:])
    if function is aten.view.default and all(isinstance(n, int) for n in args[0]):
        wanted = list(args[0])
        if -1 in wanted:
            known = -math.prod(wanted)
            wanted[wanted.index(-1)] = math.prod(shape) // known if known else 0
        return 0, tuple(wanted)
    if function is aten.unsqueeze.default and args == (0,):
        return 0, (1, *shape)
    return None
