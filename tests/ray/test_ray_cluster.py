# SPDX-License-Identifier: Apache-2.0
"""Encrypted tensors in a Ray cluster of two nodes: in tasks, actors and the object stores, where
nothing of them is in the clear, nor where Ray spills them; keys, errors, nodes that end."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs ray: make test-ray", allow_module_level=True)

import ray
import ray_support
from ray_support import MIB, STORE, Nodes, found_in_files, found_in_stores, samples

import pyccmem
import pyccmem.ray
import pyccmem.safetensors as st
from pyccmem import EncryptedTensor, Key, errors
from pyccmem.ray import put, seal, seal_file

ON = [{"resources": {f"node{at}": 1}, "num_cpus": 0} for at in (0, 1)]
OTHER = ON[1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    path = tmp_path_factory.mktemp("keys") / "key"
    path.write_bytes(os.urandom(32))
    path.chmod(0o600)
    hook = {"worker_process_setup_hook": "pyccmem.ray.register"}
    with ray_support.nodes(key_file=path, runtime_env=hook) as nodes:
        pyccmem.ray.forget_keys()
        pyccmem.ray.use_key(Key.from_file(path))
        pyccmem.ray.register()
        yield nodes
    pyccmem.ray.forget_keys()


@pytest.fixture
def own(cluster: Nodes) -> Key:
    return Key.from_file(os.environ["PYCCMEM_KEY_FILE"])


def plain(rows: int = 1024, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((rows, 1024)).astype(np.float32)


def digest(tensor: Any) -> str:
    made = hashlib.sha256()
    for block in tensor.blocks() if isinstance(tensor, EncryptedTensor) else [tensor]:
        made.update(np.ascontiguousarray(block).data)
    return made.hexdigest()


@ray.remote
def told(tensor: Any) -> tuple[Any, ...]:
    """What a worker sees of its argument: where, what, its digest, and whether its pages lie in the
    object store."""
    pages = np.frombuffer(tensor.buffer.ciphertext, np.uint8).ctypes.data
    inside = any(begin <= pages < end for begin, end in ray_support._stores())
    node = ray.get_runtime_context().get_node_id()
    return node, type(tensor).__name__, digest(tensor), inside, tensor.writable


@ray.remote
def looked_for(wanted: list[str]) -> tuple[int, int]:
    return found_in_stores([bytes.fromhex(sample) for sample in wanted])


def everywhere(wanted: list[bytes]) -> list[tuple[int, int]]:
    """found_in_stores() on each node. The samples go as text: the search must not find itself."""
    texts = [sample.hex() for sample in wanted]
    return ray.get([looked_for.options(**on).remote(texts) for on in ON])


def test_one_tensor_on_both_nodes(own: Key) -> None:
    """The same bytes, over shared memory, with a key that each process has by itself."""
    array = plain()
    tensor = EncryptedTensor.from_numpy(array, key=own)
    reference = put(tensor)
    here = ray.get(reference)
    assert digest(here) == digest(array)
    seen = ray.get([told.options(**on).remote(reference) for on in ON])
    assert len({node for node, *_ in seen}) == 2
    for _, *rest in seen:
        assert rest == ["EncryptedTensor", digest(array), True, False]
    # By themselves, registered here and in the workers: as an argument, and inside a list.
    assert ray.get(told.options(**OTHER).remote(tensor))[2] == digest(array)

    @ray.remote(**OTHER)
    def doubled(given: list[Any]) -> Any:
        return [EncryptedTensor.from_numpy(given[0][...] * 2, key=Key.generate()), given[0]]

    two, one = ray.get(doubled.remote([tensor]))
    assert np.array_equal(two[...], array * 2) and digest(one) == digest(array)


def test_nothing_in_the_clear_in_the_object_stores(own: Key) -> None:
    array, twin = plain(seed=1), plain(seed=2)
    wanted, twins = samples(array), samples(twin)

    @ray.remote(**OTHER)
    def through(tensor: Any, sealed: Any) -> Any:
        assert np.array_equal(tensor[...], sealed)
        return seal({"result": tensor[...] + 0})

    kept = [put(EncryptedTensor.from_numpy(array, key=own)), put({"plain": array})]
    result = through.remote(kept[0], put(array))
    assert np.array_equal(ray.get(result)["result"], array)
    control = [ray.put(twin)]
    ray.get(told_plain.options(**OTHER).remote(control[0]))
    for found, looked in everywhere(wanted):
        assert found == 0 and looked > 4 * MIB
    assert [found for found, _ in everywhere(twins)] == [len(twins)] * 2, "the plain twin"


@ray.remote
def told_plain(array: Any) -> int:
    return int(array.nbytes)


def test_nothing_in_the_clear_where_ray_spills(cluster: Nodes, own: Key) -> None:
    """More than the object store holds: Ray writes objects to disk, and reads them again."""
    size = STORE // 6
    rows = size // 4096
    arrays = [plain(rows, seed) for seed in range(10, 16)]
    kept = [put(EncryptedTensor.from_numpy(array, key=own)) for array in arrays]
    twin = plain(rows, 99)
    kept_plain = [ray.put(twin + at) for at in range(3)]
    del twin
    wanted = [sample for array in arrays for sample in samples(array, 8)]
    found, looked = found_in_files(cluster.spill, wanted)
    assert looked >= size and found == 0
    twins = [sample for at in range(3) for sample in samples(plain(rows, 99) + at, 8)]
    assert found_in_files(cluster.spill, twins)[0] + found_in_stores(twins)[0] >= len(twins)
    for array, reference in zip(arrays, kept, strict=True):
        assert digest(ray.get(reference)) == digest(array), "read from the disk again"
    del kept_plain


def test_processes_without_the_key(own: Key, tmp_path: Path) -> None:
    reference = put(EncryptedTensor.from_numpy(np.arange(5.0), key=own))
    other = tmp_path / "other"
    other.write_bytes(os.urandom(32))
    other.chmod(0o600)
    for path in ("", str(other)):

        @ray.remote(runtime_env={"env_vars": {"PYCCMEM_KEY_FILE": path}}, **OTHER)
        def late(given: Any) -> str:
            try:
                ray.get(given[0])
            except Exception as error:
                return f"{type(error).__name__}: {error}"
            return "opened"

        said = ray.get(late.remote([reference]))
        assert "InvalidKeyError" in said and own.id in said and "Keys do not travel" in said


def test_errors_come_as_they_are(own: Key, tmp_path: Path) -> None:
    st.save_file({"weight": plain(8)}, tmp_path / "file", key=own)

    @ray.remote(num_cpus=0)
    def damaged(given: list[Any]) -> Any:
        tensor = given[0]
        data = bytearray(seal(tensor).ciphertext)
        data[8192] ^= 1
        return st.load(data, key=pyccmem.ray.keys.sealing_key(None)[0])[0][...]

    @ray.remote(num_cpus=0)
    def failing(name: str) -> None:
        kind = getattr(errors, name)
        if issubclass(kind, OSError):
            raise kind("a sentence.").of_system(13, "/a/file")
        raise kind("a sentence.")

    @ray.remote(num_cpus=0)
    def nested(name: str) -> None:
        ray.get(failing.remote(name))

    kinds = [name for name in errors.__all__ if issubclass(getattr(errors, name), Exception)]
    sent = {name: failing.remote(name) for name in kinds}
    for name, reference in sent.items():
        with pytest.raises(getattr(errors, name), match="a sentence"):
            ray.get(reference)
    for name in ("IntegrityError", "MissingKeyFileError", "InvalidKeyError"):
        with pytest.raises(ray.exceptions.RayTaskError) as caught:
            ray.get(nested.remote(name))
        assert isinstance(caught.value, getattr(errors, name))


def test_changed_in_the_object_store(own: Key) -> None:
    """Ray maps its object store writable in every process: whoever writes there is noticed."""
    array = plain(64)
    reference = put(EncryptedTensor.from_numpy(array, key=own))
    tensor = ray.get(reference)
    place = np.frombuffer(tensor.buffer.ciphertext, np.uint8).ctypes.data
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        for again in (0, 1):
            memory.seek(place + 4096 * 3)
            byte = memory.read(1)[0]
            memory.seek(place + 4096 * 3)
            memory.write(bytes([byte ^ 1]))
            if not again:
                with pytest.raises(errors.IntegrityError):
                    tensor[...]
                with pytest.raises(errors.IntegrityError):
                    ray.get(told.remote(reference))
    assert digest(tensor) == digest(array)


def test_actors_files_and_models(own: Key, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the [torch] extra")
    import pyccmem.torch

    model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.Linear(256, 8)).eval()
    weights = samples(model[0].weight.detach().numpy())
    x = torch.randn(4, 256)
    pyccmem.torch.encrypt_module(model, key=own)
    with torch.inference_mode():
        wanted = model(x)

    @ray.remote(**OTHER)
    class Worker:
        def __init__(self, model: Any) -> None:
            self.model = model

        def answer(self, x: Any) -> Any:
            with torch.inference_mode():
                return seal(self.model(x))

        def rows(self, tensors: dict[str, Any], model: Any) -> Any:
            return seal([tensors["w"][3], model.tensors()["w"][3]])

    worker = Worker.remote(put(model))
    assert torch.equal(ray.get(worker.answer.remote(put(x))), wanted)
    assert [found for found, _ in everywhere(weights)] == [0, 0]
    array = plain(16)
    pin = st.save_file({"w": array}, tmp_path / "file", key=own)
    handle = pyccmem.ray.SealedModel(str(tmp_path / "file"), pin)
    shipped = ray.put(seal_file(tmp_path / "file", expect=pin))
    for row in ray.get(worker.rows.remote(shipped, handle)):
        assert np.array_equal(row, array[3])


def test_tensors_outlive_references_and_nodes(cluster: Nodes, own: Key) -> None:
    """What get() gave stays readable: the tensor keeps the object. A node that ends takes with it
    what was put there alone; what is opened from files comes back on any node."""
    array = plain(64)
    tensor = ray.get(put(EncryptedTensor.from_numpy(array, key=own)))
    for at in range(8):  # others want the room
        ray.put(np.full(STORE // 8, at, np.uint8))
    assert digest(tensor) == digest(array)
    third = cluster.add(resources={"node2": 10})

    @ray.remote(resources={"node2": 1}, num_cpus=0, max_retries=0)
    def made() -> list[Any]:
        return [ray.put(seal(plain(64)))]

    [reference] = ray.get(made.remote())
    cluster.cluster.remove_node(third, allow_graceful=False)
    with pytest.raises(ray.exceptions.RayError):
        ray.get(reference, timeout=60)
    assert digest(tensor) == digest(array)
