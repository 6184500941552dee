# SPDX-License-Identifier: Apache-2.0
"""Reads and rewrites the index of a model's shards, which names the file of each tensor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .. import errors
from ..files.safetensors_header import open_file, read_header
from .scan import SUFFIX, read_json

__all__ = ["INDEX_SUFFIX", "is_index", "read_index", "shards_beside", "with_names", "without_names"]

INDEX_SUFFIX = f"{SUFFIX}.index.json"


def is_index(path: Path) -> bool:
    return ".safetensors.index." in path.name and path.suffix == ".json"


def read_index(source: Path, path: Path) -> dict[str, Any]:
    """Returns the index of shards. All of its files must exist. Raises FileFormatError."""
    found = read_json(source / path)
    names = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise errors.FileFormatError(
            f"{str(source / path)!r} is no index of shards; it must have a 'weight_map' of file "
            f"names."
        )
    for name in sorted(set(names.values())):
        if not (source / path.parent / name).is_file():
            raise errors.FileFormatError(
                f"{str(source / path)!r} names the shard {name!r}, which is not there; complete "
                f"the directory first."
            )
    return dict(found)


def shards_beside(path: str | os.PathLike[str]) -> list[Path]:
    """Returns the other files of the model of which the file at `path` is a shard, by the index
    that names it; none if it is the only one. Raises FileReadError, FileFormatError."""
    own = Path(path)
    for beside in sorted(own.parent.glob(f"*{INDEX_SUFFIX}")):
        names = set(read_index(beside.parent, Path(beside.name))["weight_map"].values())
        if own.name in names:
            return [own.parent / name for name in sorted(names - {own.name})]
    return []


def without_names(index: dict[str, Any]) -> dict[str, Any]:
    """Returns the index with one made-up tensor for each file, because transformers asks it only
    for the files."""
    files = sorted(set(index["weight_map"].values()))
    return {**index, "weight_map": {f"sealed {number}": file for number, file in enumerate(files)}}


def with_names(new: Path, path: Path, index: dict[str, Any]) -> dict[str, Any]:
    """Returns the index with the names that the opened files have."""
    names: dict[str, str] = {}
    for file in sorted(set(index["weight_map"].values())):
        with open_file(new / path.parent / file) as opened:
            names |= dict.fromkeys((entry.name for entry in read_header(opened)), file)
    return {**index, "weight_map": names}
