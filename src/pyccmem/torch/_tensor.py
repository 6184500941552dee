# SPDX-License-Identifier: Apache-2.0
"""EncryptedTensor of torch: a wrapper subclass whose data is ciphertext.

A wrapper has torch's metadata (shape, strides, dtype) but no memory from torch. It refers to a
Stored, which aliases and views share, and to the path of view operations that lead from the stored
tensor to it. While torch.compile traces, a wrapper stands for a tensor that does not exist yet: it
has the ciphertext as a fake tensor, and the form of what lies in it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from inspect import Signature
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .. import errors
from ..arena import Arena
from ..binding import DEFAULT_CIPHER
from ..core import maker
from ..core.operand import formats_number
from ..keys import Key
from ..quantized import QuantizedTensor
from ..tensor import EncryptedTensor as Core
from ._blocks import Blocks
from ._open import changed, traced_values, values
from ._results import activations_of, wipes
from ._stored import (
    Stored,
    pointer,
    put_in_order,
    stored_of_ciphertext,
)
from .dtypes import numpy_dtype, torch_dtype
from .path import Form, Path, Step, traced
from .registry import FUNCTIONS, handler_of, reduced

__all__ = [
    "EncryptedTensor",
    "alias",
    "asks_wiping",
    "check_encryptable",
    "ciphertext",
    "device_refused",
    "layout",
    "opened",
    "path_of",
    "real",
    "refuse_gradient",
    "rewritten",
    "share",
    "stored_of",
    "trace_refused",
    "training_refused",
    "viewed",
    "whole",
    "wrapped",
]


_tracing_state = torch._C._get_tracing_state
_modes = torch._C._len_torch_dispatch_stack


def device_refused(device: Any) -> NoReturn:
    """Raises ArgumentError."""
    raise errors.ArgumentError(
        f"An EncryptedTensor stays in this process's main memory: on {str(device)!r} its plaintext "
        f"would leave protected memory; where that is what you want, say so with "
        f"pyccmem.torch.decrypt_module(model) or tensor.decrypt() first."
    )


def trace_refused() -> NoReturn:
    """Raises ArgumentError."""
    raise errors.ArgumentError(
        "torch.jit.trace and make_fx would keep opened weights in their program, in the clear, or "
        "miss products; use torch.compile or torch.export."
    )


def training_refused() -> NoReturn:
    """Raises ArgumentError."""
    raise errors.ArgumentError(
        "An EncryptedTensor is for inference and takes no gradient; set its requires_grad to "
        "False, or decrypt what is to be trained with pyccmem.torch.decrypt_module(module) first."
    )


def _refuse(gradient: Tensor) -> None:
    training_refused()


def refuse_gradient(tensor: EncryptedTensor) -> None:
    """Makes a gradient that is computed for a tensor an error."""
    if not tensor._refuses:
        with torch._C.DisableTorchFunctionSubclass():
            tensor.register_hook(_refuse)  # type: ignore[no-untyped-call]
        tensor._refuses = True


def check_encryptable(tensor: Tensor, name: str) -> None:
    """Raises ArgumentTypeError unless the tensor is a dense CPU tensor of a type that numpy or
    ml_dtypes has, MissingPackageError if ml_dtypes is needed."""
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise errors.ArgumentTypeError(
            f"{name} is not dense ({tensor.layout}, {tensor.dtype}); convert it with to_dense() or "
            f"dequantize() first."
        )
    if tensor.device.type != "cpu":
        raise errors.ArgumentTypeError(
            f"{name} lies on {str(tensor.device)!r}; bring it to the CPU with cpu() first."
        )
    numpy_dtype(tensor.dtype)


class EncryptedTensor(Tensor):
    """A torch tensor that lies in memory as ciphertext.

    Made by from_tensor() or from_core(), or for whole models by encrypt_module(). F.linear and
    products open a few pages or a tile at a time, F.embedding only the rows it needs. Any other
    operation opens the tensor into a temporary that is wiped when its last user goes. Results are
    plain tensors, but copies and conversions (clone(), to(), deepcopy) are encrypted, views
    (select, slice, view, t, ...) stay views of the ciphertext, and writes to a tensor or a view of
    it are encrypted.

    It may ask for a gradient, but a backward pass that computes one is refused (inputs get theirs).
    It has no address of data, and stays on the CPU and in its process.
    """

    _stored: Stored | None
    _path: Path
    _form: Form | None
    _fake: Tensor | None
    #: True once a backward pass that reaches this tensor is an error.
    _refuses: bool

    #: Nothing can be given to the constructor; who tries is told what to call.
    __signature__ = Signature()

    @staticmethod
    def __new__(
        cls: type[EncryptedTensor], *arguments: object, **options: object
    ) -> EncryptedTensor:
        """Raises ArgumentTypeError: tensors are made by from_tensor(), from_core() and
        encrypt_module()."""
        raise errors.ArgumentTypeError(
            "EncryptedTensor() makes no tensor; use EncryptedTensor.from_tensor(tensor, key=...), "
            "EncryptedTensor.from_core(core) or encrypt_module(model, key=...)."
        )

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__()

    # ---- making ----

    @classmethod
    def from_tensor(
        cls,
        tensor: Tensor,
        *,
        key: Key,
        cipher: str = DEFAULT_CIPHER,
        name: str | None = None,
        page_size: int | None = None,
        arena: Arena | None = None,
        activations: str = "plain",
    ) -> EncryptedTensor:
        """Returns an encrypted copy of a dense CPU tensor, with the same shape and dtype. The
        tensor itself stays unchanged: overwrite it yourself. With `arena` the copy is encrypted
        together with others, by the arena's cipher and in its pages. `activations` is "plain" or
        "wiped", see set_activations().

        `key` is kept for copies and for saving. If it has been closed, copies in memory get a
        random key of this process.

        Raises ArgumentTypeError unless it is a dense CPU tensor of a type that numpy or ml_dtypes
        has, MissingPackageError if ml_dtypes is needed, ArgumentError for other activations, and
        what pyccmem.EncryptedTensor raises.
        """
        wipe = wipes(activations)
        if not isinstance(tensor, Tensor):
            raise errors.ArgumentTypeError(
                f"tensor must be a torch.Tensor, not {type(tensor).__name__}."
            )
        if not isinstance(key, Key):
            raise errors.ArgumentTypeError(f"key must be a pyccmem.Key, not {type(key).__name__}.")
        if isinstance(tensor, EncryptedTensor):
            tensor = tensor.decrypt()
        check_encryptable(tensor, "tensor")
        tensor = tensor.detach()
        shape, kind = tuple(tensor.shape), numpy_dtype(tensor.dtype)
        if arena is None:
            core = Core.zeros(shape, kind, key=key, cipher=cipher, page_size=page_size, name=name)
        elif tensor.is_contiguous() and not (tensor.is_conj() or tensor.is_neg()):
            core = maker.sealed(arena, shape, kind, pointer(tensor), name)
            return wrapped(Stored(core, tensor.dtype, key, wipe_results=wipe))
        else:
            core = maker.in_order(arena, shape, kind, tensor, put_in_order, name)
            return wrapped(Stored(core, tensor.dtype, key, wipe_results=wipe))
        stored = Stored(core, tensor.dtype, key, wipe_results=wipe)
        try:
            stored.write_any(core, 0, tensor)
        except BaseException:
            core.close()
            raise
        return wrapped(stored)

    @classmethod
    def from_core(
        cls,
        core: Core | QuantizedTensor,
        dtype: torch.dtype | None = None,
        *,
        key: Key | None = None,
        activations: str = "plain",
    ) -> EncryptedTensor:
        """Returns a tensor over a pyccmem.EncryptedTensor. Both share the data, and nothing is
        decrypted.

        `dtype` reads its elements as another type of the same size, such as bfloat16 kept as
        uint16; of a pyccmem.QuantizedTensor, it is the type of the values (float32). `key` is for
        copies and for saving, and `activations` for results, both as in from_tensor().

        Raises ArgumentTypeError, ArgumentError where the sizes differ and for other activations.
        """
        wipe = wipes(activations)
        if isinstance(core, QuantizedTensor):
            return wrapped(Blocks(core, dtype or torch.float32, key, wipe_results=wipe))
        if not isinstance(core, Core):
            raise errors.ArgumentTypeError(
                f"core must be a pyccmem.EncryptedTensor or a pyccmem.QuantizedTensor, not "
                f"{type(core).__name__}."
            )
        kind = torch_dtype(core.dtype) if dtype is None else dtype
        wanted = numpy_dtype(kind)
        if wanted.itemsize != core.itemsize:
            raise errors.ArgumentError(
                f"core has elements of {core.itemsize} bytes and {kind} of {wanted.itemsize}; they "
                f"must be of one size."
            )
        core = core if core.dtype == wanted else core.view(wanted)
        return wrapped(Stored(core, kind, key, wipe_results=wipe))

    # ---- the protocols of torch ----

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["_ciphertext"], (self._layout(), self._path)

    def _stable_hash_for_caching(self) -> str:
        """Returns what compiled code depends on, which is the form and not the data."""
        return repr((self._layout(), self._path))

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, Tensor], context: Any, size: Any, stride: Any
    ) -> EncryptedTensor:
        sealed = inner["_ciphertext"]
        form, path = context
        if type(sealed) is Tensor and sealed.device.type == "cpu" and sealed.numel():
            stored = stored_of_ciphertext(sealed, form.dtype)
            stored.sealed = sealed
            return wrapped(stored, path, size, stride)
        return wrapped(None, path, size, stride, form=form, fake=sealed)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if not torch.compiler.is_dynamo_compiling():
            if _tracing_state() is not None:
                trace_refused()
            special = FUNCTIONS.get(function)
            if special is not None:
                return special(function, args, kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if _modes():
            traced = with_fakes(function, args, kwargs)
            if traced is not None:
                return traced[0]
        return handler_of(function)(function, args, kwargs)

    # ---- what it is ----

    @property
    def core(self) -> Any:
        """The pyccmem.EncryptedTensor with the data, or pyccmem.QuantizedTensor; for a view, that
        of the whole tensor."""
        return self._real().core

    @property
    def format(self) -> str | None:
        """The block format of a quantised tensor, such as "q4_k"; None for any other. Its `dtype`
        is that of the values that it stands for."""
        stored = self._stored
        return None if stored is None else stored.format

    @property
    def activations(self) -> str:
        """Where its results lie, "plain" or "wiped"; set_activations() says more, and changes
        it."""
        return activations_of(self._real().wipe_results)

    def __pyccmem_core__(self) -> Any:
        """Returns the core if this tensor is all of it; None for a view."""
        core = self._real().core
        return core if not self._path and tuple(self.shape) == core.shape else None

    def decrypt(self) -> Tensor:
        """Returns the values as a plain tensor, in memory that is wiped when the last tensor, view
        or array over it goes. Raises IntegrityError, ClosedError, ForkError, OutOfMemoryError."""
        return opened(self)

    @property
    def _ciphertext(self) -> Tensor:
        return self._fake if self._fake is not None else self._real().ciphertext()

    def _real(self) -> Stored:
        stored = self._stored
        if stored is None:
            raise errors.ArgumentError(
                "This EncryptedTensor stands for one while a program is traced, and has no data."
            )
        return stored

    def _layout(self) -> Form:
        """Returns the form of the stored tensor."""
        if self._form is not None:
            return self._form
        return self._real().form()

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        with torch._C.DisableTorchFunctionSubclass():
            what = f"shape={tuple(self.shape)}, dtype={self.dtype}"
        if self._stored is None:
            return f"EncryptedTensor({what}, traced)"
        core = self._stored.core
        kind = "" if self.format is None else f", format={self.format!r}"
        state = ", closed" if core.closed else ""
        view = ", view" if self._path else ""
        named = f"name={core.name!a}, cipher={core.cipher!r}"
        return f"EncryptedTensor({what}{kind}, {named}{view}{state})"

    def __format__(self, spec: str) -> str:
        """Returns the formatted number of a tensor of no dimensions, if `spec` is a number's
        format."""
        return format(self.item() if formats_number(spec) and not self.dim() else repr(self), spec)

    # ---- copies ----

    def __deepcopy__(self, memo: dict[int, Any]) -> EncryptedTensor:
        """Returns an encrypted copy. Tensors that were the same, or shared data, do so in the copy
        too."""
        found = memo.get(id(self))
        if found is not None:
            return found  # type: ignore[no-any-return]
        stored = self._real()
        twin = memo.get(id(stored))
        if twin is None:
            twin = memo[id(stored)] = stored.twin()
        new = wrapped(twin, self._path)
        self._mark(new)
        memo[id(self)] = new
        return new

    def __copy__(self) -> EncryptedTensor:
        """Returns another tensor over the same data."""
        new = alias(self)
        self._mark(new)
        return new

    def _mark(self, new: EncryptedTensor) -> None:
        """Makes a copy a parameter, and ask for a gradient, if this does."""
        if self.is_leaf and self.requires_grad:
            new.requires_grad_(True)
        if getattr(self, "_is_param", False):
            new._is_param = True

    def __reduce_ex__(self, protocol: Any) -> Any:
        return reduced(self)


def wrapped(
    stored: Stored | None,
    path: Path = (),
    size: Any = None,
    stride: Any = None,
    *,
    offset: Any = 0,
    form: Form | None = None,
    fake: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> EncryptedTensor:
    """Returns a wrapper of `stored` under a path; while tracing, of `form` and `fake`, with `size`
    and `stride` given."""
    if dtype is None:
        dtype = form.dtype if stored is None else stored.dtype  # type: ignore[union-attr]
    if size is None:
        assert stored is not None
        shape = stored.core.shape
        if path:
            seen = traced(shape, dtype, path)
            size, stride, offset = seen.size(), seen.stride(), seen.storage_offset()
            dtype = seen.dtype
        else:
            size = shape
    # Never an inference tensor: a view of an ordinary tensor must not be one.
    with torch.inference_mode(False):
        self: Any = Tensor._make_wrapper_subclass(
            EncryptedTensor,
            size,
            strides=stride,
            storage_offset=None if stride is None else offset,
            dtype=dtype,
            device=torch.device("cpu"),
            requires_grad=False,
        )
    self._stored, self._path, self._form, self._fake = stored, path, form, fake
    self._refuses = False
    return self  # type: ignore[no-any-return]


def alias(tensor: EncryptedTensor) -> EncryptedTensor:
    """Returns another wrapper of the same data."""
    with torch._C.DisableTorchFunctionSubclass():
        size, stride, offset = tensor.size(), tensor.stride(), tensor.storage_offset()
        dtype = tensor.dtype
    return wrapped(
        tensor._stored,
        tensor._path,
        size,
        stride,
        offset=offset,
        form=tensor._form,
        fake=tensor._fake,
        dtype=dtype,
    )


# ---- under modes of the dispatcher ---------------------------------------------------------------

_mode = torch._C._get_dispatch_mode
_KEYS = torch._C._TorchDispatchModeKey


def with_fakes(function: Any, args: Any, kwargs: Any) -> tuple[Any] | None:
    """Runs an operation where make_fx writes a program, which is refused, or where FakeTensorMode
    asks for shapes alone, which needs no data. None in any other mode, and for tensors that stand
    for others already, as in torch.compile. Raises ArgumentError."""
    fake = _mode(_KEYS.FAKE)
    proxy = _mode(_KEYS.PROXY)
    if fake is None and proxy is None:
        return None
    found = False

    def stand_in(tensor: EncryptedTensor) -> Tensor:
        nonlocal found
        if tensor._stored is None:
            return tensor
        found = True
        if proxy is not None:
            trace_refused()
        with torch._C.DisableTorchFunctionSubclass(), fake:
            return torch.empty_strided(
                tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu"
            )

    args, kwargs = tree_map_only(EncryptedTensor, stand_in, (args, kwargs))
    if not found:
        return None
    with fake:
        return (function(*args, **kwargs),)


# ---- what the operations use of a tensor ---------------------------------------------------------


def whole(tensor: EncryptedTensor) -> Stored | None:
    """Returns the Stored of a tensor; None for a view, and while tracing."""
    return None if tensor._path else tensor._stored


def stored_of(tensor: EncryptedTensor) -> Stored | None:
    """Returns the Stored of a tensor, or of the tensor that it is a view of; None while tracing."""
    return tensor._stored


def asks_wiping(tensor: EncryptedTensor) -> bool:
    """Returns True if its results are to lie in memory that is wiped; False while tracing."""
    stored = tensor._stored
    return stored is not None and stored.wipe_results


def real(tensor: EncryptedTensor) -> Stored:
    """Returns stored_of() a tensor. Raises ArgumentError while tracing."""
    return tensor._real()


def path_of(tensor: EncryptedTensor) -> Path:
    """Returns the steps from the stored tensor to this view of it."""
    return tensor._path


def layout(tensor: EncryptedTensor) -> Form:
    """Returns the form of the stored tensor."""
    return tensor._layout()


def ciphertext(tensor: EncryptedTensor) -> Tensor:
    """Returns the pages as a tensor of uint8; while tracing, the fake tensor for them."""
    return tensor._ciphertext


def viewed(base: EncryptedTensor, step: Step, seen: Tensor) -> EncryptedTensor:
    """Returns the view to which a step leads from `base`, with the form of `seen`."""
    return wrapped(
        base._stored,
        (*base._path, step),
        seen.size(),
        seen.stride(),
        offset=seen.storage_offset(),
        form=base._form,
        fake=base._fake,
        dtype=seen.dtype,
    )


def share(tensor: EncryptedTensor, other: EncryptedTensor) -> None:
    """Makes a tensor refer to the data of another. torch has given it the form already."""
    tensor._stored, tensor._path = other._stored, other._path
    tensor._form, tensor._fake = other._form, other._fake


def opened(tensor: EncryptedTensor) -> Tensor:
    """Returns the values in memory that is wiped when its last user goes; while tracing, a stand-in
    for them."""
    stored = tensor._stored
    if stored is None:
        return traced_values(tensor._ciphertext, tensor._layout(), tensor._path)
    return values(stored, tensor._path)


def rewritten(tensor: EncryptedTensor) -> AbstractContextManager[Tensor]:
    """Returns a context manager that gives the values in wiped memory to a block that changes them;
    see changed()."""
    return changed(tensor._real(), tensor._path)
