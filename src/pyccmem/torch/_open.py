# SPDX-License-Identifier: Apache-2.0
"""From an EncryptedTensor to plain values and back: all of it, or what a view names."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ._stored import converted
from ._tensor import EncryptedTensor, Form, Step

__all__ = ["Window", "opened", "rewritten", "window"]

aten = torch.ops.aten

#: Views that may need more of the storage than the run that the steps before them named.
_WIDE = frozenset((aten.as_strided.default,))


class Window:
    """A contiguous run of a stored tensor: its first element, its shape, and the steps that lead
    on from there."""

    __slots__ = ("first", "path", "shape")

    def __init__(self, first: Any, shape: tuple[Any, ...], path: tuple[Step, ...]) -> None:
        self.first, self.shape, self.path = first, shape, path


def window(form_shape: tuple[int, ...], path: tuple[Step, ...]) -> Window:
    """The smallest contiguous run that the leading steps of a path name; as long as they select or
    slice along the first axis, or only give another shape."""
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
    """Where the result of one step begins in a contiguous tensor of `shape`, and its shape; None
    where that is no contiguous run, or too much to work out."""
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


def opened(tensor: EncryptedTensor) -> Tensor:
    """The values in memory that is wiped when its last user goes; while tracing, what will be
    that."""
    stored = tensor._stored
    if stored is None:
        form: Form = tensor._layout()
        plain = torch.ops.pyccmem.decrypt(
            tensor._ciphertext, form.offset, list(form.shape), form.dtype
        )
        for step in tensor._path:
            plain = step(plain)
        return plain  # type: ignore[no-any-return]
    core = stored.core
    if not tensor._path:
        return stored.opened_run(core, 0, core.size).view(core.shape)
    part = window(core.shape, tensor._path)
    plain = stored.opened_run(core, part.first, math.prod(part.shape)).view(part.shape)
    for step in part.path:
        plain = step(plain)
    return _resolved(plain)


def _resolved(plain: Tensor) -> Tensor:
    """Conjugated and negated for good, in wiped memory: below the dispatcher nobody asks for it."""
    if not (plain.is_conj() or plain.is_neg()):
        return plain
    return converted(plain, plain.dtype)


@contextmanager
def rewritten(tensor: EncryptedTensor) -> Iterator[Tensor]:
    """The values in wiped memory, for a block that changes them in place; they are encrypted when
    it ends without an exception. One block at a time for what shares the data."""
    stored = tensor._real()
    stored.check()
    with stored.lock:
        core = stored.writable()
        part = window(core.shape, tensor._path)
        run = stored.opened_run(core, part.first, math.prod(part.shape))
        plain = run.view(part.shape)
        for step in part.path:
            plain = step(plain)
        values = _resolved(plain)
        yield values
        if values is not plain:
            plain.copy_(values)
        stored.write_run(core, part.first, run)
