# SPDX-License-Identifier: Apache-2.0
"""The native module: what it exports, how it starts, which instructions it holds."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import native_build
import pytest
import support
from support import ffi, lib

import pyccmem
from pyccmem import _native, errors

MODULE = Path(_native.__file__)
ROOT = native_build.ROOT
COMPILER = native_build.compiler()


def tool(name: str, *arguments: str, module: Path = MODULE) -> str:
    """The output of a binutils tool, or a skip when it is not installed."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"needs {name}")
    return subprocess.run(
        [path, *arguments, str(module)], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.skipif(sys.platform != "linux", reason="reads an ELF symbol table")
def test_only_the_init_symbol_is_exported() -> None:
    """-fvisibility=hidden; nothing of ours can be interposed or clash with another library."""
    symbols = tool("nm", "-D", "--defined-only")
    names = {line.split()[-1].split("@")[0] for line in symbols.splitlines() if line.strip()}
    # Markers that linkers and sanitizers add by themselves are not ours to hide.
    names -= {"_init", "_fini", "_edata", "_end", "__bss_start"}
    names = {name for name in names if not name.startswith(("__asan", "__ubsan", "__odr_asan"))}
    assert names == {"PyInit__native"}


@pytest.mark.skipif(
    bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="no stable ABI without the GIL"
)
def test_the_stable_abi_is_used() -> None:
    """One module for every Python from 3.10 on: its name says abi3, and it asks for no more."""
    assert ".abi3." in MODULE.name
    symbols = tool("nm", "-D", "--undefined-only")
    wanted = {line.split()[-1].split("@")[0] for line in symbols.splitlines() if line.strip()}
    private = {name for name in wanted if name.startswith(("_Py", "PyUnstable"))}
    # The names without underscore that cffi's own glue takes from the stable ABI.
    assert private <= {"_Py_Dealloc", "_Py_NoneStruct", "_Py_IncRef", "_Py_DecRef"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF headers")
def test_the_stack_is_not_executable_and_relocations_are_read_only() -> None:
    headers = tool("readelf", "-lW")
    stack = next(line for line in headers.splitlines() if "GNU_STACK" in line)
    assert "E" not in stack.split()[-2], stack
    assert "GNU_RELRO" in headers
    assert "BIND_NOW" in tool("readelf", "-dW") or "NOW" in tool("readelf", "-dW")


def traces_of_the_build(module: Path, folder: Path) -> list[str]:
    """What a module tells of how and where it was built: tables of names, debug data, paths."""
    listed = tool("readelf", "-SW", module=module)
    found = re.findall(r" (\.symtab|\.strtab|\.z?debug_\w+) ", listed)
    found += re.findall(r"\((RPATH|RUNPATH)\)", tool("readelf", "-dW", module=module))
    data = module.read_bytes()
    return found + [text for text in (str(folder), "csrc/") if text.encode() in data]


@support.not_sanitized
@pytest.mark.skipif(bool(os.environ.get("PYCCMEM_DEBUG")), reason="built to be debugged")
def test_the_module_is_stripped() -> None:
    assert traces_of_the_build(MODULE, ROOT) == []
    # gzip makes less than half of it; with debug data it would have four times as much.
    assert MODULE.stat().st_size < 13 << 18


def test_a_module_that_is_not_stripped_is_told(tmp_path: Path) -> None:
    """The control of the test above: each of its traces, where it is."""
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "a.c").write_text("int a(void) { return 0; }\n", encoding="utf-8")
    subprocess.run(
        [*COMPILER, "-g", "-shared", "-fPIC", "-Wl,-rpath,/opt", "csrc/a.c", "-o", "a.so"],
        cwd=tmp_path,
        check=True,
    )
    found = traces_of_the_build(tmp_path / "a.so", tmp_path)
    assert {".symtab", ".strtab", ".debug_info", "RUNPATH", str(tmp_path), "csrc/"} <= set(found)


#: Functions that may hold instructions newer than x86-64's baseline: those of the accelerated
#: tiers. Everything else runs on any processor.
WIDE = re.compile(r"%[yz]mm|\b(v?aes(enc|dec|imc|keygen)|v?pclmul|v[a-z0-9]+ .*%xmm)")

#: What the names of the accelerated tiers' files have in common.
ACCELERATED = re.compile(
    r"(^|_)(aesni|vaes256|vaes512|vaes512_amd|avx2|avx512|bf16|vnni|avxvnni|avx512vnni|gfni128|gfni256|gfni512)\.c$"
)


def wide_functions(objects: Iterable[Path]) -> set[str]:
    """Names of the functions in object files with instructions newer than the baseline."""
    wide: set[str] = set()
    name = ""
    for path in objects:
        listing = tool("objdump", "-d", "--no-show-raw-insn", module=path)
        for line in listing.splitlines():
            header = re.match(r"[0-9a-f]+ <(.+)>:$", line)
            if header:
                name = header.group(1)
            elif WIDE.search(line):
                wide.add(name)
    return wide


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="reads x86-64 code")
def test_portable_code_has_no_newer_instructions(native_objects: dict[Path, Path]) -> None:
    """Target attributes, not flags: start-up and the portable tier use SSE2 at most."""
    common = [o for source, o in native_objects.items() if not ACCELERATED.search(source.name)]
    assert len(common) > 30
    assert not wide_functions(common)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="reads x86-64 code")
def test_newer_instructions_are_told(native_objects: dict[Path, Path], tmp_path: Path) -> None:
    """The control of the test above: a tier's file, and a common one compiled with a flag."""
    assert len(wide_functions([native_objects[native_build.CSRC / "crypto/aegis/aesni.c"]])) > 5
    source = native_build.CSRC / "kernels/gemv_portable.c"
    flagged = native_build.compile_objects([source], tmp_path, "-mavx2")
    assert "dot_bf16" in wide_functions(flagged.values())


# ---- start-up -----------------------------------------------------------------------------------

REPORT = """
import json, pyccmem
i = pyccmem.cpu_info()
print(json.dumps([i["tier"], i["tiers"], i["threads"], pyccmem.get_num_threads()]))
with pyccmem.Key.generate() as key, pyccmem.EncryptedBuffer(100_000, key=key) as b:
    b.write(bytes(range(250)) * 400)
    assert b.read() == bytes(range(250)) * 400
"""


@pytest.mark.parametrize("name", support.TIER_NAMES)
def test_each_usable_tier_can_be_forced(name: str) -> None:
    script = "import warnings; warnings.simplefilter('error')\n" + REPORT
    printed = support.check_python(script, environment=support.child_environment(PYCCMEM_TIER=name))
    assert json.loads(printed)[0] == name


def test_the_best_tier_is_the_default() -> None:
    for value in (None, ""):
        environment = support.child_environment(PYCCMEM_TIER=value)
        tier, tiers, _, _ = json.loads(support.check_python(REPORT, environment=environment))
        assert tier == tiers[0] == support.TIER_NAMES[-1]
        assert tiers == support.TIER_NAMES[::-1]


@pytest.mark.parametrize("name", ["bogus", "PORTABLE", " portable", "portable,aesni", "é", "0"])
def test_an_unknown_tier_fails_the_import(name: str) -> None:
    done = support.run_python(
        "import pyccmem", environment=support.child_environment(PYCCMEM_TIER=name)
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("pyccmem.errors.TierError: ")
    assert "PYCCMEM_TIER" in last and "portable" in last


def test_an_unusable_tier_fails_the_import() -> None:
    missing = [t for t in range(lib.CCMEM_TIER_COUNT) if t not in support.TIERS]
    if not missing:
        pytest.skip("this processor can run every tier")
    for number in missing:
        name = support.tier_name(number)
        done = support.run_python(
            "import pyccmem", environment=support.child_environment(PYCCMEM_TIER=name)
        )
        assert done.returncode == 1 and "cannot run" in done.stderr


def test_a_failed_import_can_be_repeated() -> None:
    """After a wrong PYCCMEM_TIER the same process may correct it."""
    support.check_python(
        "import os, sys\n"
        "for _ in range(2):\n"
        "    try:\n"
        "        import pyccmem\n"
        "    except ValueError as error:\n"
        "        assert 'PYCCMEM_TIER' in str(error)\n"
        "    else:\n"
        "        raise AssertionError('imported')\n"
        "    for name in [n for n in sys.modules if n.startswith('pyccmem')]:\n"
        "        del sys.modules[name]\n",
        environment=support.child_environment(PYCCMEM_TIER="bogus"),
    )


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "257", "99999999999999999999", " 2"])
def test_a_wrong_number_of_threads_fails_the_import(value: str) -> None:
    done = support.run_python(
        "import pyccmem", environment=support.child_environment(PYCCMEM_NUM_THREADS=value)
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("pyccmem.errors.ConfigError: ")
    assert "PYCCMEM_NUM_THREADS" in last and "256" in last


@pytest.mark.parametrize(("value", "threads"), [("1", 1), ("3", 3), ("256", 256)])
def test_the_number_of_threads_can_be_set(value: str, threads: int) -> None:
    environment = support.child_environment(PYCCMEM_NUM_THREADS=value)
    printed = json.loads(support.check_python(REPORT, environment=environment))
    assert printed[2:] == [threads, threads]


def test_the_default_number_of_threads_is_the_affinity() -> None:
    script = "import os\nos.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n" + REPORT
    for text, threads in ((REPORT, len(os.sched_getaffinity(0))), (script, 1)):
        environment = support.child_environment(PYCCMEM_NUM_THREADS=None)
        printed = json.loads(support.check_python(text, environment=environment))
        assert printed[2:] == [min(threads, 256)] * 2


def test_importing_starts_no_thread_and_opens_no_file() -> None:
    support.check_python(
        "import os\n"
        "import numpy, cffi\n"
        "before = set(os.listdir('/proc/self/fd')), len(os.listdir('/proc/self/task'))\n"
        "import pyccmem\n"
        "pyccmem.Key.generate()\n"
        "assert before == (set(os.listdir('/proc/self/fd')), len(os.listdir('/proc/self/task')))\n"
    )


# ---- self-test and description -------------------------------------------------------------------


def test_the_self_test_of_every_tier(tier: int) -> None:
    assert lib.ccmem_selftest(tier) == lib.CCMEM_OK


def test_the_self_test_of_the_package() -> None:
    result = pyccmem.selftest()
    assert result["tier"] == pyccmem.cpu_info()["tier"]
    passed = {name for name, outcome in result["tiers"].items() if outcome == "passed"}
    assert passed == set(support.TIER_NAMES)
    assert set(result["tiers"].values()) <= {"passed", "unusable"}
    assert result["buffers"] == dict.fromkeys(support.CIPHERS, "passed")


def test_numbers_outside_the_tiers() -> None:
    for number in (lib.CCMEM_TIER_COUNT, 100, 2**31 - 1):
        assert lib.ccmem_tier_usable(number) == 0
        assert lib.ccmem_tier_name(number) == ffi.NULL
        assert lib.ccmem_selftest(number) == lib.CCMEM_ERR_TIER


LAST_STATUS = lib.CCMEM_ERR_INTEGRITY


def test_a_text_for_every_status() -> None:
    texts = [ffi.string(lib.ccmem_status_text(s)).decode() for s in range(LAST_STATUS + 1)]
    assert len(set(texts)) == len(texts) and all(len(text) > 3 for text in texts[1:])
    assert not any(text.endswith(".") for text in texts)
    for status in (99, 2**31 - 1):
        assert ffi.string(lib.ccmem_status_text(status))


def test_cpu_info() -> None:
    info = pyccmem.cpu_info()
    assert info["tiers"] == support.TIER_NAMES[::-1]
    assert info["tier"] == os.environ.get("PYCCMEM_TIER") or info["tier"] == info["tiers"][0]
    assert info["tiers"][-1] == "portable"
    assert all(type(present) is bool for present in info["features"].values())
    assert info["threads"] == pyccmem.get_num_threads() >= 1
    assert info["ceiling"] is None
    if os.uname().machine == "x86_64":
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = set(re.search(r"^flags\s*:(.*)$", file.read(), re.M).group(1).split())
        for ours, theirs in (("aes", "aes"), ("vaes", "vaes"), ("gfni", "gfni"), ("avx2", "avx2")):
            assert info["features"][ours] == (theirs in flags), ours
    json.dumps(info)


def test_the_ceiling_is_measured_on_demand() -> None:
    ceiling = pyccmem.cpu_info(measure=True)["ceiling"]
    if pyccmem.cpu_info()["tier"] == "portable":
        assert ceiling is None
    else:
        assert ceiling["aegis-128"] > ceiling["aes-128"] > ceiling["aes-256"] > 1e8


def test_the_library_refuses_what_the_package_never_passes(key: pyccmem.Key) -> None:
    """The C interface's own checks, reached without the Python layer's."""
    store = ffi.new("ccmem_store **")
    native = key._opened()
    native = getattr(native, "pointer", native)
    unknown = lib.CCMEM_CIPHER_COUNT
    for cipher, page_size in (
        (unknown, 4096),
        (99, 4096),
        *((0, n) for n in (0, 4097, 131072, 2048)),
    ):
        status = lib.ccmem_store_new(native, cipher, 100, page_size, 0, 16, 0, store)
        assert status == lib.CCMEM_ERR_ARGUMENT
    status = lib.ccmem_store_new(native, 0, 100, 4096, 2**63, 16, 0, store)
    assert status == lib.CCMEM_ERR_ARGUMENT
    assert lib.ccmem_store_new(ffi.NULL, 0, 100, 4096, 0, 16, 0, store) == lib.CCMEM_ERR_ARGUMENT
    assert lib.ccmem_store_new(native, 0, 2**64 - 1, 4096, 0, 16, 0, store) == lib.CCMEM_ERR_NOMEM
    assert lib.ccmem_store_new(native, 0, 5000, 4096, 0, 16, 0, store) == lib.CCMEM_OK
    made = ffi.gc(store[0], lib.ccmem_store_free)
    memory = ffi.new("uint8_t[5000]")
    for offset, n in ((5000, 1), (2**64 - 1, 1), (2**64 - 1, 2), (1, 2**64 - 1), (0, 5001)):
        assert lib.ccmem_store_read(made, offset, memory, n) == lib.CCMEM_ERR_RANGE
        assert lib.ccmem_store_write(made, offset, memory, n) == lib.CCMEM_ERR_RANGE
        for offsets in (ffi.new("uint64_t[]", [0, offset]), ffi.new("uint64_t[]", [offset, 0])):
            if n <= 5000:
                status = lib.ccmem_store_gather(made, offsets, 2, n, memory)
                assert status == lib.CCMEM_ERR_RANGE
                status = lib.ccmem_store_scatter(made, offsets, 2, n, ffi.new("uint8_t[]", n))
                assert status == lib.CCMEM_ERR_RANGE
    versions = ffi.new("uint64_t[8]")
    assert lib.ccmem_store_versions(made, 0, 2, versions) == lib.CCMEM_OK
    assert list(versions) == [0] * 8, "a refused call wrote something"
    for first, count in ((0, 3), (2, 1), (2**64 - 1, 2), (1, 2**64 - 1)):
        assert lib.ccmem_store_versions(made, first, count, versions) == lib.CCMEM_ERR_RANGE
    assert lib.ccmem_store_versions(made, 0, 2, versions) == lib.CCMEM_OK
    bad, failures = ffi.new("uint8_t[8]"), ffi.new("uint64_t *")
    assert lib.ccmem_store_verify(made, 0, 2, bad, failures) == lib.CCMEM_ERR_ARGUMENT
    assert lib.ccmem_store_new(native, lib.CCMEM_AEGIS_128X2, 5000, 4096, 0, 0, 0, store) == 0
    tagged = ffi.gc(store[0], lib.ccmem_store_free)
    for first, count in ((0, 3), (2, 1), (2**64 - 1, 2), (1, 2**64 - 1)):
        status = lib.ccmem_store_verify(tagged, first, count, bad, failures)
        assert status == lib.CCMEM_ERR_RANGE
    failures[0] = 7
    assert lib.ccmem_store_verify(tagged, 0, 2, bad, failures) == lib.CCMEM_OK
    assert failures[0] == 0 and bytes(ffi.buffer(bad)) == bytes(8)
    for number, tags in ((0, 0), (1, 0), (lib.CCMEM_AEGIS_128X2, 1), (unknown, 0), (99, 0)):
        assert lib.ccmem_cipher_authenticated(number) == tags
    for free in (
        lib.ccmem_key_free,
        lib.ccmem_store_free,
        lib.ccmem_arena_free,
        lib.ccmem_file_free,
    ):
        free(ffi.NULL)
    arena = ffi.new("ccmem_arena **")
    refused = [(native, 99, 4096, 0), (native, 2, 5000, 0), (native, 2, 4096, 2**63)]
    for arguments in (*refused, (ffi.NULL, 2, 4096, 0)):
        assert lib.ccmem_arena_new(*arguments, 0, 0, arena) == lib.CCMEM_ERR_ARGUMENT
    assert lib.ccmem_arena_new(native, 2, 4096, 0, 0, 0, arena) == lib.CCMEM_OK
    place = ffi.new("uint64_t[]", lib.CCMEM_STORE_SIZE // 8)
    add = lib.ccmem_arena_add
    assert add(ffi.NULL, 5, ffi.NULL, place) == lib.CCMEM_ERR_ARGUMENT
    assert add(arena[0], 5, ffi.NULL, ffi.NULL) == lib.CCMEM_ERR_ARGUMENT
    assert add(arena[0], 2**64 - 1, ffi.NULL, place) == lib.CCMEM_ERR_NOMEM
    assert list(place) == [0] * len(place)
    lib.ccmem_arena_remove(place)
    assert list(place) == [0] * len(place)
    assert add(arena[0], 5, b"12345", place) == lib.CCMEM_OK
    for _ in range(2):
        lib.ccmem_arena_remove(place)
        assert lib.ccmem_store_read(place, 0, ffi.new("char[]", 5), 5) == lib.CCMEM_ERR_CLOSED
        assert lib.ccmem_store_check(place) == lib.CCMEM_ERR_CLOSED
    lib.ccmem_arena_free(arena[0])
    lib.ccmem_mapping_release(ffi.NULL)
    out = ffi.new("ccmem_key **")
    for require in (-1 & 0xFFFFFFFF, lib.CCMEM_SECRET_MLOCK_ONLY + 1, 99):
        status = lib.ccmem_key_generate(require, out)
        assert status in (lib.CCMEM_ERR_ARGUMENT, lib.CCMEM_ERR_SECRETMEM)
    assert lib.ccmem_key_from_bytes(ffi.NULL, 1, out) == lib.CCMEM_ERR_ARGUMENT
    assert lib.ccmem_key_from_fd(-1, 1, out) == lib.CCMEM_ERR_IO
    assert issubclass(errors.TierError, errors.ArgumentError)
