"""What any implementation of Parameter-Efficient Masking Networks must satisfy.

Numbered clauses, each one Hypothesis property whose docstring is the text of the clause:
P prototype, F fill, M mask, G gradient, W forward, S storage, E errors.
"""
