"""Broken implementations, one realistic mistake each, that the clauses must tell from a right one.

A module for each letter of the clauses; ``mistakes`` has what they are made with.
"""

import importlib

from spec_tests.gallery.mistakes import GALLERY, Mistake, failure, mistake, rebinds

__all__ = ["GALLERY", "Mistake", "failure", "mistake", "rebinds"]

for part in (
    "prototype",
    "fill",
    "mask",
    "gradient",
    "forward",
    "transforms",
    "storage",
    "file",
    "errors",
):
    importlib.import_module(f"spec_tests.gallery.{part}")
