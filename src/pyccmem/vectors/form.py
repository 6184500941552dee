# SPDX-License-Identifier: Apache-2.0
"""How an index keeps its vectors: metric, type, and what is stored beside each row."""

from __future__ import annotations

from typing import Any, NamedTuple

from .. import errors
from ..binding.arguments import integer
from ..core.dtypes import DTYPES, NATIVE

__all__ = ["BIAS", "FACTOR", "SCALE", "Form", "checked_form"]

METRICS = ("ip", "cosine", "l2")
TYPES = ("float32", "float16", "bfloat16", "int8")

#: The types of the rows by which candidates are ranked again.
FINE_TYPES = ("float32", "float16", "bfloat16")

#: Elements of a vector at most.
DIM_MAX = 1 << 20

#: Columns of float32 beside the rows: what a row's inner product is multiplied by, what is added to
#: it then, and what an int8 row's elements are multiplied by to get the vector back, where that is
#: not the factor.
FACTOR, BIAS, SCALE = "factor", "bias", "scale"


class Form(NamedTuple):
    """What all rows of an index have in common."""

    dim: int
    metric: str
    dtype: str
    rerank: str | None = None

    @property
    def fine(self) -> Form | None:
        """The form of the rows by which candidates are ranked again; None where there are none."""
        return None if self.rerank is None else Form(self.dim, self.metric, self.rerank)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.dim * DTYPES[self.dtype].bits // 8

    @property
    def native(self) -> int:
        """The number of the rows' type for native products."""
        return NATIVE[self.dtype]

    @property
    def columns(self) -> tuple[str, ...]:
        """What is stored beside the rows. A row's rank is factor * (query . row) + bias: the inner
        product itself; that of vectors of length 1; or half of what is subtracted from the query's
        square to get the squared distance."""
        whole = self.dtype == "int8"
        if self.metric == "cosine":
            return (FACTOR, SCALE) if whole else (FACTOR,)
        scale = (FACTOR,) if whole else ()
        return (*scale, BIAS) if self.metric == "l2" else scale

    @property
    def scale(self) -> str | None:
        """The column by which an int8 row becomes its vector; None for other types."""
        if self.dtype != "int8":
            return None
        return SCALE if self.metric == "cosine" else FACTOR


def checked_form(dim: Any, metric: Any, dtype: Any, rerank: Any = None) -> Form:
    """Returns the form of an index. Raises ArgumentError, ArgumentTypeError."""
    number = integer("dim", dim)
    if not 1 <= number <= DIM_MAX:
        raise errors.ArgumentError(f"dim is {number}; it must be from 1 to {DIM_MAX}.")
    texts = [("metric", metric, METRICS), ("dtype", dtype, TYPES)]
    if rerank is not None:
        texts.append(("rerank", rerank, FINE_TYPES))
    for name, value, known in texts:
        if not isinstance(value, str):
            raise errors.ArgumentTypeError(f"{name} must be a str, not {type(value).__name__}.")
        if value not in known:
            raise errors.ArgumentError(
                f"{name} is {value[:40]!r}; it must be one of {', '.join(known)}."
            )
    if rerank is not None and dtype != "int8":
        raise errors.ArgumentError(
            f"rerank is {rerank!r} for rows of {dtype}; only rows of int8 are ranked again."
        )
    return Form(number, metric, dtype, rerank)
