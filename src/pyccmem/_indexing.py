# SPDX-License-Identifier: Apache-2.0
"""Moved to core.indexing; for what has not followed yet."""

import sys

from .core import indexing
from .core.indexing import *  # noqa: F403

sys.modules[__name__] = indexing
