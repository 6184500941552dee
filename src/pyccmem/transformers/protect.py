# SPDX-License-Identifier: Apache-2.0
"""protect_inputs(): every generate(), pipeline and call of a model keeps its cache encrypted.

The model gets a subclass of its class, made for the purpose, with the methods below in front of
transformers' own; unprotect_inputs() gives it the old class back.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.generation import GenerationMixin
from transformers.generation import utils as generation
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.continuous_batching.cache import PagedAttentionCache

from .. import errors
from ..keys import Key
from ..torch._results import wipes
from .attention import NAME
from .batch_cache import EncryptedPagedCache
from .batching import BatchingModel, EncryptedBatching
from .cache import EncryptedCache, EncryptedEncoderDecoderCache
from .deferred import uncompiled
from .reuse import GivenCache, refuse_plain
from .tables import Tables

__all__ = ["protect_inputs", "protected_inputs", "unprotect_inputs"]

#: The attribute of a protected model.
_ATTRIBUTE = "_pyccmem_protection"

#: What `cache_implementation` may be: these mean a cache that grows.
_GROWING = (None, "dynamic")

_Encrypted = (EncryptedCache, EncryptedEncoderDecoderCache)


class _Call:
    """One generate() that runs: the cache that it was given, and those that it got (several where
    a model cuts its input up)."""

    def __init__(self, given: GivenCache) -> None:
        self.given = given
        self.own: list[Any] = []
        self.beams = False

    def end(self, result: Any) -> None:
        """Erases what it got and does not return."""
        returned = getattr(result, "cache", None)
        for cache in self.own:
            if cache is not returned:
                cache.erase()


_call: ContextVar[_Call | None] = ContextVar("pyccmem_generate", default=None)


class _Protection:
    """What protect_inputs() was told, and what unprotect_inputs() puts back."""

    #: The attention that the model uses meanwhile.
    name = NAME

    def __init__(
        self,
        model: Any,
        key: Key | None,
        dtype: str | None,
        plain: bool,
        overwrite: bool,
        activations: str,
    ) -> None:
        self.key, self.dtype, self.plain_states = key, dtype, plain
        self.overwrite, self.activations = overwrite, activations
        self.base = type(model)
        self.attention = model.config._attn_implementation
        self.hook: Any = None
        parameters = inspect.signature(model.forward).parameters
        self.takes_cache = "cache" in parameters

    def __deepcopy__(self, memo: dict[int, Any]) -> _Protection:
        """The same, key included: a copied model is protected likewise."""
        return self

    def __reduce__(self) -> NoReturn:
        raise errors.NotPicklableError(
            "A model under protect_inputs() cannot be pickled; call "
            "pyccmem.transformers.unprotect_inputs(model) first."
        )

    def new_cache(self, model: Any) -> Any:
        """An empty cache for the model."""
        config = model.config.get_text_config(decoder=True)
        if model.config.is_encoder_decoder:
            return EncryptedEncoderDecoderCache(
                config, key=self.key, dtype=self.dtype, activations=self.activations
            )
        return EncryptedCache(
            config,
            key=self.key,
            dtype=self.dtype,
            plain_states=self.plain_states,
            activations=self.activations,
        )

    def new_tables(self) -> Tables:
        """Tables for one request of continuous batching."""
        made = Tables(self.dtype, self.key)
        made.overwrite, made.wipe = self.overwrite, wipes(self.activations)
        return made


class _Protected(BatchingModel):
    """In front of the model's own class."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' generate(), with an encrypted cache that is erased at the end unless it was
        given, or is returned with the output."""
        assistant = kwargs.get("assistant_model")
        if isinstance(assistant, PreTrainedModel) and not hasattr(assistant, _ATTRIBUTE):
            protection = self._pyccmem_protection  # type: ignore[attr-defined]
            with protected_inputs(
                assistant,
                key=protection.key,
                dtype=protection.dtype,
                overwrite=protection.overwrite,
                activations=protection.activations,
            ):
                return self.generate(*args, **kwargs)
        given = GivenCache(args, kwargs)
        if given.cache is not None and kwargs.get("cache_implementation") == "paged":
            raise errors.ArgumentError(
                'cache_implementation="paged" is for continuous batching, which makes a cache of '
                "its own; leave the cache out, or the implementation."
            )
        given.reuse()
        call = _Call(given)
        token = _call.set(call)
        result = None
        try:
            result = super().generate(*args, **kwargs)  # type: ignore[misc]
        finally:
            _call.reset(token)
            call.end(result)
        if not call.beams:
            given.remember(getattr(result, "cache", given.cache), result)
        return result

    def _prepare_cache_for_generation(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        call = _call.get() or _Call(GivenCache((), model_kwargs))
        if generation_config.use_mtp:
            raise errors.ArgumentError(
                "use_mtp=True makes drafts through a cache of its own, in the clear; leave it out, "
                "or call pyccmem.transformers.unprotect_inputs(model)."
            )
        model: Any = self
        copies = max(generation_config.num_beams, generation_config.num_return_sequences)
        call.beams = generation_config.num_beams > 1
        given = model_kwargs.get("cache")
        if given is not None:
            refuse_plain(given)
            if generation_mode == GenerationMode.ASSISTED_GENERATION:
                call.given.begin_anew()
            call.given.fit(batch_size, copies)
        elif generation_config.use_cache is not False:
            kind = generation_config.cache_implementation
            if kind not in _GROWING:
                raise errors.ArgumentError(
                    f"cache_implementation={kind!r} would keep the input in the clear; leave it "
                    f"out, or call pyccmem.transformers.unprotect_inputs(model)."
                )
            generation_config.cache_implementation = None
            cache = model._pyccmem_protection.new_cache(model)
            call.own.append(cache)
            model_kwargs["cache"] = cache
            if generation_config.is_assistant:
                cache.activate_past_recording()
        return super()._prepare_cache_for_generation(  # type: ignore[misc]
            generation_config, model_kwargs, generation_mode, batch_size, *args, **kwargs
        )

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' own. A model that drops its cache to fill it again, as those with two kinds
        of rotary embeddings do when a text becomes long, gets it back empty, under a new key."""
        cache = kwargs.get("cache")
        prepared = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
        if isinstance(cache, _Encrypted) and prepared.get("cache") is None:
            cache.reset()
            prepared["cache"] = cache
        return prepared


def protect_inputs(
    model: Any,
    *,
    key: Key | None = None,
    dtype: str | None = None,
    plain_states: bool = False,
    overwrite: bool = True,
    activations: str = "plain",
) -> Any:
    """Makes every generate(), pipeline and call of a transformers model keep keys and values in an
    EncryptedCache, and returns the model.

    The model then uses the attention "pyccmem" where it can choose; else its caches are opened into
    memory that is wiped, with an OpenedCacheWarning. generate() without a cache gets a new one,
    which is erased at the end unless the output has it. One that is given must be encrypted: it is
    expanded for beams and num_return_sequences, and what it has of an earlier text is used as far
    as that is the beginning of the new one. Arguments as for EncryptedCache; `overwrite` holds for
    given caches too, from then on.

    Raises ArgumentTypeError for what is no such model, ArgumentError for one whose cache cannot be
    encrypted, or that is protected already, MissingPackageError before transformers 5.24.
    """
    if not isinstance(model, PreTrainedModel):
        raise errors.ArgumentTypeError(
            f"model must be a transformers.PreTrainedModel, not {type(model).__name__}."
        )
    if hasattr(model, _ATTRIBUTE):
        raise errors.ArgumentError(
            "This model is protected already; call unprotect_inputs(model) to change how."
        )
    if generation.ALL_CACHE_NAMES[0] != "cache":
        raise errors.MissingPackageError(
            "protect_inputs() needs transformers 5.24 or newer; pip install --upgrade transformers."
        )
    made: Any = model
    protection = _Protection(made, key, dtype, plain_states, overwrite, activations)
    if isinstance(model, GenerationMixin) and not made._supports_default_dynamic_cache():
        raise errors.ArgumentError(
            f"{type(model).__name__} keeps its state in a form of its own, which pyccmem cannot "
            f"encrypt."
        )
    protection.new_cache(made)  # or it raises
    made.set_attn_implementation(NAME)
    protection.hook = made.register_forward_pre_hook(_before_forward, with_kwargs=True)
    setattr(made, _ATTRIBUTE, protection)
    base = type(model)
    made.__class__ = type(
        base.__name__,
        (_Protected, base),
        {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__},
    )
    return made


def unprotect_inputs(model: Any) -> Any:
    """Takes back what protect_inputs() did, and returns the model. Caches stay as they are. Raises
    ArgumentError for a model that is not protected."""
    protection: _Protection | None = getattr(model, _ATTRIBUTE, None)
    if protection is None:
        raise errors.ArgumentError("This model is not protected; call protect_inputs(model) first.")
    if isinstance(getattr(model, "_cached_continuous_batching_manager", None), EncryptedBatching):
        model.destroy_cached_continuous_batching_manager()
    model.__class__ = protection.base
    delattr(model, _ATTRIBUTE)
    protection.hook.remove()
    model.set_attn_implementation(protection.attention)
    return model


@contextmanager
def protected_inputs(
    model: Any,
    *,
    key: Key | None = None,
    dtype: str | None = None,
    plain_states: bool = False,
    overwrite: bool = True,
    activations: str = "plain",
) -> Iterator[Any]:
    """protect_inputs() for a `with` block."""
    protect_inputs(
        model,
        key=key,
        dtype=dtype,
        plain_states=plain_states,
        overwrite=overwrite,
        activations=activations,
    )
    try:
        yield model
    finally:
        unprotect_inputs(model)


@uncompiled
def _before_forward(model: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Before each call of the model: no plain cache comes in, and none is made inside."""
    protection: _Protection | None = getattr(model, _ATTRIBUTE, None)
    if protection is None:
        return None
    given = (*args, *kwargs.values())
    if any(isinstance(one, EncryptedPagedCache) for one in given):
        return None
    caches = [a for a in given if isinstance(a, (Cache, PagedAttentionCache))]
    for cache in caches:
        refuse_plain(cache)
        _set_overwrite(cache, protection.overwrite)
    if caches or not protection.takes_cache:
        return None
    wanted = kwargs.get("use_cache")
    if not (getattr(model.config, "use_cache", False) if wanted is None else wanted):
        return None
    if wanted is None and torch.is_grad_enabled():
        return args, {**kwargs, "use_cache": False}
    cache = protection.new_cache(model)
    _set_overwrite(cache, protection.overwrite)
    return args, {**kwargs, "cache": cache}


def _set_overwrite(cache: Any, overwrite: bool) -> None:
    """Of an EncryptedCache, or of both that an encoder-decoder has."""
    parts = [cache]
    if isinstance(cache, EncoderDecoderCache):
        parts = [cache.self_attention_cache, cache.cross_attention_cache]
    for part in parts:
        part.overwrite = overwrite
