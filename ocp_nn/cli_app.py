"""The commands of ``ocp-nn``. Each is one Python call and what it prints; no logic lives here.

Exit status: 0 trained, 1 interrupted or diverged (what there is, is kept), 2 a mistake in what was
typed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import ocp_nn
from ocp.cli_input import UserError, folder, method_names, readable
from ocp.cli_output import print_json, report_files, show
from ocp.extras import need
from ocp_nn.baselines.registry import OPTIMIZERS, make_optimizer
from ocp_nn.cli_input import (
    CHECKPOINT,
    Settings,
    checkpoint_in,
    dataset,
    model_maker,
    options,
    options_by_name,
    resumed,
    run_folder,
    scheduler,
    settings_from,
    write_settings,
)
from ocp_nn.cli_output import (
    CsvLog,
    Line,
    PrintedRows,
    TensorBoardLog,
    facts,
    write_result,
    write_study,
)
from ocp_nn.experiments import checkpoint
from ocp_nn.experiments.study import compare as compare_optimizers
from ocp_nn.experiments.training import Result, Status
from ocp_nn.experiments.training import train as run_training

app = typer.Typer(
    help="Train networks as optimal control problems, and compare optimisers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
D = Settings()  # defaults, for the help texts

SET = "wine, iris, digits, mnist, fashion_mnist, clusters, or your own Data."
DataSet = Annotated[str, typer.Argument(metavar="DATASET | FILE.py:OBJECT", help=SET)]
Options = Annotated[
    list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="Of the optimiser.")
]
LossName = Annotated[str | None, typer.Option("--loss", help=f"Default {D.loss}.")]
ModelName = Annotated[
    str | None, typer.Option("--model", help=f"mlp, cnn or FILE.py:OBJECT. Default {D.model}.")
]
Hidden = Annotated[
    str | None, typer.Option("--hidden", help=f"Widths of the mlp's layers. Default {D.hidden}.")
]
Activation = Annotated[
    str | None, typer.Option("--activation", help=f"Of mlp and cnn. Default {D.activation}.")
]
Epochs = Annotated[int | None, typer.Option("--epochs", min=0, help=f"In all. Default {D.epochs}.")]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", min=1, help=f"Default {D.batch_size}.")
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Training samples at most.")]
Patience = Annotated[
    int | None,
    typer.Option("--patience", min=1, help="Stop after so many epochs without a better monitor."),
]
Monitor = Annotated[
    str | None,
    typer.Option(
        "--monitor", help=f"test_loss, test_accuracy, loss or accuracy. Default {D.monitor}."
    ),
]
Dtype = Annotated[str | None, typer.Option("--dtype", help=f"Or float64. Default {D.dtype}.")]
Device = Annotated[str | None, typer.Option("--device", help=f"Default {D.device}.")]
DataDir = Annotated[
    str | None, typer.Option("--data-dir", help="Folder of data sets, see also OCP_NN_DATA.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print mistakes only.")]
ShowTraceback = Annotated[bool, typer.Option("--traceback", help="Show where a mistake was found.")]


@app.callback()
def common(
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="Of PyTorch; 1 is fastest for small networks."),
    ] = None,
) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


@app.command()
def train(
    data_set: Annotated[
        str | None, typer.Argument(metavar="[DATASET | FILE.py:OBJECT]", help=SET)
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option("--optimizer", help=f"{', '.join(OPTIMIZERS)}.")
    ] = None,
    option: Options = None,
    loss: LossName = None,
    model: ModelName = None,
    hidden: Hidden = None,
    activation: Activation = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Weights and order of data.")] = None,
    schedule: Annotated[
        str | None, typer.Option("--schedule", help="Of lr: none or cosine. Default none.")
    ] = None,
    patience: Patience = None,
    monitor: Monitor = None,
    limit: Limit = None,
    dtype: Dtype = None,
    device: Device = None,
    data_dir: DataDir = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for checkpoint, weights, logs, curves.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Folder of a run to continue bit for bit.")
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Logs into --out.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    traceback: ShowTraceback = False,
) -> None:
    """Train one network. Exit status 0 if it came to its end, 1 if not, 2 for a mistake."""
    given: dict[str, Any] = {
        "dataset": data_set,
        "optimizer": optimizer,
        "loss": loss,
        "model": model,
        "hidden": hidden,
        "activation": activation,
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
        "schedule": schedule,
        "patience": patience,
        "monitor": monitor,
        "limit": limit,
        "dtype": dtype,
        "device": device,
        "data_dir": data_dir,
    }
    with readable(traceback):
        given["options"] = options(option) or None
        settings, saved = what_to_run(given, resume, out)
        folder = resume_folder(resume) if resume is not None else out
        if tensorboard and folder is None:
            raise UserError("--tensorboard needs --out, the folder to log to.")
        if tensorboard:
            need("tensorboard", "tensorboard", "--tensorboard")
        result, files = perform(settings, saved, folder, tensorboard, quiet or as_json)
    if as_json:
        print_json({**facts(settings.plain(), result), "files": files})
    elif not quiet:
        typer.echo(f"{result.status.value}: {result.message} Best epoch: {result.best}.")
        report_files(files)
    raise typer.Exit(0 if result.status in (Status.FINISHED, Status.STOPPED) else 1)


@app.command()
def compare(
    data_set: DataSet,
    optimizers: Annotated[
        str, typer.Option("--optimizers", help="Names with commas, or all.")
    ] = "sgd,adam,ekfac,ddp",
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="[NAME.]KEY=VALUE", help="Of one optimiser, or of all."),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many runs of each.")] = 3,
    loss: LossName = None,
    model: ModelName = None,
    hidden: Hidden = None,
    activation: Activation = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    patience: Patience = None,
    monitor: Monitor = None,
    limit: Limit = None,
    dtype: Dtype = None,
    device: Device = None,
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for table and figure.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    traceback: ShowTraceback = False,
) -> None:
    """Train one network by several optimisers from the same weights, over several seeds."""
    given: dict[str, Any] = {
        "dataset": data_set,
        "loss": loss,
        "model": model,
        "hidden": hidden,
        "activation": activation,
        "epochs": epochs,
        "batch_size": batch_size,
        "patience": patience,
        "monitor": monitor,
        "limit": limit,
        "dtype": dtype,
        "device": device,
        "data_dir": data_dir,
    }
    with readable(traceback):
        names = method_names(optimizers, OPTIMIZERS)
        chosen = options_by_name(option, names)
        settings = settings_from(given)
        if out is not None:
            need("matplotlib", "plot", "--out")
            folder(out)
        data = dataset(settings)
        line = None if quiet or as_json else Line()

        def started(label: str, seed: int) -> None:
            if line is not None:
                line.title = f"{label}, seed {seed}"

        try:
            study = compare_optimizers(
                data, chosen, model_maker(settings, data), loss=settings.loss,
                epochs=settings.epochs, batch_size=settings.batch_size, seeds=range(seeds),
                patience=settings.patience, monitor=settings.monitor, started=started,
                callback=line,
                title=f"{title_of(settings, data)}, batches of {settings.batch_size}, "
                f"up to epoch {settings.epochs}",
            )  # fmt: skip
        finally:
            if line is not None:
                line.close()
        written = [] if out is None else write_study(out, study)
    if as_json:
        print_json({"title": study.title, "rows": study.rows(), "files": written})
    elif not quiet:
        show(study.table())
        report_files(written)
    ended = [r["status"] for r in study.rows()]
    whole = len(study.seeds) == seeds and len(study.results) == len(names)
    raise typer.Exit(0 if whole and not {"DIVERGED", "INTERRUPTED"} & set(ended) else 1)


@app.command()
def stages(
    data_set: DataSet,
    loss: LossName = None,
    model: ModelName = None,
    hidden: Hidden = None,
    activation: Activation = None,
    dtype: Dtype = None,
    data_dir: DataDir = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Of the batch.")] = 2,
    traceback: ShowTraceback = False,
) -> None:
    """Print the stages of a network as an optimal control problem: sizes and kernels."""
    given: dict[str, Any] = {
        "dataset": data_set,
        "loss": loss,
        "model": model,
        "hidden": hidden,
        "activation": activation,
        "dtype": dtype,
        "data_dir": data_dir,
        "limit": samples,
    }
    with readable(traceback):
        settings = settings_from(given)
        data = dataset(settings)
        network = model_maker(settings, data)(settings.seed)
        problem = ocp_nn.compile(network, settings.loss, data.inputs, data.targets)
        table = ocp_nn.stage_table(problem)
    show(table)


# -- what the commands share -------------------------------------------------------------------
def what_to_run(
    given: dict[str, Any], resume: Path | None, out: Path | None
) -> tuple[Settings, dict[str, Any] | None]:
    """Settings, and the checkpoint to continue if there is one."""
    if resume is None:
        if given["dataset"] is None:
            raise UserError(f"name a data set: {SET} Or --resume a run.")
        run_folder(out)
        return settings_from(given), None
    if out is not None:
        raise UserError("--resume writes to the folder of the run; --out cannot be given with it.")
    saved = checkpoint.load(checkpoint_in(resume))
    return resumed(saved.get("settings", {}), given), saved


def resume_folder(resume: Path) -> Path:
    return resume if resume.is_dir() else resume.parent


def perform(
    settings: Settings,
    saved: dict[str, Any] | None,
    folder: Path | None,
    tensorboard: bool,
    silent: bool,
) -> tuple[Result, list[str]]:
    """The run, its logs and files."""
    data = dataset(settings)
    network = model_maker(settings, data)(settings.seed)
    optimizer = make_optimizer(settings.optimizer, network, settings.loss, **dict(settings.options))
    rows = [] if saved is None else saved["rows"]
    log: list[Any] = [] if silent else [PrintedRows()]
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        kept = [folder / CHECKPOINT, folder / "history.csv", write_settings(folder, settings)]
        log.append(CsvLog(folder / "history.csv", rows))
        if tensorboard:
            log.append(TensorBoardLog(folder / "tensorboard", rows[-1]["epoch"] if rows else None))
    line = None if silent else Line(settings.optimizer)
    try:
        result = run_training(
            network, optimizer, data, loss=settings.loss, epochs=settings.epochs,
            batch_size=settings.batch_size, seed=settings.seed, patience=settings.patience,
            monitor=settings.monitor, scheduler=scheduler(settings, optimizer), callback=line,
            log=log, save=None if folder is None else folder / CHECKPOINT, resume=saved,
            settings=settings.plain(),
        )  # fmt: skip
    finally:
        if line is not None:
            line.close()
    if folder is None:
        return result, []
    title = title_of(settings, data)
    files = write_result(folder, f"{settings.optimizer} on {title}", result, network.state_dict())
    return result, [*map(str, kept), *files]


def title_of(settings: Settings, data: Any) -> str:
    shape = settings.hidden if settings.model == "mlp" else ""
    return f"{data.name}, {settings.model} {shape}".rstrip()
