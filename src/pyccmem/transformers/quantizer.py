# SPDX-License-Identifier: Apache-2.0
"""PyccmemQuantizer: answers transformers at each step of loading and saving."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.quantizers.base import HfQuantizer

from .. import errors
from ..directories.marks import WEIGHTS_ELSEWHERE, hides_names
from ..keys import Key
from ..torch import EncryptedTensor, decrypt_module, set_activations
from ..torch._quantize import Formats, quantized
from . import sentences
from .config import PyccmemConfig
from .files import Slice, parameter
from .keys import find_key
from .merging import merge_blocks, merge_values

__all__ = ["ATTRIBUTE", "PyccmemQuantizer", "Sealing", "forget", "loading"]

#: The attribute of a stand-in in a state dict that has the encrypted tensor for which it stands.
ATTRIBUTE = "_pyccmem_tensor"

#: Values of device_map with which transformers would choose a device itself.
_CHOICES = ("auto", "balanced", "balanced_low_0", "sequential")

_session = threading.local()


class Sealing(dict[str, Any]):
    """A file's metadata, which transformers passes from the quantizer to the function that writes.

    It has an entry that is not a string, which safetensors itself refuses to write: if our function
    were ever not called, nothing would be written at all.
    """

    def __init__(self, quantizer: PyccmemQuantizer) -> None:
        super().__init__(pyccmem=None)
        self.quantizer = quantizer


def loading() -> PyccmemQuantizer | None:
    """Returns the quantizer of the model that this thread is loading."""
    reference = getattr(_session, "quantizer", None)
    return None if reference is None else reference()


def forget() -> None:
    """Notes that this thread loads nothing any more: the load has ended, or failed."""
    _session.quantizer = None


class PyccmemQuantizer(HfQuantizer):  # type: ignore[misc]
    """Registered as "pyccmem". For a sealed directory (`pre_quantized`) it maps the files; for a
    plain one it encrypts them as they are read."""

    requires_calibration = False

    def __init__(self, quantization_config: PyccmemConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._buffers: set[str] = set()
        self._formats = Formats(None)
        #: The block formats that weights get, by name.
        self._wanted: dict[str, str] = {}

    def key(self, what: str) -> Any:
        """Returns the key of the config, else the one in use. Raises InvalidKeyError."""
        return find_key(self.quantization_config.key, what=what)

    def memory_key(self) -> Key:
        """Returns a key for tensors that are encrypted anew in memory, and never stored."""
        return Key.generate()

    def __deepcopy__(self, memo: dict[int, Any]) -> PyccmemQuantizer:
        return PyccmemQuantizer(
            self.quantization_config.with_key(self.quantization_config.key),
            pre_quantized=self.pre_quantized,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.quantization_config, self.pre_quantized)

    # ---- before the weights are loaded ----

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Raises ArgumentError for a device that is not the CPU. Ties the files that this thread
        opens from now on to this quantizer."""
        _refuse_devices(kwargs.get("device_map"))
        sentences.install(self.quantization_config)
        _session.quantizer = weakref.ref(self)

    def update_device_map(self, device_map: Any) -> Any:
        """Returns None, the CPU, because transformers must not choose another device."""
        return None

    def update_attn_implementation(self, config: Any) -> Any:
        """Puts back the name of the file to load, whose absence keeps others from loading the
        model."""
        if getattr(config, "transformers_weights", None) == WEIGHTS_ELSEWHERE:
            config.transformers_weights = self.quantization_config.weights
        return config

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        self._buffers = {name for name, _ in model.named_buffers()}
        self._formats = self.quantization_config.formats()
        modules = dict(model.named_modules())
        if self._formats:
            for name, tensor in model.named_parameters(remove_duplicate=False):
                path, _, last = name.rpartition(".")
                format = self._formats.of(name, modules[path], last, tensor)
                if format is not None:
                    self._wanted[name] = format
        return model

    # ---- while they are loaded ----

    def get_new_dtype(self, converter: Any, param: Any, dtype: Any) -> Any:
        """Notes that a tensor must be converted to another type when it is taken from the file."""
        if not isinstance(param, Slice):
            return super().get_new_dtype(converter, param, dtype)
        if param.get_dtype().startswith(("F", "BF")):
            param.wanted = dtype
        return None

    def update_weight_conversions(self, weight_conversions: Any, model: Any) -> Any:
        """Has what transformers computes of a checkpoint's tensors encrypted, of sealed files as
        of plain ones: its converters give plain tensors, but of blocks."""
        for converter in weight_conversions:
            if isinstance(converter, WeightConverter):
                converter.quantization_operation = _Encrypt(self)
                merge_blocks(converter)
        return weight_conversions

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        """Returns True for a weight that becomes blocks. The files give encrypted tensors
        already."""
        return param_name in self._wanted

    def get_quantize_ops(self) -> Any:
        return _Encrypt(self)

    # ---- afterwards ----

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        forget()
        for converter in getattr(model, "_weight_conversions", None) or ():
            converter.quantization_operation = None  # save_pretrained() turns it round
            merge_values(converter)
        for name in self._buffers:
            _make_buffer(model, name)
        self._quantize_rest(model)
        self._formats.tell()
        set_activations(model, self.quantization_config.activations)
        # Saved files have the usual name again, unless the names of tensors are hidden.
        if not hides_names(self.quantization_config.weights):
            self.quantization_config.weights = None
        # transformers forbids half() and float() for quantized models, but encrypted ones can be
        # converted.
        model.is_quantized = False
        return model

    def quantized(self, name: str, tensor: Any) -> Any:
        """Returns an encrypted parameter as blocks, if it is to be that and is not yet."""
        format = self._wanted.get(name)
        if format is None or not isinstance(tensor, EncryptedTensor) or tensor.format is not None:
            return tensor
        with self.memory_key() as key:
            return parameter(quantized(tensor, format, key=key, name=name))

    def _quantize_rest(self, model: Any) -> None:
        """Quantises what lies in sealed files, and what transformers has made of several
        tensors."""
        done: dict[int, Any] = {}
        for name in self._wanted:
            path, _, last = name.rpartition(".")
            module = model.get_submodule(path)
            tensor = module._parameters.get(last)
            if tensor is None:
                continue
            found = done.get(id(tensor))
            if found is None:
                found = done[id(tensor)] = tensor, self.quantized(name, tensor)
            if found[1] is not tensor:
                module._parameters[last] = found[1]

    def _dequantize(self, model: Any, dtype: Any = None) -> Any:
        model = decrypt_module(model)
        if isinstance(dtype, str):  # which save_pretrained() leaves in the configuration
            dtype = getattr(torch, dtype)
        if dtype is not None:
            model = model.to(dtype)
        return model

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns stand-ins for the encrypted tensors, so that nothing on the way to the file looks
        at their contents: tensors on the device "meta", of the same shape and type. transformers
        tells by the parameters themselves which of them are tied."""
        return {
            name: _stand_in(tensor) if isinstance(tensor, EncryptedTensor) else tensor
            for name, tensor in model.state_dict().items()
        }, Sealing(self)

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True


class _Encrypt(ConversionOps):  # type: ignore[misc]
    """What transformers makes of several tensors of a checkpoint, as with mixtures of experts, is
    computed from opened ones; it is encrypted again and the result overwritten."""

    def __init__(self, quantizer: PyccmemQuantizer) -> None:
        self.quantizer = quantizer

    def __deepcopy__(self, memo: dict[int, Any]) -> _Encrypt:
        return self

    def convert(self, input_dict: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        found = {}
        for name, value in input_dict.items():
            tensor = value[0] if isinstance(value, list) else value
            if not isinstance(tensor, EncryptedTensor):
                with self.quantizer.memory_key() as key:
                    encrypted = EncryptedTensor.from_tensor(
                        tensor.detach().contiguous(), key=key, name=name
                    )
                tensor.detach().zero_()
                tensor = encrypted
            tensor = self.quantizer.quantized(name, tensor)
            found[name] = tensor if isinstance(tensor, torch.nn.Parameter) else parameter(tensor)
        return found


def _unpickled(config: PyccmemConfig, pre_quantized: bool) -> PyccmemQuantizer:
    return PyccmemQuantizer(config, pre_quantized=pre_quantized)


def _refuse_devices(device_map: Any) -> None:
    if device_map is None or device_map in _CHOICES:
        return
    places = device_map.values() if isinstance(device_map, dict) else [device_map]
    for place in places:
        if (
            isinstance(place, int)
            or torch.device(place if place != "disk" else "meta").type != "cpu"
        ):
            raise errors.ArgumentError(
                f"device_map names {str(place)!r}: there the plaintext would leave protected "
                f"memory, so encrypted models stay on the CPU; leave device_map out, or load the "
                f"model and call dequantize() first."
            )


def _stand_in(tensor: EncryptedTensor) -> torch.Tensor:
    place = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    setattr(place, ATTRIBUTE, tensor)
    return place


def _make_buffer(model: Any, name: str) -> None:
    """Makes a buffer again of what transformers has made a parameter, because it was one when it
    came from the file."""
    path, _, last = name.rpartition(".")
    module = model.get_submodule(path) if path else model
    if last in module._parameters:
        value = module._parameters.pop(last)
        module.register_buffer(last, value.detach())
