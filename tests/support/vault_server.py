# SPDX-License-Identifier: Apache-2.0
"""A server that follows what the public API description of Vault's transit secrets engine says of
keys, encrypt, decrypt and tokens. It is the tests' own, and no Vault."""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import ipaddress
import json
import os
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


def self_signed(folder: Path) -> Path:
    """A file with a new key and its certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "tls.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


class Refused(Exception):
    """A status and the texts of "errors"."""

    def __init__(self, status: int, *texts: str) -> None:
        super().__init__(status)
        self.status, self.texts = status, list(texts)


class TransitKey:
    def __init__(self, kind: str, derived: bool) -> None:
        self.kind, self.derived = kind, derived
        self.versions = [os.urandom(32)]
        self.min_decryption_version = 1

    def used(self, version: int, request: dict[str, Any]) -> AESGCM:
        key = self.versions[version - 1]
        if self.derived:
            if not request.get("context"):
                raise Refused(400, "missing 'context' for key derivation")
            key = hmac.digest(key, base64.b64decode(request["context"]), hashlib.sha256)
        return AESGCM(key)


class VaultServer:
    """Answers at `address` until close(). What the tests change stands in its attributes."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.keys: dict[str, TransitKey] = {}
        #: Token: seconds that it lasts, and until when it does; None for ever.
        self.tokens: dict[str, tuple[float, float] | None] = {"root": None}
        self.may_read_keys = True
        self.knows_associated_data = True
        #: Answered to everything: sealed, standby, …
        self.status: int | None = None
        self.location = ""
        #: Put in place of every answer to decrypt.
        self.answer: bytes | None = None
        self.not_opened = 400
        self.requests: list[tuple[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._scheme = "http" if certificate is None else "https"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    def close(self) -> None:
        """May be repeated."""
        self._server.shutdown()
        self._server.server_close()

    def add(self, name: str, kind: str = "aes256-gcm96", derived: bool = False) -> TransitKey:
        self.keys[name] = TransitKey(kind, derived)
        return self.keys[name]

    # ---- what it answers ----

    def answered(self, method: str, path: str, token: str, body: bytes) -> dict[str, Any]:
        self.requests.append((method, path))
        if self.status is not None:
            raise Refused(self.status, *(["Vault is sealed"] if self.status == 503 else []))
        if token not in self.tokens or (
            (lasts := self.tokens[token]) is not None and time.monotonic() > lasts[1]
        ):
            raise Refused(403, "permission denied")
        request = json.loads(body) if body else {}
        parts = path.strip("/").split("/")[1:]
        if parts == ["auth", "token", "lookup-self"]:
            return {"data": self._token(token, "ttl")}
        if parts == ["auth", "token", "renew-self"]:
            lasts = self.tokens[token]
            assert lasts is not None
            self.tokens[token] = (lasts[0], time.monotonic() + lasts[0])
            return {"auth": self._token(token, "lease_duration")}
        if len(parts) != 3 or parts[0] != "transit":
            raise Refused(404, "no handler for route")
        operation, name = parts[1:]
        key = self.keys.get(name)
        if operation == "keys":
            if not self.may_read_keys:
                raise Refused(403, "permission denied")
            if key is None:
                raise Refused(404)
            return {"data": {"name": name, "type": key.kind, "derived": key.derived}}
        if operation == "encrypt":
            return {"data": self._encrypted(key or self.add(name), request)}
        if key is None:
            raise Refused(400, "encryption key not found")
        return {"data": self._decrypted(key, request)}

    def _token(self, token: str, field: str) -> dict[str, Any]:
        lasts = self.tokens[token]
        seconds = 0 if lasts is None else int(lasts[1] - time.monotonic() + 0.5)
        return {"renewable": lasts is not None, field: seconds}

    def _associated(self, request: dict[str, Any]) -> bytes:
        if not self.knows_associated_data:
            return b""
        return base64.b64decode(request.get("associated_data", ""))

    def _encrypted(self, key: TransitKey, request: dict[str, Any]) -> dict[str, Any]:
        version, nonce = len(key.versions), os.urandom(12)
        if request.get("associated_data") and not key.kind.startswith(("aes", "chacha")):
            raise Refused(400, f"cannot use associated data with key type {key.kind}")
        sealed = key.used(version, request).encrypt(
            nonce, base64.b64decode(request["plaintext"]), self._associated(request)
        )
        text = base64.b64encode(nonce + sealed).decode()
        return {"ciphertext": f"vault:v{version}:{text}", "key_version": version}

    def _decrypted(self, key: TransitKey, request: dict[str, Any]) -> dict[str, Any]:
        _, version, text = request["ciphertext"].split(":")
        number = int(version[1:])
        if number < key.min_decryption_version:
            raise Refused(400, "ciphertext or signature version is disallowed by policy (too old)")
        if number > len(key.versions):
            raise Refused(400, "invalid ciphertext: version is too new")
        data = base64.b64decode(text)
        try:
            opened = key.used(number, request).decrypt(
                data[:12], data[12:], self._associated(request)
            )
        except InvalidTag:
            raise Refused(self.not_opened, "cipher: message authentication failed") from None
        return {"plaintext": base64.b64encode(opened).decode()}


def _handler(vault: VaultServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # which would hold an answer back for 40 ms

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            token = self.headers.get("X-Vault-Token", "")
            status = 200
            try:
                found: Any = vault.answered(self.command, self.path, token, body)
            except Refused as refusal:
                status, found = refusal.status, {"errors": refusal.texts}
            text = json.dumps(found).encode()
            if vault.answer is not None and "/decrypt/" in self.path:
                text = vault.answer
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            if vault.location:
                self.send_header("Location", vault.location)
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = _answer

        def log_message(self, *_: object) -> None:
            pass

    return Handler
