"""Ratios of times, each pair measured side by side.

Imports data, report, study, training.
"""
