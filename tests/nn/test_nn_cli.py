"""The command ``ocp-nn`` as a user meets it: what it prints and writes, and their mistakes."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ocp

pytest.importorskip("typer")
from typer.testing import CliRunner

from ocp_nn.cli_app import app
from ocp_nn.data import clusters
from ocp_nn.experiments import evaluate, mlp

SMALL = ("--hidden", "5", "--batch-size", 64)
MINE = """
import torch
from torch import nn
from ocp_nn.data import clusters

data = clusters(3, 4, 10)
net = nn.Sequential(nn.Linear(4, 3))
number = 3


def make():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def spoiled():
    d = clusters(3, 4, 10)
    d.inputs[2, 0] = float("nan")
    return d


def fails():
    return 1 / 0
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OCP_NN_DATA", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("mine.py").write_text(MINE)
    return tmp_path


def run(*arguments, status=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, result.output
    return result


def mistake(*arguments):
    result = run(*arguments, status=2)
    assert result.stdout == "" and "Traceback" not in result.stderr
    return result.stderr


def timeless(path):
    with Path(path).open() as file:
        return [{k: v for k, v in r.items() if "seconds" not in k} for r in csv.DictReader(file)]


# -- train -------------------------------------------------------------------------------------
def test_train_prints_a_row_an_epoch_and_writes_what_it_says():
    pytest.importorskip("matplotlib")
    out = run("train", "clusters", "--optimizer", "adam", "--epochs", 3, *SMALL, "--out", "a/b")
    lines = out.stdout.splitlines()
    assert lines[0].split() == [
        "epoch", "loss", "accuracy", "test_loss", "test_accuracy", "lr", "seconds",
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[1:5]] == ["0", "1", "2", "3"]
    assert "FINISHED: 3 epochs." in out.stdout
    for name in (
        "checkpoint.pt",
        "history.csv",
        "settings.json",
        "weights.pt",
        "best.pt",
        "curves.png",
    ):
        assert Path("a/b", name).stat().st_size > 0
        assert f"wrote {Path('a/b', name)}" in out.stdout
    assert json.loads(Path("a/b/settings.json").read_text())["optimizer"] == "adam"
    rows = timeless("a/b/history.csv")
    assert [r["epoch"] for r in rows] == ["0", "1", "2", "3"]
    model = mlp((8,), 4, (5,))
    model.load_state_dict(torch.load("a/b/weights.pt"))
    data = clusters()
    loss, accuracy = evaluate(model, "cross_entropy", data.test_inputs, data.test_targets)
    assert float(rows[-1]["test_loss"]) == pytest.approx(loss)
    assert float(rows[-1]["test_accuracy"]) == pytest.approx(accuracy)


@pytest.mark.parametrize("optimizer", ["momentum", "ekfac"])
def test_a_resumed_run_ends_where_the_whole_one_does(optimizer):
    arguments = ("--optimizer", optimizer, "--option", "lr=0.01", *SMALL, "--dtype", "float64")
    run("train", "clusters", *arguments, "--epochs", 4, "--out", "whole")
    run("train", "clusters", *arguments, "--epochs", 2, "--out", "part")
    out = run("train", "--resume", "part", "--epochs", 4).stdout
    assert [line.split()[0] for line in out.splitlines()[:3]] == ["epoch", "3", "4"]
    whole, part = (torch.load(f"{name}/weights.pt") for name in ("whole", "part"))
    for key, value in whole.items():
        assert torch.equal(value, part[key]) and value.dtype == torch.float64
    assert timeless("whole/history.csv") == timeless("part/history.csv")


def test_train_as_json_and_quietly():
    facts = json.loads(
        run("train", "clusters", "--optimizer", "sgd", "--epochs", 1, *SMALL, "--json").stdout
    )
    assert facts["status"] == "FINISHED" and len(facts["rows"]) == 2 and facts["files"] == []
    arguments = ("train", "clusters", "--optimizer", "sgd", "--epochs", 1, *SMALL)
    assert run(*arguments, "--quiet").output == ""


def test_ones_own_data_and_model():
    for target in ("mine.py:net", "mine.py:make"):
        facts = json.loads(
            run(
                "train", "mine.py:data", "--model", target, "--optimizer", "lm", "--epochs", 5,
                "--schedule", "cosine", "--json",
            ).stdout
        )  # fmt: skip
        assert facts["rows"][-1]["loss"] < facts["rows"][0]["loss"]


def test_early_stop_and_limit():
    facts = json.loads(
        run(
            "train", "clusters", "--optimizer", "sgd", "--option", "lr=1e-30", "--patience", 2,
            "--monitor", "loss", "--limit", 10, "--json", *SMALL,
        ).stdout
    )  # fmt: skip
    assert facts["status"] == "STOPPED" and facts["rows"][-1]["epoch"] == 2
    assert facts["rows"][-1]["step"] == 2


def test_a_diverging_run_ends_with_status_1_and_good_weights():
    out = run(
        "train", "clusters", "--optimizer", "sgd", "--option", "lr=1e9", "--activation", "relu",
        "--epochs", 30, "--out", "bad", "--hidden", "5,5", status=1,
    )  # fmt: skip
    assert "DIVERGED: Diverged at step" in out.stdout and "weight" in out.stdout
    assert all(bool(v.isfinite().all()) for v in torch.load("bad/weights.pt").values())


def test_tensorboard_logs_are_written():
    pytest.importorskip("tensorboard")
    arguments = ("--optimizer", "sgd", "--epochs", 2, *SMALL, "--out", "t", "--tensorboard")
    run("train", "clusters", *arguments)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator("t/tensorboard")
    events.Reload()
    logged = [(e.step, e.value) for e in events.Scalars("loss")]
    rows = timeless("t/history.csv")
    assert [s for s, _ in logged] == [0, 1, 2]
    for (_, value), row in zip(logged, rows, strict=True):
        assert value == pytest.approx(float(row["loss"]), rel=1e-6)


# -- compare and stages ------------------------------------------------------------------------
def test_compare_writes_table_and_figure():
    pytest.importorskip("matplotlib")
    out = run(
        "compare", "clusters", "--optimizers", "sgd,lm", "--option", "sgd.lr=0.5", "--seeds", 2,
        "--epochs", 1, *SMALL, "--out", "c",
    ).stdout  # fmt: skip
    assert "mean ± standard deviation of 2 seeds" in out and "\n  lm " in out
    assert "up to epoch 1" in out and "  lm " in Path("c/table.txt").read_text()
    for name in ("table.txt", "epochs.csv", "study.json", "curves.png"):
        assert Path("c", name).stat().st_size > 0 and f"wrote {Path('c', name)}" in out
    runs = json.loads(Path("c/study.json").read_text())["runs"]
    assert [r["optimizer"] for r in runs] == ["sgd", "sgd", "lm", "lm"]
    rows = [r for r in timeless("c/epochs.csv") if r["optimizer"] == "sgd"]
    assert {r["lr"] for r in rows} == {"0.5"}


def test_stages_prints_the_table_of_the_compiled_network():
    pytest.importorskip("networkx")
    out = run("stages", "clusters", "--hidden", "5").stdout
    assert "Linear" in out and "Tanh" in out and "69 parameters" in out


# -- mistakes ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name a data set"),
        (("clustrs",), "no data set 'clustrs'. Did you mean clusters?"),
        (("clusters", "--optimizer", "adma"), "no optimizer 'adma'. Did you mean adam"),
        (("clusters", "--optimizer", "sgd", "--option", "lrr=1"), "Did you mean lr?"),
        (("clusters", "--option", "lr"), "take key=value"),
        (("clusters", "--optimizer", "sgd", "--option", "lr=-1"), "Invalid learning rate"),
        (("clusters", "--loss", "mes"), "--loss must be one of"),
        (("clusters", "--dtype", "float16"), "--dtype must be one of float32, float64"),
        (("clusters", "--device", "gpu"), "--device gpu"),
        (("clusters", "--schedule", "step"), "--schedule must be one of none, cosine"),
        (("clusters", "--optimizer", "sgd", "--monitor", "f1"), "monitor must be one of"),
        (("clusters", "--hidden", "5,a"), "--hidden needs whole numbers"),
        (("clusters", "--activation", "tanz"), "activation must be one of"),
        (("clusters", "--model", "resnet"), "--model must be mlp, cnn or FILE.py:OBJECT"),
        (("clusters", "--model", "cnn"), "cnn needs inputs"),
        (("clusters", "--model", "mine.py"), "say which object"),
        (("clusters", "--model", "no.py:net"), "there is no file 'no.py'"),
        (("clusters", "--model", "mine.py:nett"), "has no 'nett'. Did you mean net"),
        (("clusters", "--model", "mine.py:number"), "must be a torch nn.Module"),
        (("clusters", "--model", "mine.py:fails"), "ZeroDivisionError"),
        (("mine.py:spoiled", "--optimizer", "sgd"), "not finite, first in sample 2"),
        (("clusters", "--epochs", "-1"), "--epochs"),
        (("clusters", "--tensorboard", "--optimizer", "sgd"), "--tensorboard needs --out"),
        (("clusters", "--out", "mine.py"), "this is a file"),
        (("mnist", "--data-dir", "no"), "directory 'no' does not exist"),
        (("--resume", "nowhere"), "no checkpoint 'nowhere'"),
        (("--resume", "mine.py"), "is no checkpoint"),
    ],
)
def test_a_mistake_is_explained(arguments, words):
    assert words in mistake("train", *arguments)


def test_a_run_is_never_overwritten_and_a_resumed_one_not_changed():
    run("train", "clusters", "--optimizer", "sgd", "--epochs", 1, *SMALL, "--out", "r")
    assert "has a run already: --resume r" in mistake("train", "clusters", "--out", "r")
    words = mistake("train", "--resume", "r", "--optimizer", "adam")
    assert "optimizer cannot be given with it" in words
    assert "--out cannot" in mistake("train", "--resume", "r", "--out", "s")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--optimizers", "sgd,foo"), "no method 'foo'"),
        (("--optimizers", "sgd", "--option", "adam.lr=1"), "'adam' is not compared"),
        (("--optimizers", "sgd", "--option", "sgd.lrr=1"), "Did you mean lr?"),
        (("--optimizers", "sgd", "--out", "mine.py"), "this is a file"),
    ],
)
def test_compare_explains_mistakes(arguments, words):
    assert words in mistake("compare", "clusters", *arguments)


# -- as a process ------------------------------------------------------------------------------
def process(*command):
    root = str(Path(ocp.__file__).parent.parent)
    env = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=env, check=False
    )


def test_without_typer_the_command_says_how_to_get_it():
    code = "import sys; sys.modules['typer'] = None; from ocp_nn.cli import main; main()"
    result = process("-c", code)
    assert result.returncode == 2 and result.stdout == "" and "Traceback" not in result.stderr
    assert result.stderr.startswith("ocp-nn: the command line needs typer: pip install")


def test_without_tensorboard_nothing_is_begun(monkeypatch):
    monkeypatch.setattr("ocp.extras.installed", lambda module: module != "tensorboard")
    arguments = ("--epochs", 1, *SMALL, "--out", "t", "--tensorboard")
    assert "torch-ocp[tensorboard]" in mistake("train", "clusters", *arguments)
    assert not Path("t").exists()


def test_ctrl_c_keeps_the_results_of_a_process():
    Path("slow.py").write_text(
        """
import os
import signal

import torch
from torch import nn

calls = 0


class Net(nn.Linear):
    def forward(self, x):
        global calls
        calls += 1
        if calls == 40:
            os.kill(os.getpid(), signal.SIGINT)
        return super().forward(x)


def make():
    return Net(8, 4)
"""
    )
    result = process(
        "-m", "ocp_nn.cli", "train", "clusters", "--model", "slow.py:make", "--optimizer", "sgd",
        "--out", "kept", "--epochs", "1000", "--json",
    )  # fmt: skip
    assert result.returncode == 1, result.stderr
    assert json.loads(result.stdout)["status"] == "INTERRUPTED"
    assert Path("kept/checkpoint.pt").is_file() and Path("kept/weights.pt").is_file()
