"""Settings of the test suite: small tensors run fastest on one thread.

Tests use the eager engine, the reference, unless they name another: compiling a program for each
of hundreds of tiny problems would take longer than they do.
"""

import os

import pytest
import torch
from processes import Pair

torch.set_num_threads(1)
os.environ.setdefault("OCP_ENGINE", "eager")


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """Two processes of one group, see `processes.Pair`."""
    processes = Pair(tmp_path_factory.mktemp("group"))
    yield processes
    processes.close()
