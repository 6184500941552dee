# SPDX-License-Identifier: Apache-2.0
"""The loader: vLLM's own for plain models, and for encrypted ones the same over sealed files, whose
tensors are mapped and not decrypted."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from vllm.model_executor import model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from .. import errors
from .. import safetensors as sealed
from ..directories.index import INDEX_SUFFIX, read_index
from ..directories.marks import METHOD
from ..torch import encrypt_module
from ..torch._block_files import load_sealed
from .keys import file_context, file_key
from .method import PyccmemQuantization, adopt_layers, weights_of
from .norms import open_norms
from .process import use_vllm_threads
from .proof import check_attention, check_weights

__all__ = ["EncryptedLoader", "register_loader"]

#: The values of --load-format that mean safetensors files in a directory.
_FORMATS = ("auto", "hf", "safetensors")


def register_loader() -> None:
    """Puts the loader in the place of vLLM's own, which it is for models without pyccmem."""
    table = model_loader._LOAD_FORMAT_TO_MODEL_LOADER
    for name in _FORMATS:
        table[name] = EncryptedLoader


class EncryptedLoader(DefaultModelLoader):  # type: ignore[misc]
    """vLLM's loader. If the model's quantization is "pyccmem", it maps sealed files, encrypts the
    tensors of plain ones as they come, and what they leave plain at the end."""

    def __init__(self, load_config: Any) -> None:
        super().__init__(load_config)
        self._config: PyccmemQuantization | None = None

    def load_weights(self, model: nn.Module, model_config: Any) -> None:
        """Loads a model. Raises what opening sealed files raises, FileFormatError for a plain file
        where config.json says that it is sealed and for missing weights. FormatWarning names
        weights that took another block format than was asked for."""
        if model_config.quantization != METHOD:
            super().load_weights(model, model_config)
            return
        use_vllm_threads()
        self._config = _config_of(model)
        adopt_layers(model, self._config)
        self.enable_weights_track = True
        super().load_weights(model, model_config)
        weights = weights_of(model)
        for one in weights.values():
            one.finish()
        self._config.formats().tell()
        _encrypt_rest(model, self._config)
        open_norms(model)
        check_weights(model, weights)
        if self._config.with_cache:
            check_attention(self._config.layers)

    def _get_weights_iterator(self, source: Any) -> Iterator[tuple[str, Tensor]]:
        config = self._config
        if config is None:
            plain: Iterator[tuple[str, Tensor]] = super()._get_weights_iterator(source)
            return plain
        folder = Path(source.model_or_path, source.subfolder or "")
        files = _files(folder) if folder.is_dir() else []
        kinds = {sealed.is_sealed(file) for file in files}
        if config.sealed:
            if kinds != {True}:
                raise errors.FileFormatError(
                    f"config.json in {str(folder)!r} says that the model is sealed, and not all of "
                    f"its *.safetensors files are; someone has put plain ones there."
                )
            return _mapped(files, source.prefix)
        if True in kinds:
            raise errors.FileFormatError(
                f"{str(folder)!r} has sealed files, and its config.json does not say so; make the "
                f"directory anew with pyccmem encrypt."
            )
        plain = super()._get_weights_iterator(source)
        return plain


def _files(folder: Path) -> list[str]:
    """Returns the files of weights: those of the index where there is one."""
    found = sorted(folder.glob("*.safetensors"))
    for index in sorted(folder.glob(f"*{INDEX_SUFFIX}")):
        named = set(read_index(folder, Path(index.name))["weight_map"].values())
        return [os.fspath(file) for file in found if file.name in named]
    return [os.fspath(file) for file in found]


def _mapped(files: list[str], prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of sealed files, mapped."""
    context = file_context()
    for file in files:
        key = file_key(f"the sealed file {file!r}")
        for name, tensor in load_sealed(file, key, context=context).items():
            yield prefix + name, tensor


def _config_of(model: nn.Module) -> PyccmemQuantization:
    """Returns the configuration that the model's layers were made with. Raises ArgumentError when
    vLLM has asked for none."""
    for module in model.modules():
        config = getattr(getattr(module, "quant_method", None), "config", None)
        if isinstance(config, PyccmemQuantization):
            return config
    raise errors.ArgumentError(
        "vLLM has made this model without asking pyccmem for its layers, so they would be computed "
        "in the clear; serve it without pyccmem."
    )


def _encrypt_rest(model: nn.Module, config: PyccmemQuantization) -> None:
    """Encrypts the parameters that are no matrices of linear layers: of norms, and biases."""
    names = {name for name, one in model.named_parameters() if not one.is_meta}
    with warnings.catch_warnings():  # buffers that the model computes for itself stay plain
        warnings.simplefilter("ignore", errors.PlainTensorsWarning)
        encrypt_module(
            model, key=config.memory_key(), include=lambda name, _: name in names, progress=False
        )
