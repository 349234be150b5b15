"""What HOW_TO.md shows works, from top to bottom, and does what it says."""

import multiprocessing
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

import pemn_ref as pemn
from pemn_ref import file

PAGE = Path(pemn.__file__).with_name("HOW_TO.md")
pytest.importorskip("torchvision", exc_type=ImportError)


def blocks() -> dict[str, str]:
    """Heading -> its code."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    code = {s.splitlines()[0]: re.findall(r"```python\n(.*?)```", s, re.DOTALL) for s in sections}
    return {heading: "\n".join(found) for heading, found in code.items() if found}


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the whole page leaves, run in an empty folder."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 32, 32, generator=generator)
    names: dict[str, Any] = {"batches": [(images, torch.tensor([0, 1, 2, 3]))] * 2}
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.chdir(tmp_path_factory.mktemp("how-to"))
        torch.manual_seed(0)
        for heading, code in blocks().items():
            if heading == "Go on training from a file":
                names["loaded"] = {n: s.detach().clone() for n, s in names["state"].scores.items()}
            exec(code, names)
    return names


def test_every_snippet_runs(names: dict[str, Any]) -> None:
    assert len(blocks()) >= 14
    assert 0 <= names["accuracy"] <= 1
    assert names["program"].module()(names["images"]).shape == (4, 10)


def test_dense_network_in_onnx_gives_its_logits(names: dict[str, Any], tmp_path: Path) -> None:
    """Where they are installed: neither onnx nor its runtime is one of our extras."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    (code,) = re.findall(r"```py\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries
        patch.chdir(tmp_path)
        exec(code, names)
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    (first,) = session.get_inputs()
    (logits,) = session.run(None, {first.name: names["images"].numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), names["small"](names["images"]).detach())


def test_fresh_magnitudes_keep_the_mask_and_let_it_change(names: dict[str, Any]) -> None:
    model, images = names["model"], names["images"].to(names["device"])
    scores, loaded = names["state"].scores, names["loaded"]

    def masks() -> dict[str, torch.Tensor]:
        return {name: pemn.score_mask(s.detach(), density=0.5) for name, s in scores.items()}

    assert all(torch.equal(mask, loaded[name]) for name, mask in masks().items())
    optimizer = torch.optim.SGD(scores.values(), lr=100.0)
    pemn.masked_forward(model, *names["state"], images, density=0.5).square().sum().backward()
    optimizer.step()
    assert not all(torch.equal(mask, loaded[name]) for name, mask in masks().items())


def test_densities_and_layers_left_out(names: dict[str, Any]) -> None:
    assert "fc.weight" in names["partly"].rest
    assert 0 < min(names["densities"].values()) < max(names["densities"].values()) <= 1
    assert torch.equal(names["tuned"].weights["fc.weight"], names["pretrained"]["fc.weight"])


def test_resumed_training_is_the_same_to_the_bit(tmp_path: Path) -> None:
    model, x = nn.Linear(4, 3), torch.ones(2, 4)

    def optimizer_of(state: pemn.State) -> torch.optim.Optimizer:
        return torch.optim.AdamW([*state.scores.values(), *state.rest.values()], lr=0.1)

    def step(state: pemn.State, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        pemn.masked_forward(model, *state, x, density=0.5).square().sum().backward()
        optimizer.step()

    state = pemn.init(model, pemn.rp(0.5), seed=0)
    optimizer = optimizer_of(state)
    step(state, optimizer)
    saved = {"state": state._asdict(), "optimizer": optimizer.state_dict()}
    torch.save(saved, tmp_path / "checkpoint.pt")
    step(state, optimizer)
    read = torch.load(tmp_path / "checkpoint.pt")
    again = pemn.State(**read["state"])
    optimizer = optimizer_of(again)
    optimizer.load_state_dict(read["optimizer"])
    step(again, optimizer)
    assert all(torch.equal(again.scores[name], state.scores[name]) for name in state.scores)
    assert all(torch.equal(again.rest[name], state.rest[name]) for name in state.rest)


def _process(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    names: dict[str, Any] = {}
    exec(blocks()["Average gradients over processes"], names)
    model = nn.Linear(4, 3)
    state = pemn.init(model, pemn.mp, seed=0)
    with torch.no_grad():
        state.rest["bias"].zero_()  # of an own model each: drawn apart
    x = torch.full((1, 4), float(rank + 1))
    pemn.masked_forward(model, *state, x, density=0.5).sum().backward()
    names["average_gradients"](state)
    torch.save(state.scores["weight"].grad, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_gradients_of_two_processes_are_averaged(tmp_path: Path) -> None:
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("torch was built without gloo")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_process, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    model = nn.Linear(4, 3)
    state = pemn.init(model, pemn.mp, seed=0)
    pemn.masked_forward(model, *state, torch.full((1, 4), 1.5), density=0.5).sum().backward()
    assert torch.equal(one, other)
    torch.testing.assert_close(one, state.scores["weight"].grad)


def test_files_that_the_page_writes_are_read(names: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "partly"
    model = names["model"]
    file.save(path, model, names["partly"], pemn.rp(1e-2), density=names["densities"])
    assert file.inspect(path).density == names["densities"]
