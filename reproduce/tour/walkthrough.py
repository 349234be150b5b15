# %% [markdown]
# # Parameter-efficient masking networks in half an hour
#
# From a handful of random numbers to a trained network in a file, on real images of handwritten
# digits. You know PyTorch; nothing else is assumed. All of it runs in under two minutes on one CPU
# core (`pip install ".[reproduce]"` first). Run it all at once with `python -m
# reproduce.tour.walkthrough`, cell by cell in an editor that knows the percent format (VS Code,
# PyCharm, Spyder), or as a notebook (`pip install ".[notebook]"`, then `jupytext --to ipynb
# reproduce/tour/walkthrough.py`). Every picture is also saved in `runs/walkthrough`. In a notebook
# the answers unfold below the exercises; `reproduce/tests/tour/test_walkthrough.py` tests them.
#
# (Percent format and not marimo: it needs no package to run, reads as plain Python on GitHub, and
# a text that goes from top to bottom has no use for cells that find their own order.)

# %%
import math
from collections.abc import Callable, Iterable
from copy import deepcopy
from itertools import accumulate
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

import pemn_ref as pemn
from pemn_ref.file import inspect, load, save
from reproduce.data import digits
from reproduce.data.images import Images
from reproduce.models.convmixer import ConvMixer

torch.set_num_threads(1)
torch.set_flush_denormal(True)  # tiny gradients would make the training several times as slow
OUT = Path("runs/walkthrough")
OUT.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## 1. An ordinary network
#
# 1,297 images to train on, 500 held out, and a small ConvMixer: convolutions, batch-norm, a linear
# classifier. It is a plain `nn.Module` that knows nothing of masks, and it stays as it is.
#
# `maskable_shapes` names what will be masked: every convolution and linear weight. Everything else
# is the *rest*, trained as usual.

# %%
images, held_out = digits.load()
torch.manual_seed(0)  # for the ordinary network of part 8 alone
model = ConvMixer(depth=2, width=32, patch=2, kernel=5, channels=1, classes=10)
shapes = pemn.maskable_shapes(model)
for name, shape in shapes.items():
    print(f"{name:32} {tuple(shape)!s:16} {shape.numel():5,} weights")

figure, rows = plt.subplots(1, 10, figsize=(7, 1.3), layout="constrained")
for axes, image, label in zip(rows, images.pixels, images.labels, strict=False):
    axes.imshow(image[0].numpy(), cmap="Greys")
    axes.set_title(f"{label}")
    axes.set_axis_off()
figure.suptitle("The first ten images (8x8 pixels) and their labels")
figure.savefig(OUT / "1-digits.png", dpi=150)

# %% [markdown]
# **Exercise 1.** Which parameters of `model` are not in `shapes`, and how many numbers are they?
#
# <details><summary>Answer</summary>
#
# The weights and biases of batch-norm: five layers of 32 channels, so 5 x (32 + 32) = 320 numbers.
#
# </details>

# %% [markdown]
# ## 2. The prototype
#
# Usually each of these 4,096 weights is a separate, learned float. Here none is learned. A short
# vector of random values, the *prototype*, is drawn once, and all weights are taken from it. The
# *strategy* says how long it is. `rp(0.01)` takes a hundredth of the largest layer's 1,024 weights,
# rounded down, plus one: 11 values.

# %%
strategy = pemn.rp(0.01)
prototype = pemn.make_prototype(shapes, strategy, seed=0)
(values,) = prototype.values()
print(values)

limit = float(values.abs().max())
figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
colours = plt.get_cmap("PuOr")((values.numpy() / limit + 1) / 2)  # as in all that follows
axes.bar(range(len(values)), values.numpy(), color=colours, edgecolor="#555555")
axes.axhline(0, color="#555555", linewidth=1)
axes.set_xticks(range(len(values)))
axes.set_xlabel("place in the prototype")
axes.set_ylabel("value")
axes.set_title(f"The prototype: all {len(values)} weight values of the network")
figure.savefig(OUT / "2-prototype.png", dpi=150)

# %% [markdown]
# **Exercise 2.** How long are the prototypes of `rp(0.05)` and of `rp(0.0001)`? With
# the same seed, what do they share with this one?
#
# <details><summary>Answer</summary>
#
# 52 values and 1: a twentieth of 1,024 is 51.2 and a ten-thousandth is 0.1, rounded down, plus
# one. The shorter of two prototypes is always the beginning of the longer.
#
# </details>

# %% [markdown]
# ## 3. Filling the layers
#
# Every layer is filled from the beginning of the prototype, over and over: its weight number i, in
# row-major order, is `values[i % 11]`. These weights are random, repeat themselves, and stay so.

# %%
weights = pemn.fill_weights(prototype, shapes, strategy)

names = [*shapes][:3]
widths = [shapes[name][1:].numel() for name in names]
figure, row = plt.subplots(
    1, 3, figsize=(7, 3.4), width_ratios=widths, sharey=True, layout="constrained"
)
for axes, name, width in zip(row, names, widths, strict=True):
    picture = axes.imshow(weights[name].flatten(1).numpy(), cmap="PuOr", vmin=-limit, vmax=limit)
    axes.set_xticks(range(0, width, 10))
    axes.set_title(name.removesuffix(".conv.weight").replace("blocks.0.", ""), fontsize="medium")
row[0].set_ylabel("output channel")
figure.supxlabel("weight of the channel (inputs x kernel)", fontsize="medium")
figure.suptitle("Three layers, filled from the same 11 values")
figure.colorbar(picture, ax=row, label="weight")
figure.savefig(OUT / "3-filled.png", dpi=150)

# %% [markdown]
# **Exercise 3.** From which place of the prototype is
# `weights["blocks.0.depthwise.conv.weight"][3, 0, 1, 2]`? The weight has the shape (32, 1, 5, 5).
#
# <details><summary>Answer</summary>
#
# From place 5. Three filters of 25, a row of 5 and two weights come before it: 82, and 82 % 11 is
# 5.
#
# </details>

# %% [markdown]
# ## 4. Scores and masks
#
# What is learned is which weights to use. Every weight has a *score*, a float that exists only
# during training. Each layer keeps the half of its weights (the *density*, 0.5) with the largest
# |score|, and all others are zero: the mask is 1 or 0.
#
# This cut has no useful gradient, so the backward pass treats the mask as if it were |score|
# (*straight-through*). A score then gets a gradient whether or not its weight is kept, so a
# dropped weight can come back:

# %%
toy_weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
toy_scores = torch.tensor([3.0, -4.0, 0.5, -1.0], requires_grad=True)
toy_mask = pemn.score_mask(toy_scores, density=0.5)
(toy_mask * toy_weights).sum().backward()
print("mask    ", toy_mask.tolist())
print("gradient", toy_scores.grad)  # weight x sign(score)

# %% [markdown]
# These are the scores of one layer of the network, and the mask that they make. Before training
# both are noise.

# %%
layer = "blocks.1.depthwise.conv.weight"
scores = pemn.init_scores(shapes, seed=0)
mask_before = pemn.score_mask(scores[layer], density=0.5)

bound = float(scores[layer].abs().max())
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 4.2), layout="constrained")
picture = left.imshow(scores[layer].flatten(1).numpy(), cmap="PuOr", vmin=-bound, vmax=bound)
figure.colorbar(picture, ax=left, label="score")
left.set_title("scores")
right.imshow(mask_before.flatten(1).numpy(), cmap="Greys", vmax=1.25)
right.set_title(f"mask: {int(mask_before.sum())} of {mask_before.numel()} kept (dark)")
for axes in (left, right):
    axes.set_xlabel("weight of the filter (5x5)")
    axes.set_ylabel("output channel")
figure.suptitle(f"{layer}, before training")
figure.savefig(OUT / "4-scores-and-mask.png", dpi=150)

# %% [markdown]
# **Exercise 4.** Take a step of gradient descent on `toy_scores` by hand, with learning rate 2.
# Which two weights are kept then?
#
# <details><summary>Answer</summary>
#
# The two that were dropped. The gradient is weight x sign(score), (1, -2, 3, -4); the scores
# become (1, 0, -5.5, 7), and the last two have the largest |score|.
#
# </details>

# %% [markdown]
# ## 5. Training
#
# `init` does steps 2 to 4 in one call and copies the model's rest and buffers. `masked_forward`
# runs the model with its weights masked. The loop is an ordinary one: the optimizer gets the scores
# and the rest, and no weight. (The loop takes a `forward` and not a state, because part 8 also
# trains an ordinary network with it.)

# %%
EPOCHS, BATCH = 16, 64
Forward = Callable[[Tensor], Tensor]


def train(module: nn.Module, forward: Forward, trained: Iterable[Tensor]) -> list[float]:
    """Train in place; the mean loss of each epoch. ``module`` is only switched to training."""
    module.train()
    steps = EPOCHS * -(-len(images) // BATCH)
    optimizer = torch.optim.AdamW(trained, weight_decay=0.005)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=steps)
    shuffle = torch.Generator().manual_seed(0)
    history = []
    for _ in range(EPOCHS):
        losses = []
        for batch in torch.randperm(len(images), generator=shuffle).split(BATCH):
            loss = cross_entropy(forward(images.pixels[batch]), images.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        history.append(sum(losses) / len(losses))
    return history


@torch.no_grad()
def accuracy(module: nn.Module, forward: Forward, of: Images = held_out) -> float:
    """Percent of the images, the 500 held-out ones if no others."""
    module.eval()
    hits = forward(of.pixels).argmax(dim=1) == of.labels
    return 100 * hits.double().mean().item()


def masked(state: pemn.State, density: float = 0.5) -> Forward:
    """The masked network as a function of images."""
    return lambda images: pemn.masked_forward(model, *state, images, density=density)


state = pemn.init(model, strategy, seed=0)
untrained = accuracy(model, masked(state))
history = train(model, masked(state), [*state.scores.values(), *state.rest.values()])
learned = accuracy(model, masked(state))
print(f"held-out images recognised: {untrained:.1f} % before, {learned:.1f} % after training")

figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
left.plot(range(1, EPOCHS + 1), history, "o-", color="#0072B2")
left.set_ylim(bottom=0)
left.set_xlabel("epoch")
left.set_ylabel("mean training loss (nats)")
left.set_title("the loss")
after = state.scores[layer].detach().flatten()
edges = torch.linspace(-float(after.abs().max()), float(after.abs().max()), 41).tolist()
right.hist(after.numpy(), edges, color="#E69F00", label="after training")
right.hist(scores[layer].flatten().numpy(), edges, histtype="step", color="#0072B2", label="before")
smallest_kept = float(after.abs().sort(descending=True).values[pemn.kept(len(after), 0.5) - 1])
for line in (-smallest_kept, smallest_kept):
    right.axvline(line, color="#000000", linestyle="--", linewidth=1)
right.plot(
    [], [], "--", color="#000000", linewidth=1, label="kept after training: outside these lines"
)
right.set_xlabel("score")
right.set_ylabel("number of weights")
right.set_title("scores of " + layer.removesuffix(".conv.weight"))
figure.legend(loc="outside lower right", ncols=3, fontsize="small", frameon=False)
figure.savefig(OUT / "5-training.png", dpi=150)

# %% [markdown]
# **Exercise 5.** `scores` are the ones that `init` began with. What fraction of all
# mask bits has training flipped? What fraction of `state.weights` has it changed?
#
# <details><summary>Answer</summary>
#
# Nearly half of the bits, about as many as differ between two independent random masks. And not
# one weight.
#
# </details>

# %% [markdown]
# ## 6. What was learned
#
# Training changed which weights are kept, but no weight. The mask of our layer, before and after:

# %%
mask_after = pemn.score_mask(state.scores[layer].detach(), density=0.5)
change = (mask_after - mask_before).flatten(1).numpy()
came_and_went = ListedColormap(["#E69F00", "#FFFFFF", "#0072B2"])

figure, row = plt.subplots(1, 3, figsize=(7, 3.9), layout="constrained", sharey=True)
row[0].imshow(mask_before.flatten(1).numpy(), cmap="Greys", vmax=1.25)
row[0].set_title("before: dark is kept", fontsize="medium")
row[1].imshow(mask_after.flatten(1).numpy(), cmap="Greys", vmax=1.25)
row[1].set_title("after training", fontsize="medium")
row[2].imshow(change, cmap=came_and_went, vmin=-1, vmax=1)
row[2].set_title("blue: came, orange: went", fontsize="medium")
row[0].set_ylabel("output channel")
for axes in row:
    axes.set_xlabel("weight of the filter (5x5)")
figure.suptitle(f"The mask of {layer}")
figure.savefig(OUT / "6-masks.png", dpi=150)

# %% [markdown]
# On its own the mask still looks like noise. Laid over the weights it does not. `materialize`
# multiplies every mask in. The result is an ordinary dense `state_dict` for the ordinary module.

# %%
ordinary = deepcopy(model)
ordinary.load_state_dict(pemn.materialize(model, state, density=0.5))
print(f"as an ordinary dense network: {accuracy(ordinary, ordinary):.1f} %")


def side_by_side(filters: Tensor) -> Tensor:
    """(32, 1, 5, 5) -> one image: four rows of eight filters, gaps (NaN) between them."""
    gaps = pad(filters.detach().reshape(4, 8, 5, 5), (0, 1, 0, 1), value=torch.nan)
    return gaps.permute(0, 2, 1, 3).reshape(4 * 6, 8 * 6)[:-1, :-1]


figure, column = plt.subplots(2, 1, figsize=(7, 6.6), layout="constrained")
filters = {
    "filled from the prototype": state.weights[layer],
    "masked: the filters of the network": ordinary.get_parameter(layer),
}
for axes, (title, tensor) in zip(column, filters.items(), strict=True):
    picture = axes.imshow(side_by_side(tensor).numpy(), cmap="PuOr", vmin=-limit, vmax=limit)
    axes.set_facecolor("#666666")
    dropped = (side_by_side(tensor) == 0).nonzero()
    axes.plot(dropped[:, 1], dropped[:, 0], "s", color="#BBBBBB", markersize=7)
    axes.plot(dropped[:, 1], dropped[:, 0], "x", color="#666666", markersize=4)
    axes.set_title(title)
    axes.set_xticks([])
    axes.set_yticks([])
figure.suptitle(f"The 32 filters of {layer}, 5x5 each")
figure.colorbar(picture, ax=column, label="weight (grey and crossed: dropped)", shrink=0.6)
figure.savefig(OUT / "6-filters.png", dpi=150)

# %% [markdown]
# **Exercise 6.** Look at the colours: which weights of this layer were mostly
# dropped? What fraction of the positive ones is kept, and of the negative ones?
#
# <details><summary>Answer</summary>
#
# The negative ones. About two in three of the positive weights are kept, and one in five of the
# negative ones (0.68 and 0.18 where this was written; other seeds keep up to two in five).
#
# </details>

# %% [markdown]
# ## 7. Why random weights suffice, and how many to keep
#
# No weight here was chosen well. But a mask chooses among very many networks, and one good one is
# enough. Count both sides:
#
# - how many masks there are: the ways to keep that many weights in each layer,
# - how many are needed: the functions to try until, by luck alone, one is right on a given number
#   of the 1,297 images, where each function guesses one of ten digits for every image.

# %%
COUNT = len(images)


def bits_of_masks(density: float) -> float:
    """log2 of the number of masks that the network can have."""
    numbers = [shape.numel() for shape in shapes.values()]
    return sum(math.log2(math.comb(n, pemn.kept(n, density))) for n in numbers)


# Of the 10^1297 ways to label all images, those with at least so many right.
ways = [math.comb(COUNT, right) * 9 ** (COUNT - right) for right in range(COUNT + 1)]
at_least = [*accumulate(reversed(ways))][::-1]
needed = [COUNT * math.log2(10) - math.log2(number) for number in at_least]

ours = round(accuracy(model, masked(state), images) / 100 * COUNT)
lucky = max(right for right in range(COUNT + 1) if needed[right] <= bits_of_masks(0.5))
print(f"there are 2^{bits_of_masks(0.5):,.0f} masks that keep half of the weights")
print(f"by luck alone one of them would be right on {lucky:,} of {COUNT:,} training images")
print(f"ours is right on {ours:,}: by luck one in 2^{needed[ours]:,.0f} is")

figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
percents = [100 * right / COUNT for right in range(COUNT + 1)]
axes.plot(percents, needed, color="#000000", label="functions to try, by luck alone")
for kept, style in ((0.5, "-"), (0.9, "--")):
    bits = bits_of_masks(kept)
    label = f"masks that keep {kept:.0%}: 2^{bits:,.0f}"
    axes.axhline(bits, color="#0072B2", linestyle=style, label=label)
axes.plot(percents[ours], needed[ours], "o", color="#D55E00", label="our network")
axes.set_xlabel("training images that are recognised (%)")
axes.set_ylabel("how many, as a power of 2")
axes.yaxis.set_major_formatter("{x:,.0f}")
axes.set_title(f"Of so many masks, luck alone would make one right on {percents[lucky]:.0f} %")
figure.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)
figure.savefig(OUT / "7-counting.png", dpi=150)

# %% [markdown]
# Up to where the curve meets the blue line, blind luck suffices: if every mask were a new guess,
# some would be that good. So there is room, though no weight is learned. Our network does better
# than luck could. A network under a mask is no blind guess, since it treats alike what looks alike
# (and batch-norm is trained, too). That is also why it recognises held-out images, which luck would
# not. Counting does not say how to find the mask: that is what scores are for. (Malach et al.,
# *Proving the Lottery Ticket Hypothesis*, ICML 2020, prove more: a random network that is wide
# enough holds, under some mask, an approximation of any given smaller one.)
#
# And how many weights should be kept? Half gives the most masks; at density 1 there is only one. To
# see what that means for accuracy, repeat the training at other densities.

# %%
densities = {0.05: 0.0, 0.2: 0.0, 0.5: learned, 0.8: 0.0, 1.0: 0.0}
for density in densities:
    if density != 0.5:
        fresh = pemn.init(model, strategy, seed=0)
        train(model, masked(fresh, density), [*fresh.scores.values(), *fresh.rest.values()])
        densities[density] = accuracy(model, masked(fresh, density))
    print(f"density {density:4}: {densities[density]:.1f} %, 2^{bits_of_masks(density):,.0f} masks")

figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.2), layout="constrained")
found = [*densities.values()]
errors = [(height * (100 - height) / 500) ** 0.5 for height in found]
left.errorbar([*densities], found, errors, fmt="o", color="#0072B2", capsize=4)
left.set_ylabel("accuracy (% of 500 held-out images)\n(the axis does not start at 0)")
left.set_title("measured, ± standard error", fontsize="medium")
some = [number / 100 for number in range(1, 101)]
right.plot(some, [bits_of_masks(density) for density in some], color="#0072B2")
right.set_ylabel("masks, as a power of 2")
right.yaxis.set_major_formatter("{x:,.0f}")
right.set_title("counted", fontsize="medium")
for axes in (left, right):
    axes.set_xlabel("density: fraction kept")
figure.suptitle("How many weights to keep? One training each")
figure.savefig(OUT / "7-density.png", dpi=150)

# %% [markdown]
# In this one run half comes out best, and accuracy falls to both sides as the number of masks does.
# (One training each: a seed moves a result by some points.) At density 1 nothing is chosen and only
# the rest is trained. So the paper keeps half in every layer, and so do all masked cells of
# `reproduce`.
#
# **Exercise 7.** A layer has 100 weights. How many bits is the choice of 50 of them worth, and how
# many the choice of 10? The file stores 100 bits in either case.
#
# <details><summary>Answer</summary>
#
# log2 of `math.comb(100, 50)` is 96.3, so one bit per weight is close to the least that it takes.
# log2 of `math.comb(100, 10)` is 43.98, so a sparser mask could be coded in less. Neither the paper
# nor the file does that.
#
# </details>

# %% [markdown]
# ## 8. How many values does it take?
#
# This is the paper's question. Repeat the training with longer and shorter prototypes:
#
# - `mask`: a value of its own for every weight, as in edge-popup, from which the paper starts,
# - `mp`: a prototype as long as the largest layer,
# - `rp(0.1)`, and `rp(0.01)`, the network above,
# - `rp(0.0001)`: a single value for the whole network.
#
# There are two yardsticks. *Dense* is an ordinary network whose weights are trained. The *control*
# is `mp` with masks that stay as they were drawn: only the rest is trained. What lies above the
# control is what learning masks adds.

# %%
strategies = {
    "mask": pemn.mask,
    "mp": pemn.mp,
    "rp(0.1)": pemn.rp(0.1),
    "rp(0.01)": strategy,
    "rp(0.0001)": pemn.rp(0.0001),
}
results = {"rp(0.01)": learned}
for name, other in strategies.items():
    if name not in results:
        fresh = pemn.init(model, other, seed=0)
        train(model, masked(fresh), [*fresh.scores.values(), *fresh.rest.values()])
        results[name] = accuracy(model, masked(fresh))

control_state = pemn.init(model, pemn.mp, seed=0)
train(model, masked(control_state), [*control_state.rest.values()])
control = accuracy(model, masked(control_state))

usual = deepcopy(model)
train(usual, usual, usual.parameters())
dense = accuracy(usual, usual)

unique = {name: pemn.storage(shapes, other).unique for name, other in strategies.items()}
for name in strategies:
    print(f"{name:10} {unique[name]:5,} values: {results[name]:.1f} %")
print(f"control {control:.1f} %, dense {dense:.1f} %")

figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
axes.set_xscale("log")
heights = [results[name] for name in strategies]
errors = [(height * (100 - height) / 500) ** 0.5 for height in heights]
axes.errorbar(
    [unique[name] for name in strategies],
    heights,
    errors,
    fmt="o",
    color="#0072B2",
    capsize=4,
    label="learned masks, ± standard error of 500 images",
)
axes.axhline(dense, color="#444444", label=f"dense, {dense:.1f} %")
axes.axhline(control, color="#D55E00", linestyle="--", label=f"control, {control:.1f} %")
axes.set_xticks([*unique.values()], [f"{unique[name]:,}\n{name}" for name in strategies])
axes.minorticks_off()
axes.set_xlim(0.6, 8000)
axes.set_xlabel("unique weight values, and the strategy")
axes.set_ylabel("accuracy (% of 500 held-out images)\n(the axis does not start at 0)")
axes.set_title("How many values does it take? One training each")
figure.legend(loc="outside lower center", ncols=3, fontsize="small", frameon=False)
figure.savefig(OUT / "8-unique-values.png", dpi=150)

# %% [markdown]
# One seed and 500 images cannot separate results less than about 4 percentage points
# apart. The page of results has three seeds of another recipe, trained for longer.
#
# **Exercise 8.** The control has learned no mask and has random weights, and yet it is far above
# the 10 % of guessing. What was trained?
#
# <details><summary>Answer</summary>
#
# Batch-norm, and nothing else: a scale and an offset for each channel.
#
# </details>

# %% [markdown]
# ## 9. A file
#
# The scores are no longer needed. `save` writes a bit for each weight, the prototype, the rest and
# the buffers, and a header that names them. `load` gives the same network back. For comparison, the
# dense network is saved as an ordinary file.

# %%
path = OUT / "digits.safetensors"
save(path, model, state, strategy, density=0.5)
again, info = load(path, model)
print(f"loaded again: {accuracy(model, masked(again)):.1f} %")
save_file(ordinary.state_dict(), OUT / "dense.safetensors")


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of the values of these tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


info = inspect(path)  # reads the header alone
with path.open("rb") as file:
    header = 8 + int.from_bytes(file.read(8), "little")
rest_and_buffers = size([*info.rest.values(), *info.buffers.values()])
dense_bytes = (OUT / "dense.safetensors").stat().st_size
number = sum(shape.numel() for shape in info.shapes.values())
parts = {  # masked file, dense file
    "weights": (0, 4 * number),
    "masks": (-(-number // 8), 0),
    "prototype": (size(info.prototype.values()), 0),
    "rest and buffers": (rest_and_buffers, rest_and_buffers),
    "header": (header, dense_bytes - 4 * number - rest_and_buffers),
}
for part, (in_masked, in_dense) in parts.items():
    print(f"{part:16} {in_masked:6,} bytes, dense {in_dense:6,}")
print(f"file on disk     {path.stat().st_size:6,} bytes, dense {dense_bytes:6,}")

figure, axes = plt.subplots(figsize=(7, 2.8), layout="constrained")
starts = [0, 0]
part_colours = ("#56B4E9", "#0072B2", "#000000", "#BBBBBB", "#E69F00")
for (part, lengths), colour in zip(parts.items(), part_colours, strict=True):
    label = f"{part}: {lengths[0]:,} | {lengths[1]:,}"
    axes.barh(["masked", "dense"], lengths, left=starts, color=colour, label=label)
    starts = [start + length for start, length in zip(starts, lengths, strict=True)]
axes.invert_yaxis()
axes.set_xlabel("bytes on disk")
axes.set_title(f"{starts[0]:,} bytes masked, {starts[1]:,} dense")
axes.xaxis.set_major_formatter("{x:,.0f}")
title = "bytes: masked | dense"
figure.legend(loc="outside lower center", ncols=3, title=title, fontsize="small", frameon=False)
figure.savefig(OUT / "9-bytes.png", dpi=150)

# %% [markdown]
# The weights shrank to about a thirtieth, to masks and a prototype. In so small a network
# batch-norm and the header outweigh them. Even in the paper's ConvMixers batch-norm takes as much
# as the masks (width 256) or half as much (width 512). The paper's accounting leaves it out;
# `pemn.storage` counts it if you pass it in.
#
# **Exercise 9.** A ConvMixer of the paper has 437,248 weights, the largest layer 65,536. How many
# bytes are its masks and its prototype with `rp(0.001)`, and how many are its weights when dense?
#
# <details><summary>Answer</summary>
#
# 437,248 / 8 + 4 x 66 = 54,920 bytes, against 4 x 437,248 = 1,748,992.
#
# </details>
#
# Next, see the README for your own loop, and read `pemn_ref` in the order of its `__init__.py`.
# `python -m reproduce run` measures it all again with three seeds. Or write it yourself:
# `python -m spec_tests start my_pemn.py` writes a skeleton, and
# `python -m spec_tests run --impl my_pemn` says, step by step, what is right and what is next.
