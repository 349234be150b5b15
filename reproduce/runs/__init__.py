"""Many runs: one folder that processes share, one process or a cluster of Ray.

Imports data, rows, study, training.
"""
