"""W on stock torchvision models, unmodified; skipped where torchvision is not installed."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import nn

from spec_tests.clauses import clause
from spec_tests.models import assert_equals_plain, built, needs
from spec_tests.subject import pemn

models = pytest.importorskip("torchvision.models")

# Name -> image size, and the arguments that let it be so small. The first run in every profile.
OFTEN: dict[str, tuple[int, dict[str, Any]]] = {
    "resnet18": (32, {}),
    "mobilenet_v3_small": (32, {}),
    "shufflenet_v2_x0_5": (32, {}),
    "regnet_y_400mf": (32, {}),
}
SELDOM: dict[str, tuple[int, dict[str, Any]]] = {
    "resnext50_32x4d": (32, {}),
    "efficientnet_b0": (32, {}),
    "densenet121": (32, {}),
    "convnext_tiny": (32, {}),
    "swin_t": (64, {}),
    "vit_b_16": (32, {"image_size": 32}),
    "maxvit_t": (224, {}),
    "vgg11_bn": (32, {}),
    "squeezenet1_1": (32, {}),
    "googlenet": (64, {"init_weights": False}),
    "inception_v3": (96, {"init_weights": False, "aux_logits": False}),
    "deeplabv3_resnet50": (32, {"weights_backbone": None}),
}
THOROUGH = settings.get_current_profile_name() == "thorough"
STOCK = OFTEN | (SELDOM if THOROUGH else {})


def stock(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A model with random weights and batch-norm statistics, and an input for it."""
    size, arguments = {**OFTEN, **SELDOM}[name]
    model = built(lambda: models.get_model(name, weights=None, num_classes=5, **arguments), 0)
    inputs = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    return model.double(), inputs.double()


@clause("W20")
@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize("train", [False, True])
def test_stock_models(name: str, train: bool) -> None:
    """Stock torchvision models, with random batch-norm statistics, run as the plain module does."""
    model, inputs = stock(name)
    with torch.no_grad():
        needs(model.train(train), inputs)
    state = pemn.init(model, pemn.rp(1e-2), seed=0)
    plain = copy.deepcopy(model)  # not of the oracle, which is slow
    plain.load_state_dict(pemn.materialize(model, state, density=0.5))
    assert_equals_plain(model, state, inputs, 0.5, plain)
