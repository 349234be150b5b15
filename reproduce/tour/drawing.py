"""The algorithm in one drawing: the README's picture, made by the functions that it explains."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nan

import pemn_ref as pemn

_SHAPES = {"layer 1": (8, 8), "layer 2": (8, 16), "layer 3": (8, 12)}


def draw_algorithm(path: Path) -> None:
    """Prototype, filled weights, scores, masks and masked weights of three small layers.

    What is dropped is hatched, since a small value is almost white. On white, so that it reads in
    dark mode too. On a phone, 328 pixels wide, its text is of 12.
    """
    strategy = pemn.rp(0.1)
    prototype = pemn.make_prototype(_SHAPES, strategy, seed=0)
    weights = pemn.fill_weights(prototype, _SHAPES, strategy)
    scores = pemn.init_scores(_SHAPES, seed=0)
    masks = {name: pemn.score_mask(s, density=0.5) for name, s in scores.items()}
    masked = pemn.apply_mask(weights, scores, density=0.5)
    (values,) = prototype.values()
    cost = pemn.storage(_SHAPES, strategy)

    figure = Figure(figsize=(4.2, 6.6), layout="constrained", facecolor="white")
    rows: Any = figure.subfigures(5, 1, height_ratios=[0.55, 1, 1, 1, 1])
    limit = float(values.abs().max())

    def show(axes: Axes, tensor: Tensor, *, colours: str, low: float, high: float) -> None:
        axes.patch.set(facecolor="#e4e4e4", edgecolor="#999999", hatch="//////")
        axes.pcolormesh(tensor.flip(0), cmap=colours, vmin=low, vmax=high, edgecolors="#cccccc")
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])

    titles = (
        f"1  Prototype: {len(values)} random values, never trained",
        f"2  Fill: weight i takes prototype[i mod {len(values)}]",
        "3  Score: learn how much each weight is worth",
        "4  Mask: keep the larger half, drop the hatched",
        f"5  Network: {cost.unique} values, {cost.weights} bits, not {cost.weights} floats",
    )
    for row, title in zip(rows, titles, strict=True):
        row.suptitle(title, x=0.01, ha="left", fontsize=11)
    show(rows[0].subplots(), values[None], colours="PuOr", low=-limit, high=limit)
    for row, tensors in zip(rows[1:], (weights, scores, masks, masked), strict=True):
        plots = row.subplots(1, 3, width_ratios=[shape[1] for shape in _SHAPES.values()])
        for axes, (name, tensor) in zip(plots, tensors.items(), strict=True):
            kept = masks[name] == 1
            if tensors is scores:
                show(axes, tensor.abs(), colours="Greens", low=0, high=float(tensor.abs().max()))
            elif tensors is masks:
                show(axes, tensor.where(kept, nan), colours="Greys", low=0, high=1.25)
            else:
                shown = tensor if tensors is weights else tensor.where(kept, nan)
                show(axes, shown, colours="PuOr", low=-limit, high=limit)
            axes.set_xlabel(name, fontsize=11)
    figure.savefig(path, dpi=230)


if __name__ == "__main__":
    draw_algorithm(Path(__file__).parents[1] / "results" / "algorithm.png")
