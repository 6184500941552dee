# SPDX-License-Identifier: Apache-2.0
"""GGUFQuantizer: answers transformers while it loads a sealed GGUF file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from .. import errors
from ..gguf import SealedModel, open_model
from .gguf_config import float_type
from .gguf_weights import GGUFSlice, check_complete, slices_of
from .quantizer import PyccmemQuantizer

__all__ = ["GGUFQuantizer", "expected", "expecting"]

_expected: ContextVar[Any] = ContextVar("pyccmem_gguf_pins", default=None)


@contextmanager
def expecting(pins: Any) -> Iterator[None]:
    """Has each file that this thread opens in a `with` block be of these pins, as `expect` of
    open_model() takes them: transformers opens one for its configuration, and again for tensors."""
    before = _expected.get()
    try:
        _expected.set(pins)
        yield
    finally:
        _expected.set(before)


def expected() -> Any:
    """Returns the pins of expecting()."""
    return _expected.get()


class GGUFQuantizer(PyccmemQuantizer):
    """Stands where transformers has its GgufHfQuantizer for a plain file: keeps the blocks, as
    encrypted tensors that the model's own modules multiply with."""

    _file: SealedModel | None = None
    _found: dict[str, GGUFSlice] | None = None

    def read_header(self, gguf_file: str) -> None:
        """Opens the file. Raises what pyccmem.gguf.open_model() raises."""
        config = self.quantization_config
        key = self.key(f"the sealed file {gguf_file!r}")
        pins = expected()
        if pins is None:
            pins = config.expected(gguf_file, key)
        self._file = open_model(
            gguf_file, key, expect=pins, mmap=config.mmap, context=config.context
        )

    def update_dtype(self, dtype: Any) -> Any:
        """Returns float32 where nothing else was asked for and the file has blocks."""
        return getattr(torch, float_type(self._opened())) if dtype is None else dtype

    def get_state_dict(self, checkpoint_file: str, model: Any) -> dict[str, Any]:
        """Returns the tensors, of which none is opened yet."""
        config = self.quantization_config
        self._found = slices_of(
            self._opened(),
            model.config.get_text_config(),
            key=self.key("copies of the model"),
            activations=config.activations,
        )
        check_complete(model, self._found)
        return dict(self._found)

    def update_weight_conversions(self, weight_conversions: Any, model: Any) -> Any:
        """Returns none: the tensors have the model's own names."""
        return []

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        file, self._file, self._found = self._file, None, None
        if file is not None:
            file.close()
        return super()._process_model_after_weight_loading(model, **kwargs)

    def _opened(self) -> SealedModel:
        if self._file is None:
            raise errors.ClosedFileError("The GGUF file is closed; load the model again.")
        return self._file
