"""W on stock torchvision models, unmodified; skipped where torchvision is not installed."""

import pytest
import torch

from spec_tests.clauses import clause
from spec_tests.models import assert_equals_plain, built
from spec_tests.subject import pemn

models = pytest.importorskip("torchvision.models")


@clause("W20")
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
@pytest.mark.parametrize("train", [False, True])
def test_stock_models(name: str, train: bool) -> None:
    """Stock torchvision models, with random batch-norm statistics, run as the plain module does."""
    model = built(lambda: models.get_model(name, num_classes=10), 0).double().train(train)
    state = pemn.init(model, pemn.rp(1e-2), seed=0)
    inputs = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).double()
    assert_equals_plain(model, state, inputs, density=0.5)
