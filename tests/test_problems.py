"""The classic problems: their physics, derivatives and costs against independent routes."""

import math

import numpy as np
import pytest
import torch
from torch.func import grad, hessian, jacrev

import ocp
from ocp.problems import (
    REGISTRY,
    acrobot,
    arm,
    car_parking,
    cartpole,
    double_pendulum,
    masses,
    pendulum,
    quadrotor2d,
    quadrotor3d,
    unicycle,
    van_der_pol,
)
from ocp.problems.arm import hand, reach
from ocp.problems.quadrotor3d import FlightCost, body_z
from ocp.problems.registry import Entry
from ocp.starts import zero

ENTRIES = pytest.mark.parametrize("entry", REGISTRY.values(), ids=REGISTRY.keys())
F64 = torch.float64


def shared(problem):
    return dict(problem.parameters)


def random_point(problem, seed=0):
    """A state and control off every symmetry; quaternions of norm 1."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda k: torch.randn(k, generator=generator, dtype=F64)
    x, u = draw(problem.x0.shape[-1]), 0.3 * draw(problem.control_dims[0])
    if problem.name == "quadrotor3d":
        x[3:7] /= x[3:7].norm()
    return x, u


def roll_out(problem, us, p=None):
    x, p = problem.x0, shared(problem) if p is None else p
    xs, cost = [x], x.new_zeros(())
    for t, u in enumerate(us):
        cost = cost + problem.l(x, u, torch.tensor(t), p)
        x = problem.f(x, u, torch.tensor(t), p)
        xs.append(x)
    return torch.stack(xs), cost + problem.phi(x, p)


# -- the benchmark's problems, written again in numpy --------------------------------------------
def np_pendulum(x, u):
    return np.array([x[1], u[0] - 0.1 * x[1] - 9.81 * np.sin(x[0])])


def np_cartpole(x, u):
    """Mass matrix and forces, solved as a linear system."""
    _, a, _, w = x
    M, m, l, g = 1.0, 0.2, 0.5, 9.81
    H = np.array([[M + m, m * l * np.cos(a)], [m * l * np.cos(a), m * l * l]])
    force = np.array([u[0] + m * l * w * w * np.sin(a), -m * g * l * np.sin(a)])
    return np.concatenate((x[2:], np.linalg.solve(H, force)))


def np_acrobot(x, u):
    a1, a2, w1, w2 = x
    inertia, g, b = 1 / 12, 9.81, 0.1
    c = np.cos(a2)
    H = np.array([[2 * inertia + 0.25 + 1.25 + c, inertia + 0.25 + 0.5 * c], [0, inertia + 0.25]])
    H[1, 0] = H[0, 1]
    s = 0.5 * np.sin(a2)
    g2 = 0.5 * g * np.sin(a1 + a2)
    force = np.array(
        [
            s * w2 * (2 * w1 + w2) - 1.5 * g * np.sin(a1) - g2 - b * w1,
            u[0] - s * w1 * w1 - g2 - b * w2,
        ]
    )
    return np.concatenate((x[2:], np.linalg.solve(H, force)))


def np_quadrotor2d(x, u):
    right, left = u[0] + 9.81 / 2, u[1] + 9.81 / 2
    a = x[2]
    lift = right + left
    change = [-lift * np.sin(a), lift * np.cos(a) - 9.81, 0.25 * (right - left) / 0.02]
    return np.concatenate((x[3:], change))


def np_rk4(ode, x, u, dt):
    a = ode(x, u)
    b = ode(x + 0.5 * dt * a, u)
    c = ode(x + 0.5 * dt * b, u)
    return x + dt * (a + 2 * b + 2 * c + ode(x + dt * c, u)) / 6


def np_car(x, u, dt):
    roll, d = dt * x[3], 2.0
    b = d + roll * np.cos(u[0]) - np.sqrt(d * d - (roll * np.sin(u[0])) ** 2)
    turn = np.arcsin(np.sin(u[0]) * roll / d)
    return x + np.array([b * np.cos(x[2]), b * np.sin(x[2]), turn, dt * u[1]])


def np_parking_cost(x, u):
    z = lambda v, width: np.sqrt(v * v + width * width) - width
    if u is None:
        return 0.1 * z(x[0], 0.01) + 0.1 * z(x[1], 0.01) + z(x[2], 0.01) + 0.3 * z(x[3], 1.0)
    return 0.01 * u[0] ** 2 + 1e-4 * u[1] ** 2 + 1e-3 * (z(x[0], 0.1) + z(x[1], 0.1))


def np_quadratic(dt, goal, Q, R, Qf):
    def cost(x, u):
        e = x - np.array(goal)
        if u is None:
            return 0.5 * np.sum(np.array(Qf) * e * e)
        return 0.5 * dt * (np.sum(np.array(Q) * e * e) + np.sum(np.array(R) * np.square(u)))

    return cost


PI = math.pi
CART_WEIGHTS = ([0, PI, 0, 0], [1, 1, 0.1, 0.1], [0.1], [100, 100, 10, 10])
BENCHMARK = {  # problem, ode or step, dt, T, x0, cost, bounds
    "pendulum": (
        pendulum(), np_pendulum, 0.05, 100, [0, 0],
        np_quadratic(0.05, [PI, 0], [1, 0.1], [0.1], [100, 10]), None,
    ),
    "cartpole": (
        cartpole(), np_cartpole, 0.05, 100, [0, 0, 0, 0],
        np_quadratic(0.05, *CART_WEIGHTS), None,
    ),
    "cartpole_bounded": (
        cartpole(bound=7.0), np_cartpole, 0.05, 100, [0, 0, 0, 0],
        np_quadratic(0.05, *CART_WEIGHTS), ([-7.0], [7.0]),
    ),
    "acrobot": (
        acrobot(), np_acrobot, 0.05, 200, [0, 0, 0, 0],
        np_quadratic(
            0.05, [PI, 0, 0, 0], [0.1, 0.1, 0.05, 0.05], [0.1], [200, 200, 20, 20]
        ), None,
    ),
    "quadrotor2d": (
        quadrotor2d(), np_quadrotor2d, 0.03, 100, [-3, 1, 0, 0, 0, 0],
        np_quadratic(
            0.03, [0] * 6, [1, 1, 0.1, 0.1, 0.1, 0.1], [0.05, 0.05], [200, 200, 50, 20, 20, 10]
        ), None,
    ),
    "car_parking": (
        car_parking(), np_car, 0.03, 500, [1, 1, 1.5 * PI, 0],
        np_parking_cost, ([-0.5, -2.0], [0.5, 2.0]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BENCHMARK)
def test_benchmark_problems_equal_their_numpy_definition(name):
    problem, model, dt, horizon, x0, cost, bounds = BENCHMARK[name]
    step = model if model is np_car else lambda x, u, dt: np_rk4(model, x, u, dt)
    rng = np.random.default_rng(0)
    us = 0.3 * rng.standard_normal((horizon, problem.control_dims[0]))
    x, J = np.array(x0, dtype=float), 0.0
    expected = [x]
    for u in us:
        J += cost(x, u)
        x = step(x, u, dt)
        expected.append(x)
    xs, actual = roll_out(problem, torch.from_numpy(us))
    assert problem.horizon == horizon and problem.name == name
    np.testing.assert_allclose(xs.numpy(), np.array(expected), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(float(actual), J + cost(x, None), rtol=1e-12)
    if bounds is None:
        assert problem.lower is None and problem.upper is None
    else:
        np.testing.assert_array_equal(problem.lower[:, 0].numpy(), [bounds[0]] * horizon)
        np.testing.assert_array_equal(problem.upper[:, 0].numpy(), [bounds[1]] * horizon)


# -- mechanics: Euler-Lagrange as the oracle -----------------------------------------------------
def accelerations(lagrangian, q, v, force):
    """From ``d/dt L_v - L_q = force``: (L_vv)^-1 (force + L_q - L_vq v)."""
    mass = hessian(lagrangian, argnums=1)(q, v)
    coriolis = jacrev(grad(lagrangian, argnums=1), argnums=0)(q, v) @ v
    return torch.linalg.solve(mass, force + grad(lagrangian)(q, v) - coriolis)


def chain_lagrangian(segments, gravity):
    """Of two links; ``segments(i)`` lists (mass, distance from the joint) of points of link i."""

    def lagrangian(q, v):
        def point(q, link, distance):
            if link == 0:
                return distance * torch.stack((torch.sin(q[0]), -torch.cos(q[0])))
            both = q[0] + q[1]
            tip = point(q, 0, segments[2])
            return tip + distance * torch.stack((torch.sin(both), -torch.cos(both)))

        total = q.new_zeros(())
        for link in (0, 1):
            for m, distance in segments[link]:
                velocity = jacrev(point)(q, link, distance) @ v
                total = total + m / 2 * velocity @ velocity
                total = total - m * gravity * point(q, link, distance)[1]
        return total

    return lagrangian


def rod(mass, length):
    """A uniform rod as two points: Gauss's rule is exact for its kinetic energy."""
    offset = length / (2 * math.sqrt(3))
    return [(mass / 2, length / 2 - offset), (mass / 2, length / 2 + offset)]


def body(mass, centre, inertia):
    """A rigid body as two points about its centre."""
    radius = math.sqrt(inertia / mass)
    return [(mass / 2, centre - radius), (mass / 2, centre + radius)]


def cart_lagrangian(q, v):
    M, m, l, g = 1.3, 0.4, 0.7, 9.0
    tip = lambda q: torch.stack((q[0] + l * torch.sin(q[1]), -l * torch.cos(q[1])))
    velocity = jacrev(tip)(q) @ v
    return M / 2 * v[0] ** 2 + m / 2 * velocity @ velocity - m * g * tip(q)[1]


def pendulum_lagrangian(q, v):
    return (0.7 * 1.9**2 / 2) * v[0] ** 2 + 0.7 * 9.0 * 1.9 * torch.cos(q[0])


def chain_of_masses(q, v):
    stretch = torch.cat((q[:1], q[1:] - q[:-1], -q[-1:]))
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    return (weights * v * v).sum() / 2 - 1.7 * (stretch * stretch).sum() / 2


UNEQUAL = {"masses": (1.3, 0.6), "lengths": (0.8, 1.4), "damping": 0.2, "gravity": 9.0}
LINKS = chain_lagrangian((rod(1.3, 0.8), rod(0.6, 1.4), 0.8), 9.0)
FRICTION = torch.tensor([[0.05, 0.025], [0.025, 0.05]], dtype=F64)
MECHANICS = {  # problem, Lagrangian, generalised force of (u, v)
    "pendulum": (
        pendulum(mass=0.7, length=1.9, damping=0.3, gravity=9.0),
        pendulum_lagrangian,
        lambda u, v: u - 0.3 * v,
    ),
    "cartpole": (
        cartpole(mass=1.3, pole_mass=0.4, length=0.7, gravity=9.0),
        cart_lagrangian,
        lambda u, v: torch.stack((u[0], 0 * u[0])),
    ),
    "acrobot": (
        acrobot(**UNEQUAL),
        LINKS,
        lambda u, v: torch.stack((0 * u[0], u[0])) - 0.2 * v,
    ),
    "double_pendulum": (double_pendulum(**UNEQUAL), LINKS, lambda u, v: u - 0.2 * v),
    "arm": (
        arm(),
        chain_lagrangian((body(1.4, 0.11, 0.025), body(1.1, 0.16, 0.045), 0.30), 0.0),
        lambda u, v: u - FRICTION @ v,
    ),
    "masses": (
        masses(3, mass=(1.0, 2.0, 3.0), stiffness=1.7),
        chain_of_masses,
        lambda u, v: torch.stack((u[0], 0 * u[0], u[1])),
    ),
}


@pytest.mark.parametrize("name", MECHANICS)
def test_motion_obeys_euler_and_lagrange(name):
    problem, lagrangian, force = MECHANICS[name]
    p = shared(problem)
    dt = torch.tensor(1e-4, dtype=F64)
    for seed in range(3):
        x, u = random_point(problem, seed)
        q, v = x.chunk(2)
        expected = torch.cat((v, accelerations(lagrangian, q, v, force(u, v))))
        # (x(dt) - x(-dt)) / (2 dt) is dx/dt to O(dt^2); only forward steps are public.
        ahead = problem.f(x, u, torch.tensor(0), {**p, "dt": dt})
        behind = problem.f(x, u, torch.tensor(0), {**p, "dt": -dt})
        torch.testing.assert_close((ahead - behind) / (2 * dt), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("problem", "lagrangian"),
    [
        (pendulum(mass=0.7, length=1.9, damping=0.0, gravity=9.0, dt=0.01), pendulum_lagrangian),
        (cartpole(mass=1.3, pole_mass=0.4, length=0.7, gravity=9.0, dt=0.01), cart_lagrangian),
        (acrobot(**{**UNEQUAL, "damping": 0.0}, dt=0.01), LINKS),
        (double_pendulum(**{**UNEQUAL, "damping": 0.0}, dt=0.01), LINKS),
    ],
    ids=lambda v: getattr(v, "name", ""),
)
def test_passive_motion_conserves_energy(problem, lagrangian):
    x, u = random_point(problem)
    problem = problem.replace(x0=x)

    def energy(x):
        q, v = x.chunk(2)
        return grad(lagrangian, argnums=1)(q, v) @ v - lagrangian(q, v)

    xs, _ = roll_out(problem, [torch.zeros_like(u)] * 150)
    assert float((xs[-1] - xs[0]).abs().max()) > 0.1
    assert float(energy(xs[-1]) - energy(xs[0])) == pytest.approx(0.0, abs=2e-5)


def test_unicycle_drives_on_a_circle():
    speed, rate, h0 = 1.3, 0.7, 0.4
    problem = unicycle(x0=(0.5, -1.0, h0), dt=0.05)
    xs, _ = roll_out(problem, torch.tensor([[speed, rate]] * 40, dtype=F64))
    h, radius = h0 + rate * 2.0, speed / rate
    place = (
        0.5 + radius * (math.sin(h) - math.sin(h0)),
        -1 - radius * (math.cos(h) - math.cos(h0)),
    )
    torch.testing.assert_close(xs[-1], torch.tensor([*place, h], dtype=F64), rtol=0, atol=1e-8)


# -- quadrotors ----------------------------------------------------------------------------------
def test_quaternion_keeps_norm_one():
    problem = quadrotor3d()
    us = torch.randn(100, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    xs, _ = roll_out(problem, us)
    norms = xs[:, 3:7].norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-14)


def test_zero_controls_hover():
    for problem in (quadrotor2d(), quadrotor3d()):
        xs, _ = roll_out(problem, torch.zeros(20, problem.control_dims[0], dtype=F64))
        torch.testing.assert_close(xs, xs[0].expand_as(xs))


def test_free_spin_keeps_angular_momentum_and_order_four():
    spinning = torch.tensor([0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1.5, -0.7, 2.0], dtype=F64)
    inertias = torch.tensor([0.01, 0.03, 0.02], dtype=F64)

    def momentum(x):
        """R(q) I w, the columns of R by rotating the axes of `body_z`'s formula independently."""
        w, v = x[3], x[4:7]
        L = inertias * x[10:]
        return L + 2 * torch.linalg.cross(v, torch.linalg.cross(v, L) + w * L)

    def drift(dt):
        problem = quadrotor3d(x0=spinning, inertias=(0.01, 0.03, 0.02), gravity=0.0, dt=dt)
        xs, _ = roll_out(problem, torch.zeros(round(1 / dt), 4, dtype=F64))
        return float((momentum(xs[-1]) - momentum(xs[0])).norm())

    assert drift(0.02) < 1e-6
    assert drift(0.04) / drift(0.02) > 10  # 16 in the limit of order 4


def test_quadrotor_in_a_plane_equals_the_planar_one():
    """Pitch about y by the front and rear rotors: the planar model's roll is minus the pitch."""
    generator = torch.Generator().manual_seed(1)
    pair = torch.randn(40, 2, dtype=F64, generator=generator)
    flat = quadrotor2d(x0=(0.5, -1, 0, 0, 0, 0), dt=0.01, mass=1.2, inertia=0.03, arm=0.2)
    space = quadrotor3d(
        x0=(0.5, 0, -1, 1, *[0] * 9),
        dt=0.01,
        mass=1.2,
        inertias=(0.02, 0.03, 0.04),
        arm=0.2,
        drag_ratio=0.0,  # or the pair's thrust would turn it out of the plane
    )
    still = torch.zeros(40, dtype=F64)
    expected, _ = roll_out(flat, pair)
    xs, _ = roll_out(space, torch.stack((pair[:, 0], still, pair[:, 1], still), dim=-1))
    pitch = 2 * torch.atan2(xs[:, 5], xs[:, 3])
    actual = torch.stack((xs[:, 0], xs[:, 2], -pitch, xs[:, 7], xs[:, 9], -xs[:, 11]), dim=-1)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-8)
    assert float(expected[:, 2].abs().max()) > 0.05


def test_attitude_error_is_the_rotation_vector_and_blind_to_the_sign_of_q():
    angle, axis = 1e-4, torch.tensor([0.6, 0.0, -0.8], dtype=F64)
    goal = torch.tensor([0.5, 0.5, -0.5, 0.5], dtype=F64)
    small = torch.cat((torch.tensor([math.cos(angle / 2)]), math.sin(angle / 2) * axis))
    w, v = goal[0], goal[1:]
    a, b = small[0], small[1:]
    q = torch.cat(((w * a - v @ b)[None], w * b + a * v + torch.linalg.cross(v, b)))
    rest = torch.zeros(3, dtype=F64)
    state = lambda q: torch.cat((rest, q, rest, rest))
    p = {"goal": state(goal)}
    error = FlightCost().error(state(q), p)
    torch.testing.assert_close(error[3:6], angle * axis, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(FlightCost().error(state(-q), p)[3:6], -error[3:6])
    up = torch.tensor([0.0, 0.0, 1.0], dtype=F64)
    rotated = up + 2 * torch.linalg.cross(v, torch.linalg.cross(v, up) + w * up)
    torch.testing.assert_close(body_z(goal), rotated)


# -- derivatives ---------------------------------------------------------------------------------
def central(function, z, step=1e-5):
    """Central differences of function (any shape) along each entry of z: (..., len(z))."""
    columns = []
    for i in range(z.shape[0]):
        e = torch.zeros_like(z)
        e[i] = step
        columns.append((function(z + e) - function(z - e)) / (2 * step))
    return torch.stack(columns, dim=-1)


@ENTRIES
def test_derivatives_equal_finite_differences(entry):
    problem = entry.factory()
    p, t, n = shared(problem), torch.tensor(0), problem.x0.shape[-1]
    x, u = random_point(problem)
    z, v = torch.cat((x, u)), torch.randn(n, dtype=F64, generator=torch.Generator().manual_seed(3))
    f = lambda z: problem.f(z[:n], z[n:], t, p)
    along = lambda z: v @ f(z)
    l = lambda z: problem.l(z[:n], z[n:], t, p)
    phi = lambda x: problem.phi(x, p)
    close = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    close(jacrev(f)(z), central(f, z))
    close(hessian(along)(z), central(grad(along), z))
    close(grad(l)(z), central(l, z))
    close(hessian(l)(z), central(grad(l), z))
    close(grad(phi)(x), central(phi, x))
    close(hessian(phi)(x), central(grad(phi), x))
    assert float(jacrev(f)(z)[:, n:].abs().max()) > 0


# -- goals and optima ----------------------------------------------------------------------------
@ENTRIES
def test_goal_costs_nothing_and_can_be_held_or_is_the_origin(entry):
    problem = entry.factory()
    p = shared(problem)
    assert problem.goal is not None
    assert float(problem.phi(problem.goal, p)) == pytest.approx(0.0, abs=1e-12)
    rest = torch.zeros(problem.control_dims[0], dtype=F64)
    assert float(problem.l(problem.goal, rest, torch.tensor(0), p)) == pytest.approx(0, abs=1e-12)
    after = problem.f(problem.goal, rest, torch.tensor(0), p)
    torch.testing.assert_close(after, problem.goal, rtol=0, atol=1e-12)


def test_chain_of_masses_equals_a_dense_solve():
    count, T, dt = 3, 20, 0.2
    n, m = 6, 2
    problem = masses(count, horizon=T, dt=dt, mass=(1.0, 2.0, 0.5), stiffness=1.5, damping=0.1)
    solution = ocp.solve(problem, "lqr")
    laplacian = 2 * np.eye(3) - np.eye(3, k=1) - np.eye(3, k=-1)
    scale = np.diag(1 / np.array([1.0, 2.0, 0.5]))
    generator = np.zeros((n + m, n + m))  # of (x, u) with u constant
    generator[:3, 3:6] = np.eye(3)
    generator[3:6, :3], generator[3:6, 3:6] = -1.5 * scale @ laplacian, -0.1 * scale @ laplacian
    generator[3:6, 6:] = scale[:, ::2]
    G = generator * dt
    flow = np.eye(n + m) + G @ (
        np.eye(n + m) + G @ (np.eye(n + m) + G @ (np.eye(n + m) + G / 4) / 3) / 2
    )
    A, B = flow[:n, :n], flow[:n, n:]
    x0 = np.array([1.0, 1.0, 0, 0, 0, 0])
    free = np.concatenate([np.linalg.matrix_power(A, t) @ x0 for t in range(T + 1)])
    response = np.zeros((n * (T + 1), m * T))
    for t in range(1, T + 1):
        for s in range(t):
            block = np.linalg.matrix_power(A, t - 1 - s) @ B
            response[t * n : t * n + n, s * m : s * m + m] = block
    Q = np.kron(np.diag([dt] * T + [10.0]), np.eye(n))
    R = 0.5 * dt * np.eye(m * T)
    U = np.linalg.solve(response.T @ Q @ response + R, -response.T @ Q @ free)
    X = free + response @ U
    np.testing.assert_allclose(solution.controls.numpy().ravel(), U, rtol=1e-8, atol=1e-10)
    assert float(solution.cost) == pytest.approx((X @ Q @ X + U @ R @ U) / 2, rel=1e-10)


def test_bounded_van_der_pol_has_the_published_cost():
    """2.8673 in continuous time (PROPT); the rectangle rule adds dt/2 (l(0) - l(T))."""
    problem = van_der_pol(bound=(-0.3, 1.0))
    solution = ocp.solve(problem, starts=zero)
    p, dt = shared(problem), 0.05
    ends = [
        problem.l(solution.states[i], solution.controls[i], torch.tensor(0), p) / dt
        for i in (0, -1)
    ]
    trapezoid = solution.cost - dt / 2 * (ends[0] - ends[1])
    assert bool(solution.converged)
    assert float(trapezoid) == pytest.approx(2.8673, abs=3e-3)


@pytest.mark.parametrize("factory", [unicycle, quadrotor2d, masses, van_der_pol])
def test_ddp_converges_from_zero_controls(factory):
    solution = ocp.solve(factory(), starts=zero)
    assert bool(solution.converged), solution


@pytest.mark.slow
@ENTRIES
def test_ddp_converges_from_zero_controls_on_every_problem(entry):
    solution = ocp.solve(entry.factory(), starts=zero)
    assert bool(solution.converged), solution


def test_arm_ends_with_its_hand_at_the_target():
    problem = arm()
    target, lengths = problem.parameters["target"], problem.parameters["lengths"]
    torch.testing.assert_close(hand(problem.goal[:2], lengths), target)
    solution = ocp.solve(problem, starts=zero)
    assert bool(solution.converged)
    miss = (hand(solution.states[-1, :2], lengths) - target).norm()
    assert float(miss) < 0.01


def test_reach_inverts_hand_for_a_batch():
    generator = torch.Generator().manual_seed(0)
    angles = torch.rand(20, 2, dtype=F64, generator=generator) * torch.tensor([1.5, 3.0])
    lengths = 0.2 + torch.rand(20, 2, dtype=F64, generator=generator)
    torch.testing.assert_close(reach(hand(angles, lengths), lengths), angles)


# -- batches and wrong use -----------------------------------------------------------------------
def test_members_of_a_batch_differ_in_masses_and_goals():
    X = 0.1 * torch.randn(3, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([0.5, 1.0, 2.0], dtype=F64)
    goals = torch.tensor([[0.5, 3, 0, 0], [0, 3.1, 0, 0], [-1, 2, 0, 0]], dtype=F64)
    batch = cartpole(x0=X, horizon=12, per_problem={"mass": weights, "goal": goals})
    together = ocp.solve(batch, "ilqr", max_iterations=3, starts=zero)
    torch.testing.assert_close(batch.goal, goals)
    for b in range(3):
        single = cartpole(x0=X[b], horizon=12, mass=float(weights[b]), goal=goals[b])
        alone = ocp.solve(single, "ilqr", max_iterations=3, starts=zero)
        torch.testing.assert_close(together.states[b], alone.states, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(together.cost[b], alone.cost, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("factory", "data"),
    [
        (acrobot, {"masses": [[1.0, 1.0], [1.0, 2.0]]}),
        (quadrotor3d, {"inertias": [[0.01, 0.01, 0.02], [0.02, 0.03, 0.02]], "dt": [0.02, 0.03]}),
        (arm, {"target": [[-0.2, 0.3], [0.2, 0.4]]}),
        (car_parking, {"wheelbase": [2.0, 2.5]}),
        (masses, {"masses": [[1.0] * 6, [2.0] * 6]}),
        (van_der_pol, {"mu": [1.0, 2.0]}),
    ],
)
def test_per_problem_data_make_a_batch_of_one_state(factory, data):
    batch = factory(horizon=4, per_problem=data)
    solution = ocp.solve(batch, "ilqr", max_iterations=2, starts=zero)
    assert solution.states.shape == (2, 5, batch.x0.shape[-1])
    assert float((solution.states[0] - solution.states[1]).abs().max()) > 1e-9
    one = {k: torch.as_tensor(v, dtype=F64)[1:] for k, v in data.items()}
    alone = ocp.solve(factory(horizon=4, per_problem=one), "ilqr", max_iterations=2, starts=zero)
    torch.testing.assert_close(solution.states[1:], alone.states, rtol=1e-9, atol=1e-9)


@ENTRIES
def test_single_precision_stays_single(entry):
    double = entry.factory()
    problem = entry.factory(x0=double.x0.float(), horizon=3)
    solution = ocp.solve(problem, max_iterations=1, starts=zero)
    assert solution.controls.dtype == solution.cost.dtype == torch.float32
    assert all(v.dtype == torch.float32 for v in problem.parameters.values())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: cartpole(x0=(0.0, 0.0)), r"cartpole: x0 must have shape \(4,\)"),
        (lambda: cartpole(mass=-1.0), "cartpole: mass must be positive"),
        (lambda: cartpole(bound=0.0), "bound must be positive"),
        (lambda: cartpole(goal=(0.0,)), r"cartpole: goal must have shape \(4,\)"),
        (lambda: cartpole(per_problem={"weight": [1.0]}), "no parameter .*weight.*pole_mass"),
        (
            lambda: cartpole(x0=torch.zeros(3, 4), per_problem={"mass": [1.0, 2.0]}),
            r"per_problem\['mass'\] must have shape \(3,\), got \(2,\)",
        ),
        (lambda: pendulum(dt=0.0), "dt must be positive"),
        (lambda: pendulum(gravity=math.nan), "gravity is not finite"),
        (lambda: masses(0), "count must be an integer >= 1"),
        (lambda: quadrotor3d(goal=[0.0] * 13), r"goal\[3:7\] must have norm 1"),
        (lambda: arm(target=(1.0, 1.0)), "out of reach"),
        (lambda: van_der_pol(bound=(1.0, -1.0)), "lo > hi"),
    ],
)
def test_wrong_use_is_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# -- registry ------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", REGISTRY)
def test_registry_describes_its_problems(name):
    entry = REGISTRY[name]
    problem = entry.factory()
    assert isinstance(entry, Entry) and problem.name == name
    assert len(entry.state_labels) == problem.x0.shape[-1]
    assert len(entry.control_labels) == problem.control_dims[0]
    assert all(v.endswith("]") and " [" in v for v in entry.state_labels + entry.control_labels)
    assert entry.description and "\n" not in entry.description
