# SPDX-License-Identifier: Apache-2.0
"""torch.save() and torch.load() of encrypted tensors, pickle, and sealed files."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest

import pyccmem
from pyccmem import errors

torch = pytest.importorskip("torch", reason="needs the extra pyccmem[torch]")

from torch import nn  # noqa: E402
from torch_support import sealed  # noqa: E402

import pyccmem.torch as encrypted  # noqa: E402
from pyccmem.torch import EncryptedTensor, _serialize, using_key  # noqa: E402


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def loaded(data: bytes, **options: Any) -> Any:
    return torch.load(io.BytesIO(data), **{"weights_only": True, **options})


@pytest.mark.parametrize("cipher", ["aegis-128x2", "aes-256-xts"])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (33, 1000)], ids=str)
def test_round_trip(key: pyccmem.Key, cipher: str, kind: Any, shape: tuple[int, ...]) -> None:
    values = (torch.randn(shape) * 100).to(kind)
    t = EncryptedTensor.from_tensor(values, key=key, cipher=cipher, name="n")
    data = saved({"t": t})
    with using_key(key):
        back = loaded(data)["t"]
    assert type(back) is EncryptedTensor and back.dtype == kind and back.core.name == "n"
    assert torch.equal(back.decrypt(), values)
    assert back.core.authenticated
    back.copy_(torch.zeros(shape))
    assert not back.decrypt().any()


def test_no_byte_of_plaintext_in_the_file(key: pyccmem.Key) -> None:
    values = torch.randn(20_000)
    plain = values.numpy().tobytes()
    pieces = [plain[at : at + 12] for at in range(0, len(plain), 400)]
    t = sealed(values, key)
    data = saved([t, t[10:500]])
    assert not [piece for piece in pieces if piece in data]
    assert all(piece in saved(values) for piece in pieces), "the control"
    assert not [piece for piece in pieces if piece in pickle.dumps(t)]
    assert data != saved([t, t[10:500]]), "each save has keys of its own"
    assert support_key() not in data


def support_key() -> bytes:
    import support

    return support.KEY_BYTES


def test_the_key_is_needed_and_must_be_the_one(key: pyccmem.Key) -> None:
    data = saved(sealed(torch.ones(9), key))
    with pytest.raises(errors.ArgumentError, match="using_key"):
        loaded(data)
    with (
        pyccmem.Key.generate() as other,
        using_key(other),
        pytest.raises(errors.IntegrityError),
    ):
        loaded(data)
    with pyccmem.Key.generate() as gone:
        t = sealed(torch.ones(9), gone)
    with pytest.raises(errors.ArgumentError, match="using_key"):
        saved(t)
    with using_key(key):
        assert torch.equal(loaded(saved(t)).decrypt(), torch.ones(9))
    with pytest.raises(errors.ArgumentTypeError), using_key(b"k" * 32):  # type: ignore[arg-type]
        pass


def test_what_shares_data_does_so_after_loading(key: pyccmem.Key) -> None:
    t = sealed(torch.zeros(2000), key)
    data = saved({"a": t.detach(), "b": t.detach()})
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert sum(".data" not in n and "/data/" in n for n in archive.namelist()) == 1
    with using_key(key):
        back, again = loaded(data), loaded(data)
    back["a"].fill_(3)
    assert back["b"].decrypt().eq(3).all() and not again["a"].decrypt().any()
    t.add_(1)
    with using_key(key):
        assert loaded(saved(t)).decrypt().eq(1).all(), "the data of an earlier save"


def test_a_loaded_tensor_is_saved_as_it_is_now(key: pyccmem.Key) -> None:
    """It is read-only, so the first write puts another store in the place of what was saved."""
    with using_key(key):
        t = loaded(saved(sealed(torch.arange(5000.0), key)))
        for value in (7.0, 8.0):
            _, (payload, _) = _serialize.reduced(t)
            assert _serialize.reduced(t)[1][0] is payload, "written once"
            core = t.core
            t[0] = value
            assert (t.core is core) == (value == 8.0)
            assert _serialize.reduced(t)[1][0] is not payload
            assert loaded(saved(t)).decrypt()[:2].tolist() == [value, 1.0]


def test_models(key: pyccmem.Key) -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9))
    model[1].weight = model[0].weight
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    encrypted.encrypt_module(model, key=key)
    with using_key(key):
        state = loaded(saved(model.state_dict()))
        whole = loaded(saved(model), weights_only=False)
    assert whole[0].weight is whole[1].weight and isinstance(whole[0].weight, nn.Parameter)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.zero_()
    model.load_state_dict(state)
    for name, tensor in plain.items():
        assert torch.equal(model.state_dict()[name].decrypt(), tensor)
        assert torch.equal(whole.state_dict()[name].decrypt(), tensor)
    fresh = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9)).requires_grad_(False)
    fresh.load_state_dict(state, assign=True)
    assert type(fresh[1].bias) is EncryptedTensor


def test_every_changed_byte_is_noticed(key: pyccmem.Key) -> None:
    values = torch.arange(1500.0)
    _, (payload, _) = _serialize.reduced(sealed(values, key))
    with using_key(key):
        assert torch.equal(
            _serialize.rebuild_encrypted_tensor(payload.clone(), False).decrypt(), values
        )
        # Padding holds nothing and is not looked at; all else is.
        head = 24 + int.from_bytes(bytes(payload[16:24].tolist()), "little") + 16 * 2 + 16
        places = [*range(head), *range(4096, len(payload), 97)]
        for at in places:
            changed = payload.clone()
            changed[at] ^= 1 << at % 8
            with pytest.raises((errors.IntegrityError, errors.FileFormatError)):
                _serialize.rebuild_encrypted_tensor(changed, False).decrypt()
                pytest.fail(f"byte {at}")
        for cut in (0, 10, 20, 300, 4096, len(payload) - 1):
            with pytest.raises(errors.FileFormatError):
                _serialize.rebuild_encrypted_tensor(payload[:cut].clone(), False)
        for wrong in (payload.float(), payload.view(2, -1), payload[::2], torch.ones(5)):
            with pytest.raises(errors.FileFormatError):
                _serialize.rebuild_encrypted_tensor(wrong, False)


def test_sealed_files(key: pyccmem.Key, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    w = torch.randn(40, 30)
    t = sealed(w, key)
    encrypted.save_file(
        {"t": t, "view": sealed(w, key).t(), "plain": w.bfloat16(), "none": torch.ones(0, 2)},
        path,
        key=key,
    )
    assert w.numpy().tobytes()[:64] not in path.read_bytes()
    found = encrypted.load_file(path, key=key)
    assert all(type(tensor) is EncryptedTensor for tensor in found.values())
    assert torch.equal(found["view"].decrypt(), w.t())
    assert torch.equal(found["plain"].decrypt(), w.bfloat16())
    assert not found["t"].core.writable
    before = path.read_bytes()
    found["t"][3].zero_()
    w[3] = 0
    assert torch.equal(found["t"].decrypt(), w) and found["t"].core.writable
    assert path.read_bytes() == before
    with pytest.raises(errors.ArgumentTypeError):
        encrypted.save_file([t], path, key=key)  # type: ignore[arg-type]
