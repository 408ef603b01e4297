"""Solves in one native call against the same solves made of pieces."""

import copy
import math
import pickle
from dataclasses import replace

import pytest
import torch

import ocp
from ocp.engines.native import calls as calls_of_engine
from ocp.engines.native import whole as native_whole
from ocp.problems import acrobot, cartpole, pendulum
from ocp.solution import Status, values
from ocp.solvers import at_once as quick

F64 = torch.float64
FIELDS = (
    *("states", "controls", "costates", "cost", "residual", "hamiltonian_residual", "gap"),
    *("iterations", "rollouts", "sweeps"),
)


@pytest.fixture
def calls(monkeypatch):
    """What came of each native call."""
    made = []
    answer = native_whole.Whole._answer

    def noted(self, *arguments):
        made.append(answer(self, *arguments))
        return made[-1]

    monkeypatch.setattr(native_whole.Whole, "_answer", noted)
    return made


def by_pieces(problem, method, **options):
    """A callback sees every step: they are made one by one."""
    return ocp.solve(problem, method, **options, callback=lambda r: None, engine="native")


def same(a, b):
    for name in FIELDS:
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert (a.status, a.message, a.engine, a.method) == (b.status, b.message, b.engine, b.method)
    for name in ("states", "controls", "k", "K"):
        assert torch.equal(getattr(a.policy, name), getattr(b.policy, name)), name
    assert torch.equal(a.value.vx, b.value.vx) and torch.equal(a.value.vxx, b.value.vxx)
    assert a.history.keys() == b.history.keys()
    for name in a.history.keys() - {"seconds"}:
        assert torch.equal(a.history[name], b.history[name]), name
    assert a.history["seconds"].shape == b.history["seconds"].shape
    assert bool((a.history["seconds"].diff() >= 0).all())


def bounded(dtype=F64):
    """A pendulum torque that saturates; n = 2, m = 1."""
    low, high = (torch.tensor([v], dtype=dtype) for v in (-0.4, 0.5))
    return pendulum(x0=torch.tensor([0.3, 0.0], dtype=dtype)).replace(control_bounds=(low, high))


LATE = torch.tensor([-0.1, -2.3, 0.4, -1.8], dtype=F64)  # of it, the gaps close in the 6th step

CASES = {
    "zero controls": lambda: (cartpole(), {"controls": torch.zeros(100, 1, dtype=F64)}),
    "a guess with gaps": lambda: (cartpole(), {"starts": ocp.starts.interpolate(0.2)}),
    "the default start": lambda: (pendulum(), {}),
    "the default start, in its second half": lambda: (cartpole(x0=LATE), {}),
    "the default start, given up": lambda: (acrobot(), {"max_iterations": 40}),
    "bounds": lambda: (bounded(), {"controls": torch.full((pendulum().horizon, 1), 3.0).double()}),
    "single precision": lambda: (bounded(torch.float32), {}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", ["ilqr", "ddp"])
def test_one_call_gives_what_the_pieces_give(name, method, calls):
    problem, options = CASES[name]()
    pieces = by_pieces(problem, method, **options)
    assert not calls
    once = ocp.solve(problem, method, **options, engine="native")
    assert calls
    same(once, pieces)


@pytest.mark.parametrize("engine", ["native", "eager"])
def test_gaps_that_do_not_begin_to_close_are_given_up_after_half_the_patience(engine, calls):
    """Never, late, early: together as one by one."""
    never, early = (torch.tensor(v, dtype=F64) for v in ([1.3, 1.6, 3.2, -1], [0, 0.3, 0, 0]))
    x0 = torch.stack([never, LATE, early])
    solver = ocp.make_solver("ddp", engine=engine)
    start = ocp.starts.settle(ocp.starts.interpolate(0.35), ocp.starts.zero)
    guess = start(cartpole(x0=x0), solver)
    assert guess.iterations.tolist() == [4, 8, 8]
    assert guess.reached[0].gap.tolist() == [0, 0, 0]  # the first was rolled out
    assert not guess.controls[0].any() and guess.controls[1:].any()
    if engine == "native":
        for b in range(3):
            calls.clear()
            alone = start(cartpole(x0=x0[b]), solver)
            assert alone.reached.closed and len(calls) == (2 if b == 0 else 1)
            assert calls[0].steps == guess.iterations[b]


def test_what_is_not_finished_in_a_call_goes_on_in_the_next(calls, monkeypatch):
    problem, options = CASES["zero controls"]()
    pieces = by_pieces(problem, "ilqr", **options)
    native_whole._own.kept.clear()
    monkeypatch.setattr(quick, "first_chunk", lambda problem: 7)
    same(ocp.solve(problem, "ilqr", **options, engine="native"), pieces)
    assert [a.finished for a in calls] == [False] * (len(calls) - 1) + [True]
    assert [a.steps for a in calls][:3] == [7, 14, 28]  # what is short may be longer
    learnt = len(calls)
    ocp.solve(problem, "ilqr", **options, engine="native")
    assert len(calls) - learnt < learnt  # and is from the start the next time


def test_gaps_that_are_open_stay_open_in_the_next_call(calls, monkeypatch):
    options = {"starts": ocp.starts.interpolate(0.35), "max_iterations": 12}
    pieces = by_pieces(acrobot(), "ddp", **options)
    monkeypatch.setattr(quick, "first_chunk", lambda problem: 1)
    monkeypatch.setattr(quick, "LONG", 0.0)  # one step a call
    native_whole._own.kept.clear()
    same(ocp.solve(acrobot(), "ddp", **options, engine="native"), pieces)
    assert len(calls) == 12 and all(a.reals.gap > 1 for a in calls)


def test_an_interruption_between_calls_keeps_what_there_is(monkeypatch):
    problem, options = CASES["zero controls"]()
    native_whole._own.kept.clear()
    monkeypatch.setattr(quick, "first_chunk", lambda problem: 7)
    further, made = native_whole.Whole.further, []

    def interrupted(self, answer, most):
        made.append(most)
        if len(made) == 2:
            raise KeyboardInterrupt
        return further(self, answer, most)

    monkeypatch.setattr(native_whole.Whole, "further", interrupted)
    solution = ocp.solve(problem, "ilqr", **options, engine="native")
    assert solution.status == Status.INTERRUPTED and solution.iterations == 21
    assert solution.history["cost"].shape == (21,)
    assert solution.cost < solution.history["cost"][0]


def test_numbers_that_changed_are_seen():
    goal = torch.tensor([math.pi, 0.0], dtype=F64)
    gain = {"value": torch.tensor(0.1, dtype=F64)}

    def f(x, u, t, p):
        return x + 0.05 * torch.stack((x[1], 9.81 * torch.sin(x[0]) * p["g"] + u[0]))

    class Cost:
        weight = 50.0

        def stage(self, x, u, t):
            return gain["value"] * u @ u

        def terminal(self, x):
            return self.weight * (x - goal) @ (x - goal)

    cost = Cost()
    x0 = torch.zeros(2, dtype=F64)
    low = torch.full((1,), -2.0, dtype=F64)
    problem = ocp.Problem(f, cost, x0, 40, 1, parameters={"g": 1.0}, control_bounds=(low, -low))
    us = torch.zeros(40, 1, dtype=F64)

    def checked(now):
        same(ocp.solve(now, controls=us, engine="native"), by_pieces(now, "ddp", controls=us))

    checked(problem)
    checked(problem.replace(x0=torch.tensor([0.2, -0.1], dtype=F64)))
    checked(problem.replace(parameters={"g": 0.7}))
    checked(problem.replace(control_bounds=(low / 2, -low)))
    goal[0] = 3.0
    checked(problem)
    gain["value"] = torch.tensor(0.3, dtype=F64)
    checked(problem)
    cost.weight = 30.0
    checked(problem)


def test_a_call_leaves_earlier_answers_alone():
    problem = pendulum()
    us = torch.zeros(problem.horizon, 1, dtype=F64)
    first = ocp.solve(problem, controls=us, engine="native")
    kept = first.states.clone(), first.value.vxx.clone(), first.history["cost"].clone()
    other = problem.replace(x0=problem.x0 + 0.1)
    ocp.solve(other, controls=us, engine="native")
    assert torch.equal(first.states, kept[0]) and torch.equal(first.value.vxx, kept[1])
    assert torch.equal(first.history["cost"], kept[2])
    first.states.zero_()  # nothing else is made of the same memory
    assert bool((first.policy.states != 0).any()) and bool((first.costates != 0).any())


def test_a_start_that_is_not_finite_is_named_as_by_the_pieces(calls):
    problem = ocp.Problem(
        lambda x, u, t: x * x + u,
        ocp.FunctionCost(lambda x, u, t: u @ u, lambda x: x @ x),
        torch.full((1,), 10.0, dtype=F64),
        20,
        1,
    )
    solution = ocp.solve(problem, engine="native")
    assert calls and solution.status == Status.NON_FINITE
    assert "stage" in solution.message
    with pytest.raises(ValueError, match="controls"):
        ocp.solve(problem, controls=torch.full((20, 1), math.nan, dtype=F64), engine="native")


@pytest.mark.parametrize("base", ["ddp", "ilqr", "pmp"])
@pytest.mark.parametrize("batch", [None, 2])
def test_a_solver_with_iterations_of_its_own_makes_them(base, batch):
    made = []

    class Own(ocp.METHODS[base]):
        def iteration(self, state):
            made.append(1)
            return super().iteration(state)

    x0 = torch.zeros((2,) if batch is None else (batch, 2), dtype=F64)
    solver = Own(rules=ocp.Rules(max_iterations=4))
    solution = ocp.solve(pendulum(x0=x0), solver, starts=ocp.starts.zero, engine="native")
    assert len(made) == 4 and solution.iterations.max() == 4


def test_a_history_reads_like_a_dict(tmp_path):
    solution = ocp.solve(pendulum(), engine="native")
    history = dict(solution.history)
    assert len(solution.history) == len(history) == 10 and list(history) == list(solution.history)
    assert repr(solution.history) == repr(history)
    assert history["running"].dtype == torch.bool and history["second_order"].dtype == torch.bool
    assert history["cost"].shape == history["seconds"].shape == (int(solution.iterations) + 1,)
    with pytest.raises(KeyError, match="no such"):
        solution.history["no such"]
    kept = ocp.Solution.load(solution.save(tmp_path / "solution")).history
    assert all(torch.equal(kept[k], v) for k, v in history.items())


def test_fields_are_made_when_they_are_read(tmp_path):
    solution = ocp.solve(cartpole(), engine="native")
    made = vars(solution).keys()
    assert "controls" not in made and "status" in made
    assert solution.controls is solution.controls and "controls" in made
    assert not hasattr(solution, "control") and "gap" not in made
    with pytest.raises(AttributeError, match="Solution has no 'control'"):
        _ = solution.control
    pieces = by_pieces(cartpole(), "ddp")
    assert values(solution).keys() == vars(pieces).keys()
    copies = copy.copy(solution), copy.deepcopy(solution), pickle.loads(pickle.dumps(solution))
    for other in (*copies, replace(solution, seconds=0.0)):
        same(other, pieces)
        assert vars(other).keys() == vars(pieces).keys()


def test_the_problem_solved_last_is_forgotten_last():
    first, second = cartpole(), pendulum()
    native_whole._own.kept.clear()
    for problem in (first, second, first):
        ocp.solve(problem, starts=ocp.starts.zero, engine="native", max_iterations=1)
    assert [w.engine.problem for w in native_whole._own.kept.values()] == [second, first]


def test_a_programs_memory_is_the_cpus_whatever_the_default_device(monkeypatch):
    problem = cartpole()
    first = ocp.solve(problem, engine="native")
    controller = ocp.RecedingHorizon(problem, engine="native")
    u = [controller(problem.x0) for _ in range(3)]
    native_whole._own.kept.clear()
    monkeypatch.delattr(calls_of_engine._own, "memory")
    with torch.device("meta"):
        again = ocp.solve(problem, engine="native")
        v = controller(problem.x0)
    same(again, first)
    assert v.device.type == again.iterations.device.type == "cpu" and torch.isfinite(v).all()
    assert v.shape == u[0].shape


def test_iterations_made_before_count(calls):
    problem = cartpole()
    start = ocp.starts.weight_continuation()
    same(
        ocp.solve(problem, starts=start, max_iterations=300, engine="native"),
        by_pieces(problem, "ddp", starts=start, max_iterations=300),
    )
    assert len(calls) > 1
