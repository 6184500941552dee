# SPDX-License-Identifier: Apache-2.0
"""PyccmemConfig: the options of from_pretrained(), and what config.json keeps of them: never the
key."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from .. import errors
from ..directories import expected_pins, is_directory_pin
from ..directories.marks import METHOD
from ..key_services.context import given
from ..torch._quantize import Formats
from ..torch._results import wipes
from .keys import key_named, note_given

__all__ = ["PyccmemConfig"]

_PIN = re.compile(r"[0-9a-fA-F]{32}:[1-9][0-9]{0,15}")


def _checked_expect(expect: Any) -> str | Mapping[str, Any] | None:
    """Returns `expect`. Raises ArgumentError, ArgumentTypeError for what is no pin, or no dict of
    pins."""
    if expect is None or is_directory_pin(expect):
        return expect  # type: ignore[no-any-return]
    pins = dict(expect) if isinstance(expect, Mapping) else {"": expect}
    for pin in pins.values():
        if not isinstance(pin, str):
            raise errors.ArgumentTypeError(
                f"expect must be a pin, or a dict of pins by names, not {type(pin).__name__}."
            )
        if not _PIN.fullmatch(pin):
            raise errors.ArgumentError(
                f"expect is {pin[:80]!a}; a pin is 'FILE_ID:GENERATION', or of a directory 'dir:' "
                f"and 64 hexadecimal digits."
            )
    only: str | Mapping[str, Any] = pins.get("", pins)
    return only


class PyccmemConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """`quantization_config` of from_pretrained(): for a sealed directory it gives the key to open
    it; for a plain one it has the model encrypted while it is loaded.

    `key`: a pyccmem.Key, or what else pyccmem.safetensors.load_file() takes; or the URI of one,
    such as "file:/etc/model.key", see pyccmem.key_services.from_uri(). It is not copied, and must
    stay open as long as the model is to be saved. A copy of the object has the same key; a pickled
    or serialised one has none. `weights`: the name of the file that holds the weights, or of their
    index, if it is not the one that transformers expects. `mmap`: False reads the pages of sealed
    files into memory of this process, as load_file() does. `activations`: "plain", or "wiped" to
    put results of the encrypted tensors into memory that is wiped when it is freed, as
    pyccmem.torch.set_activations() says; anything else is an ArgumentError. `quantize` and `skip`:
    the block format of the weights of linear layers and embeddings, which are quantised while they
    are loaded, as pyccmem.torch.encrypt_module() says. `expect`: the pin of the directory in which
    the weights lie ("dir:...", as `pyccmem encrypt` prints it), or of its only file, or a dict of
    pins by the files' names; anything else than these very files is an IntegrityError, and a plain
    file in their place a FileFormatError. `context`: texts that the contexts of the sealed files
    must have, as for pyccmem.safetensors.load_file(), and that save_pretrained() gives those it
    writes. config.json keeps none of the last six, a pickled object all but the key.
    """

    def __init__(
        self,
        key: Any = None,
        *,
        weights: str | None = None,
        mmap: bool = True,
        activations: str = "plain",
        quantize: str | Mapping[str, str | None] | None = None,
        skip: Iterable[str] | str = (),
        expect: str | Mapping[str, Any] | None = None,
        context: Mapping[str, str] | None = None,
    ) -> None:
        wipes(activations)
        self._context = None if context is None else given(context)
        self._expect = _checked_expect(expect)
        self._pins: dict[str, Mapping[str, Any]] = {}
        self._quantize, self._skip = quantize, skip if isinstance(skip, str) else tuple(skip)
        Formats(quantize, self._skip)
        #: The quantization_config of a checkpoint that another library has quantised.
        self.checkpoint: dict[str, Any] | None = None
        self.quant_method = METHOD
        self.weights = weights
        key = key_named(key)
        self._key, self._mmap, self._activations = key, bool(mmap), activations
        if key is not None:
            note_given(self)

    @classmethod
    def from_dict(
        cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """Makes the object from config.json. Raises FileFormatError for a name of weights that is
        not one.

        Further entries, which a later version may have written, are ignored: the sealed files
        themselves say what is needed to open them.
        """
        weights = config_dict.get("weights")
        if not (weights is None or isinstance(weights, str)):
            raise errors.FileFormatError(
                f"config.json has {weights!r} for the name of the file of weights; it must be text."
            )
        config = cls(weights=weights)
        return (config, kwargs) if return_unused_kwargs else config

    def get(self, name: str, default: Any = None) -> Any:
        """Returns an option as the dict of config.json does: transformers asks both in the same
        way."""
        return self.to_dict().get(name, default)

    @property
    def key(self) -> Any:
        """The key given, or None."""
        return self._key

    @property
    def mmap(self) -> bool:
        """Whether sealed files are mapped."""
        return self._mmap

    @property
    def activations(self) -> str:
        """Where results lie, "plain" or "wiped"."""
        return self._activations

    def with_key(self, key: Any) -> PyccmemConfig:
        """Returns the same with another key."""
        new = PyccmemConfig(
            key,
            weights=self.weights,
            mmap=self._mmap,
            activations=self._activations,
            quantize=self._quantize,
            skip=self._skip,
            expect=self._expect,
            context=self._context,
        )
        new.checkpoint = self.checkpoint
        return new

    @property
    def context(self) -> dict[str, str] | None:
        """Texts that the sealed files' contexts must have, or None."""
        return None if self._context is None else dict(self._context)

    @property
    def demands(self) -> list[str]:
        """The options that only sealed files can fulfil."""
        options = {"expect": self._expect, "context": self._context}
        return [name for name, value in options.items() if value is not None]

    def expected(self, path: str, key: Any) -> Any:
        """Returns what is expected of the sealed file `path`, for load_file(). Raises
        IntegrityError if its directory is not in the state of the pin, or had no such file."""
        if self._expect is None:
            return None
        folder, name = os.path.split(os.path.abspath(path))
        pins = self._expect
        if isinstance(pins, str):
            if not is_directory_pin(pins):
                return pins
            if folder not in self._pins:
                self._pins[folder] = expected_pins(folder, key, pins, context=self._context)
            pins = self._pins[folder]
        if name not in pins:
            raise errors.IntegrityError(
                f"{path!r} is none of the files that `expect` names; a file was added, or renamed.",
                name=name,
            )
        return pins[name]

    def formats(self) -> Formats:
        """Returns what `quantize` and `skip` ask for."""
        return Formats(self._quantize, self._skip)

    def to_dict(self) -> dict[str, Any]:
        """Returns the entries for config.json."""
        found: dict[str, Any] = {"quant_method": METHOD}
        if self.weights is not None:
            found["weights"] = self.weights
        return found

    def __iter__(self) -> Any:
        yield from self.to_dict().items()

    def __copy__(self) -> PyccmemConfig:
        return self.with_key(self._key)

    def __deepcopy__(self, memo: dict[int, Any]) -> PyccmemConfig:
        # from_pretrained() copies its arguments, and a key cannot be copied.
        return self.with_key(self._key)

    def __reduce__(self) -> tuple[Any, ...]:
        options = {
            "weights": self.weights,
            "mmap": self._mmap,
            "activations": self._activations,
            "quantize": self._quantize,
            "skip": self._skip,
            "expect": self._expect,
            "context": self._context,
        }
        return _without_key, (options, self.checkpoint)


def _without_key(options: dict[str, Any], checkpoint: dict[str, Any] | None) -> PyccmemConfig:
    made = PyccmemConfig(**options)
    made.checkpoint = checkpoint
    return made
