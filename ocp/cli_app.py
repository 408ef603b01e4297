"""The commands of ``ocp``. Each is one Python call and what it prints; no logic lives here.

Exit status: 0 all converged, 1 solved but not all converged, 2 a mistake in what was typed.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

import ocp
from ocp.cli_input import (
    STARTS,
    UserError,
    describe,
    drawable,
    folder,
    load_problem,
    load_solution,
    method_names,
    output,
    parse,
    readable,
    start,
    suggest,
)
from ocp.cli_output import (
    facts,
    print_json,
    report_files,
    show,
    write_comparison,
    write_solution,
)
from ocp.extras import need
from ocp.problems import REGISTRY
from ocp.tables import Row, Table

FIGURES = (".png", ".pdf", ".svg")

app = typer.Typer(
    help="Discrete-time optimal control: PMP, iLQR and DDP on one problem type.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Target = Annotated[
    str, typer.Argument(metavar="NAME | FILE.py:OBJECT", help="A built-in problem, or your own.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Argument of the problem's function."),
]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", metavar="KEY=VALUE", help="Option of the method or its rules."),
]
EngineName = Annotated[str, typer.Option("--engine", help="auto or eager.")]
StartName = Annotated[
    str | None, typer.Option("--start", help="A start, several with commas, or portfolio.")
]
MaxIterations = Annotated[int | None, typer.Option("--max-iterations", min=1)]
Tolerance = Annotated[
    float | None, typer.Option("--tolerance", help="On the largest projected gradient.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print mistakes only.")]
ShowTraceback = Annotated[bool, typer.Option("--traceback", help="Show where a mistake was found.")]


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"torch-ocp {ocp.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print it.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="Of PyTorch; 1 is fastest for small problems."),
    ] = None,
) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


@app.command("list")
def list_problems(
    name: Annotated[str | None, typer.Argument(help="Show the arguments of this problem.")] = None,
    as_json: AsJson = False,
    traceback: ShowTraceback = False,
) -> None:
    """List the built-in problems, methods and starts; or one problem's arguments for --set."""
    with readable(traceback):
        if name is not None:
            show_problem(name, as_json)
            return
        rows = [summary(key) for key in REGISTRY]
    if as_json:
        print_json({"problems": rows, "methods": list(ocp.METHODS), "starts": list(STARTS)})
        return
    cells = [(r["name"], *(str(r[k]) for k in ("n", "m", "T")), r["description"]) for r in rows]
    notes = [
        f"methods: {', '.join(ocp.METHODS)}",
        f"starts: {', '.join(STARTS)}",
        "ocp list NAME shows what --set can change.",
    ]
    show(Table("Built-in problems", ("name", "n", "m", "T", "what"), cells, notes, align="<>>><"))


@app.command()
def solve(
    target: Target,
    method: Annotated[str, typer.Option("--method", help="See ocp list.")] = "ddp",
    engine: EngineName = "auto",
    start_name: StartName = None,
    max_iterations: MaxIterations = None,
    tolerance: Tolerance = None,
    settings: Settings = None,
    options: Options = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write a figure.")] = None,
    animate: Annotated[Path | None, typer.Option("--animate", help="Write a GIF.")] = None,
    save: Annotated[Path | None, typer.Option("--save", help="Write the solution, .npz.")] = None,
    warm: Annotated[Path | None, typer.Option("--warm", help="Start from a saved one.")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    traceback: ShowTraceback = False,
) -> None:
    """Solve one problem. Exit status 0 if it converged, 1 if not, 2 for a mistake."""
    with readable(traceback):
        output(plot, "--plot", FIGURES, needs="matplotlib")
        output(animate, "--animate", (".gif",), needs="matplotlib")
        output(save, "--save", (".npz",))
        (name,) = method_names(method, ocp.METHODS) or [""]
        arguments = rules(max_iterations, tolerance, options)
        starts = start(start_name)
        if warm is not None:
            if starts is not None:
                raise UserError("give either --start or --warm.")
            starts = load_solution(warm)
        problem = load_problem(target, settings or [])
        if animate is not None:
            drawable(problem, "--animate")
        progress = False if quiet or as_json else None
        solution = ocp.solve(
            problem, name, starts=starts, engine=engine, progress=progress, **arguments
        )
        files = write_solution(problem, solution, plot, animate, save)
    if as_json:
        print_json(facts(solution) | {"files": files})
    elif not quiet:
        typer.echo(str(solution))
        report_files(files)
    raise typer.Exit(0 if bool(solution.converged.all()) else 1)


@app.command()
def compare(
    target: Target,
    methods: Annotated[
        str, typer.Option("--methods", help="Names with commas, or all.")
    ] = "pmp,ilqr,ddp",
    engine: EngineName = "auto",
    start_name: StartName = None,
    max_iterations: MaxIterations = None,
    tolerance: Tolerance = None,
    settings: Settings = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for tables and figures.")
    ] = None,
    monte_carlo: Annotated[
        bool, typer.Option("--monte-carlo", help="Also: open loop and policy under noise.")
    ] = False,
    noise: Annotated[
        str, typer.Option("--noise", help="Its standard deviations.")
    ] = "0.001,0.003,0.01,0.03,0.1",
    kind: Annotated[str, typer.Option("--kind", help="state, control or initial.")] = "state",
    samples: Annotated[int, typer.Option("--samples", min=1)] = 200,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    animate: Annotated[
        bool, typer.Option("--animate", help="Also a GIF of the best solution, into --out.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    traceback: ShowTraceback = False,
) -> None:
    """Solve one problem by several methods; tables, and with --out files. Exit status as solve."""
    from ocp.compare import compare as run
    from ocp.monte_carlo import check_study
    from ocp.monte_carlo import monte_carlo as robustness_of

    with readable(traceback):
        names = method_names(methods, ocp.METHODS)
        sizes = numbers(noise, "--noise")
        check_study(sizes, samples, kind, factor=2.0)
        if animate and out is None:
            raise UserError("--animate needs --out, the folder to write the GIF to.")
        folder(out)
        if out is not None:
            need("matplotlib", "plot", "--out")
        arguments = rules(max_iterations, tolerance, None)
        if start_name is not None:
            arguments["starts"] = start(start_name)
        problem = load_problem(target, settings or [])
        if animate:
            drawable(problem, "--animate")
        silent = False if quiet or as_json else None
        result = run(problem, names, engine=engine, progress=silent, **arguments)
        robustness = None
        if monte_carlo:
            best = result.solutions[result.best_method or next(iter(result.solutions))]
            robustness = robustness_of(problem, best, sizes, samples, kind, seed=seed)  # type: ignore[arg-type]
        files = [] if out is None else write_comparison(out, result, robustness, animate)
    if as_json:
        study_rows = {} if robustness is None else {"monte_carlo": robustness.rows()}
        print_json({"rows": result.rows(), "refused": result.refused, **study_rows, "files": files})
    elif not quiet:
        for table in result.tables():
            show(table)
        if robustness is not None:
            show(robustness.table())
        report_files(files)
    fine = not result.refused and all(bool(s.converged.all()) for s in result.solutions.values())
    raise typer.Exit(0 if fine else 1)


@app.command()
def bench(
    problems: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME | FILE.py:OBJECT]...", help="A few built-in ones."),
    ] = None,
    methods: Annotated[str, typer.Option("--methods", help="Names with commas, or all.")] = "",
    engine: EngineName = "auto",
    repeats: Annotated[int, typer.Option("--repeats", min=1)] = 3,
    peers: Annotated[
        str | None,
        typer.Option("--peers", help="Beside casadi, crocoddyl, mim_solvers, or all installed."),
    ] = None,
    max_iterations: MaxIterations = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write JSON to this file.")] = None,
    as_json: AsJson = False,
    traceback: ShowTraceback = False,
) -> None:
    """Time problems by method, also beside other solvers. Exit status 0 however they end."""
    from ocp.bench import PROBLEMS
    from ocp.bench import bench as measure

    with readable(traceback):
        output(out, "--out", (".json",))
        given = [p if p in REGISTRY else own_problem(p) for p in problems or PROBLEMS]
        chosen = method_names(methods, ocp.METHODS) or None
        arguments = rules(max_iterations, None, None)
        others = None if peers is None else [p.strip() for p in peers.split(",")]
        result = measure(given, chosen, engine=engine, repeats=repeats, peers=others, **arguments)
        if out is not None:
            result.to_json(out)
    if as_json:
        print_json({"settings": result.settings, "rows": result.rows})
        return
    show(result.table())
    report_files([] if out is None else [str(out)])


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Versions, devices, threads, what is missing. Exit status 1 if it cannot work."""
    from ocp.doctor import doctor as examine
    from ocp.doctor import healthy

    sections = examine()
    if as_json:
        print_json(sections)
    else:
        width = max(len(key) for facts in sections.values() for key in facts)
        for title, facts in sections.items():
            typer.secho(title, bold=True)
            for key, value in facts.items():
                typer.echo(f"  {key:{width}}  {value}")
    raise typer.Exit(0 if healthy(sections) else 1)


# -- what the commands share -------------------------------------------------------------------
def rules(
    max_iterations: int | None, tolerance: float | None, options: Sequence[str] | None
) -> Row:
    """Options of `ocp.solve` that were given."""
    if tolerance is not None and not tolerance > 0:
        raise UserError(f"--tolerance must be positive, got {tolerance}.")
    given = {"max_iterations": max_iterations, "tolerance": tolerance}
    named = dict(parse(option) for option in options or [])
    return {k: v for k, v in given.items() if v is not None} | named


def own_problem(target: str) -> ocp.Problem:
    """Of a file, named after it where it has no name."""
    problem = load_problem(target, [])
    return problem if problem.name else problem.replace(name=target)


def numbers(text: str, option: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} needs numbers with commas, got {text!r}.") from None


def summary(name: str) -> Row:
    entry = REGISTRY[name]
    p = entry.factory()
    sizes = {"n": p.state_dims[0], "m": p.control_dims[0], "T": p.horizon}
    return {"name": name, **sizes, "description": entry.description}


def show_problem(name: str, as_json: bool) -> None:
    """What a built-in problem is, and the arguments --set can change."""
    if name not in REGISTRY:
        raise UserError(f"there is no problem {name!r}. {suggest(name, REGISTRY)}")
    entry = REGISTRY[name]
    function = getattr(entry.factory, "func", entry.factory)  # a variant is a partial
    text = inspect.getdoc(sys.modules[function.__module__]) or ""
    arguments = inspect.signature(entry.factory).parameters
    if as_json:
        defaults = {k: a.default for k, a in arguments.items()}
        print_json(summary(name) | {"text": text, "arguments": defaults})
        return
    typer.echo(f"{name}: {entry.description}\n\n{text}\n\n--set takes")
    for argument in arguments.values():
        typer.echo(f"  {describe(argument)}")
