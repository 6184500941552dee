# SPDX-License-Identifier: Apache-2.0
"""The types of index expressions, as far as a type checker can tell what they give: as NumPy has
them for arrays, whose number of dimensions is not known either."""

from __future__ import annotations

from collections.abc import Sequence
from types import EllipsisType
from typing import Any, SupportsIndex, TypeAlias

import numpy.typing as npt

__all__ = ["Parts", "Places"]

#: Numbers alone: an element, or an array if there are fewer than dimensions.
Places: TypeAlias = SupportsIndex | tuple[SupportsIndex, ...]

_Part: TypeAlias = "SupportsIndex | slice | EllipsisType | npt.NDArray[Any] | Sequence[Any] | None"

#: All others, names of fields among them, give an array.
Parts: TypeAlias = "_Part | tuple[_Part, ...] | str"
