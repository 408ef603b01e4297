"""What a new user gets: `DDPOptimizer(model, loss)` with nothing tuned, on data as they come.

    python benchmarks/nn_defaults.py [--epochs 3] [--only pixels]

A row is a metric and a form, a column a data set: mean loss of the last fifth of the steps over
that of outputs that are zero (ln 10 for ten classes), so that 1 is nothing learnt; in brackets the
largest loss of any batch, over the same, where it is above 2; DIVERGED where the optimiser says so.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor, nn

from ocp_nn import DDPOptimizer
from ocp_nn.divergence import DivergedError
from ocp_nn.statistics import METRICS

FORMS = ("proximal", "paper", "stagewise", "gradient")
Set = tuple[nn.Module, str, Tensor, Tensor]


def digits(g: torch.Generator) -> Set:
    """8 x 8 pixels 0 to 16 of scikit-learn, a ReLU network."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    model = nn.Sequential(
        nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)
    )
    return model, "cross_entropy", torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def pixels(g: torch.Generator) -> Set:
    """Made to be like MNIST: 784 pixels 0 to 255, a fifth of them not 0, ten noisy prototypes."""
    y = torch.randint(10, (1600,), generator=g)
    ink = (torch.rand(10, 784, generator=g) < 0.2).float()
    flips = (torch.rand(1600, 784, generator=g) < 0.1).float()
    x = 255 * (ink[y] - flips).abs() * torch.rand(1600, 784, generator=g)
    layers: list[nn.Module] = [nn.Linear(784, 32), nn.Tanh()]
    for _ in range(3):
        layers += [nn.Linear(32, 32), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(32, 10)), "cross_entropy", x.round(), y


def images(g: torch.Generator) -> Set:
    """The same pixels as images for a convolutional network."""
    _, loss, x, y = pixels(g)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 5, stride=3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10)
    )
    return model, loss, x.view(-1, 1, 28, 28), y


def houses(g: torch.Generator) -> Set:
    """Regression on columns of scales 1e-2 to 1e3, targets in the thousands."""
    x = torch.randn(1600, 6, generator=g)
    y = 1e3 * (torch.sin(x[:, :2]).sum(1, keepdim=True) + x[:, 2:3] * x[:, 3:4])
    x = (x + 1) * torch.tensor([1e-2, 1.0, 10.0, 50.0, 1e2, 1e3])
    model = nn.Sequential(
        nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)
    )
    return model, "mse", x, y


def scaled(g: torch.Generator) -> Set:
    """Regression as a textbook has it: inputs and targets of size 1."""
    x = torch.randn(1600, 6, generator=g)
    y = torch.sin(x[:, :2]).sum(1, keepdim=True) + x[:, 2:3] * x[:, 3:4]
    model = nn.Sequential(
        nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
    )
    return model, "mse", x, y


SETS = {f.__name__: f for f in (digits, pixels, images, houses, scaled)}


def run(name: str, epochs: int, **options: str) -> str:
    torch.manual_seed(0)
    model, loss, x, y = SETS[name](torch.Generator().manual_seed(0))
    optimizer = DDPOptimizer(model, loss, **options)  # type: ignore[arg-type]
    losses: list[float] = []
    order = torch.Generator().manual_seed(1)
    try:
        for _ in range(epochs):
            for rows in torch.randperm(len(x), generator=order).split(32):
                losses.append(float(optimizer.step(x[rows], y[rows])))
    except (DivergedError, ValueError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
        return f"{type(error).__name__[:8].upper()} {len(losses)}"
    with torch.no_grad():
        unit = float(torch.log(torch.tensor(10.0)) if loss != "mse" else y.square().mean())
    last = sum(losses[-len(losses) // 5 :]) / len(losses[-len(losses) // 5 :]) / unit
    worst = max(losses) / unit
    return f"{last:.3f}" + (f" ({worst:.0f})" if worst > 2 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--only", choices=list(SETS))
    parser.add_argument("--metric", choices=METRICS)
    parser.add_argument("--form", choices=FORMS)
    given = parser.parse_args()
    names = [given.only] if given.only else list(SETS)
    print(f"{'metric':14}{'form':11}" + "".join(f"{n:>15}" for n in names) + "   seconds")
    for metric in METRICS if given.metric is None else (given.metric,):
        for form in FORMS if given.form is None else (given.form,):
            begin = time.process_time()
            cells = [run(n, given.epochs, metric=metric, form=form) for n in names]
            cells.append(f"{time.process_time() - begin:10.0f}")
            print(f"{metric:14}{form:11}" + "".join(f"{c:>15}" for c in cells), flush=True)


if __name__ == "__main__":
    main()
