"""Small networks and batches for the tests of baselines."""

import torch
from torch import nn
from torch.func import functional_call, jacrev


def dense_net(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).to(dtype)


def conv_net(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(3 * 3 * 3, 4, bias=False),
    )
    return net.double()


def batch(B, shape=(5,), classes=3, dtype=torch.float64, seed=1):
    g = torch.Generator().manual_seed(seed)
    inputs = torch.randn(B, *shape, generator=g, dtype=torch.float64).to(dtype)
    return inputs, torch.randint(classes, (B,), generator=g)


def vector(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def sample_rows(model, x, classes):
    """Rows of the per-sample curvature factor for every parameter: B lists over k of dicts."""
    values = {k: v.detach() for k, v in model.named_parameters()}
    samples = []
    for one in x:

        def logits(p, one=one):
            return functional_call(model, p, (one[None],))[0]

        J = jacrev(logits)(values)
        p = logits(values).softmax(0)
        # sum over y of p_y (e_y - p)(e_y - p)' is the Fisher matrix of the logits
        Y = (torch.eye(classes, dtype=x.dtype) - p) * p.sqrt()[:, None]
        samples.append({k: torch.tensordot(Y, v, 1) for k, v in J.items()})
    return samples
