# SPDX-License-Identifier: Apache-2.0
"""from_gguf() and tokenizer_from_gguf(), and the hooks by which from_pretrained(gguf_file=...)
loads sealed files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import modeling_gguf_pytorch_utils as plain_gguf
from transformers.integrations import gguf as plain_package
from transformers.integrations.gguf import reader as plain_reader
from transformers.quantizers import quantizer_gguf as plain_quantizer

from .. import errors
from ..files.safetensors_header import open_file
from ..gguf import SealedModel, is_gguf, open_model
from .config import PyccmemConfig
from .gguf_config import config_of, metadata_of
from .gguf_quantizer import GGUFQuantizer, expected, expecting
from .keys import find_key, given_config, using_key

__all__ = ["begin", "from_gguf", "install", "is_ours", "tokenizer_from_gguf"]

_metadata_of_plain = plain_reader.read_gguf_metadata
_load_plain = plain_gguf.load_gguf_checkpoint

_SEALED_SUFFIX = ".gguf.sealed"


def install() -> None:
    """Replaces the functions by which transformers reads the metadata of GGUF files. For files that
    are not sealed they call the original ones."""
    plain_reader.read_gguf_metadata = _metadata
    plain_package.read_gguf_metadata = _metadata
    plain_quantizer.read_gguf_metadata = _metadata
    plain_gguf.load_gguf_checkpoint = _checkpoint


# ---- loading -------------------------------------------------------------------------------------


def from_gguf(
    path: str | os.PathLike[str],
    *,
    key: Any = None,
    model_class: Any = None,
    expect: Any = None,
    mmap: bool = True,
    activations: str = "plain",
    **options: Any,
) -> Any:
    """Returns the model of a sealed GGUF file, by default of AutoModelForCausalLM. Its weights stay
    blocks of a few bits, encrypted, over the pages of the file; F16 and BF16 matrices are converted
    if the model computes in another type (`dtype=`, by default float32).

    Of a model in several files (NAME-00001-of-00003.gguf.sealed), `path` is one of them, and the
    others lie beside it. `key` is that of PyccmemConfig, or else as using_key() and
    PYCCMEM_KEY_FILE say; `expect` is as for pyccmem.gguf.open_model(), `mmap` and `activations` as
    for load_file() and PyccmemConfig. Further options go to from_pretrained(), which
    from_pretrained(folder, gguf_file=name, quantization_config=PyccmemConfig(key=key)) calls as
    well.

    Raises what pyccmem.gguf.open_model() raises, FileFormatError for an architecture that is not
    known or a file that lacks tensors, FileRequestError for types that pyccmem cannot compute with,
    InvalidKeyError if there is no key.
    """
    name = os.fspath(path)
    key = find_key(key, what=f"the sealed file {name!r}")
    wanted = transformers.AutoModelForCausalLM if model_class is None else model_class
    config = PyccmemConfig(key, mmap=mmap, activations=activations)
    _check_there(name)
    with using_key(key), expecting(expect):
        return wanted.from_pretrained(
            os.path.dirname(name) or ".",
            gguf_file=os.path.basename(name),
            quantization_config=config,
            **options,
        )


def tokenizer_from_gguf(path: str | os.PathLike[str], *, key: Any = None, **options: Any) -> Any:
    """Returns the tokenizer of a sealed GGUF file, which lies plain in memory, as any. A chat
    template is a program; that of a sealed file is authenticated like all of it. Arguments and
    errors are those of from_gguf(), and of AutoTokenizer.from_pretrained()."""
    name = os.fspath(path)
    key = find_key(key, what=f"the sealed file {name!r}")
    _check_there(name)
    with using_key(key):
        return transformers.AutoTokenizer.from_pretrained(
            os.path.dirname(name) or ".", gguf_file=os.path.basename(name), **options
        )


def _check_there(name: str) -> None:
    """Raises FileReadError for a file that cannot be opened: transformers has an error of its own
    for that."""
    open_file(name, "a sealed GGUF file").close()


def is_ours(gguf_file: Any, config: Any) -> bool:
    """Returns True if from_pretrained(gguf_file=...) is to load a sealed file: by its name, or
    because it was given a PyccmemConfig."""
    return gguf_file is not None and (
        isinstance(config, PyccmemConfig) or str(gguf_file).endswith(_SEALED_SUFFIX)
    )


def begin(config: Any, given: Any, device_map: Any) -> tuple[GGUFQuantizer, Any, None]:
    """Does get_hf_quantizer() for a sealed file. Raises ArgumentError for a device that is not the
    CPU, and for another quantization."""
    if given is not None and not isinstance(given, PyccmemConfig):
        raise errors.ArgumentError(
            f"A sealed GGUF file is loaded as it is, and quantization_config is a "
            f"{type(given).__name__}; leave it out, or pass PyccmemConfig(key=...)."
        )
    config.quantization_config = PyccmemConfig() if given is None else given
    quantizer = GGUFQuantizer(config.quantization_config, pre_quantized=True)
    quantizer.validate_environment(device_map=device_map)
    if getattr(config, "dtype", None) is None:
        config.dtype = torch.float32
    return quantizer, config, None


# ---- metadata ------------------------------------------------------------------------------------


def _is_sealed(path: Any) -> bool:
    """Returns True for a file that is not a plain GGUF file: what else it may be, open_model()
    says."""
    name = os.fspath(path)
    return os.path.isfile(name) and not is_gguf(name)


@contextmanager
def _opened(path: Any) -> Iterator[SealedModel]:
    name = os.fspath(path)
    given = given_config()
    key = find_key(None if given is None else given.key, what=f"the sealed file {name!r}")
    pins = expected()
    if pins is None and given is not None:
        pins = given.expected(name, key)
    context = None if given is None else given.context
    with open_model(name, key, expect=pins, context=context) as file:
        yield file


def _metadata(gguf_path: str, string_arrays: Any = ()) -> Any:
    """Replaces read_gguf_metadata()."""
    if not _is_sealed(gguf_path):
        return _metadata_of_plain(gguf_path, string_arrays)
    with _opened(gguf_path) as file:
        return metadata_of(file, string_arrays)


def _checkpoint(
    gguf_checkpoint_path: Any,
    return_tensors: bool = False,
    model_to_load: Any = None,
    torch_dtype: Any = None,
) -> Any:
    """Replaces load_gguf_checkpoint(), which is called for the configuration alone."""
    if not _is_sealed(gguf_checkpoint_path):
        return _load_plain(gguf_checkpoint_path, return_tensors, model_to_load, torch_dtype)
    if return_tensors:
        raise errors.ArgumentError(
            f"{os.fspath(gguf_checkpoint_path)!r} is sealed, and transformers asks for its tensors "
            f"in the clear; pass quantization_config=PyccmemConfig(key=...)."
        )
    with _opened(gguf_checkpoint_path) as file:
        return {"config": config_of(file)}
