"""Networks of these tests start from the same weights every time."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_weights():
    torch.manual_seed(0)
