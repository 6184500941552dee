# SPDX-License-Identifier: Apache-2.0
"""Moved to binding.handlers; for what has not followed yet."""

import sys

from .binding import handlers
from .binding.handlers import *  # noqa: F403

sys.modules[__name__] = handlers
