# SPDX-License-Identifier: Apache-2.0
"""Which weights of a checkpoint are quantised, by the quantization_config of its config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .awq import awq_weights
from .compressed import compressed_weights
from .gptq import gptq_weights
from .parts import Parts, refused
from .torchao import torchao_weights
from .weight import Weight

__all__ = ["METHODS", "is_known", "quantized_weights"]

_BY_CONFIG: dict[str, Callable[[Parts, dict[str, Any]], list[Weight]]] = {
    "awq": awq_weights,
    "compressed-tensors": compressed_weights,
    "gptq": gptq_weights,
}

#: The methods of quantization whose checkpoints are understood.
METHODS = (*_BY_CONFIG, "torchao")


def is_known(config: Any) -> bool:
    """Returns True for the quantization_config of a method that is understood."""
    return isinstance(config, Mapping) and config.get("quant_method") in METHODS


def quantized_weights(
    parts: Parts, config: Mapping[str, Any], metadata: Mapping[str, str]
) -> dict[str, Weight]:
    """Returns the quantised weights of a checkpoint by the name of the weight that a model has,
    such as "layers.0.mlp.up_proj.weight". `parts` has the tensors of all its files, `metadata` the
    text entries of these files, `config` is the quantization_config. A weight's `used` are the
    names of the tensors that it is made of; all other tensors are what they seem.

    Raises FileFormatError with the name of what is not understood, FileReadError.
    """
    method = config.get("quant_method")
    if method == "torchao":
        found = torchao_weights(parts, metadata)
    elif method in _BY_CONFIG:
        found = _BY_CONFIG[method](parts, dict(config))
    else:
        raise refused("quantization_config", f"the method {method!r} is not known")
    taken: set[str] = set()
    for weight in found:
        taken.update(weight.used)
    by_name = {weight.name: weight for weight in found}
    if len(by_name) != len(found):
        raise refused(found[0].name, "the checkpoint has it twice")
    for name in by_name:
        if name in parts and name not in taken:
            raise refused(name, "the checkpoint has it plain as well")
    return by_name
