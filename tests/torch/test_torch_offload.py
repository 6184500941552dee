# SPDX-License-Identifier: Apache-2.0
"""accelerate's offloading and saving of encrypted models: refused before a byte is written; what
leaves them in place works (needs accelerate, else skipped)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyccmem import Key, errors

torch = pytest.importorskip("torch", reason="needs the extra pyccmem[torch]")
pytest.importorskip("accelerate", reason="needs accelerate")

import accelerate  # noqa: E402
from accelerate import utils  # noqa: E402
from torch import nn  # noqa: E402

from pyccmem.torch import EncryptedTensor, encrypt_module  # noqa: E402


def model() -> Any:
    torch.manual_seed(0)
    layers = (nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    return nn.Sequential(*layers).requires_grad_(False)


PARTS = {"0": "cpu", "1": "cpu", "2": "disk"}

WAYS: dict[str, Callable[[Any, Path], Any]] = {
    "disk_offload": lambda m, at: accelerate.disk_offload(m, at, torch.device("cpu")),
    "offload_state_dict": lambda m, at: utils.offload_state_dict(at, m.state_dict()),
    "offload_weight": lambda m, at: utils.offload_weight(m[0].weight, "w", at),
    "dispatch_model": lambda m, at: accelerate.dispatch_model(
        m, PARTS, offload_dir=at, main_device="cpu", force_hooks=True
    ),
    "save_model": lambda m, at: accelerate.Accelerator(cpu=True).save_model(m, at),
}


@pytest.mark.parametrize("name", WAYS)
def test_nothing_is_written(key: Key, tmp_path: Path, name: str) -> None:
    """The plain twin's weights are in the files."""
    found = {}
    for kind in ("plain", "encrypted"):
        (tmp_path / kind).mkdir()
        one = model()
        needles = [p.numpy().tobytes() for p in one.parameters() if p.dim() == 2]
        if kind == "encrypted":
            encrypt_module(one, key=key)
            with pytest.raises(errors.ArgumentError, match="decrypt_module"):
                WAYS[name](one, tmp_path / kind)
            assert all(type(p) is EncryptedTensor for p in one.parameters())
        else:
            WAYS[name](one, tmp_path / kind)
        written = [path for path in (tmp_path / kind).rglob("*") if path.is_file()]
        found[kind] = sum(n in path.read_bytes() for path in written for n in needles)
        assert kind == "plain" or not written
    assert found["plain"] and not found["encrypted"]


def test_cpu_offload_is_refused(key: Key) -> None:
    for work in (
        lambda m: accelerate.cpu_offload(m, torch.device("cpu")),
        lambda m: accelerate.dispatch_model(m, {"": "cpu"}, force_hooks=True),
    ):
        with pytest.raises(errors.ArgumentError, match="needs no offloading"):
            work(encrypt_module(model(), key=key))
        work(model())


def test_what_leaves_the_model_in_place_works(key: Key) -> None:
    x = torch.ones(1, 8)
    wanted = model()(x)
    for work in (
        lambda m: accelerate.dispatch_model(m, {"": "cpu"}),
        lambda m: accelerate.Accelerator(cpu=True).prepare(m),
        lambda m: accelerate.cpu_offload_with_hook(m, "cpu")[0],
    ):
        one = work(encrypt_module(model(), key=key))
        assert all(type(p) is EncryptedTensor for p in one.parameters())
        torch.testing.assert_close(one(x), wanted)
