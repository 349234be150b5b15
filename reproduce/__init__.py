"""The experiments of the paper, run with ``python -m reproduce``.

A run passes through the packages in one direction: ``study`` says what is trained, ``training``
makes a row and a file of one cell and seed, ``runs`` does so for many, ``rows`` keeps what was
measured, ``report`` shows it. Each package's docstring says what it is for and what it imports.
CONTRIBUTING.md has the map.
"""
