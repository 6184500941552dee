# SPDX-License-Identifier: Apache-2.0
"""What pyproject.toml cannot say: the cffi module, the library that `pyccmem run` preloads, how
both are linked, and the wheel's abi3 tag."""

import os
import sysconfig

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# A free-threaded interpreter has no stable ABI, so there the wheel carries its own tag.
stable_abi = not sysconfig.get_config_var("Py_GIL_DISABLED")


class BuildExtension(build_ext):
    """Links without the search path for libpython that some Pythons add to every extension module:
    this one needs no libpython, and the path is the building machine's."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # Other flags for the same sources: what is there already is newer than they are.
        self.force = self.force or bool(os.environ.get("PYCCMEM_DEBUG"))

    def build_extensions(self) -> None:
        for name in ("linker_so", "linker_so_cxx"):
            command = getattr(self.compiler, name, None)
            if command:
                kept = [word for word in command if not word.startswith("-Wl,-rpath")]
                setattr(self.compiler, name, kept)
        super().build_extensions()


# No module of Python, and so without a sanitizer: it comes before every other library of a process.
wiper = Extension(
    "pyccmem.hardening._wiper",
    ["src/pyccmem/hardening/wiper.c"],
    define_macros=[("_GNU_SOURCE", None)],
    extra_compile_args=["-std=gnu11", "-O3", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra"],
    extra_link_args=["-ldl", "-Wl,-z,relro,-z,now", "-Wl,-z,noexecstack", "-Wl,-s"],
    py_limited_api=stable_abi,
)

setup(
    ext_modules=[wiper],
    cmdclass={"build_ext": BuildExtension},
    cffi_modules=["build_ffi.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if stable_abi else {},
)
