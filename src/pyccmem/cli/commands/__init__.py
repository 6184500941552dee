# SPDX-License-Identifier: Apache-2.0
"""The commands other than bench, demo and audit: a module each, with add_arguments() and run()."""
