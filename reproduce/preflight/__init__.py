"""Checks before days are spent: how much is left, what it costs, whether it works.

Imports bench, data, memory, report, rows, runs, study, training.
"""
