"""What any implementation of Parameter-Efficient Masking Networks must satisfy.

Numbered clauses, each one test whose docstring is the text of the clause: P prototype, F fill,
M mask, G gradient, W forward, X transforms, S storage, C compressed file, E errors.
"""
