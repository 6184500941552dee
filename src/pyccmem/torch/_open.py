# SPDX-License-Identifier: Apache-2.0
"""From ciphertext to plain values and back: all of a stored tensor, or what a path names of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ._stored import Stored, converted
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
    """Returns what will be the values when the program runs that is being traced."""
    plain: Any = torch.ops.pyccmem.decrypt(ciphertext, form.offset, list(form.shape), form.dtype)
    for step in path:
        plain = step(plain)
    return plain  # type: ignore[no-any-return]


def _resolved(plain: Tensor) -> Tensor:
    """Conjugated and negated for good, in wiped memory: below the dispatcher nobody asks for it."""
    if not (plain.is_conj() or plain.is_neg()):
        return plain
    return converted(plain, plain.dtype)


@contextmanager
def changed(stored: Stored, path: Path) -> Iterator[Tensor]:
    """The values in wiped memory, for a block that changes them in place; they are encrypted when
    it ends without an exception. One block at a time for what shares the data."""
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
