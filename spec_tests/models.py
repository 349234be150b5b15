"""Hand-written networks with what is easily got wrong: ties, attention, every convolution."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from spec_tests import oracle
from spec_tests.draws import KINDS, LAYOUTS, MODES, Network
from spec_tests.subject import pemn


class Convolutions(nn.Module):
    """Every kind of convolution, a bias here and there, batch-norm, a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Conv2d(3, 3, 1, groups=3)
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4, bias=False)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2, groups=2)
        self.line = nn.Conv1d(6, 5, 3)
        self.line_up = nn.ConvTranspose1d(5, 4, 2)
        self.volume = nn.Conv3d(4, 4, (1, 1, 3))
        self.norm_last = nn.BatchNorm1d(4)
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.norm(self.stem(x + self.scale(x))))
        x = self.up(self.grouped(x + self.depthwise(x))).relu()
        x = self.line_up(self.line(x.flatten(2)))
        x = self.volume(x[:, :, None, None]).flatten(2).mean(2)
        out: Tensor = self.classifier(self.norm_last(x))
        return out


class Tied(nn.Module):
    """A weight shared by two linears, an embedding by the output layer; dropout, no buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.encode = nn.Linear(6, 6)
        self.decode = nn.Linear(6, 6, bias=False)
        self.decode.weight = self.encode.weight
        self.output = nn.Linear(6, 11)
        self.output.weight = self.embedding.weight
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.output(self.drop(self.decode(self.encode(self.embedding(x)).tanh())))
        return out


class Attention(nn.Module):
    """Packed and separate input projections, a class token, a non-persistent buffer, an LSTM."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.linspace(-1, 1, 8), persistent=False)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.packed = nn.MultiheadAttention(8, 2, batch_first=True)
        self.separate = nn.MultiheadAttention(8, 2, kdim=6, vdim=5, batch_first=True)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.memory = nn.LSTM(8, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x - self.mean], dim=1)
        x = x + self.packed(x, x, x, need_weights=False)[0]
        x = self.block(x + self.separate(x, x[..., :6], x[..., :5])[0])
        out: Tensor = self.head(self.memory(x)[0][:, 0])
        return out


class Shared(nn.Module):
    """One module under two names and under three, in a Sequential and as a block; ties beside."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.again = self.third = self.linear
        norm = nn.BatchNorm1d(4)
        self.body = nn.Sequential(self.linear, norm, nn.Tanh(), norm)
        self.block = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.block_again = self.block
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.linear.weight
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block_again(self.body(self.again(self.linear(x).tanh()).tanh()))
        out: Tensor = self.head(self.block(self.third(x) + self.tied(x)))
        return out


class Counter(nn.Module):
    """A tensor as extra state."""

    def get_extra_state(self) -> Tensor:
        return torch.tensor(3)

    def set_extra_state(self, state: Tensor) -> None:
        assert state == 3


class Awkward(nn.Module):
    """Extra state, a state_dict of copies, ties in it, a slash in a name, a huge empty tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("in/out", nn.Linear(3, 4))
        self.again = nn.Linear(3, 4, bias=False)
        self.again.weight = self.get_parameter("in/out.weight")
        self.norm = nn.BatchNorm1d(4)
        self.norm.register_buffer("twin", self.norm.running_mean)
        self.counter = Counter()
        self.register_buffer("nothing", torch.empty(0, 2**60))
        with_copies(self)

    def get_extra_state(self) -> dict[str, int]:
        return {"step": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        assert state == {"step": 3}


class Renamed(nn.Module):
    """A hook gives the entries of its state_dict other names, as wrappers do, or copies, too."""

    def __init__(self, copied: bool) -> None:
        super().__init__()
        self.wrapped = nn.Linear(3, 4)

        def rename(_: nn.Module, entries: dict[str, Tensor], prefix: str, __: object) -> None:
            for name in list(entries):
                entry = entries.pop(name)
                entries[name.replace("wrapped.", "")] = entry.clone() if copied else entry

        self.register_state_dict_post_hook(rename)  # type: ignore[no-untyped-call]


class Unable(nn.Module):
    """What a machine may lack: no forward."""

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no kernel for this")


class Wide(nn.Module):
    """More than 10,000 weights, dropout, circular padding, hooks of a part, two dtypes.

    The head is of float64 in a model of float32, and the other way round.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1, padding=1, padding_mode="circular")
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose3d(8, 2, (1, 2, 1), bias=False)
        self.drop = nn.Dropout(0.5)
        self.body = nn.Linear(144, 80)
        self.head = nn.Linear(80, 20)
        self.head.register_forward_pre_hook(lambda part, given: (given[0].to(part.weight.dtype),))
        self.head.register_forward_hook(lambda part, given, out: 2 * out)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        other = {torch.float32: torch.float64, torch.float64: torch.float32}
        self.head.to(other.get(self.body.weight.dtype, self.body.weight.dtype))
        return self

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(functional.gelu(self.norm(self.stem(x)))[:, :, None])
        out: Tensor = self.head(self.drop(self.body(x.flatten(1))).tanh())
        return out


class Everything(nn.Module):
    """The other networks side by side in one: all kinds of layers, ties, hooks and dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.convolutions, self.tied = Wide(), Convolutions(), Tied()
        self.attention, self.shared = Attention(), Shared()

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        outputs = (
            self.wide(x),
            self.convolutions(x),
            self.tied((4 * flat[:, :5]).long() % 11),
            self.attention(flat[:, :24].reshape(-1, 3, 8)),
            self.shared(flat[:, :4]),
        )
        return torch.stack([output.flatten(1).mean(1).to(x.dtype) for output in outputs])


class Called(nn.Module):
    """A network with two inputs, keywords, several outputs and hooks."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.register_forward_pre_hook(lambda part, given: (given[0], 2 * given[1]))
        self.register_forward_hook(lambda part, given, said: {**said, "out": said["out"] + 1})

    def forward(self, x: Tensor, y: Tensor, **by: float) -> dict[str, Any]:
        return {"out": self.part(x + y) * by.get("weights", 1.0), "by": by}


class Twice(nn.Module):
    """A network under two names."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = self.again = part

    def forward(self, *inputs: Tensor, **by: float) -> Any:
        return self.part(*inputs, **by)


class Case(NamedTuple):
    """A model, an input for it, and what is maskable in it, written out by hand."""

    build: Callable[[], nn.Module]
    inputs: Callable[[torch.Generator], Tensor]
    maskable: tuple[str, ...]


CASES = {
    "wide": Case(
        Wide,
        lambda g: torch.randn(1, 3, 6, 6, generator=g),
        ("stem.weight", "up.weight", "body.weight", "head.weight"),
    ),
    "deep": Case(
        lambda: nn.Sequential(
            *[nn.Conv2d(2, 2, 3, padding=1) for _ in range(21)], nn.Flatten(), nn.Linear(18, 3)
        ),
        lambda g: torch.randn(2, 2, 3, 3, generator=g),
        (*(f"{place}.weight" for place in range(21)), "22.weight"),
    ),
    "single": Case(
        lambda: nn.Linear(3, 3, bias=False), lambda g: torch.randn(1, 3, generator=g), ("weight",)
    ),
    "normed": Case(
        lambda: nn.Sequential(nn.Conv2d(2, 3, 2, padding=1), nn.BatchNorm2d(3)),
        lambda g: torch.randn(3, 2, 3, 3, generator=g),
        ("0.weight",),
    ),
    "bare": Case(
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 2, bias=False),
            nn.BatchNorm2d(3, affine=False),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(12, 4, bias=False),
        ),
        lambda g: torch.randn(3, 2, 3, 3, generator=g),
        ("0.weight", "4.weight"),
    ),
    "convolutions": Case(
        Convolutions,
        lambda g: torch.randn(4, 3, 6, 6, generator=g),
        (
            "scale.weight",
            "stem.weight",
            "depthwise.weight",
            "grouped.weight",
            "up.weight",
            "line.weight",
            "line_up.weight",
            "volume.weight",
            "classifier.weight",
        ),
    ),
    "tied": Case(
        Tied,
        lambda g: torch.randint(11, (4, 5), generator=g),
        ("embedding.weight", "encode.weight"),
    ),
    "attention": Case(
        Attention,
        lambda g: torch.randn(2, 3, 8, generator=g),
        (
            "packed.in_proj_weight",
            "packed.out_proj.weight",
            "separate.q_proj_weight",
            "separate.k_proj_weight",
            "separate.v_proj_weight",
            "separate.out_proj.weight",
            "block.self_attn.in_proj_weight",
            "block.self_attn.out_proj.weight",
            "block.linear1.weight",
            "block.linear2.weight",
            "head.weight",
        ),
    ),
    "shared": Case(
        Shared,
        lambda g: torch.randn(6, 4, generator=g),
        ("linear.weight", "block.0.weight", "head.weight"),
    ),
}
CASES["everything"] = Case(
    Everything,
    CASES["convolutions"].inputs,
    tuple(
        f"{case}.{name}"
        for case in ("wide", "convolutions", "tied", "attention", "shared")
        for name in CASES[case].maskable
    ),
)


def built(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The model with reproducible parameters and batch-norm statistics that are not the default."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return model


def with_second_names(model: nn.Module) -> nn.Module:
    """The model, each of its parameters and buffers under a second name at the end."""
    second = nn.Module()
    for name, parameter in model.named_parameters():
        second.register_parameter(name.replace(".", "_"), parameter)
    for name, buffer in model.named_buffers():
        second.register_buffer(name.replace(".", "_"), buffer)
    model.add_module("second", second)
    return model


def with_copies(model: nn.Module) -> nn.Module:
    """The model, its state_dict made of copies."""
    model.register_state_dict_post_hook(
        lambda module, entries, prefix, metadata: entries.update(copy.deepcopy(entries))
    )
    return model


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Each attribute of each module holds the same tensor afterwards, with the same bits, or None.

    By every name of a module: the state_dict would not tell a parameter from a tensor in its place.
    Its gradients, hooks and mode are the same, too.
    """
    gradients = {p: torch.ones_like(p) for p in model.parameters()}
    for parameter, gradient in gradients.items():
        parameter.grad = gradient

    def others() -> list[Any]:
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
        return [(m.training, [len(vars(m)[name]) for name in hooks]) for m in model.modules()]

    same = others()

    def held() -> dict[str, Tensor | None]:
        return {
            f"{path}.{name}": tensor
            for path, module in model.named_modules(remove_duplicate=False)
            for name, tensor in (module._parameters | module._buffers).items()
        }

    before = held()
    bits = copy.deepcopy(before)
    yield
    now = held()
    assert [*now] == [*before]
    replaced = [name for name in now if now[name] is not before[name]]
    assert not replaced, f"the model holds other tensors in {replaced}"
    torch.testing.assert_close(now, bits, rtol=0, atol=0)
    assert others() == same, "the model is in another mode, or has other hooks"
    for parameter, gradient in gradients.items():
        kept = parameter.grad is gradient and bool((gradient == 1).all())
        assert kept, "the model has other gradients"
        parameter.grad = None


def needs(model: nn.Module, inputs: Tensor) -> None:
    """Skip the test where the plain module itself cannot run: that is the machine's doing.

    Call it before the implementation has seen the model, under the same autocast and the same
    gradient mode as the comparison. A copy runs forward and, where anything is trained, backward.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            out = copy.deepcopy(model)(inputs)
            if out.requires_grad:
                out.float().sum().backward()
        except RuntimeError as error:
            pytest.skip(f"the plain module cannot run on this machine: {error}")


def model_in(context: Network, case: str, device: str = "cpu") -> tuple[nn.Module, Tensor]:
    """Model and inputs of a case, in this context."""
    # An LSTM in bfloat16 is not to be had everywhere.
    half = torch.float32 if case in ("attention", "everything") else torch.bfloat16
    dtype = half if context.dtype == torch.bfloat16 else context.dtype
    with torch.device(device):
        model = built(CASES[case].build, context.seed % 100).to(dtype).train(context.train)
    for i, parameter in enumerate(model.parameters()):
        wanted = context.frozen == "none" or (context.frozen == "some" and i % 3 > 0)
        parameter.requires_grad_(wanted)
    if context.seed % 2 and pemn.maskable_shapes(model):
        pemn.init(model, pemn.mp, seed=0)  # the next call must not show that it is the second
    inputs = CASES[case].inputs(torch.Generator().manual_seed(context.seed % 2**32))
    return model, inputs.to(dtype if inputs.is_floating_point() else None).to(device)


def network_in(context: Network, case: str) -> tuple[nn.Module, Any, Tensor]:
    """Model, state and inputs of a case, in this context; skips what the machine cannot run."""
    model, inputs = model_in(context, case)
    needs(model, inputs)
    state = pemn.init(model, context.strategy.value, seed=context.seed)
    return model, put_into(context, state), inputs


def put_into(context: Network, state: Any) -> Any:
    """The state in this context: trained or not, with scores of these kinds, in these layouts."""
    with torch.no_grad():
        for tensors in (state.rest, state.buffers) if context.trained else ():
            for tensor in tensors.values():
                tensor.copy_(1.25 * tensor + 0.0625 if tensor.is_floating_point() else tensor + 1)
    weights, scores = {}, {}
    for i, (name, weight) in enumerate(state.weights.items()):
        lie = LAYOUTS[context.layouts[i % len(context.layouts)]]
        make = KINDS[context.kinds[i % len(context.kinds)]]
        drawn = state.scores[name].detach()
        other = torch.float32 if weight.dtype != torch.float32 else torch.float64
        drawn = drawn.to(other if context.apart and i % 2 else drawn.dtype)
        scores[name] = lie(make(drawn)).requires_grad_(not context.through)
        wanted = context.through or weight.requires_grad
        weights[name] = lie(weight.detach()).requires_grad_(wanted)
    return state._replace(scores=scores, weights=weights)


def plain_of(model: nn.Module, state: Any, density: float) -> nn.Module:
    """The plain module with the weights that the oracle keeps: pemn is not asked."""
    plain = copy.deepcopy(model)
    for name, parameter in plain.named_parameters():
        # Not copied into the parameter: in another memory layout torch may round otherwise.
        parameter.data = (
            state.rest[name].detach().clone()
            if name in state.rest
            else state.weights[name].detach()
            * oracle_mask(state.scores[name], density).to(parameter.dtype)
        )
    for name, buffer in plain.named_buffers():
        buffer.copy_(state.buffers[name])
    return plain


def oracle_mask(scores: Tensor, density: float) -> Tensor:
    """The oracle's mask, in the dtype of the scores."""
    mask = oracle.mask(scores.detach().double().numpy(), density)
    return torch.from_numpy(mask).to(scores.dtype)


def close_for(model: nn.Module, mode: str = "as usual") -> dict[str, Any]:
    """Tolerances for what a model computes in its dtypes, and in a mode of torch."""
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if torch.bfloat16 in dtypes or mode == "autocast":
        return {"rtol": 5e-2, "atol": 5e-2}
    if torch.float32 in dtypes:
        return {"rtol": 1e-3, "atol": 1e-4}
    return {"rtol": 1e-9, "atol": 1e-12}


@contextmanager
def same_draws(mode: str = "as usual") -> Iterator[None]:
    """A mode of torch, with the same random numbers each time, so that dropout drops alike."""
    with torch.random.fork_rng(devices=[]), MODES[mode]():
        torch.manual_seed(0)
        yield


def assert_alike(model: nn.Module, got: Any, expected: Any, mode: str = "as usual") -> None:
    """Equal, as far as the dtypes of a model reach."""
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        for name in expected:
            assert_alike(model, got[name], expected[name], mode)
        return
    close = close_for(model, mode)
    if isinstance(expected, Tensor) and expected.numel():
        # Where a sum cancels, its error is that of its largest terms.
        close["atol"] *= max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(got, expected, **close)


def assert_equals_plain(
    model: nn.Module,
    state: Any,
    inputs: Tensor,
    density: float,
    plain: nn.Module,
    mode: str = "as usual",
) -> None:
    """Masked output and buffers are those of the plain module; the buffers are the same tensors."""
    passed = dict(state.buffers)
    with same_draws(mode):
        expected = plain(inputs)
    with same_draws(mode):
        got = pemn.masked_forward(model, *state, inputs, density=density)
    assert_alike(model, [got, dict(state.buffers)], [expected, dict(plain.named_buffers())])
    assert all(buffer is passed[name] for name, buffer in state.buffers.items())


def assert_straight_through(
    model: nn.Module, state: Any, plain: nn.Module, mode: str = "as usual"
) -> None:
    """What backward left: scores, weights and rest have the gradients that the plain ones imply.

    The plain module has the masked weights, and a gradient of each. Under autocast those of a tied
    weight are rounded before they are added, where it is a parameter.
    """
    for name, scores in state.scores.items():
        gradient, weight = plain.get_parameter(name).grad, state.weights[name]
        assert gradient is not None
        if scores.requires_grad:
            straight = gradient * weight.detach() * sign(scores)
            assert_alike(model, scores.grad, straight.to(scores.dtype), mode)
        if weight.requires_grad:
            # Of a weight that was drawn as 0 the product does not show whether it was kept.
            assert weight.grad is not None, f"no gradient reaches {name}"
            shown = weight.detach() != 0
            kept = plain.get_parameter(name) != 0
            assert_alike(model, weight.grad * shown, gradient * kept, mode)
    for name, tensor in state.rest.items():
        if tensor.requires_grad:
            assert_alike(model, tensor.grad, plain.get_parameter(name).grad, mode)


def sign(scores: Tensor) -> Tensor:
    """Of scores, 0 where they are not finite."""
    return torch.where(scores.isfinite(), scores, 0).detach().sign()
