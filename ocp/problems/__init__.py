"""Classic problems: functions that return an `ocp.Problem`, every constant a keyword argument.

All constants are ``parameters`` of the problem, so that the members of a batch can differ in any
of them: ``cartpole(x0=X, per_problem={"mass": masses, "goal": goals})``.
"""

from ocp.problems.acrobot import acrobot
from ocp.problems.arm import arm
from ocp.problems.car_parking import car_parking
from ocp.problems.cartpole import cartpole
from ocp.problems.double_pendulum import double_pendulum
from ocp.problems.masses import masses
from ocp.problems.pendulum import pendulum
from ocp.problems.quadrotor2d import quadrotor2d
from ocp.problems.quadrotor3d import quadrotor3d
from ocp.problems.registry import REGISTRY, Entry
from ocp.problems.unicycle import unicycle
from ocp.problems.van_der_pol import van_der_pol

__all__ = [
    "REGISTRY",
    "Entry",
    "acrobot",
    "arm",
    "car_parking",
    "cartpole",
    "double_pendulum",
    "masses",
    "pendulum",
    "quadrotor2d",
    "quadrotor3d",
    "unicycle",
    "van_der_pol",
]
