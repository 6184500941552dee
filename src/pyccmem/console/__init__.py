# SPDX-License-Identifier: Apache-2.0
"""The package at a terminal: how the command starts and ends, styles, bars."""
