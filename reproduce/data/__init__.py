"""Images by seed, epoch and index, whatever the batch size, device or process.

Imports nothing else of the experiments.
"""
