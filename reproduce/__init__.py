"""The experiments of the paper, run with ``python -m reproduce``.

``cells`` says what is trained, as data; ``networks`` turns a cell into a function and its trained
tensors; ``train`` is the one loop; ``rows`` keeps what was measured; ``report`` shows it; ``run``
puts them together.
"""
