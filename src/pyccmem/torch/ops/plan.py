# SPDX-License-Identifier: Apache-2.0
"""Chooses a handler for an operation without one of its own."""

from __future__ import annotations

import re
from typing import Any

import torch

from ... import errors
from ..registry import Handler, plans
from .common import open_all
from .views import view
from .writes import HIDDEN_WRITES, write

__all__ = ["planned"]

#: Operations that give a tensor other memory or another shape.
_REFUSED = ("aten::set_", "aten::resize_", "aten::resize_as_", "aten::_resize_output_")

#: Operations whose results are plain weights in another form, which a model then keeps.
_PACKING = re.compile(r"quantize_per_|quantize_weight|prepack|pack_gemm|_pack\b|int4pack|to_mkldnn")


@plans
def planned(function: Any) -> Handler:
    """Returns the handler for an operation without one of its own."""
    schema = function._schema
    if _PACKING.search(schema.name):
        return _packing_refused
    if schema.name in _REFUSED or torch.Tag.inplace_view in function.tags:
        return _refused
    if function in HIDDEN_WRITES or schema.is_mutable:
        return write
    if torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd"):
        return _take_apart
    if function.is_view:
        return view
    return open_all


def _take_apart(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return function.decompose(*args, **kwargs)


def _refused(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    raise errors.ArgumentError(
        f"{function._schema.name} would give an EncryptedTensor other memory or another shape; "
        f"make a new one with EncryptedTensor.from_tensor()."
    )


def _packing_refused(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    raise errors.ArgumentError(
        f"{function._schema.name} would make plain weights of an encrypted tensor, for a model to "
        f"keep; where that is what you want, say so with pyccmem.torch.decrypt_module(model) or "
        f"tensor.decrypt() first."
    )
