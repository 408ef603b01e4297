"""Drawings of the classic problems, one stage at a time.

Each is ``draw(axes, states, controls, t, p)``: clean matplotlib axes, states (T+1, n) and controls
(T, m) of one problem, the stage t in 0..T, and the parameters of that problem; all numpy. Axes
keep their limits from frame to frame, so limits come from whole trajectories. Nothing here needs
matplotlib to be imported.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray
P = Mapping[str, Array]

BODY, ACCENT, TRACE, GHOST = "#27435f", "#d1603d", "#9db4c8", "#bfc5cb"
FORCE = "#2f9e62"


# -- pieces ------------------------------------------------------------------------------------
def frame(axes: Any, points: Array, margin: float) -> None:
    """Equal scales and limits about points (..., 2), with a margin in data units."""
    low = points.reshape(-1, 2).min(axis=0) - margin
    high = points.reshape(-1, 2).max(axis=0) + margin
    axes.set_aspect("equal", adjustable="box")
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(low[1], high[1])
    axes.grid(True, color="#e8e8e8", linewidth=0.6)
    axes.set_axisbelow(True)


def line(axes: Any, points: Any, **style: Any) -> None:
    """A polyline through points (k, 2)."""
    xy = np.asarray(points, dtype=float)
    axes.plot(xy[:, 0], xy[:, 1], **{"color": BODY, "solid_capstyle": "round", **style})


def dot(axes: Any, point: Any, size: float, color: str = BODY, **style: Any) -> None:
    axes.plot(*np.asarray(point, dtype=float), "o", markersize=size, color=color, **style)


def arrow(axes: Any, tail: Array, vector: Array) -> None:
    """An arrow of data length; nothing for the zero vector."""
    if vector.any():
        style = {"arrowstyle": "-|>", "color": FORCE, "linewidth": 2, "mutation_scale": 12}
        style |= {"shrinkA": 0, "shrinkB": 0}
        axes.annotate("", xy=tail + vector, xytext=tail, arrowprops=style)


def goal_cross(axes: Any, point: Any) -> None:
    axes.plot(*np.asarray(point, dtype=float), "x", color=ACCENT, markersize=9, markeredgewidth=2)


def turn(angle: float) -> Array:
    """Rotation matrix of the plane."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s], [s, c]])


def control_at(controls: Array, t: int) -> Array:
    """The control in force at stage t; the last one still at the end."""
    return controls[min(t, len(controls) - 1)]


def scaled(controls: Array, t: int, length: float) -> Array:
    """Controls at t as lengths: the largest of the trajectory has ``length``, under 3 % is 0."""
    share = control_at(controls, t) / max(np.abs(controls).max(), 1e-9)
    return length * np.where(np.abs(share) < 0.03, 0.0, share)


def swung(angle: Array, length: float) -> Array:
    """End of a rod that hangs at angle 0: (...,) -> (..., 2)."""
    return length * np.stack((np.sin(angle), -np.cos(angle)), axis=-1)


def torque_arc(axes: Any, centre: Array, radius: float, torque: float) -> None:
    """An arc whose length shows a torque in -1..1, counterclockwise positive, with a head."""
    if torque == 0:
        return
    angles = np.pi / 2 + np.linspace(0, 1.6 * np.pi / 2 * torque, 24)
    points = centre + radius * np.stack((np.cos(angles), np.sin(angles)), axis=-1)
    line(axes, points, color=FORCE, linewidth=2)
    arrow_style = {"arrowstyle": "-|>", "color": FORCE, "mutation_scale": 11}
    axes.annotate("", xy=points[-1], xytext=points[-3], arrowprops=arrow_style)


# -- swinging ----------------------------------------------------------------------------------
def pendulum(axes: Any, states: Array, controls: Array, t: int, p: P) -> None:
    l = float(p["length"])
    bob = swung(states[:, 0], l)
    frame(axes, np.array([[-l, -l], [l, l]]), 0.25 * l)
    goal_cross(axes, swung(p["goal"][0], l))
    line(axes, bob[: t + 1], color=TRACE, linewidth=1)
    line(axes, [(0, 0), bob[t]], linewidth=4)
    dot(axes, (0, 0), 5)
    dot(axes, bob[t], 16, ACCENT)
    torque_arc(axes, np.zeros(2), 0.25 * l, float(scaled(controls, t, 1.0)[0]))


def cartpole(axes: Any, states: Array, controls: Array, t: int, p: P) -> None:
    l = float(p["length"])
    cart = np.stack((states[:, 0], np.zeros(len(states))), axis=-1)
    tip = cart + swung(states[:, 1], l)
    goal = np.array([p["goal"][0], 0.0])
    corners = np.vstack((cart - l, cart + l, goal - l, goal + l))
    frame(axes, corners, 0.35 * l)
    axes.axhline(-0.14 * l, color=GHOST, linewidth=1)
    goal_cross(axes, goal + swung(p["goal"][1], l))
    line(axes, tip[: t + 1], color=TRACE, linewidth=1)
    w, h = 0.3 * l, 0.14 * l
    box = cart[t] + np.array([(-w, -h), (w, -h), (w, h), (-w, h)])
    axes.fill(box[:, 0], box[:, 1], color=BODY)
    line(axes, [cart[t], tip[t]], color=ACCENT, linewidth=4)
    dot(axes, tip[t], 11, ACCENT)
    push = float(scaled(controls, t, 0.8 * l)[0])
    arrow(axes, cart[t] + [np.sign(push) * w, 0.0], np.array([push, 0.0]))


def hanging_links(axes: Any, states: Array, controls: Array, t: int, p: P) -> None:
    """Acrobot and double pendulum."""
    l1, l2 = p["lengths"]
    elbow = swung(states[:, 0], l1)
    tip = elbow + swung(states[:, 0] + states[:, 1], l2)
    reach = l1 + l2
    frame(axes, np.array([[-reach, -reach], [reach, reach]]), 0.12 * reach)
    first, second = p["goal"][:2]
    goal_cross(axes, swung(first, l1) + swung(first + second, l2))
    line(axes, tip[: t + 1], color=TRACE, linewidth=1)
    line(axes, [(0, 0), elbow[t]], linewidth=5)
    line(axes, [elbow[t], tip[t]], color=ACCENT, linewidth=5)
    dot(axes, (0, 0), 6)
    dot(axes, elbow[t], 7)
    torques = scaled(controls, t, 1.0)
    joints = [elbow[t]] if len(torques) == 1 else [np.zeros(2), elbow[t]]
    for joint, torque in zip(joints, torques, strict=True):
        torque_arc(axes, joint, 0.17 * reach, float(torque))


def arm(axes: Any, states: Array, controls: Array, t: int, p: P) -> None:
    l1, l2 = p["lengths"]
    along = lambda angle, l: l * np.stack((np.cos(angle), np.sin(angle)), axis=-1)
    elbow = along(states[:, 0], l1)
    hand = elbow + along(states[:, 0] + states[:, 1], l2)
    frame(axes, np.vstack((elbow, hand, np.zeros(2), p["target"])), 0.1 * (l1 + l2))
    axes.set_xlabel("x [m]")
    axes.set_ylabel("y [m]")
    goal_cross(axes, p["target"])
    line(axes, hand[: t + 1], color=TRACE, linewidth=1.5)
    line(axes, [(0, 0), elbow[t]], linewidth=8)
    line(axes, [elbow[t], hand[t]], color=ACCENT, linewidth=7)
    dot(axes, (0, 0), 9)
    dot(axes, elbow[t], 8)
    for joint, torque in zip((np.zeros(2), elbow[t]), scaled(controls, t, 1.0), strict=True):
        torque_arc(axes, joint, 0.1 * (l1 + l2), float(torque))


# -- driving -----------------------------------------------------------------------------------
def outline(pose: Array, points: Any) -> Array:
    """Body points (k, 2) at a pose (x, y, heading)."""
    return pose[:2] + np.asarray(points, dtype=float) @ turn(pose[2]).T


def unicycle(axes: Any, states: Array, controls: Array, t: int, p: P) -> None:
    size = 0.09 * max(np.ptp(states[:, :2], axis=0).max(), 0.5)
    wedge = size * np.array([(1.6, 0), (-0.8, 0.9), (-0.8, -0.9)])
    frame(axes, np.concatenate((states[:, :2], [p["goal"][:2]])), 2 * size)
    axes.set_xlabel("x [m]")
    axes.set_ylabel("y [m]")
    goal = outline(p["goal"], wedge)
    axes.fill(goal[:, 0], goal[:, 1], facecolor="none", edgecolor=ACCENT, linestyle="--")
    line(axes, states[: t + 1, :2], color=TRACE, linewidth=1.5)
    body = outline(states[t], wedge)
    axes.fill(body[:, 0], body[:, 1], color=BODY)


def car(axes: Any, states: Array, controls: Array, t: int, p: P) -> None:
    """The reference point is the middle of the rear axle."""
    d = float(p["wheelbase"])
    shell = d * np.array([(-0.25, -0.4), (1.25, -0.4), (1.25, 0.4), (-0.25, 0.4)])
    corners = np.concatenate([outline(s, shell) for s in (*states, p["goal"])])
    frame(axes, corners, 0.2 * d)
    axes.set_xlabel("x [m]")
    axes.set_ylabel("y [m]")
    space = outline(p["goal"], shell)
    axes.fill(space[:, 0], space[:, 1], facecolor="none", edgecolor=ACCENT, linestyle="--")
    line(axes, states[: t + 1, :2], color=TRACE, linewidth=1.5)
    body = outline(states[t], shell)
    axes.fill(body[:, 0], body[:, 1], facecolor="#dfe7ee", edgecolor=BODY, linewidth=1.5)
    steering = control_at(controls, t)[0]
    half = 0.16 * d * np.array([(-1, 0), (1, 0)])
    for along, angle in ((0.0, 0.0), (d, steering)):
        for side in (-0.33 * d, 0.33 * d):
            wheel = half @ turn(angle).T + [along, side]
            line(axes, outline(states[t], wheel), linewidth=4)


# -- flying ------------------------------------------------------------------------------------
def quadrotor2d(axes: Any, states: Array, controls: Array, t: int, p: P) -> None:
    l = float(p["arm"])
    frame(axes, np.concatenate((states[:, :2], [p["goal"][:2]])), 2.4 * l)
    axes.set_xlabel("x [m]")
    axes.set_ylabel("z [m]")
    goal_cross(axes, p["goal"][:2])
    line(axes, states[: t + 1, :2], color=TRACE, linewidth=1.5)
    along, up = turn(states[t, 2]).T
    centre = states[t, :2]
    line(axes, [centre - l * along, centre + l * along], linewidth=4)
    hover = float(p["mass"] * p["gravity"]) / 2
    thrust = (control_at(controls, t) + hover) / max((controls + hover).max(), 1e-9)
    for end, part in ((centre + l * along, thrust[0]), (centre - l * along, thrust[1])):
        rotor = end + 0.25 * l * up
        line(axes, [end, rotor], linewidth=2)
        line(axes, [rotor - 0.5 * l * along, rotor + 0.5 * l * along], color=ACCENT, linewidth=2)
        arrow(axes, rotor, 1.5 * l * part * up)


def rotation(q: Array) -> Array:
    """R(q) of a unit quaternion (w, x, y, z)."""
    w, x, y, z = q
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def quadrotor3d(axes: Any, states: Array, controls: Array, t: int, p: P) -> None:
    l = 1.5 * float(p["arm"])  # drawn larger than it is
    points = np.concatenate((states[:, :3], [p["goal"][:3]]))
    middle = (points.max(axis=0) + points.min(axis=0)) / 2
    half = max(np.ptp(points, axis=0).max() / 2, l) + l
    for name, m in zip("xyz", middle, strict=True):
        getattr(axes, f"set_{name}lim")(m - half, m + half)
        getattr(axes, f"set_{name}label")(f"{name} [m]")
    axes.set_box_aspect((1, 1, 1), zoom=0.95)
    axes.plot(*p["goal"][:3, None], "x", color=ACCENT, markersize=8, markeredgewidth=2)
    axes.plot(*states[: t + 1, :3].T, color=TRACE, linewidth=1.5)
    floor = np.full(t + 1, middle[2] - half)
    axes.plot(*states[: t + 1, :2].T, floor, color=GHOST, linewidth=1)
    R, centre = rotation(states[t, 3:7]), states[t, :3]
    rotors = centre[:, None] + l * R @ np.array([[1, 0, -1, 0], [0, 1, 0, -1], [0, 0, 0, 0]])
    for a, b, color in ((0, 2, ACCENT), (1, 3, BODY)):
        axes.plot(*rotors[:, [a, b]], color=color, linewidth=3)
    circle = np.linspace(0, 2 * np.pi, 25)
    disc = 0.45 * l * R @ np.stack((np.cos(circle), np.sin(circle), 0 * circle))
    for rotor in rotors.T:
        axes.plot(*(rotor[:, None] + disc), color=BODY, linewidth=1.2)


# -- others ------------------------------------------------------------------------------------
def spring(start: float, end: float, height: float) -> Array:
    """A zigzag along the x axis between two points: (k, 2)."""
    xs = np.linspace(start, end, 15)
    ys = height * np.array([0, 0, *[(-1) ** i for i in range(11)], 0, 0])
    return np.stack((xs, ys), axis=-1)


def masses(axes: Any, states: Array, controls: Array, t: int, p: P) -> None:
    count = states.shape[1] // 2
    # Far enough apart that no two blocks meet, whatever the amplitude.
    space = 1.2 + 2 * np.abs(states[:, :count]).max()
    rest = space * np.arange(1, count + 1)
    places = rest + states[t, :count]
    size = 0.3
    height = space * (count + 1) / 5
    axes.set_xlim(-0.3, space * (count + 1) + 0.3)
    axes.set_ylim(-height / 2, height / 2)
    axes.set_aspect("equal", adjustable="box")
    axes.set_yticks([])
    axes.set_xticks(rest, [str(i + 1) for i in range(count)])
    axes.set_xlabel("mass, ticks at rest")
    ends = np.array([0.0, *places, space * (count + 1)])
    for i, (a, b) in enumerate(itertools.pairwise(ends)):
        left, right = a + size * (i > 0), b - size * (i < count)
        line(axes, spring(left, right, 0.16 * size * 2), color=TRACE, linewidth=1.5)
    for wall in (ends[0], ends[-1]):
        axes.axvline(wall, color=BODY, linewidth=3)
    for x in places:
        box = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * size + [x, 0]
        axes.fill(box[:, 0], box[:, 1], color=BODY)
    pushes = p["actuation"] @ scaled(controls, t, 0.8 * space)
    for x, push in zip(places, pushes, strict=True):
        arrow(axes, np.array([x, 1.6 * size]), np.array([push, 0.0]))


def phase_plane(axes: Any, states: Array, controls: Array, t: int, p: P) -> None:
    """Van der Pol: the path over the field of the free oscillator."""
    low, high = states.min(axis=0), states.max(axis=0)
    goal = p["goal"]
    low, high = np.minimum(low, goal), np.maximum(high, goal)
    pad = 0.25 * (high - low).max()
    xs, ys = np.meshgrid(
        np.linspace(low[0] - pad, high[0] + pad, 15), np.linspace(low[1] - pad, high[1] + pad, 15)
    )
    slope = float(p["mu"]) * (1 - xs * xs) * ys - xs
    speed = np.hypot(ys, slope) + 1e-9
    axes.quiver(xs, ys, ys / speed, slope / speed, color=GHOST, width=0.003, scale=28)
    frame(axes, np.array([low, high]), pad)
    axes.set_xlabel("position")
    axes.set_ylabel("speed")
    goal_cross(axes, goal)
    line(axes, states[: t + 1], color=ACCENT, linewidth=2)
    dot(axes, states[t], 9)
    push = scaled(controls, t, pad)
    arrow(axes, states[t], np.array([0.0, push[0]]))
