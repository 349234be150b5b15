"""Parameter-Efficient Masking Networks (Bai et al., NeurIPS 2022): the reference.

A small random prototype fills every convolution and linear weight of a network and is never
trained. One score per weight is learned, and each layer keeps the weights of largest |score|:

    shapes -> prototype -> weights        make_prototype, fill_weights
    scores -> masks                       apply_mask
    weights x masks -> the network        masked_forward

Plain functions over plain ``dict[str, Tensor]``, keyed by parameter name. Read the modules in the
order of the imports below; ``checks`` has the error messages that they share.
"""

from pemn_ref.prototype import Strategy, make_prototype, mask, mp, one_layer, prototype_length, rp
from pemn_ref.fill import fill_weights
from pemn_ref.masks import apply_mask, init_scores, kept, score_mask
from pemn_ref.forward import maskable_shapes, masked_forward
from pemn_ref.state import State, init, materialize
from pemn_ref.accounting import Storage, storage

__version__ = "0.2.0"

# In reading order, like the imports.
# fmt: off
__all__ = [  # noqa: RUF022
    "Strategy", "mask", "one_layer", "mp", "rp", "prototype_length", "make_prototype",
    "fill_weights", "init_scores", "kept", "score_mask", "apply_mask",
    "maskable_shapes", "masked_forward", "State", "init", "materialize", "Storage", "storage",
]
# fmt: on
