"""S: mistakes in what it costs to store."""

from typing import Any

from spec_tests.gallery.mistakes import mistake


@mistake("S1", "bits counted as bytes")
def storage(right: Any, *args: Any) -> Any:
    cost = right.storage(*args)
    return cost._replace(paper=1 - (cost.weights + 4 * cost.unique / 32) / 32)


@mistake("S2", "unique values counted after masking: zero is one more")
def storage(right: Any, *args: Any) -> Any:
    cost = right.storage(*args)
    return cost._replace(unique=cost.unique + 1)


@mistake("S3", "compression of the ratio alone, the rest of the layers counted as saved")
def storage(right: Any, *args: Any) -> Any:
    cost = right.storage(*args)
    return cost._replace(paper=cost.unique / cost.weights)


@mistake("S4", "batch-norm left out of the whole model")
def storage(right: Any, shapes: Any, strategy: Any, others: Any = ()) -> Any:
    return right.storage(shapes, strategy)


@mistake("S5", "every other tensor counted at 32 bits")
def storage(right: Any, shapes: Any, strategy: Any, others: Any = ()) -> Any:
    return right.storage(shapes, strategy, [other.float() for other in others])


@mistake("S6", "shapes alone are taken for a whole model")
def storage(right: Any, shapes: Any, strategy: Any, others: Any = ()) -> Any:
    return right.storage(shapes, strategy, others)
