# SPDX-License-Identifier: Apache-2.0
"""Servers that follow what the public API descriptions of Google Cloud KMS and Azure Key Vault say
of wrapping keys. They are the tests' own, and neither service."""

from __future__ import annotations

import base64
import json
import os
import re
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


class CloudServer:
    """Answers JSON at `address` until close()."""

    def __init__(self, certificate: Path | None = None) -> None:
        #: Put in place of every answer: status and body.
        self.answer: tuple[int, bytes] | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.address = f"{'https' if certificate else 'http'}://127.0.0.1:{self.port}"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answered(
        self, method: str, path: str, authorization: str, request: dict[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        raise NotImplementedError


def _handler(server: CloudServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # which would hold an answer back for 40 ms

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, found = server.answered(
                self.command, self.path.partition("?")[0], self.headers.get("Authorization", ""),
                json.loads(body) if body else {},
            )  # fmt: skip
            text = json.dumps(found).encode()
            if server.answer is not None:
                status, text = server.answer
            self.send_response(status)
            if status == 401:
                self.send_header(
                    "WWW-Authenticate",
                    'Bearer authorization="https://login.example/tenant", '
                    'resource="https://vault.example"',
                )
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = _answer

        def log_message(self, *_: object) -> None:
            pass

    return Handler


class GoogleServer(CloudServer):
    """cryptoKeys.encrypt and decrypt, by name of the key."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: dict[str, bytes] = {}
        self.disabled: set[str] = set()

    def answered(
        self, method: str, path: str, authorization: str, request: dict[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        name, _, operation = path.removeprefix("/v1/").partition(":")
        if name not in self.keys:
            return self._error(404, "NOT_FOUND", f"CryptoKey {name} not found.")
        if name in self.disabled:
            return self._error(
                400, "FAILED_PRECONDITION", f"{name} is not enabled, current state is: DISABLED."
            )
        cipher = AESGCM(self.keys[name])
        aad = base64.b64decode(request.get("additionalAuthenticatedData", ""))
        if operation == "encrypt":
            nonce = os.urandom(12)
            sealed = nonce + cipher.encrypt(nonce, base64.b64decode(request["plaintext"]), aad)
            text = base64.b64encode(sealed).decode()
            return 200, {"name": f"{name}/cryptoKeyVersions/1", "ciphertext": text}
        sealed = base64.b64decode(request["ciphertext"])
        try:
            opened = cipher.decrypt(sealed[:12], sealed[12:], aad)
        except InvalidTag:
            return self._error(
                400, "INVALID_ARGUMENT",
                "Decryption failed: verify that 'name' refers to the correct CryptoKey.",
            )  # fmt: skip
        return 200, {"plaintext": base64.b64encode(opened).decode()}

    def _error(self, code: int, status: str, message: str) -> tuple[int, dict[str, Any]]:
        return code, {"error": {"code": code, "message": message, "status": status}}


def _url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class AzureServer(CloudServer):
    """Get Key and Unwrap Key, for versions of RSA keys."""

    def __init__(self, certificate: Path, token: str) -> None:
        super().__init__(certificate)
        self.token = token
        #: By name, the versions.
        self.keys: dict[str, dict[str, rsa.RSAPrivateKey]] = {}
        self.forbidden: set[str] = set()

    def add(self, name: str) -> str:
        """The identifier of a new version of a key."""
        version = os.urandom(16).hex()
        made = rsa.generate_private_key(65537, 2048)
        self.keys.setdefault(name, {})[version] = made
        return f"{self.address}/keys/{name}/{version}"

    def answered(
        self, method: str, path: str, authorization: str, request: dict[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        if authorization != f"Bearer {self.token}":
            return self._error(401, "Unauthorized")
        parts = re.fullmatch(r"/keys/([^/]+)/?([0-9a-f]*)/?(unwrapkey)?", path)
        assert parts is not None, path
        name, version, operation = parts.groups()
        if name in self.forbidden:
            return self._error(403, "Forbidden")
        versions = self.keys.get(name, {})
        version = version or next(reversed(versions), "")
        key = versions.get(version)
        if key is None:
            return self._error(404, "KeyNotFound")
        kid = f"{self.address}/keys/{name}/{version}"
        if operation is None:
            numbers = key.public_key().public_numbers()
            jwk = {
                "kid": kid, "kty": "RSA", "key_ops": ["wrapKey", "unwrapKey"],
                "n": _url(numbers.n.to_bytes(256, "big")), "e": "AQAB",
            }  # fmt: skip
            return 200, {"key": jwk, "attributes": {"enabled": True}}
        data = base64.urlsafe_b64decode(request["value"] + "==")
        oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
        try:
            opened = key.decrypt(data, oaep)
        except ValueError:
            return self._error(400, "BadParameter")
        return 200, {"kid": kid, "value": _url(opened)}

    def _error(self, status: int, code: str) -> tuple[int, dict[str, Any]]:
        return status, {"error": {"code": code, "message": f"{code}, say the tests"}}
