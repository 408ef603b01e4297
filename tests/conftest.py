"""Settings of the test suite: small tensors run fastest on one thread."""

import torch

torch.set_num_threads(1)
