"""Images by seed, epoch and index, whichever process asks for them.

Imports nothing else of the experiments.
"""
