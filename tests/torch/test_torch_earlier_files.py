# SPDX-License-Identifier: Apache-2.0
"""What torch.save() of earlier versions wrote is loaded; one changed byte is refused."""

from __future__ import annotations

import io
import zipfile

import pytest

torch = pytest.importorskip("torch", reason="needs the extra pyccmem[torch]")

import earlier  # noqa: E402

from pyccmem import errors  # noqa: E402
from pyccmem.torch import EncryptedTensor, using_key  # noqa: E402

HALF = torch.from_numpy(earlier.values()["layer.half"])


def test_tensors() -> None:
    with earlier.key() as key, using_key(key):
        found = torch.load(earlier.FOLDER / "tensors.pt", weights_only=True)
        assert torch.equal(found["plain"], HALF)
        for name, wanted in (("weight", HALF), ("same", HALF), ("view", HALF[1:].mT)):
            assert type(found[name]) is EncryptedTensor, name
            assert torch.equal(found[name].decrypt(), wanted), name


def test_a_module() -> None:
    with earlier.key() as key, using_key(key):
        model = torch.load(earlier.FOLDER / "model.pt", weights_only=False)
        assert all(type(p.data) is EncryptedTensor for p in model.parameters())
        x = torch.arange(10.0).view(2, 5)
        wanted = torch.relu(x @ HALF[0].float().T + HALF[1, :, 0].float())
        assert torch.allclose(model(x).detach(), wanted)


@pytest.mark.parametrize("at", [100, -5], ids=["header", "page"])
def test_one_changed_byte_is_refused(at: int) -> None:
    """The control: in the header and in the page of a payload."""
    made = io.BytesIO()
    with (
        zipfile.ZipFile(earlier.FOLDER / "tensors.pt") as old,
        zipfile.ZipFile(made, "w") as new,
    ):
        changed = 0
        for item in old.infolist():
            part = bytearray(old.read(item))
            if part.startswith(b"pyccmem.torch 1\n"):
                part[at] ^= 4
                changed += 1
            new.writestr(item, bytes(part))
    assert changed
    with (
        earlier.key() as key,
        using_key(key),
        pytest.raises((errors.IntegrityError, errors.FileFormatError)),
    ):
        found = torch.load(io.BytesIO(made.getvalue()), weights_only=True)
        found["weight"].decrypt(), found["view"].decrypt()
