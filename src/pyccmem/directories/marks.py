# SPDX-License-Identifier: Apache-2.0
"""Marks in the config.json of transformers that a model is sealed.

`quantization_config` names "pyccmem", for which pyccmem.transformers is registered, and
`transformers_weights`, the name of the file to load, becomes one that does not exist. transformers
only warns of an unknown quantization and goes on to load. Without the plug-in, which puts the right
name back, it then finds no such file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .. import errors
from .index import INDEX_SUFFIX, is_index
from .publish import write_error, write_json
from .scan import CONFIG, SUFFIX, Tree, read_config, siblings

__all__ = [
    "METHOD",
    "RENAMED",
    "RENAMED_BACK",
    "WEIGHTS_ELSEWHERE",
    "hides_names",
    "mark_directory",
    "method_of",
    "opened_config",
    "refuse_quantized",
    "refuse_several",
    "renamed_entry",
    "sealed_config",
    "sealed_name",
]

#: `quant_method` in config.json, and the name under which the plug-in is registered.
METHOD = "pyccmem"

#: A name of weights that no directory has; the error of transformers shows it.
WEIGHTS_ELSEWHERE = "sealed-by-pyccmem--import-pyccmem.transformers-to-load-it.safetensors"

_QUANTIZATION = "quantization_config"
_WEIGHTS = "transformers_weights"

#: With sealed names, the file that transformers would look for gets another name too: otherwise
#: transformers would find no tensors in it, and make them up at random. The new names by the plain
#: ones.
RENAMED = {
    f"model{SUFFIX}": f"model.sealed{SUFFIX}",
    f"model{INDEX_SUFFIX}": f"model.sealed{INDEX_SUFFIX}",
}
RENAMED_BACK = {sealed: plain for plain, sealed in RENAMED.items()}


def hides_names(weights: str | None) -> bool:
    """Returns True if the names of tensors are hidden in a model whose config.json names
    `weights`."""
    return weights in RENAMED_BACK


def sealed_name(path: str, weights: str | None) -> tuple[str, bool]:
    """Returns the name for a file of weights that would be called `path`, and whether to hide the
    tensors' names in it, for a model whose config.json names `weights`.

    Raises ArgumentError for shards of a model whose names must be hidden, because the index that
    transformers writes for them has the names.
    """
    if not hides_names(weights):
        return path, False
    folder, name = os.path.split(path)
    if RENAMED.get(name) != weights:
        raise errors.ArgumentError(
            f"The names of this model's tensors are hidden, and {name!r} would be one of several "
            f"shards, whose index shows them; save it as one file, with a larger max_shard_size."
        )
    return os.path.join(folder, RENAMED[name]), True


def mark_directory(directory: str | os.PathLike[str]) -> None:
    """Changes the config.json that transformers wrote with our quantization to name no file of
    weights either, which transformers leaves out when it saves. Does nothing without such a
    config."""
    path = Path(directory, CONFIG)
    if not path.is_file():
        return
    config = read_config(path)
    if method_of(config) != METHOD or config.get(_WEIGHTS) == WEIGHTS_ELSEWHERE:
        return
    new = path.with_name(f".{CONFIG}.part")
    try:
        write_json(new, {**config, _WEIGHTS: WEIGHTS_ELSEWHERE}, path)
        os.replace(new, path)
    except OSError as error:
        raise write_error(path, error) from None


def sealed_config(config: dict[str, Any], weights: str | None = None) -> dict[str, Any]:
    """Returns the contents of a config.json of transformers with the marks of a sealed directory.
    `weights` is the name of the file of weights, or of their index, if it is not the usual one."""
    marks: dict[str, Any] = {"quant_method": METHOD}
    if weights or config.get(_WEIGHTS):
        marks["weights"] = weights or config[_WEIGHTS]
    return {**config, _QUANTIZATION: marks, _WEIGHTS: WEIGHTS_ELSEWHERE}


def opened_config(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the contents without the marks."""
    plain = {name: value for name, value in config.items() if name not in (_QUANTIZATION, _WEIGHTS)}
    marks = config[_QUANTIZATION]
    if marks.get("weights") and marks["weights"] not in RENAMED_BACK:
        plain[_WEIGHTS] = marks["weights"]
    return plain


def method_of(config: dict[str, Any]) -> Any:
    """Returns the quantization that a config.json names, if any."""
    quantization = config.get(_QUANTIZATION)
    return quantization.get("quant_method") if isinstance(quantization, dict) else None


def refuse_quantized(path: Path, config: dict[str, Any]) -> None:
    """Raises FileFormatError for a model that is quantized, by us or others."""
    if config.get(_QUANTIZATION) is not None:
        raise errors.FileFormatError(
            f"{str(path)!r} has a {_QUANTIZATION} of its own ({method_of(config)}), and "
            f"transformers takes only one; start from a model that is not quantized."
        )


def refuse_several(folder: Path, config: Path, tree: Tree) -> None:
    """Raises ArgumentError for a model whose names cannot be hidden, because its weights are there
    more than once, or under names that are not transformers' own."""
    found = [
        path.name
        for path in siblings(config, [*tree.weights, *tree.others])
        if path.name.startswith("model.") and (path.name.endswith(SUFFIX) or is_index(path))
    ]
    if len(found) > 1 or (found and found[0] not in RENAMED):
        raise errors.ArgumentError(
            f"{str(folder)!r} has the weights as {', '.join(found)}; to hide the names, keep only "
            f"one of {', '.join(RENAMED)}."
        )


def renamed_entry(folder: Path, renamed: dict[Path, Path], tree: Tree) -> str | None:
    """Returns the new name of the file to load, if it has one."""
    there = {*tree.weights, *tree.others}
    for path, target in renamed.items():
        if path.parent == folder and path in there:
            return target.name
    return None
