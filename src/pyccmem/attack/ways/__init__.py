# SPDX-License-Identifier: Apache-2.0
"""The ways to get at the memory of a process: a module each, with classes of way.py.

way        what a way is, and the process that it is tried on
reading    /proc/PID/mem, process_vm_readv, a forked child
dumping    gcore -a, a core by SIGABRT
swapping   a swap file, to which the process is paged out
inside     an over-read from inside
changing   pages put back, flipped bits
"""

from .dumping import Abort, Gcore
from .inside import OverRead
from .reading import Call, Child, Memory
from .swapping import Swap
from .way import Way

__all__ = ["WAYS"]

#: By name, in the order of tables.
WAYS: dict[str, type[Way]] = {
    way.name: way for way in (Memory, Call, Child, Gcore, Swap, OverRead, Abort)
}
