# SPDX-License-Identifier: Apache-2.0
"""Says in a few words what a GGUF file is."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

from ..safetensors.providers import AnyKey
from ._header import Header, TensorInfo
from ._open import open_sealed_gguf

__all__ = ["Summary", "inspect"]


@dataclass(frozen=True)
class Summary:
    """What inspect() found, all of it authenticated."""

    #: The format's version, and the bytes of the plain file.
    version: int
    nbytes: int
    #: What the metadata say of the model; None for what they do not have.
    architecture: str | None
    name: str | None
    #: The number of metadata.
    metadata: int
    tensors: dict[str, TensorInfo]
    #: Which of how many files this is, from 1, of a model in several files; else None.
    part: tuple[int, int] | None

    @property
    def elements(self) -> int:
        """The number of elements of all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def types(self) -> dict[str, int]:
        """The number of tensors of each type, the most frequent first."""
        return dict(Counter(tensor.type.name for tensor in self.tensors.values()).most_common())

    def as_dict(self) -> dict[str, Any]:
        """Returns all fields in types that JSON has."""
        tensors = {
            name: {"type": tensor.type.name, "shape": list(tensor.shape), "nbytes": tensor.nbytes}
            for name, tensor in self.tensors.items()
        }
        fields = {name: getattr(self, name) for name in ("version", "nbytes", "architecture")}
        return {
            **fields,
            "name": self.name,
            "metadata": self.metadata,
            "elements": self.elements,
            "types": self.types,
            "part": self.part,
            "tensors": tensors,
        }


def inspect(
    path: str | os.PathLike[str], key: AnyKey, *, expect: Any = None, context: Any = None
) -> Summary:
    """Returns what a sealed GGUF file is. Raises what open_sealed() raises."""
    with open_sealed_gguf(path, key, expect=expect, context=context) as file:
        return _of(file.header)


def _of(header: Header) -> Summary:
    metadata = header.metadata

    def found(name: str, kind: type) -> Any:
        value = metadata.get(name)
        return value if type(value) is kind else None

    number, count = found("split.no", int), found("split.count", int)
    return Summary(
        version=header.version,
        nbytes=header.size,
        architecture=found("general.architecture", str),
        name=found("general.name", str),
        metadata=len(metadata),
        tensors=dict(header.tensors),
        part=None if number is None or not count else (number + 1, count),
    )
