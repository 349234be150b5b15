"""Which tensors of a model are stored in a file, and under which name."""

from torch import Tensor, nn

from pemn_ref.file.header import need


def stored_names(model: nn.Module) -> tuple[dict[str, str], set[str]]:
    """Second -> first name of tied tensors; and the first names of all tensors to store.

    Raises:
        ValueError: if the model has a tensor that cannot be stored under its first name.
    """
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    # Forward would read two tensors of a state, and a file keep one.
    parameters = {id(parameter) for parameter in model.parameters()}
    for own, buffer in model.named_buffers(remove_duplicate=False):
        need(id(buffer) not in parameters, f"{own} is a buffer and a parameter at once")
    by_tensor = {id(tensor): name for name, tensor in reversed(named)}
    by_name = {name: by_tensor[id(tensor)] for name, tensor in named}
    names = {}
    for key, entry in model.state_dict(keep_vars=True).items():
        name = by_name.get(key, by_tensor.get(id(entry)))
        if name is not None:
            names[key] = name
        else:  # a hook's copy under another name; extra state is not stored
            extra = key.endswith("_extra_state") or not isinstance(entry, Tensor)
            need(extra, f"{key} in the state_dict is neither a parameter nor a buffer of the model")
    for path, module in model.named_modules():
        for attribute in module._non_persistent_buffers_set:
            own = f"{path}.{attribute}".removeprefix(".")
            alone = own not in names.values()
            need(alone, f"{own} is not persistent, but is the same buffer as one that is")
    return {key: name for key, name in names.items() if key != name}, set(names.values())
