# SPDX-License-Identifier: Apache-2.0
"""moto's AWS KMS on a port of this machine. moto serves disabled keys and knows no policies: what
AWS KMS's API reference says it answers then stands in `answer`."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

REGION = "eu-central-1"


class KmsServer:
    """Answers at `address` until close()."""

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._moto = DomainDispatcherApplication(create_backend_app)
        #: Status, name of the error; or status, body. None lets moto answer.
        self.answer: tuple[int, str | bytes] | None = None
        self.requests: list[bytes] = []
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if self.answer is None:
            found: Iterable[bytes] = self._moto(environ, start)
            return found
        status, what = self.answer
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        body = what
        if isinstance(what, str):
            body = json.dumps({"__type": what, "message": "said by the tests"}).encode()
        start(f"{status} Said", [("Content-Type", "application/x-amz-json-1.1")])
        assert isinstance(body, bytes)
        return [body]

    def client(self) -> Any:
        import boto3

        return boto3.session.Session().client("kms", region_name=REGION, endpoint_url=self.address)

    def add(self) -> str:
        """The ARN of a new key."""
        return str(self.client().create_key()["KeyMetadata"]["Arn"])
