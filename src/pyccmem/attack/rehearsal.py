# SPDX-License-Identifier: Apache-2.0
"""`python -m pyccmem.attack.rehearsal DESCRIPTOR`: computes what is looked for later, in a process
of its own, so that those that are attacked have never had it.

The first message is a Job, the second a prompt; the answers are seconds, and a Rehearsal of the
plain way and then of the protected one.
"""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection

from ..demo import serving
from .model import Model

__all__ = ["serve"]


def serve() -> int:
    """Serves the descriptor. Returns the exit status."""

    def work(model: Model, channel: Connection) -> None:
        text = channel.recv()
        channel.send(model.rehearse(text))
        model.protect()
        channel.send(model.rehearse(text))
        channel.recv()

    return serving.serve(serving.timed(Model), work)


if __name__ == "__main__":
    sys.exit(serve())
