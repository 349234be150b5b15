"""Many runs: in a folder that processes share, by one process or by a Ray cluster.

Imports data, rows, study, training.
"""
