# SPDX-License-Identifier: Apache-2.0
"""Moved to binding.owned; for what has not followed yet."""

import sys

from .binding import owned
from .binding.owned import *  # noqa: F403

sys.modules[__name__] = owned
