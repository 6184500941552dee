# SPDX-License-Identifier: Apache-2.0
"""ggml's own products with plain block-quantised matrices, from Python: the reference of ours.

ggml is the library under llama.cpp. It is found, in this order, where PYCCMEM_BENCH_GGML says
(/path/libggml.so of any build), in the package llama-cpp-python (built where it is installed, so
with every instruction set of the processor) and in the package xllamacpp (a wheel, built for AVX2).
All of them export ggml's C interface, which is called through ctypes. Nothing is compiled here.

The work is what llama.cpp does for one linear layer: a graph of one ggml_mul_mat, computed by the
CPU backend. It quantises x, takes integer dot products, and waits for its threads. The matrix lies
as in the file, or, with `repacked`, in the order that llama.cpp prefers for some formats.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from .rounds import CheckError

#: Names a build of ggml to use instead of an installed package's.
VARIABLE = "PYCCMEM_BENCH_GGML"

#: enum ggml_backend_dev_type, enum ggml_type: the CPU; float32; what precedes IQ4_XS, which is the
#: last type with a format here. ggml never renumbers its types, because files hold the numbers.
_CPU = 0
_F32 = 0
_LAST_TYPE = 23

Blocks = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float32]


class _InitParams(ctypes.Structure):
    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


_POINTER, _INT, _SIZE, _I64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_int64

#: The functions used, with result and arguments.
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "ggml_version": (ctypes.c_char_p, []),
    "ggml_type_name": (ctypes.c_char_p, [_INT]),
    "ggml_row_size": (_SIZE, [_INT, _I64]),
    "ggml_quantize_chunk": (_SIZE, [_INT, _POINTER, _POINTER, _I64, _I64, _I64, _POINTER]),
    "ggml_tensor_overhead": (_SIZE, []),
    "ggml_graph_overhead": (_SIZE, []),
    "ggml_init": (_POINTER, [_InitParams]),
    "ggml_free": (None, [_POINTER]),
    "ggml_new_tensor_2d": (_POINTER, [_POINTER, _INT, _I64, _I64]),
    "ggml_mul_mat": (_POINTER, [_POINTER, _POINTER, _POINTER]),
    "ggml_new_graph": (_POINTER, [_POINTER]),
    "ggml_build_forward_expand": (None, [_POINTER, _POINTER]),
    "ggml_backend_dev_by_type": (_POINTER, [_INT]),
    "ggml_backend_dev_init": (_POINTER, [_POINTER, _POINTER]),
    "ggml_backend_dev_buffer_type": (_POINTER, [_POINTER]),
    "ggml_backend_dev_backend_reg": (_POINTER, [_POINTER]),
    "ggml_backend_dev_supports_op": (ctypes.c_bool, [_POINTER, _POINTER]),
    "ggml_backend_reg_get_proc_address": (_POINTER, [_POINTER, ctypes.c_char_p]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (_POINTER, [_POINTER, _POINTER]),
    "ggml_backend_buffer_free": (None, [_POINTER]),
    "ggml_backend_tensor_set": (None, [_POINTER, _POINTER, _SIZE, _SIZE]),
    "ggml_backend_tensor_get": (None, [_POINTER, _POINTER, _SIZE, _SIZE]),
    "ggml_backend_graph_compute": (_INT, [_POINTER, _POINTER]),
    "ggml_backend_free": (None, [_POINTER]),
    "ggml_log_set": (None, [_POINTER, _POINTER]),
}

#: Called with level, text and data. ggml tells at length what it repacks.
_SILENT = ctypes.CFUNCTYPE(None, _INT, ctypes.c_char_p, _POINTER)(lambda *_: None)

#: What a build with backends in files of their own needs, to load the one for this processor.
_LOAD = "ggml_backend_load_all_from_path"


class Ggml:
    """A build of ggml: `name` says which; `types` has the numbers of its block types by our names
    of the formats."""

    def __init__(self, name: str, libraries: list[ctypes.CDLL], folder: Path) -> None:
        self._libraries = libraries
        for function, (result, arguments) in _FUNCTIONS.items():
            found = self._find(function)
            found.restype, found.argtypes = result, arguments
            setattr(self, function, found)
        self.ggml_log_set(ctypes.cast(_SILENT, _POINTER), None)
        self.device = self.ggml_backend_dev_by_type(_CPU)
        if not self.device:
            load = self._find(_LOAD)
            load.restype, load.argtypes = None, [ctypes.c_char_p]
            load(os.fsencode(folder))
            self.device = self.ggml_backend_dev_by_type(_CPU)
        if not self.device:
            raise OSError(f"{name} has no CPU backend")
        names = {
            number: self.ggml_type_name(number).decode().lower()
            for number in range(_LAST_TYPE + 1)
            if number not in (4, 5)  # removed from ggml
        }
        self.types = {name: number for number, name in names.items() if "q" in name}
        flags = [
            flag for flag in ("avx2", "avx_vnni", "avx512_vnni", "amx_int8") if self._has(flag)
        ]
        version = self.ggml_version().decode()
        self.name = f"ggml {version} of {name} ({', '.join(flags) or 'no vectors'})"

    def __getattr__(self, name: str) -> Any:
        # The functions; said here for type checkers.
        raise AttributeError(name)

    def _find(self, name: str) -> Any:
        for library in self._libraries:
            if hasattr(library, name):
                return getattr(library, name)
        raise OSError(f"it lacks {name}")

    def _has(self, flag: str) -> bool:
        try:
            return bool(self._find(f"ggml_cpu_has_{flag}")())
        except OSError:
            return False

    def _address(self, name: str) -> int | None:
        reg = self.ggml_backend_dev_backend_reg(self.device)
        address: int | None = self.ggml_backend_reg_get_proc_address(reg, name.encode())
        return address

    def set_threads(self, backend: int, number: int) -> None:
        """Makes `backend` compute with this number of threads."""
        address = self._address("ggml_backend_set_n_threads")
        if address is None:
            raise CheckError(f"{self.name} does not take a number of threads.")
        ctypes.CFUNCTYPE(None, _POINTER, _INT)(address)(backend, number)

    def buffer_types(self, *, repacked: bool) -> Iterator[int]:
        """Yields where a matrix may lie: in plain order, or in each other order that the CPU
        backend offers."""
        if not repacked:
            yield self.ggml_backend_dev_buffer_type(self.device)
            return
        address = self._address("ggml_backend_dev_get_extra_bufts")
        if address is not None:
            kind = ctypes.CFUNCTYPE(ctypes.POINTER(_POINTER), _POINTER)
            types = kind(address)(self.device)
            number = 0
            while types and types[number]:
                yield types[number]
                number += 1

    def quantize(self, kind: str, array: Array) -> Blocks:
        """Returns the blocks of a float32 array of shape (rows, columns), as a uint8 array of
        shape (rows, bytes of a row)."""
        rows, columns = array.shape
        array = np.ascontiguousarray(array, dtype=np.float32)
        size = self.ggml_row_size(self.types[kind], columns)
        out = np.empty((rows, size), dtype=np.uint8)
        self.ggml_quantize_chunk(
            self.types[kind], array.ctypes.data, out.ctypes.data, 0, rows, columns, None
        )
        return out


class Product:
    """One product y = x W^T by ggml, ready to be timed. LookupError if the matrix is to be repacked
    and ggml has no order of its own for its format on this processor."""

    def __init__(
        self, ggml: Ggml, kind: str, blocks: Blocks, x: Array, threads: int, repacked: bool
    ) -> None:
        self._ggml, self._open = ggml, ExitStack()
        try:
            self._prepare(kind, blocks, x, threads, repacked)
        except BaseException:
            self._open.close()
            raise

    def _prepare(self, kind: str, blocks: Blocks, x: Array, threads: int, repacked: bool) -> None:
        ggml, number = self._ggml, self._ggml.types[kind]
        (outputs, row_bytes), (rows, inputs) = blocks.shape, x.shape
        if row_bytes != ggml.ggml_row_size(number, inputs):
            raise CheckError(f"a row of {inputs} {kind} elements does not take {row_bytes} bytes.")
        self._backend = ggml.ggml_backend_dev_init(ggml.device, None)
        self._open.callback(ggml.ggml_backend_free, self._backend)
        ggml.set_threads(self._backend, threads)
        plain = next(ggml.buffer_types(repacked=False))
        context = self._context(1, graph=False)
        given = ggml.ggml_new_tensor_2d(context, _F32, inputs, rows)
        self._allocate(context, plain)
        for buffer_type in ggml.buffer_types(repacked=repacked):
            # A repacking buffer takes the bytes in the file's order and lays them otherwise, if it
            # knows the format, which only the question whether it can multiply tells.
            context = self._context(1, graph=False)
            matrix = ggml.ggml_new_tensor_2d(context, number, inputs, outputs)
            self._allocate(context, buffer_type)
            context = self._context(2, graph=True)
            self._result = ggml.ggml_mul_mat(context, matrix, given)
            if ggml.ggml_backend_dev_supports_op(ggml.device, self._result):
                break
        else:
            raise LookupError(f"{ggml.name} does not repack {kind} here")
        self._graph = ggml.ggml_new_graph(context)
        ggml.ggml_build_forward_expand(self._graph, self._result)
        self._allocate(context, plain)
        blocks, x = np.ascontiguousarray(blocks), np.ascontiguousarray(x, dtype=np.float32)
        ggml.ggml_backend_tensor_set(matrix, blocks.ctypes.data, 0, blocks.nbytes)
        ggml.ggml_backend_tensor_set(given, x.ctypes.data, 0, x.nbytes)
        self._shape = (rows, outputs)

    def _context(self, tensors: int, *, graph: bool) -> int:
        ggml = self._ggml
        size = tensors * ggml.ggml_tensor_overhead() + graph * ggml.ggml_graph_overhead()
        context: int = ggml.ggml_init(_InitParams(size, None, True))
        self._open.callback(ggml.ggml_free, context)
        return context

    def _allocate(self, context: int, buffer_type: int) -> None:
        buffer = self._ggml.ggml_backend_alloc_ctx_tensors_from_buft(context, buffer_type)
        if not buffer:
            raise MemoryError("ggml has no memory for the product")
        self._open.callback(self._ggml.ggml_backend_buffer_free, buffer)

    def seconds(self) -> float:
        """Multiplies once. Returns the seconds it took."""
        compute, backend, graph = self._ggml.ggml_backend_graph_compute, self._backend, self._graph
        start = perf_counter()
        status = compute(backend, graph)
        taken = perf_counter() - start
        if status:
            raise CheckError(f"ggml_backend_graph_compute returned {status}.")
        return taken

    def result(self) -> Array:
        """Returns y, float32 of shape (rows, outputs), of the last product."""
        y: Array = np.empty(self._shape, dtype=np.float32)
        self._ggml.ggml_backend_tensor_get(self._result, y.ctypes.data, 0, y.nbytes)
        return y

    def close(self) -> None:
        """Gives back matrix, x and y. A second call does nothing."""
        self._open.close()

    def __enter__(self) -> Product:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def product(
    kind: str, blocks: Blocks, x: Array, *, threads: int = 1, repacked: bool = False
) -> Product | str:
    """Returns a Product of x, float32 of shape (rows, inputs), and the matrix whose blocks, uint8
    of shape (outputs, bytes of a row), have the format `kind`; or a sentence saying why there is
    none. With repacked=True, the matrix lies in ggml's own order, as llama.cpp holds it."""
    ggml = find()
    if isinstance(ggml, str):
        return ggml
    if kind not in ggml.types:
        return f"{ggml.name} has no format {kind}."
    try:
        return Product(ggml, kind, blocks, x, threads, repacked)
    except LookupError as error:
        return f"{error}."


@cache
def find() -> Ggml | str:
    """Returns the build of ggml to compare with, or a sentence saying why there is none."""
    problems = []
    for candidate in _candidates():
        try:
            libraries = [ctypes.CDLL(str(path)) for path in candidate.files]
            return Ggml(candidate.name, libraries, candidate.files[0].parent)
        except OSError as error:
            problems.append(f"{candidate.name}: {error}")
    reason = "; ".join(problems) or (
        f"neither llama-cpp-python nor xllamacpp is installed, and {VARIABLE} names no library"
    )
    return f"ggml's own products: {reason}."


@dataclass(frozen=True)
class _Candidate:
    name: str
    files: list[Path]


def _candidates() -> Iterator[_Candidate]:
    path = os.environ.get(VARIABLE)
    if path:
        yield _Candidate(Path(path).name, _beside(Path(path)))
    for package, distribution in (("llama_cpp", "llama-cpp-python"), ("xllamacpp", "xllamacpp")):
        # Looked up and not imported: an import would start more than is needed.
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        folder = Path(spec.origin).parent
        files = [*folder.glob("lib/libggml.so"), *folder.glob("xllamacpp*.so")]
        if files:
            yield _Candidate(f"{distribution} {_version(distribution)}", _beside(files[0]))


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:  # a source tree on the path
        return "of an unknown version"


def _beside(path: Path) -> list[Path]:
    """Returns the library, and those of its folder that hold the rest of ggml."""
    others = (path.with_name(f"libggml-{part}.so") for part in ("base", "cpu"))
    return [path, *(other for other in others if other.is_file())]
