# SPDX-License-Identifier: Apache-2.0
"""Moved to core.forks; for what has not followed yet."""

import sys

from .core import forks
from .core.forks import *  # noqa: F403

sys.modules[__name__] = forks
