# SPDX-License-Identifier: Apache-2.0
"""Opens ciphertext to plain values and encrypts them again: all of a stored tensor, or the part
that a path names."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ._results import converted
from ._stored import Stored
from .path import Form, Path, window

__all__ = ["changed", "traced_values", "values"]


def values(stored: Stored, path: Path) -> Tensor:
    """Returns the values in memory that is wiped when its last user goes. Raises IntegrityError,
    ClosedError, ForkError, OutOfMemoryError."""
    core = stored.core
    if not path:
        return stored.opened_run(core, 0, core.size).view(core.shape)
    part = window(core.shape, path)
    plain = stored.opened_run(core, part.first, math.prod(part.shape)).view(part.shape)
    for step in part.path:
        plain = step(plain)
    return _resolved(plain)


def traced_values(ciphertext: Tensor, form: Form, path: Path) -> Tensor:
    """Returns a stand-in for the values, which exist when the traced program runs."""
    plain: Any = torch.ops.pyccmem.decrypt(ciphertext, form.offset, list(form.shape), form.dtype)
    for step in path:
        plain = step(plain)
    return plain  # type: ignore[no-any-return]


def _resolved(plain: Tensor) -> Tensor:
    """Returns `plain` with its conjugation and negation carried out, in wiped memory: below the
    dispatcher these flags are not looked at."""
    if not (plain.is_conj() or plain.is_neg()):
        return plain
    return converted(plain, plain.dtype)


@contextmanager
def changed(stored: Stored, path: Path) -> Iterator[Tensor]:
    """Gives the values in wiped memory to a block that changes them in place, and encrypts them if
    it ends without an exception. Tensors that share data run one block at a time."""
    stored.check()
    with stored.lock:
        core = stored.writable()
        part = window(core.shape, path)
        run = stored.opened_run(core, part.first, math.prod(part.shape))
        plain = run.view(part.shape)
        for step in part.path:
            plain = step(plain)
        resolved = _resolved(plain)
        yield resolved
        if resolved is not plain:
            plain.copy_(resolved)
        stored.write_run(core, part.first, run)
