"""Recognising errors that mean memory has run out."""

import re


def out_of_memory(error: BaseException) -> bool:
    """Whether the error means that memory has run out.

    Python, torch, cuBLAS and the system's loader each word it differently.

    >>> out_of_memory(MemoryError()), out_of_memory(RuntimeError("shape '[2]' is invalid"))
    (True, False)
    >>> out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cub..."))
    True
    """
    said = (
        r"MemoryError|out of memory|ALLOC_FAILED|allocate memory|bad_alloc|map segment"
        r"|start new thread"
    )
    return re.search(said, f"{type(error).__name__}: {error}") is not None
