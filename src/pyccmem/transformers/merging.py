# SPDX-License-Identifier: Apache-2.0
"""Merges what transformers merges of a checkpoint's tensors, such as the experts of a layer, as
blocks if they are blocks: its own operations would open them."""

from __future__ import annotations

from typing import Any

from transformers.core_model_loading import (
    Concatenate,
    ConversionOps,
    MergeModulelist,
    WeightConverter,
)

from ..torch._joining import joined

__all__ = ["merge_blocks", "merge_values"]


class _Merging(ConversionOps):  # type: ignore[misc]
    """Stands for MergeModulelist or Concatenate."""

    def __init__(self, plain: MergeModulelist | Concatenate) -> None:
        self.plain = plain

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, Any]:
        plain, patterns = self.plain, (source_patterns, target_patterns)
        merge = _stacked if isinstance(plain, MergeModulelist) else _concatenated
        found = merge(plain, input_dict, *patterns)
        if found is not None:
            return found
        done: dict[str, Any] = plain.convert(input_dict, *patterns, **kwargs)
        return done

    @property
    def reverse_op(self) -> Any:
        return self.plain.reverse_op


def _stacked(
    plain: Any, given: dict[str, Any], sources: list[str], targets: list[str]
) -> dict[str, Any] | None:
    """Does MergeModulelist.convert(); None if some of the tensors are not blocks."""
    found: dict[str, Any] = {}
    for source, tensors in given.items():
        one = joined(tensors, plain.dim, stack=True) if isinstance(tensors, list) else None
        if one is None:
            return None
        found[plain.get_target_pattern(len(given), source, targets)] = one
    return found


def _concatenated(
    plain: Any, given: dict[str, Any], sources: list[str], targets: list[str]
) -> dict[str, Any] | None:
    """Does Concatenate.convert(); None if some of the tensors are not blocks."""
    tensors: list[Any] = []
    for source in sources:
        some = given.get(source, [])
        tensors += some if isinstance(some, list) else [some]
    one = joined(tensors, plain.dim)
    return None if one is None else {plain.get_target_pattern(targets): one}


def merge_blocks(converter: WeightConverter) -> None:
    """Has a converter keep blocks."""
    converter.operations = [
        _Merging(operation) if type(operation) in (MergeModulelist, Concatenate) else operation
        for operation in converter.operations
    ]


def merge_values(converter: Any) -> None:
    """Undoes merge_blocks()."""
    if isinstance(converter, WeightConverter):
        converter.operations = [
            operation.plain if isinstance(operation, _Merging) else operation
            for operation in converter.operations
        ]
