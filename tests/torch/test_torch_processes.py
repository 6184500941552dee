# SPDX-License-Identifier: Apache-2.0
"""Encrypted models given to spawned processes, pools and loaders: as ciphertext, with a key that
the other process reads itself; and what traces programs or asks for shapes alone."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import support

import pyccmem
from pyccmem import Key, errors

torch = pytest.importorskip("torch", reason="needs the extra pyccmem[torch]")

import torch_children  # noqa: E402
from torch import nn  # noqa: E402
from torch._subclasses import FakeTensorMode  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
from torch_support import sealed  # noqa: E402

from pyccmem.torch import EncryptedTensor, encrypt_module, using_key  # noqa: E402


@pytest.fixture
def file_key(tmp_path: Path) -> Key:
    path = tmp_path / "key"
    path.write_bytes(os.urandom(32))
    path.chmod(0o600)
    return Key.from_file(path)


def model(key: Key) -> Any:
    torch.manual_seed(3)
    made = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).requires_grad_(False)
    made[1].weight = made[0].weight
    return encrypt_module(made, key=key)


def by_spawn(one: Any) -> Any:
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    torch.multiprocessing.spawn(torch_children.put, args=(one, queue), nprocs=1)
    return queue.get()[1]


def by_process(one: Any) -> Any:
    context = multiprocessing.get_context("forkserver")
    queue = context.SimpleQueue()
    process = context.Process(target=torch_children.put, args=(0, one, queue))
    process.start()
    found = queue.get()
    process.join()
    return found[1]


def by_pool(one: Any) -> Any:
    with torch.multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply_async(torch_children.answer, (one,)).get(120)


WAYS: dict[str, Callable[[Any], Any]] = {
    "spawn": by_spawn,
    "forkserver": by_process,
    "pool": by_pool,
}


@support.not_sanitized
@pytest.mark.parametrize("way", WAYS)
def test_models_go_to_other_processes(file_key: Key, way: str) -> None:
    one = model(file_key)
    output, kinds, shared = WAYS[way](one)
    wanted = torch_children.answer(one)
    torch.testing.assert_close(torch.tensor(output), torch.tensor(wanted[0]))
    assert all(kinds) and shared


@support.not_sanitized
def test_a_loader_whose_workers_use_the_model(file_key: Key) -> None:
    one = model(file_key)
    loader = torch.utils.data.DataLoader(
        torch_children.Outputs(one),
        batch_size=None,
        num_workers=1,
        multiprocessing_context="spawn",
    )
    wanted = torch_children.answer(one)[0]
    for found in loader:
        torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted))


@pytest.mark.parametrize("way", WAYS)
def test_without_a_file_of_the_key_nothing_starts(key: Key, way: str) -> None:
    with pytest.raises(errors.ArgumentError, match=r"Key\.from_file"):
        WAYS[way](model(key))


def test_what_goes_through_the_pipe_is_ciphertext(
    file_key: Key, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = torch.randn(64, 64)
    data = bytes(ForkingPickler.dumps(plain.numpy()))
    assert plain.numpy().tobytes() in data, "the control finds nothing"
    t = nn.Parameter(sealed(plain, file_key))
    data = bytes(ForkingPickler.dumps((t, t.detach())))
    assert plain.numpy().tobytes()[:32] not in data and len(data) < 2 * plain.nbytes
    one, two = pickle.loads(data)
    assert torch.equal(one.decrypt(), plain) and one.core is two.core
    assert isinstance(one, nn.Parameter) and one.requires_grad and not two.requires_grad
    with torch.no_grad():
        one.zero_()
    assert torch.equal(t.decrypt(), plain)

    monkeypatch.setenv("PYCCMEM_KEY_FILE", os.fsdecode(pyccmem.keys.file_of(file_key).name))
    with using_key(file_key):
        ForkingPickler.dumps(sealed(plain, key))
    with pytest.raises(errors.ArgumentError, match="PYCCMEM_KEY_FILE"):
        ForkingPickler.dumps(sealed(plain, key))  # the file has another key
    again = Key.from_file(os.environ["PYCCMEM_KEY_FILE"])
    twin = Key.from_bytes(Path(os.environ["PYCCMEM_KEY_FILE"]).read_bytes())
    assert twin.id == again.id
    ForkingPickler.dumps(sealed(plain, twin))


def test_a_key_file_that_was_changed_meanwhile(file_key: Key, tmp_path: Path) -> None:
    data = bytes(ForkingPickler.dumps(sealed(torch.ones(3), file_key)))
    (tmp_path / "key").write_bytes(os.urandom(32))
    with pytest.raises(errors.InvalidKeyError, match="leave the file as it is"):
        pickle.loads(data)


def test_shared_memory_and_meta_are_refused_with_words(key: Key) -> None:
    one = model(key)
    for work in (one.share_memory, one[0].weight.share_memory_):
        with pytest.raises(errors.ArgumentError, match="shared memory"):
            work()
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    with using_key(key), pytest.raises(errors.ArgumentError, match="map_location"):
        torch.load(file, map_location="meta", weights_only=True)


# ---- tracers -------------------------------------------------------------------------------------

OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "linear": lambda w: nn.functional.linear(torch.ones(2, 4), w),
    "embedding": lambda w: nn.functional.embedding(torch.tensor([1, 2]), w),
    "norm": lambda w: nn.functional.layer_norm(torch.ones(2, 4), (4,), w[0]),
    "plus": lambda w: w + 1,
    "columns": lambda w: torch.ones(2, 6) @ w,
    "copy": lambda w: w.clone(),
    "view": lambda w: w[1:].t(),
    "decrypt": lambda w: w.decrypt() if isinstance(w, EncryptedTensor) else w.clone(),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_fake_tensors_have_the_shapes_and_open_nothing(key: Key, name: str) -> None:
    plain = torch.randn(6, 4)
    weight = sealed(plain, key)
    before = weight.core.buffer.stats()["pages_opened"]
    with FakeTensorMode(allow_non_fake_inputs=True):
        wanted, found = OPERATIONS[name](plain), OPERATIONS[name](weight)
    assert type(found).__name__ in ("FakeTensor", "EncryptedTensor")
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    if name != "decrypt":
        assert weight.core.buffer.stats()["pages_opened"] == before
    assert torch.equal(weight.decrypt(), plain)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("view", "decrypt")])
def test_make_fx_is_refused_for_every_operation(key: Key, name: str, mode: str) -> None:
    weight = sealed(torch.randn(6, 4), key)
    with pytest.raises(errors.ArgumentError, match=r"torch\.compile"):
        make_fx(lambda _: OPERATIONS[name](weight), tracing_mode=mode)(torch.ones(2))
