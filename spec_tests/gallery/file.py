"""C: mistakes in the compressed file."""

import time
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from spec_tests.gallery.mistakes import Rebound, mistake, rebinds


@mistake("C1", "bits are read from the most significant, and written from the least")
def unpack(right: Any, packed: Any) -> Any:
    return right.unpack(packed).view(-1, 8).flip(1).flatten()


@mistake("C1", "second names of tied tensors are forgotten")
def stored_names(right: Any, model: Any) -> Any:
    return {}, right.stored_names(model)[1]


@mistake("C1", "the buffers are those of the model")
def load(right: Any, path: Any, model: nn.Module) -> Any:
    state, info = right.load(path, model)
    return state._replace(buffers={n: b.clone() for n, b in model.named_buffers()}), info


@mistake("C1", "bits are written in the order of memory")
def save(right: Any, path: Any, model: Any, state: Any, *args: Any, **kw: Any) -> None:
    def in_memory(scores: Tensor) -> Tensor:
        strides = scores.stride()
        order = sorted(range(scores.ndim), key=lambda axis: -strides[axis])
        return scores.permute(order).reshape(scores.shape)

    scores = {name: in_memory(scores.detach()) for name, scores in state.scores.items()}
    right.save(path, model, state._replace(scores=scores), *args, **kw)


@mistake("C1", "the rest that is loaded is frozen")
def load(right: Any, path: Any, model: nn.Module) -> Any:
    state, info = right.load(path, model)
    return state._replace(rest={n: t.detach() for n, t in state.rest.items()}), info


@mistake("C1", "saving turns the scores into masks")
def save(
    right: Any, path: Any, model: Any, state: Any, *args: Any, density: float, **kw: Any
) -> None:
    right.save(path, model, state, *args, density=density, **kw)
    for scores in state.scores.values():
        scores.detach().copy_(right.score_mask(scores.detach(), density=density))


@mistake("C2", "the masks are followed by an empty byte")
def pack(right: Any, mask: Any) -> Any:
    return nn.functional.pad(right.pack(mask), (0, 1))


@mistake("C3", "the time is written into the tag")
def save(right: Any, *args: Any, **kw: Any) -> None:
    right.save(*args, **{**kw, "tag": f"{time.perf_counter_ns()}"})


@mistake("C4", "half precision is asked for and not given")
def save(right: Any, *args: Any, half: bool = False, **kw: Any) -> None:
    right.save(*args, **kw)


@mistake("C4", "the rest of the state is rounded, too")
def save(
    right: Any, path: Any, model: Any, state: Any, *args: Any, half: bool = False, **kw: Any
) -> None:
    right.save(path, model, state, *args, half=half, **kw)
    for tensor in state.rest.values() if half else ():
        tensor.detach().copy_(tensor.detach().half())


@mistake("C5", "the weights are not compared with the prototype that is stored")
def need(right: Any, true: bool, otherwise: str) -> None:
    pass


@mistake("C6", "what the file has and the model has not is left out")
def check_same(right: Any, what: str, got: Any, want: Any) -> None:
    right.check_same(what, {name: got[name] for name in got if name in want}, want)


@mistake("C6", "ties are not compared")
def need(right: Any, true: bool, otherwise: str) -> None:
    right.need(true or "ties" in otherwise, otherwise)


@mistake("C6", "values that the model's dtype does not hold become infinite")
def need(right: Any, true: bool, otherwise: str) -> None:
    right.need(true or "too large for" in otherwise, otherwise)


@mistake("C7", "the checksum is not compared")
def need(right: Any, true: bool, otherwise: str) -> None:
    right.need(true or "checksum" in otherwise, otherwise)


@rebinds("C8", "bits are written and read from the most significant")
def _(right: Any) -> Rebound:
    return {
        "pack": lambda mask: right.pack(mask.view(-1, 8).flip(1).flatten()),
        "unpack": lambda packed: right.unpack(packed).view(-1, 8).flip(1).flatten(),
    }


@mistake("C9", "values that are not finite are read")
def check_values(right: Any, name: str, tensor: Tensor) -> None:
    pass


@rebinds("C9", "shapes have any number of dimensions")
def _(right: Any) -> Rebound:
    return {"MAX_DIMENSIONS": 10**6}


@mistake("C10", "the shapes are sorted by name")
def inspect(right: Any, path: Any) -> Any:
    info = right.inspect(path)
    return info._replace(shapes=dict(sorted(info.shapes.items())))


@mistake("C11", "offsets, lengths and the order of the tensors are not looked at")
def need(right: Any, true: bool, otherwise: str) -> None:
    right.need(true or "header" in otherwise or "checksum" in otherwise, otherwise)


@mistake("C12", "of a long layer the first 4096 weights are read")
def load_dense(right: Any, path: Any) -> Any:
    dense = right.load_dense(path)
    for tensor in dense.values():
        tensor.view(-1)[4096:] = 0
    return dense


@mistake("C13", "persistent buffers are found by the tensors of the state_dict")
def stored_names(right: Any, model: nn.Module) -> Any:
    entries = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    lost = {name for name, buffer in model.named_buffers() if id(buffer) not in entries}
    tied, stored = right.stored_names(model)
    return tied, stored - lost


@mistake("C14", "a header is read however long it says it is")
def check_length(right: Any, length: int) -> None:
    pass


@mistake("C15", "what is loaded is tried in the model, where torch looks for the ties")
def load(right: Any, path: Any, model: nn.Module) -> Any:
    state, info = right.load(path, model)
    masked = right.apply_mask(state.weights, state.scores, density=info.density)
    functional_call(right._StateDict(model), {f"model.{n}": w for n, w in masked.items()})
    return state, info


@mistake("C15", "saving puts the masked weights into the model")
def save(
    right: Any, path: Any, model: Any, state: Any, *args: Any, density: float, **kw: Any
) -> None:
    model.load_state_dict(right.materialize(model, state, density=density))
    right.save(path, model, state, *args, density=density, **kw)


@mistake("C16", "layers that were left out are read as frozen")
def load(right: Any, path: Any, model: nn.Module) -> Any:
    state, info = right.load(path, model)
    rest = {n: t for n, t in state.rest.items() if n not in right.maskable_shapes(model)}
    return state._replace(rest=rest), info
