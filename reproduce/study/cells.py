"""What is trained, as data: a cell is one network and its recipe, a study a list of cells.

A cell's id is the hash of all that decides what is trained, so that a row can never be taken for a
row of another configuration.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from typing import Any, NamedTuple, TypedDict

import msgspec

import pemn_ref as pemn
from reproduce.frontier.families import FAMILIES
from reproduce.study.recipes import Recipe


@dataclass(frozen=True)
class ConvMixer:
    """Sizes of a ``models.convmixer.ConvMixer``; channels and classes follow from the dataset."""

    depth: int
    width: int
    patch: int
    kernel: int
    family: str = "convmixer"

    @property
    def label(self) -> str:
        """For people, and for ``--model``."""
        return f"convmixer-d{self.depth}-w{self.width}"


@dataclass(frozen=True)
class ResNet:
    """Sizes of a ``models.resnet.ResNet``."""

    depth: int
    width: int
    family: str = "resnet"

    @property
    def label(self) -> str:
        """For people, and for ``--model``."""
        return f"resnet{self.depth}"


@dataclass(frozen=True)
class ViT:
    """Sizes of a ``models.vit.ViT``."""

    depth: int
    width: int
    heads: int
    head_width: int
    mlp: int
    patch: int
    dropout: float
    family: str = "vit"

    @property
    def label(self) -> str:
        """For people, and for ``--model``."""
        return f"vit-d{self.depth}-w{self.width}"


KINDS: dict[str, type[ConvMixer | ResNet | ViT]]
KINDS = {kind.family: kind for kind in (ConvMixer, ResNet, ViT)}
PRUNED = ("prune_random", "prune_minimum")
FRONTIER = "frontier-"
"""Before the name of a family of the byte frontier: none is taken for a strategy of the paper."""
_ORDER = ("dense", "mask", "one_layer", "mp", "rp", *PRUNED, "control")
"""That of the paper, whose baselines and our control come last."""
WHERE_IDS_ARE = "plan with one model and one dataset lists its runs as CELL-SEED"


@dataclass(frozen=True)
class Cell:
    """One network on one dataset, trained in one way.

    ``strategy`` is ``dense``, one of pemn_ref's, or one of three that go beside them: ``control``,
    weights and scores of ``mp``, the scores never trained, only the rest; and the baselines
    ``prune_random`` and ``prune_minimum``, a dense network of which only ``density`` of each layer
    is kept, chosen before training at random or by |weight|, and trained (the paper does not say
    when it prunes; its numbers leave no other reading). ``ratio`` belongs to ``rp``, ``density`` to
    all but dense. ``frontier-NAME`` is a family of the byte frontier, where any may have a ratio.

    Raises:
        ValueError: if strategy, ratio and density do not fit each other.
    """

    dataset: str
    model: ConvMixer | ResNet | ViT
    strategy: str
    ratio: float | None
    density: float | None
    recipe: Recipe

    def __post_init__(self) -> None:
        if self.family is None and (self.ratio is None) != (self.strategy != "rp"):
            raise ValueError(f"rp and only rp has a ratio, got {self.ratio!r} for {self.strategy}")
        if (self.density is None) != (self.strategy == "dense"):
            raise ValueError(
                f"all but dense have a density, got {self.density!r} for {self.strategy}"
            )
        if self.density is not None:
            pemn.kept(1, self.density)
            _ = self.masking
        if self.family not in (None, *FAMILIES):
            raise ValueError(f"no strategy {self.strategy!r}: families are {', '.join(FAMILIES)}")

    @property
    def family(self) -> str | None:
        """The name of a family of the byte frontier; None of all other cells."""
        return self.strategy.removeprefix(FRONTIER) if self.strategy.startswith(FRONTIER) else None

    @property
    def name(self) -> str:
        """The strategy for people and ``--strategy``: ``mp``, ``rp_1e-2``, ``prune_random_90``."""
        if self.strategy in PRUNED and self.density is not None:
            return f"{self.strategy}_{100 * (1 - self.density):.4g}"
        if self.family is not None:
            ratio = {None: "", 0.0: "_seed"}.get(self.ratio, f"_{self.ratio}")
            return f"{self.family}{ratio}" + (
                "" if self.density in (0.5, 1) else f"_d{self.density:g}"
            )
        if self.ratio is None:
            return self.strategy
        digits, exponent = f"{self.ratio:e}".split("e")
        return f"{self.strategy}_{float(digits):g}e{int(exponent)}"

    @property
    def place(self) -> tuple[int, float, float]:
        """Sorts the cells of a model as the paper has them, wherever they are shown."""
        kind = len(_ORDER) if self.family else _ORDER.index(self.strategy)
        return kind, -(self.ratio or 0), -(self.density or 0)

    @property
    def masking(self) -> pemn.Strategy | None:
        """Where frozen weights come from; dense, pruned and frontier cells have none."""
        if self.strategy == "dense" or self.strategy in PRUNED or self.family is not None:
            return None
        if self.ratio is not None:
            return pemn.rp(self.ratio)
        return pemn.mp if self.strategy == "control" else pemn.Strategy(self.strategy)

    @property
    def configuration(self) -> dict[str, Any]:
        """All that decides what is trained, as plain data: not where the recipe is from."""
        plain = asdict(self)
        for origin in ("known", "inferred"):
            del plain["recipe"][origin]
        return plain

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that stand for the configuration."""
        canonical = json.dumps(self.configuration, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def run_id(self, seed: int) -> str:
        """Names one training of the cell."""
        return f"{self.id}-{seed}"

    @classmethod
    def configured(cls, configuration: dict[str, Any]) -> "Cell":
        """The cell of a ``configuration``, of whose recipe it is not known where it is from.

        Raises:
            ValueError: if it is the configuration of no cell.
        """
        try:
            plain = msgspec.convert(configuration, _Configuration)
            family = plain["model"].get("family")
            if family not in [*KINDS]:
                raise ValueError(f"no family of models {family!r}, only {', '.join(KINDS)}")
            cell = cls(
                dataset=plain["dataset"],
                model=msgspec.convert(plain["model"], KINDS[family]),
                strategy=plain["strategy"],
                ratio=plain["ratio"],
                density=plain["density"],
                recipe=msgspec.convert({**plain["recipe"], "known": (), "inferred": ()}, Recipe),
            )
        except msgspec.MsgspecError as error:
            raise ValueError(f"a configuration of no cell: {error}") from error
        if cell.configuration != configuration:
            raise ValueError("a configuration of no cell: it has a field that no cell has")
        return cell


class _Configuration(TypedDict):
    """The types of ``Cell.configuration``."""

    dataset: str
    model: dict[str, Any]
    strategy: str
    ratio: float | None
    density: float | None
    recipe: dict[str, Any]


class Group(NamedTuple):
    """What one table or figure shows."""

    title: str
    cells: tuple[Cell, ...]
    stem: str
    """The name of its figure, without the ending."""


@dataclass(frozen=True)
class Study:
    """A named list of cells that belong together."""

    name: str
    title: str
    """Of table and figure; ``{model}``, ``{label}`` and ``{dataset}`` stand for those of a cell."""
    cells: tuple[Cell, ...]
    models: tuple[str, ...]
    """What is trained when no other models are asked for."""
    datasets: tuple[str, ...]
    """What it is trained on when no other datasets are asked for."""
    seeds: int
    """How many are trained when no other number is asked for."""
    threads: int | None
    """For torch; None: its own choice. Not part of the cells, but last digits depend on it."""
    suffix: str = ""
    """Of the names of figures: those of a shortened study lie beside those of the whole one."""

    def chosen(
        self,
        *,
        models: Sequence[str] = (),
        strategies: Sequence[str] = (),
        datasets: Sequence[str] = (),
        ids: Sequence[str] = (),
    ) -> "Study":
        """The cells that have one of each, in the order of the study.

        A model by its family or label, a strategy by its name or, for all of a kind, ``rp`` or
        ``prune_random``. Where neither ids nor models or datasets are given, the study's.

        Raises:
            ValueError: if no cell has a value that is asked for, or none has all.
        """
        cells = self.cells
        for what, asked, usual, named in (
            ("cell", ids, (), lambda cell: (cell.id,)),
            ("model", models, self.models, _names_of_model),
            ("dataset", datasets, self.datasets, lambda cell: (cell.dataset,)),
            ("strategy", strategies, (), lambda cell: (cell.name, cell.strategy)),
        ):
            ordered = sorted(cells, key=lambda cell: cell.place) if what == "strategy" else cells
            known = dict.fromkeys(name for cell in ordered for name in named(cell))
            for value in asked:
                if value not in known:
                    there = WHERE_IDS_ARE if asked is ids else f"only {', '.join(known)}"
                    raise ValueError(f"no {what} {value!r} here: {there}{nearest(value, known)}")
            wanted = asked or (() if ids else usual)
            cells = tuple(c for c in cells if not wanted or {*named(c)} & {*wanted})
        return replace(self, cells=cells)

    def groups(self) -> list[Group]:
        """The cells of one model on one dataset each, with the title of their table."""
        groups: dict[tuple[str, str], list[Cell]] = {}
        for cell in self.cells:
            groups.setdefault((cell.model.label, cell.dataset), []).append(cell)
        return [
            Group(
                self.title.format(
                    model=type(cells[0].model).__name__, label=label, dataset=dataset
                ),
                tuple(cells),
                f"{dataset}-{label}{self.suffix}",
            )
            for (label, dataset), cells in groups.items()
        ]

    def outdates(self, configuration: dict[str, Any]) -> bool:
        """Whether a recipe of this study is a newer version of the one in the configuration."""
        recipe = configuration["recipe"]
        versions = {cell.recipe.name: cell.recipe.version for cell in self.cells}
        return bool(recipe["version"] < versions.get(recipe["name"], 0))

    def shortened(self, epochs: int) -> "Study":
        """The same cells trained for ``epochs``: other recipes, so other ids, as the title says."""
        return replace(
            self,
            title=f"{self.title}; shortened to {epochs} epochs",
            suffix=f"-{epochs}-epochs",
            cells=tuple(replace(c, recipe=c.recipe.changed(epochs=epochs)) for c in self.cells),
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message, which offers the names most like it in any case; "" where none is.

    >>> nearest("ConvMixer", ["convmixer", "resnet", "vit"])
    '; did you mean convmixer?'
    """
    folded = {one.casefold(): one for one in known}
    begun = [one for one in folded if name and one.startswith(name.casefold())][:3]
    found = [folded[one] for one in begun or get_close_matches(name.casefold(), folded)]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def _names_of_model(cell: Cell) -> tuple[str, ...]:
    return cell.model.family, cell.model.label
