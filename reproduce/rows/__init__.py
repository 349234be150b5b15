"""What was measured: rows, the ledger that keeps them, and what they say about a cell.

Imports study.
"""
