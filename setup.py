# SPDX-License-Identifier: Apache-2.0
"""What pyproject.toml cannot say: the cffi module, how it is linked, and its wheel's abi3 tag."""

import os
import sysconfig

from setuptools import setup
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


setup(
    cmdclass={"build_ext": BuildExtension},
    cffi_modules=["build_ffi.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if stable_abi else {},
)
