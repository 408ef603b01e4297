"""Every optimiser behind one interface, and what it refuses."""

import io
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from nets import batch, dense_net, vector
from torch import nn

from ocp_nn.baselines import OPTIMIZERS, make_optimizer, options_of
from ocp_nn.baselines.base import BatchLoss
from ocp_nn.baselines.kronecker import KFAC

HAS_MUON = hasattr(torch.optim, "Muon")
OWN = [
    name
    for name, entry in OPTIMIZERS.items()
    if entry.module.startswith("ocp_nn.baselines") and (name != "muon" or HAS_MUON)
]
CURVATURE = ("kfac", "ekfac", "kwng", "lm")


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("sgd", torch.optim.SGD),
        ("momentum", partial(torch.optim.SGD, momentum=0.9)),
        ("rmsprop", torch.optim.RMSprop),
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
    ],
)
def test_a_batch_step_is_torchs_step_on_the_gradient_of_the_mean_loss(name, reference):
    mine, theirs = dense_net(), dense_net()
    own, other = (
        make_optimizer(name, mine),
        reference(theirs.parameters(), lr=options_of(name)["lr"]),
    )
    x, y = batch(7)
    for _ in range(3):
        loss = own.step(x, y)
        expected = F.cross_entropy(theirs(x), y)
        other.zero_grad()
        expected.backward()
        other.step()
        assert torch.equal(loss, expected.detach()) and not loss.requires_grad
    assert torch.equal(vector(mine), vector(theirs))


def test_torchs_forms_of_a_step_remain_and_schedulers_move_lr():
    mine, theirs = dense_net(), dense_net()
    own, other = make_optimizer("sgd", mine, lr=0.3), torch.optim.SGD(theirs.parameters(), lr=0.3)
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in (own, other)]
    x, y = batch(7)
    for model, optimizer, schedule in zip((mine, theirs), (own, other), schedules, strict=True):

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)
        schedule.step()
        closure()
        optimizer.step()
    assert torch.equal(vector(mine), vector(theirs))
    assert own.param_groups[0]["lr"] == 0.15


@pytest.mark.skipif(not HAS_MUON, reason="torch.optim.Muon came with torch 2.9")
def test_muon_moves_matrices_and_adamw_the_rest():
    mine, theirs = dense_net(), dense_net()
    own = make_optimizer("muon", mine, lr=0.02, adamw_lr=0.003)
    matrices = [p for p in theirs.parameters() if p.ndim == 2]
    others = [p for p in theirs.parameters() if p.ndim != 2]
    parts = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.0),
        torch.optim.AdamW(others, lr=0.003, weight_decay=0.0),
    ]
    x, y = batch(7)
    for _ in range(3):
        own.step(x, y)
        theirs.zero_grad()
        F.cross_entropy(theirs(x), y).backward()
        for part in parts:
            part.step()
    assert torch.equal(vector(mine), vector(theirs))
    assert [g["lr"] for g in own.param_groups] == [0.02, 0.003]


def test_lbfgs_is_torchs_with_its_line_search():
    mine, theirs = dense_net(), dense_net()
    x, y = batch(20)
    own = make_optimizer("lbfgs", mine, max_iter=5)
    other = torch.optim.LBFGS(
        theirs.parameters(), lr=1.0, max_iter=5, line_search_fn="strong_wolfe"
    )

    def closure():
        other.zero_grad()
        loss = F.cross_entropy(theirs(x), y)
        loss.backward()
        return loss

    assert torch.equal(own.step(x, y), other.step(closure).detach())
    assert torch.equal(vector(mine), vector(theirs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OWN)
def test_a_saved_optimizer_continues_bit_for_bit(name, dtype):
    x, y = batch(6, dtype=dtype)
    options = {"momentum": 0.5, "refresh": 2} if name in ("kfac", "ekfac") else {}
    model = dense_net(dtype)
    optimizer = make_optimizer(name, model, **options)
    for _ in range(3):
        optimizer.step(x, y)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = dense_net(dtype, seed=5)
    other.load_state_dict(saved["model"])
    resumed = make_optimizer(name, other, **options)
    resumed.load_state_dict(saved["optimizer"])
    for _ in range(3):
        assert torch.equal(optimizer.step(x, y), resumed.step(x, y))
    assert torch.equal(vector(model), vector(other))


@pytest.mark.parametrize("loss", ["mse", "squared_error", "binary_cross_entropy", "huber"])
@pytest.mark.parametrize("name", ["sgd", *CURVATURE])
def test_every_loss_goes_down(name, loss):
    model = dense_net()
    x, _ = batch(12)
    targets = torch.rand(12, 3, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    optimizer = make_optimizer(name, model, loss)
    losses = [float(optimizer.step(x, targets)) for _ in range(20)]
    assert losses[-1] < 0.98 * losses[0]


@pytest.mark.parametrize(
    ("given", "out", "targets"),
    [
        ("cross_entropy", (3,), torch.tensor([0, 2])),
        ("cross_entropy", (3, 4), torch.tensor([[0, 2, 1, 1], [1, 2, 0, 0]])),
        ("cross_entropy", (3,), torch.tensor([[0.2, 0.3, 0.5], [1.0, 0, 0]], dtype=torch.float64)),
        ("mse", (3, 2), torch.arange(12.0, dtype=torch.float64).reshape(2, 3, 2)),
        ("squared_error", (3,), torch.arange(6.0, dtype=torch.float64).reshape(2, 3)),
        ("huber", (3,), torch.arange(6.0, dtype=torch.float64).reshape(2, 3)),
        ("binary_cross_entropy", (3,), torch.ones(2, 3, dtype=torch.float64)),
        (lambda z, t: ((z - t) ** 4).mean(), (3,), torch.ones(2, 3, dtype=torch.float64)),
    ],
)
def test_the_fused_loss_is_the_mean_of_the_sample_losses(given, out, targets):
    outputs = torch.randn(2, *out, generator=torch.Generator().manual_seed(0)).double()
    batch_loss = BatchLoss(given)
    value = batch_loss(outputs, targets)
    loss, prepared = batch_loss.prepare(outputs, targets)
    torch.testing.assert_close(value, loss.value(outputs.flatten(1), prepared).mean())


# -- mistakes ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("adma", {}, "no optimizer 'adma'. Did you mean adam"),
        ("adam", {"beta": 1}, "no option 'beta'. Did you mean betas"),
        ("kfac", {"damping": 0.0}, "damping must be positive"),
        ("kfac", {"lr": -1.0}, "lr must be positive"),
        ("kfac", {"decay": 1.0}, "decay must be less than 1"),
        ("ekfac", {"statistics": "exakt"}, "statistics must be one of exact, sampled, empirical"),
        ("kfac", {"refresh": 0}, "refresh must be at least 1"),
        ("kfac", {"kl_clip": 0.0}, "kl_clip must be positive"),
        ("kwng", {"basis": 0}, "basis must be at least 1"),
        ("kwng", {"scaling": "none"}, "scaling must be"),
        ("lm", {"trials": 0}, "trials must be at least 1"),
        ("sgd", {"lr": -0.1}, "Invalid learning rate"),
    ],
)
def test_wrong_options_are_named(name, options, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        make_optimizer(name, dense_net(), **options)


def test_models_without_structure_are_refused_by_name():
    tied = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    tied[2].weight = tied[0].weight
    with pytest.raises(ValueError, match="2 and 0 share a parameter"):
        KFAC(tied)
    layer = nn.Linear(3, 3).double()
    twice = KFAC(nn.Sequential(layer, nn.Tanh(), layer))
    with pytest.raises(ValueError, match="layer 0 was called 2 times"):
        twice.step(*batch(4, (3,)))
    inplace = KFAC(nn.Sequential(nn.Linear(5, 3), nn.ReLU(inplace=True), nn.Linear(3, 3)).double())
    with pytest.raises(ValueError, match="output of 0 is overwritten"):
        inplace.step(*batch(4))
    with pytest.raises(ValueError, match="no parameter to train"):
        make_optimizer("sgd", nn.Tanh())


@pytest.mark.parametrize("name", CURVATURE)
def test_curvature_needs_the_batch(name):
    optimizer = make_optimizer(name, dense_net())
    with pytest.raises(TypeError, match=r"call step\(inputs, targets\)"):
        optimizer.step()
    with pytest.raises(ValueError, match="no state of"):
        optimizer.load_state_dict(make_optimizer("sgd", dense_net()).state_dict())
    with pytest.raises(TypeError, match="needs targets"):
        make_optimizer("sgd", dense_net()).step(batch(3)[0])


def test_targets_that_do_not_fit_are_refused():
    optimizer = make_optimizer("sgd", dense_net())
    x, y = batch(4)
    with pytest.raises(ValueError, match="4 inputs came with 3 targets"):
        optimizer.step(x, y[:3])
    with pytest.raises(ValueError, match="classes"):
        optimizer.step(x, y + 3)
    weighted = torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 9.0], dtype=x.dtype))
    with pytest.raises(ValueError, match="mean over samples"):
        make_optimizer("adam", dense_net(), weighted).step(x, torch.tensor([0, 1, 2, 0]))


def test_options_list_what_the_class_takes():
    assert options_of("kfac")["damping"] > 0 and options_of("adam")["betas"] == (0.9, 0.999)
    assert options_of("momentum")["momentum"] == 0.9 and "model" not in options_of("sgd")
