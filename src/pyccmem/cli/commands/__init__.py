# SPDX-License-Identifier: Apache-2.0
"""The commands but for those of the tools: a module each, with add_arguments() and run()."""
