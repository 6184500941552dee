# SPDX-License-Identifier: Apache-2.0
"""The block formats by name, for users of this package."""

from __future__ import annotations

from ..core.block_formats import FORMATS, BlockFormat, format_named

__all__ = ["FORMATS", "BlockFormat", "format_named"]
