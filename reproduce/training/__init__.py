"""One run: from a cell and a seed to a row and a file.

Imports data, frontier, memory, models, rows, study.
"""
