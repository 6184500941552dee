# SPDX-License-Identifier: Apache-2.0
"""Moved to core.resource; for what has not followed yet."""

import sys

from .core import resource
from .core.resource import *  # noqa: F403

sys.modules[__name__] = resource
