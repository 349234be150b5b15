"""Images by seed, epoch and index, independent of batch size, device and process.

Imports nothing else of the experiments.
"""
