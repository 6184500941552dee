# SPDX-License-Identifier: Apache-2.0
"""Keys that a TPM seals: swtpm, a TPM 2.0 in software, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from key_service_support import (
    CONTEXT,
    assert_not_in,
    assert_seals_a_file,
    assert_serves_a_model,
    assert_unwraps_in_a_child,
    free_port,
    in_threads,
    left_by,
    logged,
    new_key,
    unwrapped_by,
    wait_for,
    wrapped_by,
)
from support import linux_only

from pyccmem import errors, key_services, keys
from pyccmem.key_services.wrapped import WrappedKey

client = pytest.importorskip(
    "tpm2_pytss", reason="tpm2-pytss is not installed", exc_type=ImportError
)

pytestmark = pytest.mark.skipif(shutil.which("swtpm") is None, reason="swtpm is not installed")


class Machine:
    """A TPM with the state in a directory. After start() its PCRs are as after a reset."""

    def __init__(self, home: Path) -> None:
        self.home, self.port = home, 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # The TCTI takes the port after the one named as that of the control channel.
        self.port = self.port or free_port()
        self.process = subprocess.Popen(
            ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.home}",
             "--server", f"type=tcp,port={self.port}", "--ctrl", f"type=tcp,port={self.port + 1}",
             "--flags", "not-need-init,startup-clear"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_for(self.port + 1, self.process)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    @property
    def tcti(self) -> str:
        return f"swtpm:host=127.0.0.1,port={self.port}"

    def uri(self, **options: str) -> str:
        query = {"tcti": self.tcti} | options
        return "tpm2:?" + "&".join(f"{name}={text}" for name, text in query.items() if text)

    def tpm(self) -> Any:
        return client.ESAPI(self.tcti)

    def extend(self, pcr: int) -> None:
        with self.tpm() as tpm:
            digest = client.TPMT_HA(
                hashAlg=client.TPM2_ALG.SHA256, digest=client.TPMU_HA(sha256=b"\x11" * 32)
            )
            tpm.pcr_extend(client.ESYS_TR(pcr), client.TPML_DIGEST_VALUES([digest]))

    def handles(self) -> list[int]:
        """What is loaded in the TPM: objects and sessions."""
        with self.tpm() as tpm:
            found: list[int] = []
            for first in (0x80000000, 0x02000000, 0x03000000):
                _, data = tpm.get_capability(client.TPM2_CAP.HANDLES, first, 32)
                found += [int(handle) for handle in data.data.handles]
            return found


@pytest.fixture(scope="module")
def _machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    os.environ["TSS2_LOG"] = "all+NONE"
    machine = Machine(tmp_path_factory.mktemp("tpm"))
    machine.start()
    yield machine
    machine.stop()


@pytest.fixture
def machine(_machine: Machine) -> Machine:
    if _machine.process is None:
        _machine.start()
    return _machine


def test_round_trip_and_what_does_not_open(machine: Machine, tmp_path: Path) -> None:
    provider = key_services.from_uri(machine.uri(pcrs="sha256:7,23"))
    key = new_key()
    wrapped = wrapped_by(provider, key)
    assert wrapped.parameters["pcrs"] == "sha256:7,23" and key not in wrapped.blob
    assert unwrapped_by(provider, wrapped) == key
    # What the file says is enough.
    assert unwrapped_by(key_services.from_uri(machine.uri()), wrapped) == key
    with pytest.raises(errors.ContextError, match="who=testsx") as caught:
        unwrapped_by(provider, wrapped, CONTEXT | {"who": "testsx"})
    assert caught.value.__context__ is None
    with pytest.raises(errors.InvalidKeyError, match="for the PCRs sha256:7,23"):
        unwrapped_by(key_services.from_uri(machine.uri(pcrs="sha256:7")), wrapped)
    size = int.from_bytes(wrapped.blob[:2], "big")
    for at in (12, 2 + size - 2, 2 + size + 8, len(wrapped.blob) - 1):
        changed = bytearray(wrapped.blob)
        changed[at] ^= 1
        with pytest.raises((errors.KeyServiceError, errors.IntegrityError)):
            unwrapped_by(provider, WrappedKey("", bytes(changed), wrapped.parameters))
    for blob in (b"", b"\0\1", wrapped.blob[:-1], wrapped.blob + b"x", b"\xff" * 400):
        with pytest.raises(errors.IntegrityError, match="none that a TPM sealed"):
            unwrapped_by(provider, WrappedKey("", blob, wrapped.parameters))
    with pytest.raises(errors.IntegrityError, match="cannot be"):
        unwrapped_by(provider, WrappedKey("", wrapped.blob, {"pcrs": "sha256:7;rm"}))
    weaker = WrappedKey("", wrapped.blob, wrapped.parameters | {"pcrs": "none"})
    with pytest.raises(errors.KeyAccessError, match="state"):
        unwrapped_by(key_services.from_uri(machine.uri()), weaker)
    assert machine.handles() == []
    assert_seals_a_file(provider, tmp_path / "f.safetensors")


def test_another_state_of_the_machine(machine: Machine) -> None:
    provider = key_services.from_uri(machine.uri(pcrs="sha256:16"))
    other = key_services.from_uri(machine.uri(pcrs="sha256:7"))
    key = new_key()
    wrapped, elsewhere = wrapped_by(provider, key), wrapped_by(other, key)
    assert unwrapped_by(provider, wrapped) == key
    machine.extend(16)
    with pytest.raises(errors.KeyAccessError, match="not in the state") as caught:
        unwrapped_by(provider, wrapped)
    assert caught.value.__context__ is None
    # A PCR that it was not sealed to changes nothing; nor does the change last over a reset.
    assert unwrapped_by(other, elsewhere) == key
    machine.stop()
    machine.start()
    assert unwrapped_by(provider, wrapped) == key
    assert machine.handles() == []


def test_another_machine(machine: Machine, tmp_path: Path) -> None:
    wrapped = wrapped_by(key_services.from_uri(machine.uri(pcrs="none")), key := new_key())
    other = Machine(tmp_path)
    other.start()
    try:
        provider = key_services.from_uri(other.uri())
        with pytest.raises(errors.KeyAccessError, match="another TPM"):
            unwrapped_by(provider, wrapped)
        # One who says that it is the same is refused by the TPM.
        theirs = wrapped_by(provider, key).parameters["parent"]
        moved = WrappedKey("", wrapped.blob, wrapped.parameters | {"parent": theirs})
        with pytest.raises(errors.KeyAccessError, match="does not take the sealed key"):
            unwrapped_by(provider, moved)
        pinned = key_services.from_uri(other.uri(**{"parent-name": wrapped.parameters["parent"]}))
        with pytest.raises(errors.KeyAccessError, match="as parent-name says"):
            wrapped_by(pinned, key)
        # Cleared, it is another one, too.
        mine = wrapped_by(provider, key)
        with other.tpm() as tpm:
            tpm.clear(client.ESYS_TR.LOCKOUT)
        with pytest.raises(errors.KeyAccessError, match="cleared"):
            unwrapped_by(provider, mine)
    finally:
        other.stop()


def test_a_tpm_that_is_away(machine: Machine) -> None:
    away = key_services.from_uri(f"tpm2:?tcti=swtpm:host=127.0.0.1,port={free_port()}")
    with pytest.raises(errors.KeyUnavailableError, match="cannot be reached"):
        wrapped_by(away, new_key())
    provider = key_services.from_uri(machine.uri())
    wrapped = wrapped_by(provider, key := new_key())
    machine.stop()
    with pytest.raises(errors.KeyUnavailableError, match="cannot be reached"):
        unwrapped_by(provider, wrapped)
    machine.start()
    assert unwrapped_by(provider, wrapped) == key


def test_pins(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "pin").write_text("a long one\n")
    (tmp_path / "wrong").write_text("another\n")
    provider = key_services.from_uri(machine.uri(**{"pin-source": f"file:{tmp_path}/pin"}))
    wrapped = wrapped_by(provider, key := new_key())
    assert wrapped.parameters["pin"] == "yes"
    assert unwrapped_by(provider, wrapped) == key
    wrong = key_services.from_uri(machine.uri(**{"pin-source": f"file:{tmp_path}/wrong"}))
    with pytest.raises(errors.KeyAccessError, match="refuses the PIN") as caught:
        unwrapped_by(wrong, wrapped)
    assert "another" not in str(caught.value)
    with pytest.raises(errors.KeyAccessError, match="add pin-source"):
        unwrapped_by(key_services.from_uri(machine.uri()), wrapped)
    # One that leaves the PIN out of the policy does not get by without.
    without = {name: text for name, text in wrapped.parameters.items() if name != "pin"}
    with pytest.raises(errors.KeyAccessError):
        unwrapped_by(provider, WrappedKey("", wrapped.blob, without))
    assert machine.handles() == []


def test_a_persistent_parent(machine: Machine) -> None:
    with machine.tpm() as tpm:
        root, *_ = tpm.create_primary(None, "ecc256:aes128cfb")
        kept = tpm.evict_control(client.ESYS_TR.OWNER, root, 0x81000001)
        tpm.flush_context(root)
    try:
        provider = key_services.from_uri(machine.uri(parent="0x81000001"))
        key = new_key()
        assert unwrapped_by(provider, wrapped_by(provider, key)) == key
        with pytest.raises(errors.KeyAccessError, match="another TPM"):
            unwrapped_by(key_services.from_uri(machine.uri()), wrapped_by(provider, key))
    finally:
        with machine.tpm() as tpm:
            kept = tpm.tr_from_tpmpublic(0x81000001)
            tpm.evict_control(client.ESYS_TR.OWNER, kept, 0)
    with pytest.raises(errors.KeyServiceError):
        wrapped_by(provider, key)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("tpm2:0x81000001", "have no names"),
        ("tpm2:?pcrs=7", "BANK:NUMBER"),
        ("tpm2:?pcrs=sha256:7&pcrs=none", "has twice"),
        ("tpm2:?parent=1", "persistent handle"),
        ("tpm2:?parent-name=ZZ", "lower-case"),
        ("tpm2:?pin=1234", "unknown option"),
    ],
)
def test_uris_that_say_too_little_or_too_much(uri: str, message: str) -> None:
    with pytest.raises(errors.ArgumentError, match=message):
        key_services.from_uri(uri)


def test_forks_and_threads(machine: Machine) -> None:
    provider = key_services.from_uri(machine.uri())
    wrapped = wrapped_by(provider, key := new_key())
    assert_unwraps_in_a_child(provider, wrapped, key)
    found = in_threads(lambda: unwrapped_by(provider, wrapped) == key, 5)
    assert found == [True] * 20 and machine.handles() == []


class Bus:
    """Stands between the program and a TPM and hears all, as who listens on the bus does."""

    def __init__(self, machine: Machine) -> None:
        self.heard = bytearray()
        self._machine = machine
        self._listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        # The TCTI takes two ports, one after the other.
        while self.port + 1 != self._listening[1].getsockname()[1]:
            for each in self._listening:
                each.close()
            port = free_port()
            with contextlib.suppress(OSError):
                self._listening = [
                    socket.create_server(("127.0.0.1", port + more)) for more in range(2)
                ]
        for more, each in enumerate(self._listening):
            threading.Thread(target=self._serve, args=(each, more), daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._listening[0].getsockname()[1])

    def _serve(self, listening: socket.socket, more: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listening.accept()
                far = socket.create_connection(("127.0.0.1", self._machine.port + more))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=pair, daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.heard += data
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for each in self._listening:
            each.close()


def test_nothing_crosses_the_bus_in_the_clear(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = Bus(machine)
    try:
        provider = key_services.from_uri(f"tpm2:?tcti=swtpm:host=127.0.0.1,port={bus.port}")
        wrapped = wrapped_by(provider, new_key())
        unwrapped_by(provider, wrapped)
        kek = sealed_key(provider, wrapped)
        assert len(bus.heard) > 1000 and kek[:16] not in bus.heard and kek[16:] not in bus.heard
        # A session that does not encrypt is heard.
        monkeypatch.setattr(client.ESAPI, "trsess_set_attributes", lambda *_: None)
        wrapped = wrapped_by(provider, new_key())
        assert sealed_key(provider, wrapped) in bus.heard
    finally:
        bus.close()


def test_nothing_is_logged(machine: Machine) -> None:
    provider = key_services.from_uri(machine.uri())
    key = new_key()
    with logged() as lines:
        assert unwrapped_by(provider, wrapped_by(provider, key)) == key
    assert_not_in(lines(), key)


def sealed_key(provider: Any, wrapped: Any) -> bytes:
    """The key-encryption key that the TPM gives for a wrapped key."""
    from pyccmem.key_services.tpm2 import _Tpm

    public, private, _ = provider._parts(wrapped)
    out = bytearray(32)
    parameters = wrapped.parameters
    with (
        _Tpm(client, provider._tcti, None, None) as tpm,
        tpm.unsealed(public, private, parameters["pcrs"], "", parameters["parent"]) as kek,
    ):
        keys.copy_into(kek, out)
    return bytes(out)


@linux_only
def test_nothing_of_the_key_stays_in_memory(machine: Machine) -> None:
    uri = machine.uri()
    provider = key_services.from_uri(uri)
    wrapped = wrapped_by(provider, key := new_key())
    kek = sealed_key(provider, wrapped)
    assert left_by(uri, wrapped, CONTEXT, key, search=[kek], way="bare")
    assert not left_by(uri, wrapped, CONTEXT, key, search=[kek])


@pytest.mark.full
def test_a_sealed_model_is_served(machine: Machine, tmp_path: Path) -> None:
    assert_serves_a_model(machine.uri(), tmp_path)
