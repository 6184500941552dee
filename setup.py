# SPDX-License-Identifier: Apache-2.0
"""What pyproject.toml cannot say: the cffi module, and the abi3 tag of the wheel it goes into."""

import sysconfig

from setuptools import setup

# A free-threaded interpreter has no stable ABI, so there the wheel carries its own tag.
stable_abi = not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    cffi_modules=["build_ffi.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if stable_abi else {},
)
