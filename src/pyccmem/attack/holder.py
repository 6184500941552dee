# SPDX-License-Identifier: Apache-2.0
"""`python -m pyccmem.attack.holder DESCRIPTOR`: the unprotected twin of a process of one's own,
which holds the samples in its heap."""

from __future__ import annotations

import sys
from typing import Any

from ..demo import serving

__all__ = ["serve"]


def serve() -> int:
    """Holds what comes, a Holding, until the descriptor is closed. Returns the exit status."""

    def hold(held: Any) -> tuple[Any, float]:
        return held, 0.0

    return serving.serve(hold, lambda _, channel: channel.recv())


if __name__ == "__main__":
    sys.exit(serve())
