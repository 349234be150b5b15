"""The experiments of the paper, run with ``python -m reproduce``.

``recipes`` and ``cells`` say what is trained, as data; ``networks`` turns a cell into a function
and its trained tensors, ``data`` gives the images; ``train`` is the one loop, on any ``device``;
``rows`` keeps what was measured; ``report`` shows it; ``run`` puts them together.
"""
