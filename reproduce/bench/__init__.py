"""Ratios of times, each measured side by side.

Imports data, report, study, training.
"""
