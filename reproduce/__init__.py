"""The experiments of the paper, run with ``python -m reproduce``.

Read ``cells`` and ``recipes``, what is trained, as data; ``networks``, from a cell to a function
and its trained tensors; ``train``, the one loop, on any ``device``; ``run``, which puts them
together. CONTRIBUTING.md has a map of the rest.
"""
