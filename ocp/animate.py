"""Animations of the classic problems as small GIF files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ocp.plot import HINT, array_of, new_figure, seconds_per_stage, which
from ocp.problem import Problem
from ocp.problems import REGISTRY
from ocp.solution import Solution

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRAMES = 60
WIDTH, HEIGHT, DPI = 4.4, 3.6, 80  # inches, inches, pixels an inch
COLOURS = 64
HOLD = 800  # ms the last frame stays


def animate(
    problem: Problem,
    solution: Solution,
    path: str | Path,
    *,
    member: int = 0,
    frames: int = FRAMES,
) -> Path:
    """Write a GIF of a solution, in real time.

    Args:
        problem: one of the classics (by its name, see `ocp.problems.REGISTRY`).
        solution: of that problem.
        path: file to write; the suffix ``.gif`` is added where there is none.
        member: which problem of a batch.
        frames: at most so many, spread evenly over the stages.

    Raises:
        ValueError: the problem has no drawing, the path is no GIF, or frames < 2.
        IndexError: no such member.
        ImportError: matplotlib or pillow is not installed.
    """
    path = Path(path)
    path = path if path.suffix else path.with_suffix(".gif")
    if path.suffix.lower() != ".gif":
        raise ValueError(f"animate writes .gif files, got {path.name!r}.")
    if frames < 2:
        raise ValueError(f"frames must be at least 2, got {frames}.")
    images = draw_frames(problem, solution, member, frames)
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f"no animation: {HINT}") from error
    # One palette for all frames: no flicker, small files. Every colour counts once, however few
    # pixels it has, or thin arrows would turn grey.
    seen = np.unique(np.concatenate(images[:: max(len(images) // 6, 1)]).reshape(-1, 3), axis=0)
    palette = Image.fromarray(seen[None]).quantize(COLOURS - 1)
    palette.putpalette([*(palette.getpalette() or [])[: 3 * (COLOURS - 1)], 255, 255, 255])
    pages = [Image.fromarray(i).quantize(palette=palette, dither=Image.Dither.NONE) for i in images]
    step = seconds_per_stage(problem, member)
    total = 1000 * problem.horizon * (0.05 if step is None else step)
    between = max(round(total / (len(pages) - 1) / 10) * 10, 20)  # GIF counts in 10 ms
    durations = [between] * (len(pages) - 1) + [HOLD]
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=durations, loop=0)
    return path


def draw_frames(
    problem: Problem, solution: Solution, member: int = 0, frames: int = FRAMES
) -> list[np.ndarray]:
    """The pictures of an animation, each (height, width, 3) of bytes."""
    entry = REGISTRY.get(problem.name)
    if entry is None:
        raise ValueError(
            f"no drawing for the problem {problem.name!r}; there is one for "
            f"{', '.join(REGISTRY)}. `plot_solution` plots any problem."
        )
    b = which(problem, member)[0] if problem.x0.ndim == 2 else None
    states = array_of(solution.states, max(problem.state_dims), b)
    one = b if problem.batched else None
    controls = array_of(solution.controls, max(problem.control_dims), one)
    p = {k: v.cpu().double().numpy() for k, v in problem.parameters.items()}
    p |= {k: v[b or 0].cpu().double().numpy() for k, v in problem.per_problem.items()}
    step, unit = seconds_per_stage(problem, b or 0), entry.time_unit
    figure = new_figure(WIDTH, HEIGHT, DPI)
    axes = figure.add_subplot(projection="3d" if entry.three_d else None)
    count = min(frames, problem.horizon + 1)
    images: list[np.ndarray] = []
    for t in np.linspace(0, problem.horizon, count).round().astype(int).tolist():
        axes.clear()
        entry.draw(axes, states, controls, t, p)
        clock = f"stage {t}" if step is None else f"{t * step:.2f} {unit}"
        axes.set_title(f"{problem.name}   {clock}", fontsize=10, family="monospace")
        if not images:
            fit(figure, axes)
        figure.canvas.draw()
        buffer = np.asarray(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]
        images.append(buffer[..., :3].copy())
    return images


def fit(figure: Figure, axes: Axes) -> None:
    """Shape the figure like its drawing, lay it out, and keep that layout for all frames."""
    if axes.name != "3d":
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        ratio = (high - low) / (right - left)
        if axes.get_aspect() == 1.0:
            figure.set_size_inches(
                min(WIDTH, HEIGHT / ratio + 0.5), min(HEIGHT, WIDTH * ratio + 0.7)
            )
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
