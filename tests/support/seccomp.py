# SPDX-License-Identifier: Apache-2.0
"""A profile of system calls in Docker's format, put in force in a process without Docker:

    python tests/support/seccomp.py PROFILE COMMAND...

runs a command under it. Of the format it knows what the profile of examples/container uses: names
that are allowed, arguments apart, and an error for all others.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import struct
import sys
from pathlib import Path

_HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
_ARCHITECTURE = 0xC000003E  # AUDIT_ARCH_X86_64
_X32 = 0x40000000  # calls of the x32 ABI have this bit

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000


def numbers() -> dict[str, int]:
    """The numbers of this architecture's system calls, by name; none where no header says them."""
    if not _HEADER.exists():
        return {}
    found = re.findall(r"#define __NR_(\w+)\s+(\d+)", _HEADER.read_text("ascii"))
    return {name: int(number) for name, number in found}


def program(profile: dict[str, object]) -> bytes:
    """The profile as a program of the kernel's."""
    known = numbers()
    allowed: list[int] = []
    for rule in profile["syscalls"]:  # type: ignore[attr-defined]
        assert set(rule) == {"names", "action"} and rule["action"] == "SCMP_ACT_ALLOW", rule
        allowed += [known[name] for name in rule["names"] if name in known]
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    refuse = _ERRNO | int(str(profile["defaultErrnoRet"]))
    # Offsets in struct seccomp_data: the call's number at 0, the architecture at 4.
    code = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, _ARCHITECTURE),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, refuse),
    ]
    for number in sorted(set(allowed)):
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    code.append((_RETURN, 0, 0, refuse))
    return b"".join(struct.pack("=HBBI", *step) for step in code)


def apply(profile: dict[str, object]) -> None:
    """Puts a profile in force in this process and all it starts. Raises OSError."""
    code = program(profile)
    memory = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("@HP", len(code) // 8, ctypes.addressof(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    for words in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.c_char_p(head), 0, 0),
    ):
        if libc.prctl(*words):
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    apply(json.loads(Path(sys.argv[1]).read_text("utf-8")))
    os.execvp(sys.argv[2], sys.argv[2:])
