# SPDX-License-Identifier: Apache-2.0
"""The process that is looked at, and the system it runs on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

__all__ = ["FROM_INSIDE", "Subject", "Unseen"]

#: What to do in order to see what a process alone can see.
FROM_INSIDE = "have the process call pyccmem.posture() itself"


class Unseen(Exception):
    """Something that cannot be seen from here; the text says what, and why."""

    def __init__(
        self, text: str, remedy: str = "let this process see /proc and /sys as Linux shows them"
    ) -> None:
        """`remedy`: what to do in order to see it."""
        super().__init__(text)
        self.remedy = remedy


class Subject:
    """A process of the system whose /proc, /sys and /dev lie below `root`."""

    def __init__(self, pid: int | None = None, root: str | Path = "/") -> None:
        """`pid`: None for this process."""
        self.root = Path(root)
        self.pid = os.getpid() if pid is None else pid
        #: True for this process, which sees what no other does.
        self.inside = pid is None or pid == os.getpid()
        #: The objects that lines look for, once they were looked for.
        self.objects: dict[str, list[Any]] | None = None

    def path(self, name: str) -> Path:
        """Returns where a file of the system lies, such as "proc/swaps"."""
        return self.root / name

    def read(self, name: str) -> str:
        """Returns the text of a file of the system, without white space at its ends. Raises
        Unseen."""
        try:
            return self.path(name).read_text(encoding="utf-8", errors="replace").strip()
        except OSError as error:
            raise Unseen(f"/{name} cannot be read ({error.strerror or error})") from None

    def there(self, name: str) -> bool:
        """Returns True when there is such a file. Raises Unseen when the system does not let us
        look."""
        try:
            os.lstat(self.path(name))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise Unseen(f"/{name} cannot be looked at ({error.strerror or error})") from None
        return True

    def own(self, name: str) -> str:
        """Returns the text of a file in the process's own folder of /proc. Raises Unseen."""
        return self.read(f"proc/{'self' if self.inside else self.pid}/{name}")

    def status(self, field: str) -> str:
        """Returns a field of the process's `status`. Raises Unseen."""
        for line in self.own("status").splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return value.strip()
        raise Unseen(f"the process's status has no {field}")

    def chosen(self, name: str) -> str:
        """Returns the choice in brackets of a file such as "always [madvise] never". Raises
        Unseen."""
        text = self.read(name)
        for word in text.split():
            if word.startswith("[") and word.endswith("]"):
                return word[1:-1]
        raise Unseen(f"/{name} names no choice ({text[:60]!r})")
