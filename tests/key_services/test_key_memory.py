# SPDX-License-Identifier: Apache-2.0
"""Where keys from services lie: another process searches all memory of one that holds a key for a
time, in locked memory, which can be searched where memfd_secret cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import oracle
import pytest
import support
from secret_search import find

from pyccmem import Key
from pyccmem import safetensors as sealed
from pyccmem.key_services import WrappedKey, envelope

pytestmark = [support.linux_only, support.not_sanitized]

KEK = bytes(range(50, 82))


class Service:
    """The same service as the child's, here for sealing."""

    name = "service"

    def wrap_key(self, key, context):  # type: ignore[no-untyped-def]
        return WrappedKey("k", envelope.seal(KEK, key, context))

    def unwrap_key(self, wrapped, context):  # type: ignore[no-untyped-def]
        return envelope.open(KEK, wrapped.blob, context)


SCRIPT = """
import gc, sys, time
import pyccmem
from pyccmem import Key, errors, safetensors
from pyccmem.key_services import Held, WrappedKey, envelope

path, kind = sys.argv[1:]
kek = Key.from_bytes(bytes(range(50, 82)))
careless = []

class Service:
    name = "service"
    away = False
    def wrap_key(self, key, context):
        raise AssertionError
    def unwrap_key(self, wrapped, context):
        if self.away:
            raise errors.KeyUnavailableError("Away.")
        key = envelope.open(kek, wrapped.blob, context)
        if kind == "key":
            return key
        data = bytearray(32)
        key._copy_into(data)
        if kind == "careless":  # the control: a provider that keeps a copy
            careless.append(bytes(data))
        return data

service = Service()
tensor = safetensors.load_file(path, key=Held(service, max_age=0.6))["t"]

def state(wanted):
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            tensor[...]
            found = "works"
        except errors.KeyUnavailableError:
            found = "refuses"
        if found == wanted:
            break
        time.sleep(0.02)
    gc.collect()
    print(found, flush=True)
    sys.stdin.readline()

state("works")
service.away = True
state("refuses")
service.away = False
state("works")
"""


@pytest.mark.parametrize("kind", ["key", "bytearray", "careless"])
def test_where_the_data_key_is(tmp_path: Path, kind: str) -> None:
    """In secret memory alone while it may be used, and nowhere when it may not."""
    path = tmp_path / "file"
    sealed.save_file({"t": np.arange(5000.0)}, path, key=Service())
    data = bytearray(32)
    with sealed.safe_open(path, key=Service()) as file:
        file._data_key._copy_into(data)  # type: ignore[attr-defined]
        store_id = file._placed["t"][0].store_id  # type: ignore[attr-defined]
    context = store_id + (4096).to_bytes(4, "big")
    needles = {
        "data key": bytes(data),
        "half of it": bytes(data[:16]),
        "subkey": oracle.kdf_counter_cmac(bytes(data), b"aegis-128x2", context, 16),
    }
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(path), kind],
        env=support.child_environment(PYCCMEM_SECRET="mlock"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None and child.stdin is not None
        for wanted in ("works", "refuses", "works"):
            assert child.stdout.readline() == wanted + "\n"
            found = find(child.pid, needles)
            if kind == "careless":
                assert any("heap" in place.name or not place.locked for _, place in found)
            elif wanted == "works":
                assert {name for name, _ in found} == set(needles), "the control of what follows"
                assert all(place.locked for _, place in found), found
            else:
                assert not found
            child.stdin.write("\n")
            child.stdin.flush()
    assert child.returncode == 0


def test_a_key_is_one_slot_and_none_while_it_is_withheld(tmp_path: Path) -> None:
    """What another() gives lies in the same memory."""
    from pyccmem import keys
    from pyccmem.binding import lib

    before = lib.ccmem_secret_slots()
    with Key.generate() as key:
        one = lib.ccmem_secret_slots()
        with keys.another(key) as same:
            assert same.id == key.id and lib.ccmem_secret_slots() == one == before + 1
        assert key.id
        last = keys.another(key)
    assert last.id and lib.ccmem_secret_slots() == one
    last.close()
    assert lib.ccmem_secret_slots() == before
