# SPDX-License-Identifier: Apache-2.0
"""tpm2: keys that one machine's TPM unseals, and only in the state in which they were sealed.

    tpm2:?pcrs=sha256:7

Each data key is wrapped (envelope, which binds the context) under a random key of its own. This one
is sealed by the TPM under its storage root key and a policy: the PCRs that `pcrs` names have the
values that they have now ("none" for no PCR at all, which binds to the machine alone), and with
`pin-source` a PIN that the TPM checks, which locks itself after too many wrong ones. What it seals
stands in the file; nothing is stored in the TPM.

The key crosses the bus to the TPM encrypted, in a session that is salted with the storage root key.
This key's name stands in the file, too, so that at unwrapping nobody on the bus can offer another
one. At wrapping only `parent-name` can tell.

Each call opens the TPM anew and closes it, so that threads and forks do not share what a TPM has
few of, and a TPM without a resource manager is left as it was. tpm2-pytss does the talking.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from .. import errors, keys
from ..binding import wiped
from ..keys import Key
from . import envelope
from .clients import KEY_BYTES, imported, options, raised, secret_text
from .wrapped import WrappedKey

__all__ = ["Tpm2"]

_PCRS = re.compile(r"(?:sha1|sha256|sha384|sha512):[0-9]{1,2}(?:,[0-9]{1,2})*\Z")
_HANDLE = re.compile(r"0x81[0-9a-fA-F]{6}\Z")
_NAME = re.compile(r"[0-9a-f]{4,132}\Z")
_MAX_PART = 1 << 10

#: Makes threads of this process take turns: a TPM does so anyway, and some drivers give EBUSY.
_turn = threading.Lock()


def _after_fork() -> None:
    global _turn
    _turn = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)

#: Response codes (TPM 2.0 library, part 2, 6.6.3) by what they mean here.
_RC = {
    0x09D: "policy",  # TPM_RC_POLICY_FAIL
    0x0A6: "policy",  # TPM_RC_POLICY_CC
    0x128: "policy",  # TPM_RC_PCR_CHANGED
    0x0A2: "auth",  # TPM_RC_BAD_AUTH
    0x08E: "auth",  # TPM_RC_AUTH_FAIL
    0x921: "lockout",  # TPM_RC_LOCKOUT
    0x09F: "integrity",  # TPM_RC_INTEGRITY
    0x08B: "integrity",  # TPM_RC_HANDLE
    0x084: "integrity",  # TPM_RC_VALUE
}


class _ParentChanged(Exception):
    """The storage root key is not the one that a key was sealed under."""


class Tpm2:
    """Wraps data keys under keys that the machine's TPM seals. Holds nothing open."""

    name = "tpm2"

    def __init__(
        self,
        *,
        pcrs: str | None = None,
        tcti: str | None = None,
        parent: str | None = None,
        parent_name: str | None = None,
        pin_source: str | None = None,
    ) -> None:
        """Opens nothing yet. `pcrs` is BANK:NUMBER,NUMBER… or "none", sha256:7 without it (what the
        firmware's Secure Boot allowed to start). `tcti` says how to reach the TPM, as tpm2-tools'
        option does; without it TPM2TOOLS_TCTI, else what tpm2-tss finds by itself. `parent` is the
        persistent handle of a storage key without a password; without it the key is made anew from
        the owner hierarchy's seed. `parent_name` is this key's name in hexadecimal digits.

        Raises ArgumentError, MissingPackageError."""
        if pcrs is not None and pcrs != "none" and not _PCRS.match(pcrs):
            raise errors.ArgumentError(
                f"pcrs is {pcrs!a}; write BANK:NUMBER,NUMBER as in sha256:0,7, or none."
            )
        if parent is not None and not _HANDLE.match(parent):
            raise errors.ArgumentError(
                f"parent is {parent!a}; write the persistent handle of a storage key, as "
                f"0x81000001."
            )
        if parent_name is not None and not _NAME.match(parent_name):
            raise errors.ArgumentError(
                f"parent-name is {parent_name!a}; write the name of the storage key in lower-case "
                f"hexadecimal digits, as tpm2_readpublic prints it."
            )
        self._pcrs, self._tcti = pcrs, tcti or os.environ.get("TPM2TOOLS_TCTI") or None
        self._parent, self._parent_name, self._pin_source = parent, parent_name, pin_source
        self._client = imported("tpm2_pytss", "tpm2-pytss", "tpm2")

    @classmethod
    def from_uri(cls, uri: str) -> Tpm2:
        """Returns the provider of a URI. Raises ArgumentError, MissingPackageError."""
        path, query = options(uri, ("pcrs", "tcti", "parent", "parent-name", "pin-source"))
        if path:
            raise errors.ArgumentError(
                f"The URI names {path!a}; a TPM's keys have no names: write tpm2:?pcrs=sha256:7."
            )
        return cls(**{name.replace("-", "_"): text for name, text in query.items()})

    def __repr__(self) -> str:
        return f"<pyccmem.key_services.tpm2.Tpm2 pcrs={self._pcrs or 'sha256:7'}>"

    def wrap_key(self, key: memoryview, context: Mapping[str, str]) -> WrappedKey:
        """Wraps 32 bytes for a context. Raises KeyUnavailableError, KeyAccessError,
        KeyServiceError."""
        pcrs = self._pcrs or "sha256:7"
        with Key.generate() as kek:
            sealed = envelope.seal(kek, key, context)

            def work(tpm: _Tpm) -> WrappedKey:
                public, private, name = tpm.seal(kek, pcrs, self._pin())
                parameters = {"pcrs": pcrs, "parent": name}
                if self._pin_source is not None:
                    parameters["pin"] = "yes"
                blob = b"".join(len(part).to_bytes(2, "big") + part for part in (public, private))
                return WrappedKey(f"tpm2:{name}", blob + sealed, parameters)

            done: WrappedKey = self._done(work)
            return done

    def unwrap_key(self, wrapped: WrappedKey, context: Mapping[str, str]) -> Key:
        """Returns the 32 bytes as a Key. Raises ContextError for another context, KeyAccessError
        for PCRs with other values, a wrong PIN, and another TPM or one that was cleared;
        KeyUnavailableError, KeyServiceError; IntegrityError for what no TPM sealed."""
        public, private, sealed = self._parts(wrapped)
        pcrs = wrapped.parameters.get("pcrs", "")
        if pcrs != "none" and not _PCRS.match(pcrs):
            raise errors.IntegrityError(
                f"The wrapped key names the PCRs {pcrs[:80]!a}, which cannot be; use a good copy "
                f"of the file."
            )
        if self._pcrs not in (None, pcrs):
            raise errors.InvalidKeyError(
                f"This file was sealed for the PCRs {pcrs}, and the key's URI wants {self._pcrs}; "
                f"leave pcrs out, or seal the file anew."
            )
        pin = self._pin() if wrapped.parameters.get("pin") else ""
        if wrapped.parameters.get("pin") and not pin:
            raise errors.KeyAccessError(
                "This file was sealed with a PIN, which the TPM asks for; add pin-source to the "
                "key's URI."
            )

        def work(tpm: _Tpm) -> Key:
            with tpm.unsealed(public, private, pcrs, pin, wrapped.parameters.get("parent")) as kek:
                return envelope.open(kek, sealed, context)

        done: Key = self._done(work)
        return done

    def _parts(self, wrapped: WrappedKey) -> tuple[bytes, bytes, bytes]:
        rest, parts = wrapped.blob, []
        for _ in range(2):
            size = int.from_bytes(rest[:2], "big")
            parts.append(rest[2 : 2 + size])
            rest = rest[2 + size :]
        if len(rest) != envelope.SEALED_BYTES or not all(0 < len(p) <= _MAX_PART for p in parts):
            raise errors.IntegrityError(
                f"The wrapped key of {len(wrapped.blob)} bytes is none that a TPM sealed; use a "
                f"good copy of the file."
            )
        return parts[0], parts[1], rest

    def _pin(self) -> str:
        return "" if self._pin_source is None else secret_text(self._pin_source, "the PIN")

    def _done(self, work: Any) -> Any:
        def attempt() -> Any:
            with _turn, _Tpm(self._client, self._tcti, self._parent, self._parent_name) as tpm:
                return work(tpm)

        return raised(attempt, self._explained)

    def _explained(self, error: Exception) -> errors.PyccmemError | None:
        if isinstance(error, _ParentChanged):
            return errors.KeyAccessError(str(error))
        if not isinstance(error, self._client.TSS2_Exception):
            return None
        if not error.rc & 0xFFF or error.rc >> 16:  # of the software, not of the TPM
            return errors.KeyUnavailableError(
                f"The TPM cannot be reached: {error}; see that it is there, that this user may use "
                f"/dev/tpmrm0, or that tcti says where it is."
            )
        meaning = _RC.get(error.error & 0xFFF)
        if meaning == "policy":
            return errors.KeyAccessError(
                "The TPM does not unseal the key: this machine is not in the state that it was "
                "sealed for (a PCR has another value). Seal the file anew after an update of the "
                "firmware or the system."
            )
        if meaning == "auth":
            return errors.KeyAccessError(
                "The TPM refuses the PIN of the key, or the owner hierarchy has a password; give "
                "the right pin-source, or the handle of a persistent storage key as parent."
            )
        if meaning == "lockout":
            return errors.KeyAccessError(
                "The TPM is locked after too many wrong PINs; wait, or see tpm2_dictionarylockout."
            )
        if meaning == "integrity":
            return errors.KeyAccessError(
                f"The TPM does not take the sealed key: it is of another TPM, this one was cleared "
                f"since, or the file was changed ({error})."
            )
        return errors.KeyServiceError(f"The TPM fails: {error}.")


class _Tpm:
    """A connection to the TPM, with its storage root key."""

    def __init__(
        self, client: Any, tcti: str | None, parent: str | None, parent_name: str | None
    ) -> None:
        self._client, self._tcti = client, tcti
        self._parent, self._parent_name = parent, parent_name

    def __enter__(self) -> _Tpm:
        with ExitStack() as stack:
            self._esys = client = self._client.ESAPI(self._tcti)
            stack.callback(client.close)
            if self._parent is not None:
                self._root = client.tr_from_tpmpublic(int(self._parent, 16))
            else:
                self._root, *_ = client.create_primary(None, self._root_template())
                stack.callback(self._flush, self._root)
            self._name = bytes(client.tr_get_name(self._root)).hex()
            if self._parent_name not in (None, self._name):
                raise _ParentChanged(
                    f"The TPM's storage key has the name {self._name}, not {self._parent_name} as "
                    f"parent-name says; it is another TPM, or this one was cleared."
                )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _flush(self, handle: Any) -> None:
        with suppress(self._client.TSS2_Exception):
            self._esys.flush_context(handle)

    def _root_template(self) -> Any:
        """Returns the template of an ECC storage root key (TCG EK credential profile, B.4, with an
        empty unique field)."""
        return self._client.TPM2B_PUBLIC.parse(
            "ecc256:aes128cfb",
            objectAttributes="fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted"
            "|decrypt",
        )

    @contextmanager
    def _session(self, kind: str, encrypt: bool) -> Iterator[Any]:
        """Gives a session that is salted with the storage root key to a block, and ends it. It
        encrypts the first parameter of commands, or, with `encrypt`, of responses."""
        client, esys = self._client, self._esys
        tr, attribute = client.ESYS_TR, client.TPMA_SESSION
        session = esys.start_auth_session(
            tpm_key=self._root if kind != "TRIAL" else tr.NONE,
            bind=tr.NONE,
            session_type=getattr(client.TPM2_SE, kind),
            symmetric="aes128cfb" if kind != "TRIAL" else "null",
            auth_hash="sha256",
        )
        try:
            if kind != "TRIAL":
                way = attribute.ENCRYPT if encrypt else attribute.DECRYPT
                esys.trsess_set_attributes(session, way | attribute.CONTINUESESSION)
            yield session
        finally:
            self._flush(session)

    def _policy(self, session: Any, pcrs: str, pin: bool) -> None:
        if pcrs != "none":
            self._esys.policy_pcr(session, b"", pcrs)
        if pin:
            self._esys.policy_auth_value(session)

    def seal(self, kek: Key, pcrs: str, pin: str) -> tuple[bytes, bytes, str]:
        """Returns the public and the private part of a sealed object, and the parent's name."""
        client, esys = self._client, self._esys
        with self._session("TRIAL", False) as trial:
            self._policy(trial, pcrs, bool(pin))
            policy = bytes(esys.policy_get_digest(trial))
        template = client.TPM2B_PUBLIC(
            client.TPMT_PUBLIC.parse(
                "keyedhash", nameAlg="sha256",
                # Without a PIN there is nothing to guess, and a TPM that is locked unseals, too.
                objectAttributes="fixedtpm|fixedparent" + ("" if pin else "|noda"),
            )
        )  # fmt: skip
        template.publicArea.authPolicy = policy
        sensitive = client.TPM2B_SENSITIVE_CREATE(
            client.TPMS_SENSITIVE_CREATE(userAuth=pin.encode(), data=bytes(KEY_BYTES))
        )
        memory = sensitive.sensitive.data.buffer
        try:
            keys.copy_into(kek, memory)
            with self._session("HMAC", False) as session:
                private, public, *_ = esys.create(self._root, sensitive, template, session1=session)
        finally:
            wiped.wipe(memory)
            memory.release()
        return public.marshal(), private.marshal(), self._name

    @contextmanager
    def unsealed(
        self, public: bytes, private: bytes, pcrs: str, pin: str, parent: str | None
    ) -> Iterator[Key]:
        """Gives the sealed key to a block."""
        client, esys = self._client, self._esys
        if parent != self._name:
            raise _ParentChanged(
                f"This file was sealed by the TPM whose storage key has the name {parent!a}, and "
                f"this one's has {self._name!a}: it is another TPM, or this one was cleared."
            )
        parts = _unmarshalled(client, public, private)
        loaded = esys.load(self._root, parts[1], parts[0])
        try:
            if pin:
                esys.tr_set_auth(loaded, pin)
            with self._session("POLICY", True) as session:
                self._policy(session, pcrs, bool(pin))
                data = esys.unseal(loaded, session1=session)
        finally:
            self._flush(loaded)
            self._cover()
        memory = data.buffer
        try:
            with Key.from_bytes(memory) as kek:
                yield kek
        finally:
            wiped.wipe(memory)
            memory.release()

    def _cover(self) -> None:
        """Has the library use the buffer again in which it has decrypted the response, and which it
        frees unwiped: a list of algorithms is longer than a key."""
        with suppress(self._client.TSS2_Exception):
            self._esys.get_capability(self._client.TPM2_CAP.ALGS, 0, 24)


def _unmarshalled(client: Any, public: bytes, private: bytes) -> tuple[Any, Any]:
    try:
        return (
            client.TPM2B_PUBLIC.unmarshal(public)[0],
            client.TPM2B_PRIVATE.unmarshal(private)[0],
        )
    except client.TSS2_Exception:
        pass
    raise errors.IntegrityError(
        "The sealed key is none of a TPM: it was changed; use a good copy of the file."
    )
