"""Two rigid links in a plane, the second hinged to the end of the first.

    M(a2) (a1'', a2'') + c(a2, a') + g(a) = torques

The angle a1 counts from hanging, a2 from the first link. Source: Spong, Hutchinson, Vidyasagar,
Robot Modeling and Control (2006), sec. 7.3.2. Acrobot, double pendulum and arm are made of it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ocp.problems.common import Parameters


class Links(NamedTuple):
    """Two of each, (2,)."""

    masses: Tensor  # kg
    lengths: Tensor  # m
    centres: Tensor  # m, from the joint to the centre of mass
    inertias: Tensor  # kg m^2, about the centre of mass


def rods(p: Parameters) -> Links:
    """Thin uniform rods of ``p["masses"]`` and ``p["lengths"]``."""
    m, l = p["masses"], p["lengths"]
    return Links(m, l, l / 2, m * l * l / 12)


def accelerations(
    angles: Tensor, rates: Tensor, torques: tuple[Tensor, Tensor], links: Links, gravity: Tensor
) -> tuple[Tensor, Tensor]:
    """Angular accelerations of the joints [rad/s^2] under torques [N m] net of friction.

    angles (2,), rates (2,), gravity [m/s^2] against the direction that the angles count from.
    """
    m1, m2 = links.masses
    l1, _ = links.lengths
    s1, s2 = links.centres
    I1, I2 = links.inertias
    (a1, a2), (w1, w2) = angles, rates
    coupling = m2 * l1 * s2
    bent = coupling * torch.cos(a2)
    M22 = I2 + m2 * s2 * s2
    M12 = M22 + bent
    M11 = I1 + m1 * s1 * s1 + M22 + m2 * l1 * l1 + 2 * bent
    h = coupling * torch.sin(a2)
    g2 = m2 * s2 * gravity * torch.sin(a1 + a2)
    g1 = (m1 * s1 + m2 * l1) * gravity * torch.sin(a1) + g2
    r1 = torques[0] + h * (2 * w1 * w2 + w2 * w2) - g1
    r2 = torques[1] - h * w1 * w1 - g2
    determinant = M11 * M22 - M12 * M12
    return (M22 * r1 - M12 * r2) / determinant, (M11 * r2 - M12 * r1) / determinant
