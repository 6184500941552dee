# SPDX-License-Identifier: Apache-2.0
"""`python -m pyccmem.attack.holder DESCRIPTOR`: the unprotected twin of a process of one's own,
which holds the samples in its heap."""

from __future__ import annotations

import signal
import sys
from multiprocessing.connection import Connection

__all__ = ["serve"]


def serve() -> int:
    """Holds what comes, a Holding, until the descriptor is closed. Returns the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel: Connection = Connection(int(sys.argv[1]))
    try:
        held = channel.recv()
        channel.send(0.0)
        channel.recv()
    except (EOFError, BrokenPipeError):
        pass
    del held
    return 0


if __name__ == "__main__":
    sys.exit(serve())
