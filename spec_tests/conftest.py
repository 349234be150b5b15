"""Loads the default profile; ``--hypothesis-profile=thorough`` chooses the other one."""

import torch
from hypothesis import settings

import spec_tests.draws  # noqa: F401  registers the profiles

settings.load_profile("ci")
# The tensors are tiny: threads that wait for one another cost more than they give.
torch.set_num_threads(1)
