# SPDX-License-Identifier: Apache-2.0
"""`python -m pyccmem.attack.rehearsal DESCRIPTOR`: computes what is looked for later, in a process
of its own, so that those that are attacked have never had it.

The first message is a Job, the second a prompt; the answers are seconds, and a Rehearsal of the
plain way and then of the protected one.
"""

from __future__ import annotations

import signal
import sys
from multiprocessing.connection import Connection

from .. import errors
from .model import Model

__all__ = ["serve"]


def serve() -> int:
    """Serves the descriptor. Returns the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel: Connection = Connection(int(sys.argv[1]))
    try:
        job = channel.recv()
        try:
            model = Model(job)
        except (errors.PyccmemError, ImportError, OSError, MemoryError) as error:
            channel.send(str(error))
            return 1
        channel.send(0.0)
        text = channel.recv()
        channel.send(model.rehearse(text))
        model.protect()
        channel.send(model.rehearse(text))
        channel.recv()
    except (EOFError, BrokenPipeError):
        pass
    return 0


if __name__ == "__main__":
    sys.exit(serve())
