# SPDX-License-Identifier: Apache-2.0
"""What pyccmem.ray makes of objects, without a cluster: pickled here, unpickled here or elsewhere.
Everything comes back, nothing of it is in what travels, keys stay where they are."""

from __future__ import annotations

import importlib.util
import pickle
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs ray: make test-ray", allow_module_level=True)

import ray_support
from ray_support import samples
from support import PAGE_SIZES, child_environment, in_forked_child

import pyccmem
import pyccmem.ray
import pyccmem.safetensors as st
from pyccmem import EncryptedBuffer, EncryptedTensor, Key, errors
from pyccmem.key_services import WrappedKey
from pyccmem.ray import keys as ray_keys
from pyccmem.ray import seal, seal_file

RNG = np.random.default_rng(11)


@pytest.fixture(autouse=True)
def _keys(key: Key, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ray_keys.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    pyccmem.ray.forget_keys()
    pyccmem.ray.use_key(key)
    yield
    pyccmem.ray.forget_keys()


def sent(value: Any, protocol: int = 5) -> tuple[bytes, list[Any]]:
    """What pickle writes, as Ray calls it: in band, and beside it."""
    beside: list[Any] = []
    if protocol < 5:
        return pickle.dumps(value, protocol), beside
    return pickle.dumps(value, 5, buffer_callback=beside.append), beside


def there_and_back(value: Any, protocol: int = 5, **options: Any) -> Any:
    data, beside = sent(seal(value, **options), protocol)
    return pickle.loads(data, buffers=beside)


# ---- everything comes back --------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_tensors_and_what_is_around_them(key: Key, protocol: int, page_size: int) -> None:
    plain = RNG.standard_normal((90, 256)).astype(np.float32)
    tensor = EncryptedTensor.from_numpy(plain, key=key, name="encoder.weight")
    blocks = EncryptedTensor.from_numpy(plain, dtype="q4_k", key=key)
    rows = EncryptedTensor.from_numpy(plain, dtype="int8_row", key=key)
    value = {
        "tensor": tensor,
        "again": [tensor],
        "reshaped": tensor.reshape(-1, 2),
        "xts": EncryptedTensor.from_numpy(plain, key=key, cipher="aes-256-xts"),
        "blocks": blocks,
        "rows": rows,
        "buffer": EncryptedBuffer.from_data(b"bytes" * 999, key=key),
        "empty": EncryptedTensor.zeros((0, 3), np.float64, key=key),
        "scalar": EncryptedTensor.from_numpy(np.float64(2.5), key=key),
        "array": plain,
        "text": "a text",
        "function": lambda x: x + 1,
    }
    found = there_and_back(value, protocol, page_size=page_size)
    assert list(found) == list(value)
    for name in ("tensor", "xts", "array"):
        assert np.array_equal(np.asarray(found[name]), plain)
    assert found["again"][0] is found["tensor"] and "encoder.weight" in repr(found["tensor"])
    assert np.array_equal(found["reshaped"][...], plain.reshape(-1, 2))
    for name, made in (("blocks", blocks), ("rows", rows)):
        assert np.array_equal(found[name][...], made[...]) and found[name].format is made.format
    assert found["buffer"].read() == b"bytes" * 999
    assert found["empty"].shape == (0, 3) and found["scalar"][...] == 2.5
    assert found["text"] == "a text" and found["function"](1) == 2
    assert found["tensor"].page_size == page_size and found["xts"].authenticated
    assert not found["tensor"].writable and found["array"].flags.writeable
    with pytest.raises(errors.ReadOnlyError):
        found["tensor"][0] = 0
    mine = found["tensor"].copy(key=key)
    mine[0] = 1
    assert there_and_back(found["tensor"]).name == found["tensor"].name, "and once more"


def test_a_snapshot(key: Key) -> None:
    """What is written after seal() is not in it, and no two have a page in common."""
    tensor = EncryptedTensor.from_numpy(np.arange(4096.0), key=key)
    first, second = seal(tensor), seal(tensor)
    tensor[0] = -1.0
    assert first.open()[0] == 0.0 and seal(tensor).open()[0] == -1.0
    pages = [
        {bytes(made.ciphertext[at : at + 64]) for at in range(4096, made.nbytes - 64, 4096)}
        for made in (first, second)
    ]
    assert len(pages[0]) > 7 and not pages[0] & pages[1]


def test_models(key: Key) -> None:
    torch = pytest.importorskip("torch", reason="needs the [torch] extra")
    import pyccmem.torch

    torch.manual_seed(0)
    layer = torch.nn.Linear
    model = torch.nn.Sequential(layer(64, 64), torch.nn.BatchNorm1d(64), layer(64, 64)).eval()
    model[2].weight = model[0].weight
    x = torch.randn(5, 64)
    wanted = model(x)
    plain_weights = samples(model[0].weight.detach().numpy())
    for quantize in (None, "q8_0"):
        twin = pickle.loads(pickle.dumps(model))
        pyccmem.torch.encrypt_module(twin, key=key, quantize=quantize)
        made = seal(twin)
        assert not any(sample in bytes(made.ciphertext) for sample in plain_weights)
        found = made.open()
        assert pyccmem.torch.plain_tensors(found) == []
        assert torch.equal(found(x), twin(x))
        assert found[2].weight is found[0].weight
        assert isinstance(found[0].bias, torch.nn.Parameter)
    assert torch.allclose(found(x), wanted, atol=0.1)
    weight = pyccmem.torch.EncryptedTensor.from_tensor(torch.randn(6, 8), key=key)
    half = pyccmem.torch.EncryptedTensor.from_tensor(
        torch.randn(3, 4).to(torch.bfloat16), key=key, activations="wiped"
    )
    value = {"t": weight.t(), "part": weight[2:5], "half": half, "plain": torch.ones(3)}
    found = seal(value).open()
    assert torch.equal(found["t"].decrypt(), weight.decrypt().t())
    assert torch.equal(found["part"].decrypt(), weight.decrypt()[2:5])
    assert torch.equal(found["half"].decrypt(), half.decrypt())
    assert found["half"].activations == "wiped"
    assert torch.equal(found["plain"], torch.ones(3)) and type(found["plain"]) is torch.Tensor


def test_files_as_they_are(key: Key, tmp_path: Path) -> None:
    """Without a key; and what comes is the file that was pinned."""
    plain = RNG.standard_normal((40, 70)).astype(np.float32)
    path = tmp_path / "weights"
    pin = st.save_file({"w": plain}, path, key=key)
    pyccmem.ray.forget_keys()
    made = seal_file(path, expect=pin)
    assert made.pin == pin and bytes(made.ciphertext) == path.read_bytes()
    data, beside = sent(made)
    with pytest.raises(errors.InvalidKeyError, match=f"{key.id}.*no key"):
        pickle.loads(data, buffers=beside)
    pyccmem.ray.use_key(key)
    found = pickle.loads(data, buffers=beside)
    assert np.array_equal(found["w"][...], plain)
    torch = pytest.importorskip("torch", reason="needs the [torch] extra")
    assert torch.equal(seal_file(path, framework="pt").open()["w"].decrypt(), torch.tensor(plain))
    st.save_file({"w": plain}, path, key=key)
    with pytest.raises(errors.IntegrityError, match="pinned"):
        seal_file(path, expect=f"{pin[:33]}7")
    other, _ = sent(seal_file(path))
    with pytest.raises(errors.IntegrityError, match="another file"):
        pickle.loads(data, buffers=[pickle.PickleBuffer(path.read_bytes())])
    assert other != data
    (tmp_path / "plain").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(errors.FileFormatError, match="not a sealed file"):
        seal_file(tmp_path / "plain")
    with pytest.raises(errors.MissingFileError):
        seal_file(tmp_path / "none")


# ---- what travels -----------------------------------------------------------------------------


def test_nothing_of_it_is_in_what_travels(key: Key, tmp_path: Path) -> None:
    plain = RNG.standard_normal((200, 100))
    value = {
        "secret name": EncryptedTensor.from_numpy(plain, key=key, name="secret name"),
        "array": plain,
        "text": "a secret text of some length",
    }
    wanted = [*samples(plain), b"secret name", b"a secret text", b"numpy"]
    control = pickle.dumps({**value, "secret name": plain})
    assert all(sample in control for sample in wanted), "the plain twin is found out"
    data, beside = sent(seal(value))
    travels = data + b"".join(bytes(part.raw()) for part in beside)
    assert not [sample for sample in wanted if sample in travels]
    raw = tmp_path / "key"
    raw.write_bytes(bytes(range(32)))
    raw.chmod(0o600)
    own = Key.from_file(raw)
    data, beside = sent(seal(value, key=own))
    assert bytes(range(32)) not in data + bytes(beside[0].raw())
    assert len(beside) == 1 and len(data) < 1000, "one buffer, out of band"


def test_no_copy_on_the_readers_side(key: Key) -> None:
    """Tensors lie over the memory that came; what is not aligned is copied, and reads as well."""
    plain = RNG.standard_normal(100_000)
    data, beside = sent(seal(EncryptedTensor.from_numpy(plain, key=key)))
    room = np.zeros(beside[0].raw().nbytes + 128, np.uint8)
    at = -room.ctypes.data % 64
    for skip in (0, 1):
        place = room[at + skip : at + skip + beside[0].raw().nbytes]
        place[:] = np.frombuffer(beside[0].raw(), np.uint8)
        before = place.tobytes()
        place.flags.writeable = False  # as Ray gives it
        found = pickle.loads(data, buffers=[place])
        pages = np.frombuffer(found.buffer.ciphertext, np.uint8).ctypes.data
        inside = place.ctypes.data <= pages < place.ctypes.data + len(place)
        assert inside is (skip == 0)
        assert np.array_equal(found[...], plain) and place.tobytes() == before


def test_every_change_is_noticed(key: Key) -> None:
    plain = RNG.standard_normal(3000)
    data, beside = sent(seal([EncryptedTensor.from_numpy(plain, key=key), "text", plain]))
    good = bytearray(beside[0].raw())
    seed = random.Random(2)
    for _ in range(150):
        at, bit = seed.randrange(len(good)), 1 << seed.randrange(8)
        good[at] ^= bit
        with pytest.raises((errors.IntegrityError, errors.FileFormatError, errors.InvalidKeyError)):
            found = pickle.loads(data, buffers=[good])
            found[0][...]
        good[at] ^= bit
    assert np.array_equal(pickle.loads(data, buffers=[good])[0][...], plain)


# ---- keys -------------------------------------------------------------------------------------


def test_what_stays(key: Key) -> None:
    """Pickle goes on refusing; keys and caches do not travel in anything."""
    tensor = EncryptedTensor.from_numpy(np.zeros(3), key=key)
    for value in (tensor, key, tensor.buffer):
        with pytest.raises(errors.NotPicklableError):
            pickle.dumps(value)
    for value in (key, [key], {"deep": [tensor, key]}):
        with pytest.raises(errors.NotPicklableError):
            seal(value)
    with pytest.raises(errors.ArgumentTypeError, match="from_passphrase"):
        pyccmem.ray.use_key(st.Passphrase("words"))  # type: ignore[arg-type]
    for wrong in (b"k" * 32, 7, Key):
        with pytest.raises(errors.ArgumentTypeError):
            pyccmem.ray.use_key(wrong)  # type: ignore[arg-type]
    tensor.close()
    with pytest.raises(errors.ClosedError):
        seal(tensor)


def test_where_a_process_has_its_key_from(
    key: Key, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key file"
    path.write_bytes(bytes(range(100, 132)))
    path.chmod(0o600)
    mine = Key.from_file(path)
    made = seal(np.arange(5), key=mine)
    with pytest.raises(errors.InvalidKeyError, match=f"{mine.id}.*{key.id}"):
        made.open()
    pyccmem.ray.use_key(mine)
    monkeypatch.setenv("PYCCMEM_KEY_FILE", str(path))
    with pytest.raises(errors.InvalidKeyError) as caught:  # a key that it has twice is told once
        seal([1], key=Key.generate()).open()
    assert str(caught.value).count(mine.id) == 1
    pyccmem.ray.forget_keys()
    pyccmem.ray.use_key(key)
    assert made.open().sum() == 10
    pyccmem.ray.forget_keys()
    assert seal([1]).open() == [1], "the environment's key"
    monkeypatch.delenv("PYCCMEM_KEY_FILE")
    with pytest.raises(errors.InvalidKeyError, match="PYCCMEM_KEY"):
        seal([1])
    monkeypatch.setenv("PYCCMEM_KEY", f"file:{path}")
    assert made.open().sum() == 10
    monkeypatch.setenv("PYCCMEM_KEY", f"file:{path}x")
    with pytest.raises(errors.MissingKeyFileError):
        made.open()
    monkeypatch.setenv("PYCCMEM_KEY", "")
    pyccmem.ray.use_key(f"file:{path}")
    pyccmem.ray.use_key(key)
    assert made.open().sum() == 10 and seal([1]).open() == [1], "several keys at once"
    read = [ray_keys.sealing_key(f"file:{path}")[0] for _ in range(2)]
    assert read[0] is read[1] and seal([2], key=f"file:{path}").open() == [2]


class Service:
    """A key service that counts."""

    name = "counting"

    def __init__(self) -> None:
        self.secret, self.asked = bytes(range(32)), 0

    def wrap_key(self, key: memoryview, context: Any) -> WrappedKey:
        self.asked += 1
        assert context["pyccmem.purpose"] == "ray-session"
        return WrappedKey("its-key", bytes(a ^ b for a, b in zip(key, self.secret, strict=True)))

    def unwrap_key(self, wrapped: WrappedKey, context: Any) -> bytearray:
        self.asked += 1
        return bytearray(a ^ b for a, b in zip(wrapped.blob, self.secret, strict=True))


def test_a_key_service_is_asked_once_by_each_process() -> None:
    pyccmem.ray.forget_keys()
    sender, receiver = Service(), Service()
    pyccmem.ray.use_key(sender)
    made = [sent(seal([at])) for at in range(20)]
    assert sender.asked == 1
    assert pickle.loads(made[3][0], buffers=made[3][1]) == [3] and sender.asked == 1
    pyccmem.ray.forget_keys()
    pyccmem.ray.use_key(receiver)
    assert [pickle.loads(a, buffers=b) for a, b in made] == [[at] for at in range(20)]
    assert receiver.asked == 1
    pyccmem.ray.forget_keys()
    with pytest.raises(errors.InvalidKeyError, match="counting"):
        pickle.loads(made[0][0], buffers=made[0][1])


def test_a_forked_child_has_sessions_of_its_own() -> None:
    pyccmem.ray.forget_keys()
    service = Service()
    pyccmem.ray.use_key(service)
    made = seal([1])

    def child() -> None:
        assert made.open() == [1] and seal([2]).open() == [2]
        assert service.asked == 3, "unwrapped for the first, wrapped for the second"

    in_forked_child(child)
    assert service.asked == 1


def test_another_process(key: Key, tmp_path: Path) -> None:
    """Which imports nothing of pyccmem by itself, and names its key by the environment alone."""
    path = tmp_path / "key"
    path.write_bytes(bytes(range(32)))
    path.chmod(0o600)
    tensor = EncryptedTensor.from_numpy(np.arange(1000.0), key=key)
    (tmp_path / "data").write_bytes(pickle.dumps(seal(tensor, key=Key.from_file(path))))
    script = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb'))[999])"
    for variables, wanted in (
        ({"PYCCMEM_KEY_FILE": str(path)}, "999.0"),
        ({"PYCCMEM_KEY": f"file:{path}"}, "999.0"),
        ({}, "InvalidKeyError"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "data")],
            env=child_environment(**{"PYCCMEM_KEY_FILE": None, "PYCCMEM_KEY": None, **variables}),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert wanted in done.stdout + done.stderr, done.stderr


# ---- models by their paths --------------------------------------------------------------------


def test_models_by_path_and_pin(key: Key, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the [transformers] extra")
    from pyccmem.directories import directory_pin, encrypt_directory

    folder, sealed = tmp_path / "plain", tmp_path / "sealed"
    folder.mkdir()
    plain = RNG.standard_normal((9, 9))
    import safetensors.numpy

    safetensors.numpy.save_file({"w": plain}, folder / "model.safetensors")
    pins = encrypt_directory(folder, sealed, key=key)
    model = pickle.loads(pickle.dumps(pyccmem.ray.SealedModel(str(sealed), pins)))
    asked: list[str] = []

    def loader(path: str, **_: Any) -> Any:
        from pyccmem.transformers.keys import find_key

        asked.append(path)
        return st.load_file(Path(path) / "model.safetensors", key=find_key(what="a test"))

    first = model.load(loader)
    assert np.array_equal(first["w"][...], plain)
    assert model.load(loader) is first and asked == [str(sealed)], "kept"
    assert model.load(loader, way=2) is not first
    file = pyccmem.ray.SealedModel(sealed / "model.safetensors", pins["model.safetensors"])
    assert np.array_equal(file.tensors()["w"][...], plain)
    pinned = pyccmem.ray.SealedModel(str(sealed), directory_pin(pins))
    assert np.array_equal(pinned.load(loader)["w"][...], plain)
    with pytest.raises(errors.IntegrityError, match="state that was expected"):
        pyccmem.ray.SealedModel(str(sealed), f"dir:{'0' * 64}").load(loader)
    wrong = {"model.safetensors": "0" * 32 + ":1"}
    for expect, error in (
        (wrong, "another file"),
        ({**pins, "more.safetensors": wrong["model.safetensors"]}, "missing"),
        ({}, "not expected"),
    ):
        with pytest.raises(errors.IntegrityError, match=error):
            pyccmem.ray.SealedModel(str(sealed), expect).load(loader)
    with pytest.raises(errors.IntegrityError):
        pyccmem.ray.SealedModel(file.path, wrong["model.safetensors"]).tensors()
    with pytest.raises(errors.MissingFileError, match="no sealed files"):
        pyccmem.ray.SealedModel(str(folder)).load(loader)
    for none in ({"model.safetensors": None}, {"model.safetensors": {}}, 7, b""):
        with pytest.raises(errors.ArgumentTypeError):
            pyccmem.ray.SealedModel(str(sealed), none)
    with pytest.raises(errors.ArgumentTypeError):
        model.load("no loader")  # type: ignore[arg-type]
    pyccmem.ray.forget_keys()
    with pytest.raises(errors.InvalidKeyError, match=key.id):
        model.load(loader, way=3)


def test_settings_come_first() -> None:
    assert ray_support.SETTINGS["RAY_USAGE_STATS_ENABLED"] == "0"
