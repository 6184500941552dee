# SPDX-License-Identifier: Apache-2.0
"""The operations of the ggml backend on encrypted weights, against NumPy on what gguf's Python
package makes of the same blocks."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from ggml_graphs import FAILED, SUCCESS, Backend, graph

gguf = pytest.importorskip("gguf")

KINDS = "f32 f16 bf16 q4_0 q4_1 q5_0 q5_1 q8_0 q2_k q3_k q4_k q5_k q6_k iq4_nl iq4_xs mxfp4".split()
OUT, IN = 72, 512


@pytest.fixture(scope="module")
def backend() -> Backend:
    return Backend()


@pytest.fixture(params=["pyccmem", "ggml"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose products are used for formats that both have."""
    monkeypatch.setenv("PYCCMEM_GGML_PRODUCTS", request.param)


def random(*shape: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def blocks(backend: Backend, kind: str, array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns a float32 array as the type's blocks, and what they mean, in float64."""
    rows = array.reshape(-1, array.shape[-1])
    number = backend.number(kind)
    size = backend.ggml_row_size(number, rows.shape[1])
    data = np.empty((len(rows), size), np.uint8)
    done = backend.ggml_quantize_chunk(
        number, rows.ctypes.data, data.ctypes.data, 0, *rows.shape, None
    )
    assert done == data.nbytes
    meant = gguf.dequantize(data, gguf.GGMLQuantizationType(number))
    return data, meant.reshape(array.shape).astype(np.float64)


def close(got: np.ndarray, expected: np.ndarray, x: np.ndarray, w: np.ndarray) -> None:
    """Checks a product: at most 2 % of the lengths of the rows that are multiplied, for x in 8
    bits a block."""
    lengths = np.linalg.norm(x, axis=-1)[..., None] * np.linalg.norm(w, axis=-1)[..., None, :]
    assert (np.abs(got - expected) <= 0.02 * lengths).all()
    assert np.linalg.norm(expected) > 0.1 * np.linalg.norm(lengths) / np.sqrt(x.shape[-1])


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 5, 70])
def test_products(backend: Backend, kind: str, rows: int) -> None:
    data, w = blocks(backend, kind, random(OUT, IN))
    x = random(rows, IN, seed=4)
    with graph(backend) as g:
        status, y = g.run(
            "ggml_mul_mat", g.weights(kind, (OUT, IN), data), g.plain(x), shape=(rows, OUT)
        )
    assert status == SUCCESS
    close(y, x @ w.T, x, w)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("kind", ["q8_0", "q4_k", "iq4_nl", "bf16"])
@pytest.mark.parametrize("shape", [(1, 32 * 8), (3, 2**17), (7, 4864), (501, 768)])
def test_shapes(backend: Backend, kind: str, shape: tuple[int, int]) -> None:
    data, w = blocks(backend, kind, random(*shape))
    x = random(2, shape[1], seed=4)
    for rows in (1, 2):
        with graph(backend) as g:
            tensors = g.weights(kind, shape, data), g.plain(x[:rows])
            status, y = g.run("ggml_mul_mat", *tensors, shape=(rows, shape[0]))
        assert status == SUCCESS
        close(y, x[:rows] @ w.T, x[:rows], w)


def test_matrices_are_repeated_over_those_of_x(backend: Backend) -> None:
    data, w = blocks(backend, "q8_0", random(2, OUT, 64))
    x = random(3, 4, 5, 64, seed=4)
    with graph(backend) as g:
        status, y = g.run(
            "ggml_mul_mat", g.weights("q8_0", (2, OUT, 64), data), g.plain(x), shape=(3, 4, 5, OUT)
        )
    assert status == SUCCESS
    w = np.repeat(w, 2, axis=0)
    close(y, x @ w.transpose(0, 2, 1), x, w)


@pytest.mark.parametrize("slots_of_x", [1, 2])
@pytest.mark.parametrize("kind", ["q4_k", "f32"])
def test_experts(backend: Backend, kind: str, slots_of_x: int) -> None:
    data, w = blocks(backend, kind, random(6, OUT, 256))
    x = random(9, slots_of_x, 256, seed=4)
    ids = np.random.default_rng(5).integers(0, 6, (9, 2)).astype(np.int32)
    with graph(backend) as g:
        tensors = g.weights(kind, w.shape, data), g.plain(x), g.plain(ids)
        status, y = g.run("ggml_mul_mat_id", *tensors, shape=(9, 2, OUT))
    assert status == SUCCESS
    for token in range(9):
        for slot in range(2):
            given, chosen = x[token, slot % slots_of_x], w[ids[token, slot]]
            close(y[None, token, slot], given @ chosen.T, given[None], chosen)


def test_an_index_of_no_expert_fails(backend: Backend) -> None:
    data, w = blocks(backend, "q8_0", random(3, OUT, 64))
    for wrong in (3, -1, 2**31 - 1):
        ids = np.array([[0, wrong]], np.int32)
        with graph(backend) as g:
            tensors = g.weights("q8_0", w.shape, data), g.plain(random(1, 2, 64)), g.plain(ids)
            status, y = g.run("ggml_mul_mat_id", *tensors, shape=(1, 2, OUT))
        assert status == FAILED and not y.any()


@pytest.mark.parametrize("kind", KINDS)
def test_rows(backend: Backend, kind: str) -> None:
    data, w = blocks(backend, kind, random(OUT, IN))
    ids = np.array([0, OUT - 1, 7, 7], np.int32)
    with graph(backend) as g:
        tensors = g.weights(kind, w.shape, data), g.plain(ids)
        status, y = g.run("ggml_get_rows", *tensors, shape=(4, IN))
    assert status == SUCCESS
    assert np.array_equal(y, w[ids])


@pytest.mark.parametrize("wrong", [OUT, -1, 2**31 - 1, -(2**31)])
def test_a_row_that_is_not_there_fails(backend: Backend, wrong: int) -> None:
    data, w = blocks(backend, "q8_0", random(OUT, IN))
    with graph(backend) as g:
        tensors = g.weights("q8_0", w.shape, data), g.plain(np.array([1, wrong], np.int32))
        status, y = g.run("ggml_get_rows", *tensors, shape=(2, IN))
    assert status == FAILED and not y.any()


@pytest.mark.parametrize("shape", [(IN,), (4, IN), (3, 1, IN)])
def test_norms_and_biases(backend: Backend, shape: tuple[int, ...]) -> None:
    w, a = random(*shape), random(3, 4, IN, seed=4)
    with graph(backend) as g:
        weights = g.weights("f32", shape, w)
        status, y = g.run("ggml_mul", g.plain(a), weights, shape=a.shape)
        assert status == SUCCESS and np.array_equal(y, a * w)
        status, y = g.run("ggml_add", g.plain(a), weights, shape=a.shape)
        assert status == SUCCESS and np.array_equal(y, a + w)


def test_biases_of_experts(backend: Backend) -> None:
    w, a = random(6, IN), random(5, 2, IN, seed=4)
    ids = np.random.default_rng(5).integers(0, 6, (5, 2)).astype(np.int32)
    with graph(backend) as g:
        tensors = g.plain(a), g.weights("f32", w.shape, w), g.plain(ids)
        status, y = g.run("ggml_add_id", *tensors, shape=a.shape)
    assert status == SUCCESS and np.array_equal(y, a + w[ids])


def test_other_operations_are_left_to_others(backend: Backend) -> None:
    with graph(backend) as g:
        w, a = g.weights("f32", (IN,), random(IN)), g.plain(random(3, IN))
        assert g.supports("ggml_mul", a, w)
        assert not g.supports("ggml_sub", a, w)
        assert not g.supports("ggml_mul", a, a)
        assert not g.supports("ggml_mul", w, w)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("kind", ["f32", "q8_0", "q4_k"])
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_changed_page_fails(backend: Backend, kind: str, rows: int, threads: int) -> None:
    data, w = blocks(backend, kind, random(OUT, IN))
    x = random(rows, IN, seed=4)
    with graph(backend, threads) as g:
        tensors = g.weights(kind, w.shape, data), g.plain(x)
        ciphertext = backend.ciphertext("w")
        assert data.tobytes()[:64] not in ciphertext.tobytes()
        for place in (0, data.nbytes // 2, data.nbytes - 1):
            ciphertext[place] ^= 1
            status, y = g.run("ggml_mul_mat", *tensors, shape=(rows, OUT))
            assert status == FAILED and not y.any()
            ciphertext[place] ^= 1
        status, y = g.run("ggml_mul_mat", *tensors, shape=(rows, OUT))
        assert status == SUCCESS
        close(y, x @ w.T, x, w)


def test_what_was_never_written_fails(backend: Backend) -> None:
    with graph(backend) as g:
        tensors = g.weights("q8_0", (OUT, IN), None), g.plain(random(1, IN))
        status, y = g.run("ggml_mul_mat", *tensors, shape=(1, OUT))
    assert status == FAILED and not y.any()


def test_writes_in_parts(backend: Backend) -> None:
    first, second = random(40, IN), random(40, IN, seed=8)
    with graph(backend) as g:
        for begin in (first, None):
            w = g.weights("f32", first.shape, begin)
            holds = np.zeros_like(first) if begin is None else first.copy()
            part = second[3:9]
            backend.ggml_backend_tensor_set(w, part.ctypes.data, 3 * IN * 4, part.nbytes)
            backend.ggml_backend_tensor_memset(w, 0, 5 * IN * 4, 7000)
            holds[3:9] = part
            holds.reshape(-1)[5 * IN : 5 * IN + 1750] = 0
            out = np.empty_like(holds)
            backend.ggml_backend_tensor_get(w, out.ctypes.data, 0, out.nbytes)
            assert np.array_equal(out, holds)
            backend.ggml_backend_tensor_set(w, second.ctypes.data, 0, second.nbytes)
            backend.ggml_backend_tensor_get(w, out.ctypes.data, 0, out.nbytes)
            assert np.array_equal(out, second)


def test_a_changed_page_reads_as_zeros(backend: Backend) -> None:
    data = random(40, IN)
    with graph(backend) as g:
        w = g.weights("f32", data.shape, data)
        backend.ciphertext("w")[9000] ^= 1
        out = np.full_like(data, 7)
        backend.ggml_backend_tensor_get(w, out.ctypes.data, 0, out.nbytes)
    assert not out.any()


def test_no_data_lies_at_a_tensors_address(backend: Backend) -> None:
    ggml_get_data = backend._find("ggml_get_data")
    ggml_get_data.restype, ggml_get_data.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    with graph(backend) as g:
        address = ggml_get_data(g.weights("f32", (IN,), random(IN)))
        with open("/proc/self/maps", encoding="ascii") as maps:
            lines = [line.split() for line in maps]
    spans = [([int(end, 16) for end in line[0].split("-")], line[1]) for line in lines]
    assert [rights for (low, high), rights in spans if low <= address < high] == ["---p"]


def test_memory_is_given_back(backend: Backend) -> None:
    def mappings() -> int:
        with open("/proc/self/maps", encoding="ascii") as maps:
            return len(maps.readlines())

    def once() -> None:
        with graph(backend) as g:
            tensors = g.weights("f32", (OUT, IN), random(OUT, IN)), g.plain(random(1, IN))
            g.run("ggml_mul_mat", *tensors, shape=(1, OUT))

    once()
    before = mappings()
    for _ in range(20):
        once()
    assert mappings() <= before + 3
