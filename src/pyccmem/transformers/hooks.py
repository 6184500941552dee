# SPDX-License-Identifier: Apache-2.0
"""Registers the quantizer, and replaces the functions by which transformers opens and writes files.
For files that are sealed or must be sealed they call ours, for all others the original
functions."""

from __future__ import annotations

import errno
import os
from typing import Any

import torch
import transformers.modeling_utils as modeling
from transformers.quantizers import auto

from .. import errors
from .. import safetensors as sealed
from ..checkpoints import METHODS, is_known
from ..directories.marks import METHOD, mark_directory, sealed_name
from ..torch import EncryptedTensor
from . import gguf
from .checkpoints import CheckpointFile
from .config import PyccmemConfig
from .files import EncryptingFile, SealedFile, write
from .heads import resized_head
from .keys import find_key, remember_encrypting
from .quantizer import ATTRIBUTE, PyccmemQuantizer, Sealing, forget, loading

__all__ = ["install"]

_open_plain = modeling.safe_open
_write_plain = modeling.safe_save_file
_parse_plain = modeling._safe_load_bytes
_begin_plain = modeling.get_hf_quantizer
_resize_plain_head = modeling.PreTrainedModel._get_resized_lm_head
_merge_configs = auto.AutoHfQuantizer.merge_quantization_configs


def install() -> None:
    """Installs the hooks, once in a process. Raises MissingPackageError for a version of
    transformers that lacks what they need."""
    if METHOD in auto.AUTO_QUANTIZER_MAPPING:
        return
    if not hasattr(PyccmemQuantizer.__base__, "update_attn_implementation"):
        raise errors.MissingPackageError(
            "pyccmem.transformers needs transformers 5.23 or newer; pip install --upgrade "
            "transformers."
        )
    auto.register_quantization_config(METHOD)(PyccmemConfig)
    auto.register_quantizer(METHOD)(PyccmemQuantizer)
    auto.AutoHfQuantizer.merge_quantization_configs = staticmethod(_merge)
    modeling.get_hf_quantizer = _begin
    gguf.install()
    modeling.safe_open = _open
    modeling.safe_save_file = _write
    modeling._safe_load_bytes = _parse
    modeling.PreTrainedModel._get_resized_lm_head = resized_head(_resize_plain_head)


def _begin(
    config: Any,
    quantization_config: Any,
    device_map: Any,
    *args: Any,
    gguf_file: Any = None,
    **options: Any,
) -> Any:
    """Runs at the beginning of each load, also of a plain model."""
    forget()
    remember_encrypting(None)
    if gguf.is_ours(gguf_file, quantization_config):
        return gguf.begin(config, quantization_config, device_map)
    if gguf_file is not None:
        options["gguf_file"] = gguf_file
    return _begin_plain(config, quantization_config, device_map, *args, **options)


def _merge(in_directory: Any, given: Any) -> Any:
    """Returns the config of config.json with the key and `mmap` that from_pretrained() was given,
    which transformers would drop with a warning."""
    if isinstance(given, PyccmemConfig):
        method = (
            in_directory.get("quant_method")
            if isinstance(in_directory, dict)
            else getattr(in_directory, "quant_method", None)
        )
        if method == METHOD:
            kept = PyccmemConfig.from_dict(dict(in_directory))
            merged = given.with_key(given.key)
            merged.weights = kept.weights
            return merged
        entries = in_directory if isinstance(in_directory, dict) else in_directory.to_dict()
        if not is_known(entries):
            raise errors.FileFormatError(
                f"config.json says that the model is quantised by {method!r}, which cannot be "
                f"taken over; these can: {', '.join(METHODS)}."
            )
        merged = given.with_key(given.key)
        merged.checkpoint = dict(entries)
        return merged
    return _merge_configs(in_directory, given)


def _open(path: Any, framework: str = "pt", device: Any = "cpu", **options: Any) -> Any:
    """Replaces safetensors.safe_open."""
    name = os.fspath(path)
    quantizer = loading()
    if os.path.isfile(name) and sealed.is_sealed(name):
        what = f"the sealed file {name!r}"
        if quantizer is None:
            return SealedFile(name, find_key(what=what))
        config, key = quantizer.quantization_config, quantizer.key(what)
        return SealedFile(
            name,
            key,
            mmap=config.mmap,
            expect=config.expected(name, key),
            context=config.context,
        )
    if quantizer is not None:
        if not os.path.isfile(name):
            raise errors.FileReadError(
                f"{name!r} is not there, and config.json or the index beside it says that it holds "
                f"weights; complete the directory, or encrypt the model again."
            ).of_system(errno.ENOENT, name)
        checkpoint = quantizer.quantization_config.checkpoint
        if quantizer.pre_quantized and checkpoint is None:
            raise errors.FileFormatError(
                f"{name!r} is not sealed, but config.json beside it says that the model is; "
                f"someone has put a plain file there, or changed config.json."
            )
        for option in quantizer.quantization_config.demands:
            raise errors.FileFormatError(
                f"{name!r} is not sealed, and `{option}` asks for a sealed file; someone has put a "
                f"plain file there."
            )
        remember_encrypting(name)
        if checkpoint is not None:
            return CheckpointFile(name, checkpoint, quantizer.memory_key())
        return EncryptingFile(name, quantizer.memory_key())
    return _open_plain(path, framework=framework, device=device, **options)


def _parse(data: bytes) -> Any:
    """Replaces safetensors.torch.load, which is used with disable_mmap=True."""
    if loading() is not None:
        raise errors.ArgumentError(
            "disable_mmap=True would read the sealed file as if it were a plain one; use "
            "quantization_config=PyccmemConfig(mmap=False)."
        )
    return _parse_plain(data)


def _write(tensors: dict[str, Any], filename: Any, metadata: Any = None) -> None:
    """Replaces safetensors.torch.save_file."""
    name = os.fspath(filename)
    if isinstance(metadata, Sealing):
        _write_sealed(tensors, name, metadata.quantizer)
    elif any(isinstance(tensor, EncryptedTensor) for tensor in tensors.values()):
        raise errors.ArgumentError(
            "This model was encrypted in memory, and save_pretrained() would not know how to write "
            "it; use pyccmem.transformers.save_pretrained(model, directory, key=...)."
        )
    else:
        _write_plain(tensors, filename, metadata=metadata)


def _write_sealed(tensors: dict[str, Any], name: str, quantizer: PyccmemQuantizer) -> None:
    real: dict[str, Any] = {}
    for key, tensor in tensors.items():
        found = getattr(tensor, ATTRIBUTE, None)
        if found is None and isinstance(tensor, torch.Tensor) and tensor.device.type == "meta":
            raise errors.ArgumentError(
                f"Tensor {key!r} is stored in another form than it has in the model, which "
                f"cannot be had without opening it; pass save_original_format=False."
            )
        real[key] = tensor if found is None else found
    path, hidden = sealed_name(name, quantizer.quantization_config.weights)
    mark_directory(os.path.dirname(path))
    context = quantizer.quantization_config.context
    write(real, path, quantizer.key(f"saving {path!r}"), seal_names=hidden, context=context)
