"""What a user of ``ocp-nn`` types, turned into data, models, optimisers and runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ocp.cli_input import UserError, folder, guarded, load_file, parse, suggest
from ocp.trial_calls import first_sentence
from ocp_nn.baselines.registry import OPTIMIZERS
from ocp_nn.data import SETS, Data, load
from ocp_nn.experiments.models import cnn, mlp
from ocp_nn.losses import LOSSES

CHECKPOINT, WEIGHTS, BEST = "checkpoint.pt", "weights.pt", "best.pt"
SCHEDULES = ("none", "cosine")
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Settings:
    """What decides a run; kept in its checkpoint."""

    dataset: str = ""
    optimizer: str = "ddp"
    options: tuple[tuple[str, Any], ...] = ()
    loss: str = "cross_entropy"
    model: str = "mlp"
    hidden: str = "32,32,32,32"
    activation: str = "tanh"
    epochs: int = 10
    batch_size: int = 32
    seed: int = 0
    schedule: str = "none"
    patience: int | None = None
    monitor: str = "test_loss"
    limit: int | None = None
    dtype: str = "float32"
    device: str = "cpu"
    data_dir: str | None = None

    def __post_init__(self) -> None:
        for name, known in (("loss", LOSSES), ("schedule", SCHEDULES), ("dtype", tuple(DTYPES))):
            if getattr(self, name) not in known:
                raise UserError(
                    f"--{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}."
                )
        if self.optimizer not in OPTIMIZERS:
            close = suggest(self.optimizer, OPTIMIZERS)
            raise UserError(f"there is no optimizer {self.optimizer!r}. {close}")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"--device {self.device}: {first_sentence(error)}") from error

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def settings_from(given: dict[str, Any]) -> Settings:
    """Those given, i.e. not None, the rest by default."""
    return Settings(**{k: v for k, v in given.items() if v is not None})


def resumed(saved: dict[str, Any], given: dict[str, Any]) -> Settings:
    """Settings of a checkpoint; epochs and patience may be changed.

    Raises:
        UserError: something else was given that would make it another run.
    """
    other = [k for k, v in given.items() if v is not None and k not in ("epochs", "patience")]
    if other:
        raise UserError(
            f"--resume continues the run as it was: {', '.join(other)} cannot be given with it, "
            "only --epochs and --patience."
        )
    known = {f.name for f in fields(Settings)}
    if not saved or set(saved) - known:
        raise UserError("this checkpoint was not written by ocp-nn train: it has no settings.")
    saved = {**saved, "options": tuple((k, v) for k, v in saved["options"])}
    return Settings(**{**saved, **{k: v for k, v in given.items() if v is not None}})


def dataset(settings: Settings) -> Data:
    """A set by name, or ``FILE.py:OBJECT``, a `Data` or a function that returns one."""
    if ".py" in settings.dataset:
        data = own_object(settings.dataset, Data, "an ocp_nn.data.Data")
    elif settings.dataset not in SETS:
        raise UserError(
            f"there is no data set {settings.dataset!r}. {suggest(settings.dataset, SETS)}"
        )
    else:
        data = load(settings.dataset, settings.data_dir)
    return data.first(settings.limit).to(settings.device, DTYPES[settings.dtype])


def model_maker(settings: Settings, data: Data) -> Callable[[int], nn.Module]:
    """Seed -> a new model on the run's device: mlp, cnn, or ``FILE.py:OBJECT``.

    An object of the user's is an `nn.Module`, or a function without arguments that makes one; it
    is called after ``torch.manual_seed(seed)``.
    """
    dtype = DTYPES[settings.dtype]

    def make(seed: int) -> nn.Module:
        if settings.model == "mlp":
            widths = integers(settings.hidden, "--hidden")
            model: nn.Module = mlp(
                data.shape, data.classes, widths, settings.activation, seed=seed, dtype=dtype
            )
        elif settings.model == "cnn":
            model = cnn(
                data.shape, data.classes, activation=settings.activation, seed=seed, dtype=dtype
            )
        elif ".py" in settings.model:
            torch.manual_seed(seed)
            model = own_object(settings.model, nn.Module, "a torch nn.Module")
        else:
            raise UserError(f"--model must be mlp, cnn or FILE.py:OBJECT, got {settings.model!r}.")
        return model.to(settings.device, dtype)

    return make


def own_object(target: str, kind: type, what: str) -> Any:
    """``FILE.py:OBJECT``, called if it is a function.

    Raises:
        UserError: no such file or object, or it is something else.
    """
    file, colon, name = target.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise UserError(f"say which object: {target.removesuffix(':')}:NAME.")
    module = load_file(Path(file))
    if not hasattr(module, name):
        names = [k for k, v in vars(module).items() if callable(v) or isinstance(v, kind)]
        raise UserError(f"{file} has no {name!r}. {suggest(name, names)}")
    value = getattr(module, name)
    if callable(value) and not isinstance(value, kind):
        with guarded(target):
            value = value()
    if not isinstance(value, kind):
        raise UserError(f"{target} must be {what}, or a function returning one; it is or returned "
                        f"a {type(value).__name__}.")  # fmt: skip
    return value


def scheduler(settings: Settings, optimizer: Any) -> Any:
    """Learning rates over the epochs, or None."""
    if settings.schedule == "none":
        return None
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(settings.epochs, 1))


def integers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UserError(f"{option} needs whole numbers with commas, got {text!r}.") from None


def options(texts: Sequence[str] | None) -> tuple[tuple[str, Any], ...]:
    return tuple(parse(text) for text in texts or [])


def options_by_name(texts: Sequence[str] | None, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``NAME.KEY=VALUE`` for one optimiser, ``KEY=VALUE`` for all: name -> options.

    Raises:
        UserError: a name that is not compared, or no "=".
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for text in texts or []:
        head, dot, rest = text.partition("=")[0].partition(".")
        if dot and head not in found:
            raise UserError(f"--option {text}: {head!r} is not compared. {suggest(head, names)}")
        key, value = parse(text[len(head) + 1 :] if rest else text)
        for name in [head] if dot else names:
            found[name][key] = value
    return found


def run_folder(out: Path | None) -> None:
    """Refuse, before training, a folder that cannot take a new run."""
    folder(out)
    if out is not None and (out / CHECKPOINT).exists():
        raise UserError(
            f"--out {out} has a run already: --resume {out} continues it; else name another folder."
        )


def checkpoint_in(path: Path) -> Path:
    return path / CHECKPOINT if path.is_dir() else path


def write_settings(out: Path, settings: Settings) -> Path:
    """The file."""
    text = json.dumps(settings.plain(), indent=1, default=str)
    file = out / "settings.json"
    file.write_text(text + "\n", "utf-8")
    return file
