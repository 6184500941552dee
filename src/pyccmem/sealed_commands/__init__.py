# SPDX-License-Identifier: Apache-2.0
"""The commands for keys and sealed files: a module each, with add_arguments() and run()."""
