# SPDX-License-Identifier: Apache-2.0
"""Describes the native module `pyccmem._native` to cffi (API mode, out of line).

The declarations are csrc/ccmem.h itself, so the binding cannot drift from the library. The
processor is chosen at run time by target attributes on single functions: no flag here may name an
instruction set.

PYCCMEM_SANITIZE=address,undefined in the environment builds with these sanitizers. PYCCMEM_DEBUG=1
keeps debug data and the names of functions, for a debugger or a profiler; the code stays the same.
"""

import os
import re
import sysconfig
from pathlib import Path

from cffi import FFI

# setuptools wants paths relative to the project's root, in a fixed order for equal builds.
ROOT = Path(__file__).resolve().parent
SOURCES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.c"))
HEADERS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.h"))


def declarations(header: Path) -> str:
    """The header's text without its preprocessor lines, which cffi does not read.

    The header promises to use the preprocessor for inclusion only, so no declaration is lost;
    a line that would change the declarations (a macro, a condition) is an error, not skipped.
    """
    kept = []
    for line in header.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            kept.append(line)
            continue
        words = line[1:].split()
        guard = words[:2] in (["ifndef", "CCMEM_H"], ["define", "CCMEM_H"]) or words[0] == "endif"
        if words[0] != "include" and not guard:
            raise SystemExit(f"{header}: cffi cannot read the line {line!r}")
    # A store may also lie in a Python object's own memory, which cffi hands over as `void *` only.
    return re.sub(r"ccmem_store \*(store|bias)(?=[,)])", r"void *\1", "\n".join(kept))


compile_args = ["-std=gnu11", "-O3", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra"]
link_args = ["-pthread", "-Wl,-z,relro,-z,now", "-Wl,-z,noexecstack"]

sanitizers = os.environ.get("PYCCMEM_SANITIZE")
if sanitizers:
    sanitize = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    compile_args += [*sanitize, "-O2", "-g", "-fno-omit-frame-pointer"]
    link_args += sanitize
elif os.environ.get("PYCCMEM_DEBUG"):
    compile_args += ["-g"]
else:
    # What Python itself was built with asks for -g: nine tenths of the module, and in them the path
    # it was built in.
    compile_args += ["-g0"]
    link_args += ["-Wl,-s"]

stable_abi = not sysconfig.get_config_var("Py_GIL_DISABLED")

ffibuilder = FFI()
ffibuilder.cdef(declarations(ROOT / "csrc" / "ccmem.h"))
ffibuilder.set_source(
    "pyccmem._native",
    '#include "ccmem.h"',
    sources=SOURCES,
    depends=[*HEADERS, "build_ffi.py", "setup.py"],
    include_dirs=["csrc"],
    define_macros=[("_GNU_SOURCE", None)]
    + ([("Py_LIMITED_API", "0x030A0000")] if stable_abi else []),
    py_limited_api=stable_abi,
    extra_compile_args=compile_args,
    extra_link_args=link_args,
)
