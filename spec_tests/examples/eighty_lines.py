"""A solution of ``python -m spec_tests start``: the classes core and torch in under 80 lines.

It checks none of its input and writes no files: those are the classes errors and file.
``python -m spec_tests run --impl spec_tests.examples.eighty_lines --class core``
"""

import math
import random
from collections import namedtuple
from fractions import Fraction

import torch
from torch import func, nn

Strategy = rp = namedtuple("Strategy", "ratio kind", defaults=["rp"])
State = namedtuple("State", "weights scores rest buffers")
Storage = namedtuple("Storage", "weights unique paper whole bits dense_bits")
mask, one_layer, mp = Strategy(1.0, "mask"), Strategy(1.0, "one_layer"), Strategy(1.0, "mp")


def prototype_length(numel, ratio):
    return min(numel, math.floor(numel * Fraction(str(float(ratio)))) + 1)


def group_of(name, shape, strategy):
    return {"mask": name, "one_layer": str(tuple(shape))}.get(strategy.kind, "all")


def drawn(kind, shapes, seed):
    rng = torch.Generator().manual_seed(random.Random(f"{kind.__name__} {seed}").getrandbits(63))
    options = {"generator": rng, "dtype": torch.float32, "device": "cpu"}
    return {n: kind(tuple(shape), **options) for n, shape in shapes.items()}


def scale(gain, shape):
    return math.sqrt(gain / math.prod(shape[1:]))


def make_prototype(shapes, strategy, *, seed):
    ordered = sorted(shapes.items(), key=lambda item: math.prod(item[1]), reverse=True)
    givers = {group_of(n, s, strategy): s for n, s in ordered[::-1]}  # of the largest the first
    values = {g: v.flatten() for g, v in drawn(torch.randn, givers, seed).items()}
    lengths = {g: prototype_length(len(v), strategy.ratio) for g, v in values.items()}
    return {g: v[: lengths[g]] * scale(2, givers[g]) for g, v in values.items()}


def tiled(values, shape):
    index = torch.arange(math.prod(shape), device=values.device) % len(values)
    return values.detach()[index].reshape(tuple(shape))


def fill_weights(prototype, shapes, strategy):
    return {n: tiled(prototype[group_of(n, s, strategy)], s) for n, s in shapes.items()}


def init_scores(shapes, *, seed):
    uniform = drawn(torch.rand, shapes, seed)
    return {n: (2 * u - 1) * scale(1, u.shape) for n, u in uniform.items()}


def kept(numel, density):
    return max(1, -(-round(density * 10**12) * numel // 10**12))


def score_mask(scores, *, density):
    size = torch.where(scores.isnan(), math.inf, scores.detach().abs()).flatten()
    dropped = size.argsort(stable=True)[: len(size) - kept(len(size), density)]
    bits = torch.ones_like(size).scatter(0, dropped, 0).reshape(scores.shape)
    finite = torch.where(scores.isfinite(), scores, 0).abs()
    return bits + (finite - finite.detach())  # adds 0, and the gradient of |score|


def apply_mask(weights, scores, *, density):
    return {n: w * score_mask(scores[n], density=density).to(w.dtype) for n, w in weights.items()}


def maskable_shapes(model):
    kinds = nn.Linear | nn.modules.conv._ConvNd | nn.MultiheadAttention
    names = ("weight", *(f"{part}_proj_weight" for part in ("in", "q", "k", "v")))
    maskable = {getattr(m, n, None) for m in model.modules() if isinstance(m, kinds) for n in names}
    return {n: p.shape for n, p in model.named_parameters() if p in maskable}


def placed(model, tensors):
    """One name for each attribute, None too, though a module or a tensor has several names."""
    new = {id(old): tensors[n] for n, old in [*model.named_parameters(), *model.named_buffers()]}
    held = [(path, m._parameters | m._buffers) for path, m in model.named_modules()]
    return {f"{p}.{a}".lstrip("."): new.get(id(old)) for p, own in held for a, old in own.items()}


def masked_forward(model, weights, scores, rest, buffers, /, *inputs, density, **kwargs):
    tensors = {**apply_mask(weights, scores, density=density), **rest, **buffers}
    return func.functional_call(model, placed(model, tensors), inputs, kwargs, tie_weights=False)


def init(model, strategy, *, seed):
    shapes, own = maskable_shapes(model), dict(model.named_parameters())
    filled = fill_weights(make_prototype(shapes, strategy, seed=seed), shapes, strategy)
    uniform = init_scores(shapes, seed=seed)
    weights = {n: torch.empty_like(own[n]).copy_(w) for n, w in filled.items()}
    scores = {n: torch.empty_like(own[n]).copy_(u).requires_grad_() for n, u in uniform.items()}
    copies = {n: p.detach().clone().requires_grad_(p.requires_grad) for n, p in own.items()}
    rest = {n: p for n, p in copies.items() if n not in shapes}
    return State(weights, scores, rest, {n: b.detach().clone() for n, b in model.named_buffers()})


class StateDict(nn.ModuleList):
    def forward(self):
        return self[0].state_dict()


def materialize(model, state, *, density):
    masked = apply_mask(state.weights, state.scores, density=density)
    tensors = {n: t.detach().clone() for n, t in {**masked, **state.rest, **state.buffers}.items()}
    places = {f"0.{name}": tensor for name, tensor in placed(model, tensors).items()}
    return func.functional_call(StateDict([model]), places, tie_weights=False)


def storage(shapes, strategy, others=()):
    weights = sum(map(math.prod, shapes.values()))
    unique = sum(map(len, make_prototype(shapes, strategy, seed=0).values()))
    more = sum(8 * t.element_size() * t.numel() for t in others)
    bits, dense = weights + 32 * unique + more, 32 * weights + more
    return Storage(weights, unique, 31 / 32 - unique / weights, 1 - bits / dense, bits, dense)
