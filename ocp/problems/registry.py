"""The classic problems by name, with what a command line and a plot need to know of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ocp.problem import Problem
from ocp.problems import drawings
from ocp.problems.acrobot import acrobot
from ocp.problems.arm import arm
from ocp.problems.car_parking import car_parking
from ocp.problems.cartpole import cartpole
from ocp.problems.double_pendulum import double_pendulum
from ocp.problems.masses import masses
from ocp.problems.pendulum import pendulum
from ocp.problems.quadrotor2d import quadrotor2d
from ocp.problems.quadrotor3d import quadrotor3d
from ocp.problems.unicycle import unicycle
from ocp.problems.van_der_pol import van_der_pol


@dataclass(frozen=True)
class Entry:
    """One classic problem.

    Attributes:
        factory: makes the problem; all arguments have defaults.
        description: one line.
        draw: ``draw(axes, states, controls, t, p)`` draws stage t on clean axes, from states
            (T+1, n), controls (T, m) and parameters of one problem as numpy arrays.
        state_labels, control_labels: one for each component, the unit in brackets.
        three_d: whether ``draw`` needs 3-D axes.
        time_unit: of ``dt``; empty where the problem has no units.
    """

    factory: Callable[..., Problem]
    description: str
    draw: Callable[..., None]
    state_labels: tuple[str, ...]
    control_labels: tuple[str, ...]
    three_d: bool = False
    time_unit: str = "s"


JOINTS = ("angle 1 [rad]", "angle 2 [rad]", "rate 1 [rad/s]", "rate 2 [rad/s]")
CART = ("position [m]", "angle [rad]", "speed [m/s]", "rate [rad/s]")
SPACE = (
    *(f"{axis} [m]" for axis in "xyz"),
    *(f"q{part} [1]" for part in "wxyz"),
    *(f"v{axis} [m/s]" for axis in "xyz"),
    *(f"rate {axis} [rad/s]" for axis in "xyz"),
)

REGISTRY: dict[str, Entry] = {
    "pendulum": Entry(
        pendulum,
        "swing-up by a torque at the pivot",
        drawings.pendulum,
        ("angle [rad]", "rate [rad/s]"),
        ("torque [N m]",),
    ),
    "cartpole": Entry(
        cartpole, "swing-up by a force on the cart", drawings.cartpole, CART, ("force [N]",)
    ),
    "cartpole_bounded": Entry(
        partial(cartpole, bound=7.0),
        "swing-up by at most 7 N on the cart",
        drawings.cartpole,
        CART,
        ("force [N]",),
    ),
    "acrobot": Entry(
        acrobot,
        "swing-up of two links by a torque at the elbow",
        drawings.hanging_links,
        JOINTS,
        ("elbow torque [N m]",),
    ),
    "double_pendulum": Entry(
        double_pendulum,
        "swing-up of two links by torques at both joints",
        drawings.hanging_links,
        JOINTS,
        ("torque 1 [N m]", "torque 2 [N m]"),
    ),
    "unicycle": Entry(
        unicycle,
        "drive to a pose",
        drawings.unicycle,
        ("x [m]", "y [m]", "heading [rad]"),
        ("speed [m/s]", "turn rate [rad/s]"),
    ),
    "car_parking": Entry(
        car_parking,
        "park a car with bounded steering and acceleration (Tassa 2014)",
        drawings.car,
        ("x [m]", "y [m]", "heading [rad]", "speed [m/s]"),
        ("wheel angle [rad]", "acceleration [m/s²]"),
    ),
    "quadrotor2d": Entry(
        quadrotor2d,
        "planar quadrotor flies to a point and hovers",
        drawings.quadrotor2d,
        ("x [m]", "z [m]", "roll [rad]", "vx [m/s]", "vz [m/s]", "roll rate [rad/s]"),
        ("right thrust - hover [N]", "left thrust - hover [N]"),
    ),
    "quadrotor3d": Entry(
        quadrotor3d,
        "quadrotor in space (quaternion) flies to a point and hovers",
        drawings.quadrotor3d,
        SPACE,
        tuple(f"thrust {i} - hover [N]" for i in (1, 2, 3, 4)),
        three_d=True,
    ),
    "arm": Entry(
        arm,
        "two-link arm reaches a point in the horizontal plane",
        drawings.arm,
        ("shoulder [rad]", "elbow [rad]", "shoulder rate [rad/s]", "elbow rate [rad/s]"),
        ("shoulder torque [N m]", "elbow torque [N m]"),
    ),
    "masses": Entry(
        masses,
        "chain of six masses and springs brought to rest (linear-quadratic)",
        drawings.masses,
        (*(f"mass {i} [m]" for i in range(1, 7)), *(f"mass {i} [m/s]" for i in range(1, 7))),
        ("force 1 [N]", "force 3 [N]", "force 5 [N]"),
    ),
    "van_der_pol": Entry(
        van_der_pol,
        "van der Pol oscillator brought to rest",
        drawings.phase_plane,
        ("position [1]", "speed [1]"),
        ("force [1]",),
        time_unit="",
    ),
    "van_der_pol_bounded": Entry(
        partial(van_der_pol, bound=(-0.3, 1.0)),
        "van der Pol oscillator brought to rest by -0.3 <= u <= 1",
        drawings.phase_plane,
        ("position [1]", "speed [1]"),
        ("force [1]",),
        time_unit="",
    ),
}
