"""Recognising errors that mean memory has run out."""

import re


def out_of_memory(error: BaseException) -> bool:
    """Whether the error means that memory has run out.

    Python, torch and the system's loader each word it differently.

    >>> out_of_memory(MemoryError()), out_of_memory(RuntimeError("shape '[2]' is invalid"))
    (True, False)
    """
    said = r"MemoryError|out of memory|allocate memory|bad_alloc|map segment|start new thread"
    return re.search(said, f"{type(error).__name__}: {error}") is not None
