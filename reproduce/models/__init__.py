"""Plain modules that know nothing about masks.

Imports nothing else of the experiments.
"""
