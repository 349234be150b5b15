"""The file of a family's network: everything to run it, and nothing else.

A safetensors file of one tensor ``b`` of bytes. One entry of metadata, ``t``, says in words what
the network is, how many of the last bytes are the entropy-coded part (32-bit words of an ANS coder,
little-endian), and the CRC-32 of words and bytes. Before that part stand the numbers,
little-endian, in the order in which they are kept. The header takes about 150 bytes. A tensor of
its own for each part would take 60 more each, and an .npz file 240 for the first.
"""

import json
from collections.abc import Callable
from zlib import crc32

import numpy as np
import torch
from constriction import stream  # type: ignore[import-untyped]
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor, nn

from pemn_ref.checks import Tensors
from pemn_ref.file import FileError
from reproduce.frontier.families import Code, Keep

_NUMBERS = {torch.float16: "<f2", torch.float32: "<f4", torch.int32: "<i4", torch.int64: "<i8"}


def to_bytes(words: str, walk: Callable[[Keep], object]) -> bytes:
    """The file of what ``walk`` keeps; ``words`` say what network it is."""
    numbers: list[bytes] = []
    symbols: list[tuple[np.ndarray, Code]] = []

    def keep(tensor: Tensor, code: Code | torch.dtype) -> Tensor:
        values = tensor.detach().cpu().numpy()
        if isinstance(code, Code):
            symbols.append((np.searchsorted(code.values, values.ravel()).astype(np.int32), code))
        else:
            numbers.append(values.astype(_NUMBERS[code]).tobytes())
        return tensor

    walk(keep)
    coder = stream.stack.AnsCoder()
    for symbol, code in reversed(symbols):  # it is a stack
        coder.encode_reverse(symbol, _model(code))
    coded = coder.get_compressed().astype("<u4").tobytes()
    content = b"".join([*numbers, coded])
    said = f"{words} {len(coded)}"
    text = f"{said} {crc32(said.encode() + content):08x}"
    return save({"b": np.frombuffer(content, np.uint8)}, {"t": text})


def from_bytes(content: bytes) -> tuple[str, Callable[[Callable[[Keep], Tensors]], Tensors]]:
    """The words of a file, and what turns the ``walk`` of its network to what that returns.

    Raises:
        FileError: if it is no such file, or damaged; from the second, if it holds more or less
            than ``walk`` keeps.
    """
    try:
        length = int.from_bytes(content[:8], "little")
        text = json.loads(content[8 : 8 + length])["__metadata__"]["t"]
        held = load(content)["b"].tobytes()
        said, _, checksum = text.rpartition(" ")
        words, _, number = said.rpartition(" ")
        coded = int(number)
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise FileError(f"not the file of a network of the frontier: {error!r}") from error
    if f"{crc32(said.encode() + held):08x}" != checksum or coded > len(held):
        raise FileError("the file is damaged: its checksum is that of another content")

    def unpack(walk: Callable[[Keep], Tensors]) -> Tensors:
        numbers = held[: len(held) - coded]
        coder = stream.stack.AnsCoder(np.frombuffer(held[len(numbers) :], "<u4").astype(np.uint32))
        at = 0

        def keep(tensor: Tensor, code: Code | torch.dtype) -> Tensor:
            nonlocal at
            if isinstance(code, Code):
                found = np.array(code.values)[coder.decode(_model(code), tensor.numel())]
            else:
                kind = np.dtype(_NUMBERS[code])
                found = np.frombuffer(numbers, kind, tensor.numel(), at)
                at += found.nbytes
            return torch.tensor(found).to(tensor.dtype).view(tensor.shape)

        try:
            tensors = walk(keep)
        except ValueError as error:
            raise FileError(f"the file holds less than its network: {error}") from error
        if at != len(numbers) or not coder.is_empty():
            raise FileError("the file holds more than its network")
        return tensors

    return words, unpack


def _model(code: Code) -> stream.model.Model:
    return stream.model.Categorical(np.array(code.chances), perfect=False)


def stored(model: nn.Module, weights: Tensors, others: Tensors, keep: Keep) -> dict[str, Tensor]:
    """The dense ``state_dict`` of ``model``: its ``weights``, and its ``others``, rest and buffers.

    Everything but the weights is kept in float16; of a batch-norm two vectors instead of four, a
    factor and a shift for each channel, which is all that it does once it is trained.
    """
    state = dict(weights)
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            weight, bias, mean, var, count = (
                f"{path}.{name}"
                for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
            )
            factor = others[weight] / (others[var] + module.eps).sqrt()
            state[weight] = _kept(factor, keep)
            state[bias] = _kept(others[bias] - others[mean] * factor, keep)
            state[mean] = torch.zeros_like(others[mean])
            state[var] = torch.full_like(others[var], 1 - module.eps)
            state[count] = torch.zeros_like(others[count])
    return state | {n: _kept(t, keep) for n, t in others.items() if n not in state}


def _kept(values: Tensor, keep: Keep) -> Tensor:
    return keep(values.detach().half().float(), torch.float16)
