"""Plain modules that know nothing of masks.

Imports nothing else of the experiments.
"""
