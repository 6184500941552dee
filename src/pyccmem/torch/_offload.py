# SPDX-License-Identifier: Apache-2.0
"""accelerate's ways to put weights elsewhere. To disk they would go in the clear, so encrypted ones
are refused before a byte is written; accelerate's hooks cannot handle a wrapper in memory either.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from torch import Tensor, nn

from .. import errors
from ._imports import when_imported
from ._tensor import EncryptedTensor

__all__ = ["install"]


def install() -> None:
    """Installs the checks, once accelerate has been imported."""
    when_imported("accelerate.big_modeling", _hook)


def _hook(big_modeling: Any) -> None:
    from accelerate.utils import offload

    for module, name, ask in (
        (offload, "offload_weight", _any),
        (offload, "offload_state_dict", _any),
        (big_modeling, "disk_offload", _any),
        (big_modeling, "cpu_offload", _any),
        (big_modeling, "dispatch_model", _moves),
    ):
        plain = getattr(module, name, None)
        if plain is not None and not hasattr(plain, "_pyccmem_plain"):
            _replace(plain, _checked(plain, ask))


def _replace(plain: Any, new: Any) -> None:
    """Replaces a function wherever a module of accelerate or transformers has it under its
    name."""
    name = plain.__name__
    for path, module in list(sys.modules.items()):
        ours = path.partition(".")[0] in ("accelerate", "transformers")
        if ours and vars(module).get(name) is plain:
            setattr(module, name, new)


def _checked(plain: Callable[..., Any], ask: Callable[..., bool]) -> Callable[..., Any]:
    @functools.wraps(plain)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if ask(*args, **kwargs):
            _refuse(plain.__name__)
        return plain(*args, **kwargs)

    made: Any = checked
    made._pyccmem_plain = plain
    return checked


def _any(*args: Any, **kwargs: Any) -> bool:
    """Returns True if a model, a state dict or a tensor among the arguments is encrypted."""
    return any(_is_encrypted(value) for value in (*args, *kwargs.values()))


def _moves(
    model: Any, device_map: Any = None, *args: Any, force_hooks: bool = False, **kwargs: Any
) -> bool:
    """Returns True if dispatch_model() would do anything with an encrypted model."""
    places = set(device_map.values()) if isinstance(device_map, dict) else set()
    stays = {str(place) for place in places} <= {"cpu"} and not force_hooks
    return not stays and _is_encrypted(model)


def _is_encrypted(value: Any) -> bool:
    if isinstance(value, Tensor):
        return isinstance(value, EncryptedTensor)
    if isinstance(value, nn.Module):
        value = {id(t): t for t in (*value.parameters(), *value.buffers())}
    if isinstance(value, dict):
        return any(isinstance(tensor, EncryptedTensor) for tensor in value.values())
    return False


def _refuse(name: str) -> NoReturn:
    raise errors.ArgumentError(
        f"accelerate's {name}() would write encrypted weights elsewhere in the clear, or cannot "
        f"handle them. A sealed file, loaded as it is, needs no offloading: its pages are read "
        f"from the file as they are used, and the system may drop them at any time. Leave "
        f"{name}() out, or use pyccmem.torch.decrypt_module(model) first."
    )
