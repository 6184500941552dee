# SPDX-License-Identifier: Apache-2.0
"""Lines about models and caches of PyTorch and transformers in this process. They are found among
the objects of the garbage collector; nothing is imported for it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

from ..core.kv_tables import open_caches
from .line import BAD, GOOD, WEAK, Finding
from .subject import Subject, Unseen

__all__ = ["caches", "models"]

_NAMED = 5  # tensors of a model, in the text


def _base(module: str, *path: str) -> Any:
    """Returns a class, if the program has imported it."""
    found: Any = sys.modules.get(module)
    for name in path:
        found = getattr(found, name, None)
    return found


def _bases() -> dict[str, Any]:
    """Returns the classes whose objects are looked for, those that are loaded."""
    found = {
        "model": _base("torch", "nn", "Module"),
        "cache": _base("transformers.cache_utils", "Cache"),
        "pages": _base("transformers.generation.continuous_batching.cache", "PagedAttentionCache"),
    }
    return {name: base for name, base in found.items() if base is not None}


def _alive(subject: Subject, name: str) -> list[Any]:
    """Returns the objects of one of _bases(), found in one pass for all. Compares types, since
    other code could run in isinstance(). Raises Unseen."""
    if gc.get_freeze_count():
        raise Unseen("objects are hidden from the garbage collector (gc.freeze)")
    if subject.objects is None:
        kinds = {name: _kinds(base) for name, base in _bases().items()}
        every = set().union(*kinds.values())
        found = [one for one in gc.get_objects() if type(one) in every]
        subject.objects = {
            name: [one for one in found if type(one) in own] for name, own in kinds.items()
        }
    return subject.objects.get(name, [])


def _kinds(base: Any) -> set[type]:
    """Returns a class and all classes below it."""
    found, new = {base}, [base]
    while new:
        below = type.__subclasses__(new.pop())
        new += [kind for kind in below if kind not in found]
        found.update(below)
    return found


def _adapter(name: str, attribute: str) -> Any:
    """Returns what an adapter offers, if the program has imported all of it; else None."""
    return _base(f"pyccmem.{name}", attribute)


class _Model(NamedTuple):
    name: str
    encrypted: int  # tensors
    plain: list[tuple[str, int]]  # names and bytes


def _model(root: Any) -> _Model:
    plain_tensors = _adapter("torch", "plain_tensors")
    encrypted_tensor = _adapter("torch", "EncryptedTensor")
    if plain_tensors is None:  # nothing can be encrypted
        named = [*root.named_parameters(), *root.named_buffers()]
        plain = [(name, tensor.nbytes) for name, tensor in named]
        return _Model(type(root).__name__, 0, plain)
    plain = [(found.name, found.nbytes) for found in plain_tensors(root)]
    named = [*root.named_parameters(), *root.named_buffers()]
    encrypted = sum(isinstance(tensor, encrypted_tensor) for _, tensor in named)
    return _Model(type(root).__name__, encrypted, plain)


def models(subject: Subject) -> Finding:
    """Which models are encrypted, and which plain tensors remain in them."""
    if "model" not in _bases():
        return Finding(GOOD, "PyTorch is not loaded, so there is no model of it")
    modules = _alive(subject, "model")
    inner = {id(child) for one in modules for child in _children(one)}
    every = [_model(one) for one in modules if id(one) not in inner]
    found = [one for one in every if one.encrypted or one.plain]
    if not found:
        return Finding(GOOD, "no model with tensors; look again when it is loaded")
    plain = [one for one in found if not one.encrypted]
    partly = [one for one in found if one.encrypted and one.plain]
    seen = f"{len(found) - len(plain)} of {len(found)} models encrypted"
    if plain:
        return Finding(
            BAD,
            f"{seen}; in the clear: {_told(plain)}",
            "pyccmem.torch.encrypt_module(model, key=key), or load a sealed directory",
        )
    if partly:
        return Finding(
            WEAK,
            f"{seen}; in the clear beside them: {_told(partly)}",
            "pyccmem.torch.plain_tensors(model) lists all: have modules drop the copies they keep",
        )
    return Finding(GOOD, f"{seen}; no plain tensor")


def _children(module: Any) -> Iterable[Any]:
    """Returns the modules right below one, which may not have been initialized yet."""
    return list((vars(module).get("_modules") or {}).values())


def _told(models: list[_Model]) -> str:
    parts = []
    for one in models[:_NAMED]:
        names = ", ".join(f"{name} ({nbytes} bytes)" for name, nbytes in one.plain[:_NAMED])
        more = len(one.plain) - _NAMED
        parts.append(f"{one.name}: {names}" + (f" and {more} more" if more > 0 else ""))
    if len(models) > _NAMED:
        parts.append(f"{len(models) - _NAMED} more models")
    return "; ".join(parts)


def caches(subject: Subject) -> Finding:
    """Which key-value caches are encrypted, and which are plain."""
    ours = [cache.level for cache in open_caches()]
    plain = ours.count("none")
    if _bases().keys() & {"cache", "pages"}:
        plain += sum(map(_holds_states, _alive(subject, "cache")))
        plain += sum(map(_holds_pages, _alive(subject, "pages")))
    seen = f"{len(ours) - ours.count('none')} encrypted, {plain} plain"
    if plain:
        return Finding(
            BAD, seen, "pyccmem.transformers.protect_inputs(model), or pass cache=EncryptedCache()"
        )
    return Finding(GOOD, seen)


def _holds_states(cache: Any) -> bool:
    """Returns True for a cache of transformers with keys, values or other states in the clear, in
    some layer."""
    return any(
        any(map(_is_plain, vars(layer).values()))
        for layer in list(getattr(cache, "layers", ()))
        if not type(layer).__module__.startswith("pyccmem.")
    )


def _holds_pages(cache: Any) -> bool:
    """Returns True for a cache of continuous batching, which takes its memory at once, that is not
    ours."""
    ours = type(cache).__module__.startswith("pyccmem.")
    return not ours and any(map(_is_plain, vars(cache).values()))


def _is_plain(value: Any, depth: int = 2) -> bool:
    if depth and isinstance(value, (list, tuple, dict)):
        inner = value.values() if isinstance(value, dict) else value
        return any(_is_plain(one, depth - 1) for one in list(inner))
    if not isinstance(value, sys.modules["torch"].Tensor):
        return False
    return bool(value.device.type != "meta" and value.numel())
