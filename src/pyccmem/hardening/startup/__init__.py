# SPDX-License-Identifier: Apache-2.0
"""The folder that `pyccmem run` puts first on PYTHONPATH, for the sitecustomize in it."""
