# SPDX-License-Identifier: Apache-2.0
"""The versions of vLLM that pyccmem.vllm was tested with. Another one may call other functions than
those that are replaced here, so an encrypted model does not start under it."""

from __future__ import annotations

from .. import errors

__all__ = ["TESTED", "check_version"]

TESTED = ("0.32.0",)


def check_version() -> None:
    """Raises MissingPackageError under a version of vLLM that was not tested."""
    from vllm.version import __version__ as found

    if found.partition("+")[0] not in TESTED:
        raise errors.MissingPackageError(
            f"pyccmem.vllm was tested with vLLM {', '.join(TESTED)}, and this is {found}: it might "
            f"serve in the clear what it should encrypt. Install a tested version."
        )
