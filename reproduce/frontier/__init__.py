"""The byte frontier: ways to spend about one bit a weight, and the files that hold them.

Imports nothing else of the experiments.
"""
