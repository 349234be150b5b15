"""Loads the options and the default profile; ``draws`` has the others."""

import pytest
import torch
from hypothesis import settings

import spec_tests.draws  # noqa: F401  registers the profiles

settings.load_profile("ci")
# The tensors are tiny: threads that wait for one another cost more than they give.
torch.set_num_threads(1)


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """Load the plugin from beside this file, unless ``-p`` did."""
    pluginmanager.import_plugin("spec_tests.plugin")
