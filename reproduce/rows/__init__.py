"""What was measured: rows, the ledger that keeps them, and what they say of a cell.

Imports study.
"""
