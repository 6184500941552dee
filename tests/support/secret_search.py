# SPDX-License-Identifier: Apache-2.0
"""Searching the memory of another process for key bytes and what is made of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from sm4_maps import sbox as sm4_sbox
from support import SUBKEY_BYTES, child_environment, lib

from pyccmem import hazmat

#: Runs before anything else in a child and makes memfd_secret(2) answer ENOSYS, as old kernels do:
#: a seccomp filter of four instructions (447 is its number on every architecture).
WITHOUT_MEMFD_SECRET = """
import ctypes, struct
def forbid(number, errno):
    rules = struct.pack("HBBI" * 4,
        0x20, 0, 0, 0,                    # load the system call's number
        0x15, 0, 1, number,               # is it this one?
        0x06, 0, 0, 0x00050000 | errno,   # yes: fail with errno
        0x06, 0, 0, 0x7FFF0000)           # no: allow
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("rules", ctypes.c_char_p)]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong,
                           ctypes.c_ulong]
    program = Program(4, rules)
    if libc.prctl(38, 1, None, 0, 0) or libc.prctl(22, 2, ctypes.addressof(program), 0, 0):
        raise SystemExit(77)              # no seccomp here
forbid(447, 38)
"""

#: Drops root's exemption from RLIMIT_MEMLOCK after everything is imported, then sets the limit.
WITH_LIMIT = """
import os, resource, sys
import pyccmem
from pyccmem import Key, EncryptedBuffer, errors, stats
def limit(nbytes):
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (nbytes, nbytes))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
"""


def skip_without(done: subprocess.CompletedProcess[str], reason: str) -> None:
    if done.returncode == 77:
        pytest.skip(reason)
    assert done.returncode == 0, done.stdout + done.stderr


def secretmem_works() -> bool:
    return lib.ccmem_secret_probe() == lib.CCMEM_SECRET_MEMFD


needs_secretmem = pytest.mark.skipif(
    not secretmem_works(), reason="this kernel gives no memfd_secret memory"
)

# ---- reading another process ------------------------------------------------------------------


@contextmanager
def child(script: str, *arguments: str, environment: dict[str, str] | None = None) -> Iterator[int]:
    """Runs `script` until it prints "ready" and waits on its input; yields its process id."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env=environment or child_environment(),
    )
    try:
        line = process.stdout.readline()
        if line != "ready\n":
            process.stdin.close()
            rest, problem = process.stdout.read(), process.stderr.read()
            process.wait()
            if process.returncode == 77:
                pytest.skip("no seccomp filter may be installed here")
            raise AssertionError(f"the child said {line + rest!r}: {problem}")
        yield process.pid
        process.stdin.write("\n")
        process.stdin.close()
        assert process.wait(30) == 0, process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


class Mapping:
    """One entry of /proc/PID/smaps: address range, name, VmFlags."""

    def __init__(self, header: str) -> None:
        addresses, _, _, _, _, *name = header.split(maxsplit=5)
        self.start, self.end = (int(part, 16) for part in addresses.split("-"))
        self.name = name[0] if name else ""
        self.flags: set[str] = set()
        self.locked = 0


def mappings(pid: int) -> list[Mapping]:
    found: list[Mapping] = []
    with open(f"/proc/{pid}/smaps", encoding="ascii", errors="replace") as lines:
        for line in lines:
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                found.append(Mapping(line.rstrip("\n")))
            elif line.startswith("VmFlags:"):
                found[-1].flags = set(line.split()[1:])
            elif line.startswith("Locked:"):
                found[-1].locked = int(line.split()[1]) * 1024
    return found


def readable(pid: int) -> Iterator[tuple[Mapping, bytes]]:
    """The contents of every mapping that /proc/PID/mem gives to its parent."""
    try:
        memory = open(f"/proc/{pid}/mem", "rb", buffering=0)  # noqa: SIM115 (a `with` follows)
    except PermissionError:
        pytest.skip("this system does not let a parent read its child's memory")
    with memory:
        for mapping in mappings(pid):
            if "rd" not in mapping.flags or mapping.name in ("[vvar]", "[vsyscall]"):
                continue
            try:
                content = os.pread(memory.fileno(), mapping.end - mapping.start, mapping.start)
            except OSError:
                continue  # secret memory, or pages that do not exist
            yield mapping, content


def find(pid: int, needles: dict[str, bytes]) -> list[tuple[str, Mapping]]:
    """Where any needle of 16 bytes or more lies. Looks at multiples of 4 only: compilers, vector
    registers and allocators place nothing of that size elsewhere."""
    by_word: dict[int, list[tuple[str, bytes]]] = {}
    first_halves = np.zeros(65536, np.bool_)
    for name, needle in needles.items():
        by_word.setdefault(int.from_bytes(needle[:8], sys.byteorder), []).append((name, needle))
        first_halves[np.frombuffer(needle, np.uint16, 1)] = True
    words = np.array(sorted(by_word), np.uint64)
    found = []
    for mapping, content in readable(pid):
        starts = np.flatnonzero(first_halves[np.frombuffer(content, np.uint16)[:-6:2]]) * 4
        eights = np.lib.stride_tricks.as_strided(
            np.frombuffer(content, np.uint64, 1), ((len(content) - 4) // 4,), (4,), writeable=False
        )
        for at in starts[np.isin(eights[starts // 4], words)].tolist():
            for name, needle in by_word[int.from_bytes(content[at : at + 8], sys.byteorder)]:
                if content.startswith(needle, at):
                    found.append((name, mapping))
    return found


# ---- AES's key schedule, to know every round key that might be left behind ---------------------


def sbox() -> list[int]:
    """FIPS 197's S-box, from its definition: inverse in GF(2^8), then an affine map."""
    exp, log, x = [0] * 256, [0] * 256, 1
    for i in range(255):
        exp[i], log[x] = x, i
        x ^= (x << 1) ^ (0x11B if x & 0x80 else 0)
        x &= 0xFF
    table = []
    for value in range(256):
        inverse = exp[-log[value] % 255] if value else 0
        out = 0x63
        for shift in range(5):
            out ^= (inverse << shift | inverse >> (8 - shift)) & 0xFF
        table.append(out)
    return table


SBOX = sbox()


def times(a: int, b: int) -> int:
    product = 0
    while b:
        product ^= a if b & 1 else 0
        a = (a << 1) ^ (0x11B if a & 0x80 else 0)
        b >>= 1
    return product


def round_keys(key: bytes) -> list[bytes]:
    """FIPS 197, 5.2: every round key of the cipher."""
    words = [key[i : i + 4] for i in range(0, len(key), 4)]
    size, rounds, constant = len(words), len(words) + 6, 1
    while len(words) < 4 * (rounds + 1):
        word = words[-1]
        if len(words) % size == 0:
            word = bytes(SBOX[b] for b in word[1:] + word[:1])
            word = bytes([word[0] ^ constant]) + word[1:]
            constant = times(constant, 2)
        elif size > 6 and len(words) % size == 4:
            word = bytes(SBOX[b] for b in word)
        words.append(bytes(a ^ b for a, b in zip(words[-size], word, strict=True)))
    return [b"".join(words[i : i + 4]) for i in range(0, len(words), 4)]


def inverse_mix_columns(block: bytes) -> bytes:
    out = bytearray()
    for at in range(0, 16, 4):
        column = block[at : at + 4]
        for row in range(4):
            value = 0
            for i, factor in enumerate((14, 11, 13, 9)):
                value ^= times(column[(row + i) % 4], factor)
            out.append(value)
    return bytes(out)


def all_round_keys(name: str, key: bytes, both: bool = True) -> dict[str, bytes]:
    """Round keys of the cipher and of its equivalent inverse (FIPS 197, 5.3.5)."""
    keys = {f"{name} round {i}": part for i, part in enumerate(round_keys(key))}
    if both:
        keys |= {
            f"{name} inverse round {i}": inverse_mix_columns(part)
            for i, part in enumerate(round_keys(key)[1:-1], 1)
        }
    return keys


#: RFC 10032, 3: the constants with which the key goes into the state of AEGIS-128.
AEGIS_CONSTANTS = (
    bytes.fromhex("000101020305080d1522375990e97962"),
    bytes.fromhex("db3d18556dc22ff12011314273b528dd"),
)


def aegis_secrets(name: str, key: bytes) -> dict[str, bytes]:
    """The key, and the blocks of the first state that depend on nothing else."""
    mixed = (bytes(a ^ b for a, b in zip(key, c, strict=True)) for c in AEGIS_CONSTANTS)
    return {f"{name} key": key} | {f"{name} key ^ C{i}": block for i, block in enumerate(mixed)}


# ---- SM4's --------------------------------------------------------------------------------------

#: GB/T 32907-2016, 7.3.
SM4_FK = (0xA3B1BAC6, 0x56AA3350, 0x677D9197, 0xB27022DC)
SM4_SBOX = sm4_sbox()


def sm4_round_keys(key: bytes) -> list[bytes]:
    """GB/T 32907-2016, 7.3: all 32 round keys, of four bytes each."""
    words = [int.from_bytes(key[4 * i : 4 * i + 4], "big") ^ SM4_FK[i] for i in range(4)]
    for i in range(32):
        constant = int.from_bytes(bytes((4 * i + j) * 7 & 0xFF for j in range(4)), "big")
        mixed = words[-3] ^ words[-2] ^ words[-1] ^ constant
        t = int.from_bytes(bytes(SM4_SBOX[b] for b in mixed.to_bytes(4, "big")), "big")
        t ^= (t << 13 | t >> 19) ^ (t << 23 | t >> 9)
        words.append(words[-4] ^ t & 0xFFFFFFFF)
    return [word.to_bytes(4, "big") for word in words[4:]]


def sm4_secrets(name: str, key: bytes) -> dict[str, bytes]:
    """The key, and each four round keys in a row, as they lie and as they decrypt."""
    keys = sm4_round_keys(key)
    found = {f"{name} key": key}
    for i in range(0, 29):
        found[f"{name} round {i}"] = b"".join(keys[i : i + 4])
        found[f"{name} backwards round {i}"] = b"".join(keys[i : i + 4][::-1])
    return found


def secrets_of(key: bytes) -> dict[str, bytes]:
    """Everything that gives the keys away: the root key's schedule and the buffers' (store id
    16 x 0x37, see fixed_random), in both directions."""
    needles = all_round_keys("root", key, both=False)
    for cipher, size in SUBKEY_BYTES.items():
        for page_size in (4096, 65536):
            by_sm4 = cipher.startswith("sm4-")
            derive = hazmat.kdf_counter_sm3 if by_sm4 else hazmat.kdf_counter_cmac
            context = b"\x37" * 16 + page_size.to_bytes(4, "big")
            subkeys = derive(key, cipher.encode(), context, size)
            name = f"{cipher}/{page_size}"
            if by_sm4:
                needles |= sm4_secrets(f"{name} first", subkeys[:16])
                if size > 16:
                    needles |= sm4_secrets(f"{name} second", subkeys[16:])
                continue
            if cipher.startswith("aegis"):
                for at in range(0, size, 16):
                    needles |= aegis_secrets(f"{name} K{at}", subkeys[at : at + 16])
                continue
            if cipher.endswith("-gcm"):
                needles |= all_round_keys(name, subkeys, both=False)
                continue
            needles |= all_round_keys(f"{name} K1", subkeys[: size // 2])
            needles |= all_round_keys(f"{name} K2", subkeys[size // 2 :], both=False)
    return needles
