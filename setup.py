# SPDX-License-Identifier: Apache-2.0
"""What pyproject.toml cannot say: the cffi module, the library that `pyccmem run` preloads, how
both are linked, the wheel's abi3 tag, and the links of the description.

PYCCMEM_REPOSITORY in the environment is the address of the repository, for the links of releases.
"""

import os
import re
import shutil
import sys
import sysconfig
from email import message_from_string
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, PlatformError

ROOT = Path(__file__).resolve().parent

# A free-threaded interpreter has no stable ABI, so there the wheel carries its own tag.
stable_abi = not sysconfig.get_config_var("Py_GIL_DISABLED")


class BuildExtension(build_ext):
    """Says what is missing where nothing can be compiled; and links without the search path for
    libpython that some Pythons add to every extension module: this one needs no libpython, and the
    path is the building machine's."""

    def finalize_options(self) -> None:
        super().finalize_options()
        # Other flags for the same sources: what is there already is newer than they are.
        self.force = self.force or bool(os.environ.get("PYCCMEM_DEBUG"))

    def run(self) -> None:
        if sys.platform != "linux":
            raise PlatformError(f"pyccmem runs on Linux only, and this is {sys.platform}.")
        super().run()

    def build_extensions(self) -> None:
        self.require_compiler()
        for name in ("linker_so", "linker_so_cxx"):
            command = getattr(self.compiler, name, None)
            if command:
                kept = [word for word in command if not word.startswith("-Wl,-rpath")]
                setattr(self.compiler, name, kept)
        super().build_extensions()

    def require_compiler(self) -> None:
        """Raises CompileError with what to install if there is no compiler, or no Python.h."""
        words = "; or install a wheel, which needs neither: pip install --only-binary :all: pyccmem"
        command = self.compiler.compiler_so[0]
        if shutil.which(command) is None:
            raise CompileError(
                f"pyccmem is compiled here, and there is no C compiler {command!r}: install GCC 11 "
                "or clang 12, or newer (Debian, Ubuntu: apt-get install gcc libc6-dev; Fedora: dnf "
                f"install gcc; Alpine: apk add gcc musl-dev), or name one by CC{words}."
            )
        if not any(os.path.exists(os.path.join(path, "Python.h")) for path in self.include_dirs):
            raise CompileError(
                "pyccmem is compiled here, and this Python has no headers (Python.h): install them "
                "(Debian, Ubuntu: apt-get install python3-dev; Fedora: dnf install python3-devel; "
                f"Alpine: apk add python3-dev){words}."
            )


def repository() -> str:
    """Returns the repository's address: as the environment says, or as the source distribution
    does; empty in a clone that nobody has told."""
    named = os.environ.get("PYCCMEM_REPOSITORY", "").rstrip("/")
    packed = ROOT / "PKG-INFO"
    if named or not packed.exists():
        return named
    urls = message_from_string(packed.read_text(encoding="utf-8")).get_all("Project-URL") or []
    named = dict(url.split(", ", 1) for url in urls)
    return named.get("Source", "")


def description(address: str) -> str:
    """Returns the README with links that work elsewhere: into the repository, at this version."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    if not address:
        return text
    version = (ROOT / "src/pyccmem/_version.py").read_text(encoding="utf-8").split('"')[-2]
    return re.sub(r"\]\((?![a-z]+:|#)([^)\s]+)\)", rf"]({address}/blob/v{version}/\1)", text)


def addresses(address: str) -> dict[str, str]:
    """Returns the project's addresses by their names."""
    places = {
        "Source": "",
        "Documentation": "/tree/main/docs",
        "Changelog": "/blob/main/CHANGELOG.md",
        "Issues": "/issues",
        "Security": "/blob/main/SECURITY.md",
    }
    return {name: address + place for name, place in places.items()} if address else {}


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
    long_description=description(repository()),
    long_description_content_type="text/markdown",
    project_urls=addresses(repository()),
    ext_modules=[wiper],
    cmdclass={"build_ext": BuildExtension},
    cffi_modules=["build_ffi.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if stable_abi else {},
)
