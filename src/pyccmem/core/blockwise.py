# SPDX-License-Identifier: Apache-2.0
"""NumPy's functions of a tensor that is larger than a block, with one block of it in the clear.

Each takes what NumPy's takes, with a tensor as its first argument, and returns NotImplemented for
what it leaves to NumPy: tensors of at most a block, and the rest of what its docstring names. Wrong
arguments are shown to NumPy first, on an array with one element an axis, so that its own errors
come before anything is opened.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .moments import mean, std, var
from .reductions import extreme_function, joined_function, logical_function, ptp
from .selections import count_nonzero, diagonal, put, search_function, take, trace

__all__ = ["BOUNDED", "IN_PLACE"]

#: NumPy's functions that write into their first argument, and need not open it as a whole.
IN_PLACE: dict[Any, Callable[..., Any]] = {np.put: put}

#: NumPy's functions that are done by blocks, with what does them.
BOUNDED: dict[Any, Callable[..., Any]] = {
    np.sum: joined_function(np.add),
    np.prod: joined_function(np.multiply),
    np.min: extreme_function(np.minimum),
    np.max: extreme_function(np.maximum),
    np.amin: extreme_function(np.minimum),
    np.amax: extreme_function(np.maximum),
    np.any: logical_function(np.logical_or),
    np.all: logical_function(np.logical_and),
    np.ptp: ptp,
    np.mean: mean,
    np.var: var,
    np.std: std,
    np.argmin: search_function("argmin"),
    np.argmax: search_function("argmax"),
    np.count_nonzero: count_nonzero,
    np.take: take,
    np.diagonal: diagonal,
    np.trace: trace,
}
