# SPDX-License-Identifier: Apache-2.0
"""The metadata entry "pyccmem.values" of sealed files, which says what frameworks need of quantised
tensors beside their blocks: a JSON object of one object for each name, with

    dtype    the type of the values, such as "bfloat16"
    order    the name of the tensor with the order of the columns (I32), if they have one; else null

Sealed files authenticate their metadata, and what they say is checked all the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from .. import errors

__all__ = ["VALUE_TYPES", "Values", "values_in", "values_text", "wrong_values"]

#: The metadata entry.
ENTRY = "pyccmem.values"

VALUE_TYPES = ("float32", "bfloat16", "float16", "float64")

#: The type of the values, and the name of the order.
Values = tuple[str, str | None]


def values_text(entries: Mapping[str, Values]) -> dict[str, str]:
    """Returns the entry for quantised tensors by name; nothing for none."""
    found = {name: {"dtype": dtype, "order": order} for name, (dtype, order) in entries.items()}
    return {ENTRY: json.dumps(found)} if found else {}


def values_in(metadata: Mapping[str, str] | None) -> dict[str, Values]:
    """Returns what a file's metadata say, by name. Raises FileFormatError."""
    text = (metadata or {}).get(ENTRY)
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise wrong_values("it is no JSON object")
    entries: dict[str, Values] = {}
    for name, entry in found.items():
        if not isinstance(entry, dict):
            raise wrong_values(f"{name!a} is described by no object")
        dtype, order = entry.get("dtype"), entry.get("order")
        if not isinstance(dtype, str) or dtype not in VALUE_TYPES:
            raise wrong_values(f"{name!a} has values of {str(dtype)[:80]!a}")
        if not (order is None or isinstance(order, str)):
            raise wrong_values(f"{name!a} has an order without a name")
        entries[name] = dtype, order
    return entries


def wrong_values(why: str) -> errors.FileFormatError:
    """Returns the exception for an entry that cannot be right."""
    return errors.FileFormatError(
        f"The metadata entry {ENTRY!a}, which describes quantised tensors, cannot be right: {why}; "
        f"make the file anew."
    )
