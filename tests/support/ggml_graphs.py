# SPDX-License-Identifier: Apache-2.0
"""Graphs of one operation of ggml with the ggml backend, from Python: weights in its buffers,
everything else in ordinary memory."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyccmem.bench import ggml

BACKEND, DECODE = "PYCCMEM_GGML_BACKEND", "PYCCMEM_GGML_DECODE"

SUCCESS, FAILED = 0, -1

_POINTER, _INT, _SIZE, _I64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_int64
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "ggml_backend_load": (_POINTER, [ctypes.c_char_p]),
    "ggml_backend_dev_by_name": (_POINTER, [ctypes.c_char_p]),
    "ggml_backend_buft_name": (ctypes.c_char_p, [_POINTER]),
    "ggml_new_tensor_4d": (_POINTER, [_POINTER, _INT, _I64, _I64, _I64, _I64]),
    "ggml_set_name": (_POINTER, [_POINTER, ctypes.c_char_p]),
    "ggml_mul_mat_id": (_POINTER, [_POINTER] * 4),
    "ggml_get_rows": (_POINTER, [_POINTER] * 3),
    "ggml_add": (_POINTER, [_POINTER] * 3),
    "ggml_mul": (_POINTER, [_POINTER] * 3),
    "ggml_sub": (_POINTER, [_POINTER] * 3),
    "ggml_add_id": (_POINTER, [_POINTER] * 4),
    "ggml_nbytes": (_SIZE, [_POINTER]),
    "ggml_backend_tensor_memset": (None, [_POINTER, ctypes.c_uint8, _SIZE, _SIZE]),
}


def path_of(variable: str) -> Path:
    """Returns what `make test-ggml` has built, or skips the test."""
    path = os.environ.get(variable)
    if not path or not Path(path).exists():
        pytest.skip("make test-ggml GGML=/path/to/llama.cpp builds what this test needs")
    return Path(path)


class Backend(ggml.Ggml):
    """ggml with pyccmem's backend."""

    def __init__(self) -> None:
        backend = path_of(BACKEND)
        library = path_of(ggml.VARIABLE)
        files = [library, *(library.with_name(f"libggml-{n}.so") for n in ("base", "cpu"))]
        libraries = [ctypes.CDLL(str(file)) for file in files if file.exists()]
        super().__init__("ggml", libraries, library.parent)
        for name, (result, arguments) in _FUNCTIONS.items():
            found = self._find(name)
            found.restype, found.argtypes = result, arguments
            setattr(self, name, found)
        self.reg = self.ggml_backend_load(os.fsencode(backend))
        assert self.reg, "ggml refuses the backend"
        self.ours = self.ggml_backend_dev_by_name(b"pyccmem")
        address = self.ggml_backend_reg_get_proc_address(self.reg, b"pyccmem_ciphertext")
        kind = ctypes.CFUNCTYPE(_POINTER, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint64))
        self._ciphertext = kind(address)

    def number(self, kind: str) -> int:
        """Returns ggml's number of a type by gguf's name of it."""
        import gguf

        return int(gguf.GGMLQuantizationType[kind.upper()])

    def ciphertext(self, name: str) -> np.ndarray:
        """Returns the ciphertext of the tensor of this name, to be changed."""
        size = ctypes.c_uint64()
        address = self._ciphertext(name.encode(), ctypes.byref(size))
        assert address
        return np.ctypeslib.as_array((ctypes.c_uint8 * size.value).from_address(address))


class Graph:
    """Tensors, and one operation on them."""

    def __init__(self, backend: Backend, threads: int = 2) -> None:
        self.ggml, self.open = backend, ExitStack()
        self.handle = backend.ggml_backend_dev_init(backend.ours, None)
        self.open.callback(backend.ggml_backend_free, self.handle)
        address = backend.ggml_backend_reg_get_proc_address(
            backend.reg, b"ggml_backend_set_n_threads"
        )
        ctypes.CFUNCTYPE(None, _POINTER, _INT)(address)(self.handle, threads)

    def _context(self, tensors: int, graph: bool = False) -> int:
        size = tensors * self.ggml.ggml_tensor_overhead() + graph * self.ggml.ggml_graph_overhead()
        context: int = self.ggml.ggml_init(ggml._InitParams(size, None, True))
        self.open.callback(self.ggml.ggml_free, context)
        return context

    def _allocate(self, context: int, device: int) -> None:
        kind = self.ggml.ggml_backend_dev_buffer_type(device)
        buffer = self.ggml.ggml_backend_alloc_ctx_tensors_from_buft(context, kind)
        assert buffer
        self.open.callback(self.ggml.ggml_backend_buffer_free, buffer)

    def tensor(
        self, kind: str, shape: tuple[int, ...], data: np.ndarray | None, *, ours: bool = False
    ) -> int:
        """Returns a tensor of logical numpy shape, holding the bytes of `data`."""
        context = self._context(1)
        sizes = [*reversed(shape), *[1] * (4 - len(shape))]
        made: int = self.ggml.ggml_new_tensor_4d(context, self.ggml.number(kind), *sizes)
        self.ggml.ggml_set_name(made, b"w" if ours else b"x")
        self._allocate(context, self.ggml.ours if ours else self.ggml.device)
        if data is not None:
            data = np.ascontiguousarray(data)
            assert self.ggml.ggml_nbytes(made) == data.nbytes
            self.ggml.ggml_backend_tensor_set(made, data.ctypes.data, 0, data.nbytes)
        return made

    def weights(self, kind: str, shape: tuple[int, ...], data: np.ndarray | None) -> int:
        """Returns an encrypted tensor."""
        return self.tensor(kind, shape, data, ours=True)

    def plain(self, data: np.ndarray) -> int:
        """Returns a tensor in ordinary memory, of float32 or int32."""
        return self.tensor({"f": "f32", "i": "i32"}[data.dtype.kind], data.shape, data)

    def run(self, op: str, *tensors: int, shape: tuple[int, ...]) -> tuple[int, np.ndarray]:
        """Computes ggml_OP(tensors...). Returns the status, and the result of `shape`."""
        context = self._context(2, graph=True)
        node = getattr(self.ggml, op)(context, *tensors)
        assert self.ggml.ggml_backend_dev_supports_op(self.ggml.ours, node)
        graph = self.ggml.ggml_new_graph(context)
        self.ggml.ggml_build_forward_expand(graph, node)
        self._allocate(context, self.ggml.device)
        out = np.full(shape, 7, np.float32)
        self.ggml.ggml_backend_tensor_set(node, out.ctypes.data, 0, out.nbytes)
        status = self.ggml.ggml_backend_graph_compute(self.handle, graph)
        self.ggml.ggml_backend_tensor_get(node, out.ctypes.data, 0, out.nbytes)
        return status, out

    def supports(self, op: str, *tensors: int) -> bool:
        """Whether the backend says that it can do it."""
        node = getattr(self.ggml, op)(self._context(2), *tensors)
        return bool(self.ggml.ggml_backend_dev_supports_op(self.ggml.ours, node))


@contextmanager
def graph(backend: Backend, threads: int = 2) -> Iterator[Graph]:
    """A Graph, whose memory is given back."""
    made = Graph(backend, threads)
    with made.open:
        yield made
