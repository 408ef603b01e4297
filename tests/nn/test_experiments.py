"""Training runs: resumed bit for bit, stopped, interrupted, diverged; studies over seeds."""

import json
import math
import os
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn

from ocp_nn.baselines import OPTIMIZERS, make_optimizer
from ocp_nn.data import Data, clusters
from ocp_nn.experiments import Status, checkpoint, cnn, compare, evaluate, mlp, train
from ocp_nn.experiments.health import Diverged, Guard, first_bad

OWN = [
    name
    for name, entry in OPTIMIZERS.items()
    if entry.module.startswith("ocp_nn.baselines")
    and (name != "muon" or hasattr(torch.optim, "Muon"))
]
DATA = clusters(3, 4, 20)  # 48 samples to train


def net(seed=0, dropout=0.0):
    model = mlp((4,), 3, (5,), seed=seed)
    return nn.Sequential(model[0], model[1], nn.Dropout(dropout), model[2]) if dropout else model


def weights(model):
    return torch.cat([v.flatten().double() for v in model.state_dict().values()])


def timeless(rows):
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


def same(a, b):
    return repr(timeless(a)) == repr(timeless(b))  # repr, as nan equals itself there


# -- a run -------------------------------------------------------------------------------------
def test_a_run_is_the_loop_one_would_write():
    model, plain = net(), net()
    adam = make_optimizer("adam", model, lr=3e-3)
    result = train(model, adam, DATA, epochs=2, batch_size=20, seed=3)
    optimizer = torch.optim.Adam(plain.parameters(), lr=3e-3)
    for epoch in range(2):
        order = torch.randperm(48, generator=torch.Generator().manual_seed(3_000_009 + epoch))
        for chosen in order.split(20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(plain(DATA.inputs[chosen]), DATA.targets[chosen]).backward()
            optimizer.step()
    assert torch.equal(weights(model), weights(plain))
    assert result.status is Status.FINISHED and [r["epoch"] for r in result.rows] == [0, 1, 2]
    assert result.last["step"] == 6 and math.isnan(result.rows[0]["batch_loss"])
    logits = plain(DATA.test_inputs)
    loss = nn.functional.cross_entropy(logits, DATA.test_targets)
    assert result.last["test_loss"] == pytest.approx(float(loss), rel=1e-6)
    right = (logits.argmax(1) == DATA.test_targets).double().mean()
    assert result.last["test_accuracy"] == pytest.approx(float(right))


@pytest.mark.parametrize("stop_at", [4, 5])  # at the end of an epoch of two steps, and within one
@pytest.mark.parametrize("name", [*OWN, "ddp", "ddp-ekfac", "ddp-adam"])
def test_a_resumed_run_continues_bit_for_bit(name, stop_at, tmp_path):
    torch.manual_seed(9)
    dropout = 0.0 if name == "lm" or name.startswith("ddp") else 0.3  # those refuse it
    whole = net(dropout=dropout)
    start = torch.get_rng_state()
    arguments = {"epochs": 4, "batch_size": 24, "seed": 1}
    expected = train(whole, make_optimizer(name, whole), DATA, **arguments)

    part = net(dropout=dropout)
    torch.set_rng_state(start)
    file = tmp_path / "checkpoint.pt"
    stopped = train(
        part, make_optimizer(name, part), DATA, save=file, **arguments,
        callback=lambda run: run.position.step == stop_at,
    )  # fmt: skip
    assert stopped.status is Status.STOPPED and f"step {stop_at}" in stopped.message
    torch.manual_seed(12345)  # another process has another state
    again = net(seed=8, dropout=dropout)
    result = train(again, make_optimizer(name, again), DATA, resume=file, **arguments)
    assert torch.equal(weights(again), weights(whole))
    assert same(result.rows, expected.rows) and result.best == expected.best
    for key, value in expected.best_weights.items():
        assert torch.equal(value, result.best_weights[key])


def test_schedulers_and_float64_are_resumed_too(tmp_path):
    data = DATA.to(dtype=torch.float64)

    def run(epochs, resume=None):
        model = net().double()
        optimizer = make_optimizer("ekfac", model, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
        result = train(
            model, optimizer, data, epochs=epochs, scheduler=scheduler, save=tmp_path / "c",
            resume=resume,
        )  # fmt: skip
        return model, result

    whole, expected = run(4)
    run(2)
    again, result = run(4, tmp_path / "c")
    assert torch.equal(weights(whole), weights(again)) and same(result.rows, expected.rows)
    assert result.rows[1]["lr"] != result.rows[2]["lr"]


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    model = net()
    train(model, make_optimizer("sgd", model), DATA, epochs=1, save=tmp_path / "c")
    with pytest.raises(ValueError, match="written with batch_size=32, not 16"):
        train(model, make_optimizer("sgd", model), DATA, batch_size=16, resume=tmp_path / "c")
    with pytest.raises(ValueError, match="written with optimizer='SGD', not 'Adam'"):
        train(model, make_optimizer("adam", model), DATA, resume=tmp_path / "c")
    (tmp_path / "text").write_text("no")
    with pytest.raises(ValueError, match="is no checkpoint"):
        checkpoint.load(tmp_path / "text")
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        checkpoint.load(tmp_path / "absent")
    torch.save({"version": 99}, tmp_path / "old")
    with pytest.raises(ValueError, match="version"):
        checkpoint.load(tmp_path / "old")


def test_patience_stops_at_the_best_epoch():
    model = net()
    result = train(
        model, make_optimizer("sgd", model, lr=1e-30), DATA, epochs=50, patience=3, monitor="loss"
    )
    assert result.status is Status.STOPPED and len(result.rows) == 4 and result.best == 0
    assert "since epoch 0" in result.message


def test_best_weights_are_those_of_the_best_epoch():
    model = net()
    seen = {}
    result = train(
        model, make_optimizer("sgd", model, lr=2.0), DATA, epochs=6, monitor="test_accuracy",
        log=[lambda row: seen.update({row["epoch"]: (row["test_accuracy"], weights(model))})],
    )  # fmt: skip
    best = max(seen, key=lambda e: seen[e][0])
    assert result.best == best
    assert torch.equal(torch.cat([v.flatten().double() for v in result.best_weights.values()]),
                       seen[best][1])  # fmt: skip


def test_ctrl_c_ends_after_the_step_and_keeps_what_there_is(tmp_path):
    model = net()

    def press(run):
        if run.position.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    result = train(
        model, make_optimizer("sgd", model), DATA, batch_size=24, callback=press, epochs=9,
        save=tmp_path / "c",
    )  # fmt: skip
    assert result.status is Status.INTERRUPTED and "step 3" in result.message
    assert checkpoint.load(tmp_path / "c")["position"]["step"] == 3
    assert signal.getsignal(signal.SIGINT) is before


# -- divergence --------------------------------------------------------------------------------
class Poison:
    """An optimiser that ruins one layer at one step."""

    param_groups = ({"lr": 1.0},)

    def __init__(self, model, at, value, silent=False):
        self.model, self.at, self.value, self.count = model, at, value, 0
        self.loss = nn.CrossEntropyLoss()

    def step(self, x, y):
        self.count += 1
        loss = self.loss(self.model(x), y).detach()
        with torch.no_grad():
            for p in self.model.parameters():
                p.add_(0.01)
            if self.count == self.at:
                self.model[2].weight.mul_(0).add_(self.value)
                self.model[2].weight[0, 0] *= -1
        return loss

    def state_dict(self):
        return {}


@pytest.mark.parametrize(("value", "step"), [(float("nan"), 3), (float("inf"), 3), (1e30, 4)])
def test_a_diverging_run_names_layer_and_step_and_keeps_the_last_good_weights(value, step):
    model = net()
    seen = []
    result = train(
        model, Poison(model, 3, value), DATA, batch_size=24, epochs=5,
        callback=lambda run: seen.append(weights(model)),
    )  # fmt: skip
    assert result.status is Status.DIVERGED
    assert f"step {step}" in result.message and "2.weight" in result.message
    # Step 3 spoils the weights that step 2 left.
    assert torch.equal(weights(model), seen[1]) and bool(weights(model).isfinite().all())


def test_a_real_run_with_a_huge_step_size_is_seen_to_diverge():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    data = replace(DATA, inputs=1e3 * DATA.inputs)
    result = train(model, make_optimizer("sgd", model, lr=1e6), data, epochs=20)
    assert result.status is Status.DIVERGED and "step" in result.message
    assert bool(weights(model).isfinite().all())


def test_a_factorisation_that_fails_is_a_divergence():
    model = net()
    optimizer = make_optimizer("ekfac", model, statistics="empirical")
    before = weights(model)
    step = optimizer.update

    def fails(inputs, targets):
        return step(inputs * float("nan"), targets)

    optimizer.update = fails
    result = train(model, optimizer, DATA)
    assert result.status is Status.DIVERGED and torch.equal(weights(model), before)


def test_ddps_own_error_is_a_divergence_with_its_words():
    model = net()
    optimizer = make_optimizer("ddp", model, damping=1e-30, terminal_damping=0.0)
    result = train(model, optimizer, replace(DATA, inputs=1e18 * DATA.inputs))
    assert result.status is Status.DIVERGED and "DDPOptimizer: step" in result.message
    assert bool(weights(model).isfinite().all())


def test_the_guard_keeps_buffers_and_integers():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    guard = Guard(model)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    guard.before()
    model(DATA.inputs)
    assert int(model[1].num_batches_tracked) == 1
    with pytest.raises(Diverged):
        guard.after(float("nan"))
    for k, v in model.state_dict().items():
        assert torch.equal(v, before[k])
    assert first_bad(model) == ""
    model[1].running_mean[1] = float("inf")
    assert first_bad(model) == "1.running_mean"


# -- measuring, models, mistakes ---------------------------------------------------------------
def test_evaluation_is_in_eval_mode_and_in_pieces(monkeypatch):
    monkeypatch.setattr("ocp_nn.experiments.training.CHUNK", 7)
    model = net(dropout=0.5)
    model.train()
    loss, accuracy = evaluate(model, "cross_entropy", DATA.inputs, DATA.targets)
    assert model.training
    model.eval()
    logits = model(DATA.inputs)
    expected = nn.functional.cross_entropy(logits, DATA.targets)
    assert loss == pytest.approx(float(expected), rel=1e-6)
    assert accuracy == pytest.approx(float((logits.argmax(1) == DATA.targets).double().mean()))


def test_regression_has_no_accuracy():
    x = torch.linspace(-1, 1, 20)[:, None]
    data = Data("line", x, 3 * x, x, 3 * x, 1)
    model = nn.Linear(1, 1)
    result = train(model, make_optimizer("lm", model, "mse"), data, loss="mse", epochs=6)
    assert math.isnan(result.last["accuracy"]) and result.last["loss"] < 1e-6


def test_models_have_the_sizes_asked_for_and_leave_the_generator_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    a, b = mlp((2, 3), 4, (7, 5), "relu", seed=1), mlp((2, 3), 4, (7, 5), "relu", seed=1)
    assert torch.equal(weights(a), weights(b)) and torch.equal(torch.get_rng_state(), state)
    assert a(torch.zeros(2, 2, 3)).shape == (2, 4)
    images = cnn((1, 9, 8), 4, (2, 3), dtype=torch.float64)
    assert images(torch.zeros(2, 1, 9, 8, dtype=torch.float64)).shape == (2, 4)
    for wrong in (lambda: mlp((4,), 2, (0,)), lambda: mlp((4,), 2, activation="tanz")):
        with pytest.raises(ValueError, match="must be"):
            wrong()
    with pytest.raises(ValueError, match="cnn needs inputs"):
        cnn((4,), 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"epochs": -1}, "epochs must not be negative"),
        ({"monitor": "f1"}, "monitor must be one of"),
    ],
)
def test_mistakes_are_named(arguments, words):
    model = net()
    with pytest.raises(ValueError, match=words):
        train(model, make_optimizer("sgd", model), DATA, **arguments)


def test_data_that_are_not_finite_are_refused():
    model, inputs = net(), DATA.inputs.clone()
    inputs[5, 1] = float("nan")
    with pytest.raises(ValueError, match="inputs of clusters are not finite, first in sample 5"):
        train(model, make_optimizer("sgd", model), replace(DATA, inputs=inputs))


# -- studies -----------------------------------------------------------------------------------
def test_a_study_starts_all_optimizers_alike_and_reports_every_seed(tmp_path):
    wanted = {"sgd": {}, "fast": {"name": "sgd", "lr": 0.5}, "lm": {}}
    study = compare(DATA, wanted, net, epochs=2, batch_size=24, seeds=(0, 1))
    assert list(study.results) == ["sgd", "fast", "lm"] and len(study.rows()) == 6
    for seed in range(2):
        first = [r[seed].rows[0]["loss"] for r in study.results.values()]
        assert first[0] == first[1] == first[2]
    assert study.results["sgd"][0].rows[0]["loss"] != study.results["sgd"][1].rows[0]["loss"]
    alone = net(1)
    expected = train(
        alone, make_optimizer("sgd", alone, lr=0.5), DATA, epochs=2, batch_size=24, seed=1
    )
    assert same(study.results["fast"][1].rows, expected.rows)
    text = str(study.table())
    assert "±" in text and "fast" in text
    study.to_csv(tmp_path / "s.csv")
    study.to_json(tmp_path / "s.json")
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 1 + 18
    assert len(json.loads((tmp_path / "s.json").read_text())["epochs"]) == 18


def test_a_study_is_plotted(tmp_path):
    pytest.importorskip("matplotlib")
    study = compare(DATA, ["sgd"], net, epochs=1)
    assert study.plot(tmp_path / "s.png").read_bytes()[:4] == b"\x89PNG"


def test_a_study_interrupted_keeps_complete_seeds():
    def press(run):
        if run.seed == 1:
            os.kill(os.getpid(), signal.SIGINT)

    study = compare(DATA, ["sgd", "adam"], net, epochs=2, seeds=(0, 1, 2), callback=press)
    assert study.seeds == (0,) and len(study.rows()) == 2


def test_a_study_checks_everything_before_it_trains(monkeypatch):
    monkeypatch.setattr("ocp_nn.experiments.study.train", None)
    with pytest.raises(ValueError, match="no optimizer 'sdg'"):
        compare(DATA, ["adam", "sdg"], net)
    with pytest.raises(ValueError, match="must not be empty"):
        compare(DATA, [], net)
