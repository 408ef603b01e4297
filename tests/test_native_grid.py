"""Programs for a GPU, run thread by thread on the CPU, against the native engine there.

What differs on a GPU is the compiler and that threads run at the same time: indices, work memory,
launches, barriers and the Python of the engine are those tested here.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from grid_calls import Twin, compiled
from models import cartpoles, guess, rich
from native_cases import F64, broad, chain, needs_compiler
from references import close
from torch import Tensor

import ocp
from ocp import engines
from ocp.engines.base import SecondOrder
from ocp.engines.native.cuda import Cuda
from ocp.engines.native.grid import Form, blocks, form, others, units
from ocp.solvers.loop import State

pytestmark = needs_compiler

# Small blocks, so that there are several.
THREADS, RANKS, TEAM = Form(False, 4), Form(False, 12, 3), Form(True, 8)
BOUNDS = {"broad": (-0.3, 0.2), "cartpole": (-0.4, 0.6), "chain": (-0.1, 0.15)}


@cache
def problem(name: str) -> ocp.Problem:
    made = {
        "rich": lambda: rich(7, 6),
        "broad": lambda: broad(5, 4),
        "cartpole": lambda: cartpoles(1, 9),
        "chain": lambda: chain(3, 1),
    }[name]()
    if name not in BOUNDS:
        return made
    m = made.control_dims[0]
    lo, hi = (torch.full((m,), v, dtype=F64) for v in BOUNDS[name])
    return made.replace(control_bounds=(lo, hi))


@cache
def program(name: str, how: Form, settings: str = ""):
    return compiled(problem(name), how, settings)


CASES = [
    pytest.param(("rich", THREADS, ""), id="rich-threads"),
    pytest.param(("rich", RANKS, ""), id="rich-ranks"),
    pytest.param(("rich", TEAM, ""), id="rich-team"),
    pytest.param(("broad", THREADS, ""), id="broad-bounds-threads"),
    pytest.param(("broad", RANKS, ""), id="broad-bounds-ranks"),
    pytest.param(("broad", TEAM, ""), id="broad-bounds-team"),
    pytest.param(("cartpole", TEAM, ""), id="cartpole-bounds-team"),
    pytest.param(("chain", TEAM, "#define OCP_TEAM_BYTES 64\n"), id="chain-bounds-global-memory"),
]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[ocp.Problem, Cuda, engines.Engine]:
    name, how, settings = request.param
    p = problem(name)
    return p, Cuda(p, program(name, how, settings)), engines.make(p, "native")


def trajectory(p: ocp.Problem) -> tuple[Tensor, Tensor, Tensor]:
    """States off the roll-out, controls within bounds, and the gaps."""
    us = torch.stack(guess(p, 3, 0.3))
    if p.lower is not None:
        us = torch.minimum(torch.maximum(us, p.lower), p.upper)
    engine = engines.make(p, "native")
    xs = engine.rollout(us)
    noise = torch.randn(xs.shape, generator=torch.Generator().manual_seed(4), dtype=F64)
    xs = torch.cat((xs[:1], xs[1:] + 0.1 * noise[1:]))
    return xs, us, engine.gaps(xs, us)


def equal(actual: object, expected: object) -> None:
    """To rounding, within tuples, tensors or None."""
    if isinstance(expected, Tensor):
        close(actual.to(F64), expected.to(F64), 1e-12)
    elif isinstance(expected, tuple):
        for a, e in zip(actual, expected, strict=True):
            equal(a, e)
    else:
        assert actual == expected


def test_pieces_equal_those_of_the_cpu(case):
    p, ours, theirs = case
    xs, us, gaps = trajectory(p)
    T, B, n = xs.shape[0] - 1, us.shape[1], xs.shape[-1]
    lines = torch.cat((xs, xs + 0.1), dim=1), torch.cat((us, us - 0.1), dim=1)
    g = torch.Generator().manual_seed(5)
    vs = torch.randn(T + 1, B, n, generator=g, dtype=F64)
    assert ours.info._replace(lanes=0, single=False) == theirs.info._replace(lanes=0, single=False)
    equal(ours.rollout(us), theirs.rollout(us))
    equal(ours.gaps(xs, us), theirs.gaps(xs, us))
    equal(ours.total_cost(*lines), theirs.total_cost(*lines))
    expansion = theirs.expand(xs, us)
    equal(tuple(ours.expand(xs, us)), tuple(expansion))
    equal(ours.costates(expansion), theirs.costates(expansion))
    tables = [engine.curvature_along(xs, us, vs).table for engine in (ours, theirs)]
    equal(*tables)
    policy = theirs.sweep(expansion, us, gaps, torch.full((B,), 0.3, dtype=F64), None).policy
    for K, gap in ((policy.K, gaps), (None, None)):
        cut = policy._replace(K=K)
        equal(ours.linear_rollout(expansion, cut, gap), theirs.linear_rollout(expansion, cut, gap))
        sizes = 0.5 ** torch.arange(19, dtype=F64)
        trials = [tuple(e.follow(xs, us, gap, cut, sizes)) for e in (ours, theirs)]
        equal(*trials)


def test_appraisals_equal_those_of_the_cpu(case):
    p, ours, theirs = case
    _, us, _ = trajectory(p)
    for size in (0.2, 3.0):  # large controls make some second-order models indefinite
        at = us * size
        xs = theirs.rollout(at)
        ours_now, theirs_now = (tuple(e.appraise(xs, at)) for e in (ours, theirs))
        equal(tuple(ours_now[0])[1:], tuple(theirs_now[0])[1:])
        equal(ours_now[1:], theirs_now[1:])


@pytest.mark.parametrize("on_state", [False, True])
def test_sweeps_equal_those_of_the_cpu(case, on_state):
    p, ours, theirs = case
    xs, us, gaps = trajectory(p)
    B = us.shape[1]
    expansion = theirs.expand(xs, us)
    damping = torch.linspace(0.1, 0.5, B, dtype=F64)
    full = torch.arange(B) % 2 == 0
    contract = lambda t, v: None  # neither engine asks: both know how it was made
    second = SecondOrder(contract, xs, us)
    table = theirs.curvature_along(xs, us, theirs.costates(expansion)[0])
    for gap in (None, gaps):
        for curvature in (None, second.within(full), table):
            sweeps = [
                e.sweep(expansion, us, gap, damping, curvature, on_state) for e in (ours, theirs)
            ]
            equal(*(tuple(s)[1:] for s in sweeps))
            equal(*(tuple(s.policy) for s in sweeps))
    worst = expansion._replace(lzz=-expansion.lzz)  # indefinite, which stage first?
    failed = [e.sweep(worst, us, gaps, damping * 0, None).failed for e in (ours, theirs)]
    assert failed[0].tolist() == failed[1].tolist()
    assert p.lower is not None or int(failed[0].max()) >= 0


def states_equal(a: State, b: State, which: Tensor) -> None:
    for name in ("xs", "us", "cost", "gap", "damping", "penalty", "residual"):
        x, y = getattr(a, name), getattr(b, name)
        equal(*((v[which] if v.ndim == 1 else v[:, which]) for v in (x, y)))
    for name in ("status", "second_order", "weak", "iterations", "rollouts", "sweeps"):
        assert getattr(a, name)[which].tolist() == getattr(b, name)[which].tolist(), name


@pytest.mark.parametrize("method", ["ilqr", "ddp", "newton"])
@pytest.mark.parametrize("gaps", [False, True], ids=["closed", "gaps"])
def test_iterations_equal_those_of_the_cpu(case, method, gaps):
    p, ours, theirs = case
    if gaps and method == "newton":
        pytest.skip("it rolls its controls out")
    xs, us, _ = trajectory(p)
    solver = ocp.make_solver(method, engine="native")
    state = solver.init(p, us.movedim(0, 1), xs.movedim(0, 1) if gaps else None)
    for _ in range(4):
        other = solver.steps(p, state._replace(engine=ours), 1)
        after = solver.steps(p, state._replace(engine=theirs), 1)
        row = after.rows[-1]
        clear = row["running"][0] & (row["expected"][0] > 1e-9 * (1 + row["cost"][0].abs()))
        states_equal(other, after, clear)
        for name, value in row.items():
            equal(other.rows[-1][name][-1][clear], value[-1][clear])
        state = after
        if not state.running:
            break


def test_whole_solves_in_one_launch_equal_chunks_and_the_cpu(case):
    p, ours, _ = case
    us = torch.stack(guess(p, 3, 0.5))
    solver = ocp.make_solver("ddp", engine="native")
    state = solver.init(p, us.movedim(0, 1))._replace(engine=ours)
    at_once = solver.steps(p, state, 300)
    chunks = state
    while chunks.running:
        chunks = solver.steps(p, chunks, 3)
    everyone = torch.ones(p.batch) > 0
    states_equal(at_once, chunks, everyone)
    assert torch.equal(at_once.us, chunks.us)
    solved = ocp.solve(p, solver, us.movedim(0, 1))
    assert at_once.status.tolist() == [int(s) for s in solved.status]
    close(at_once.cost, solved.cost, 1e-9)
    rows = [torch.cat([r["cost"] for r in s.rows]) for s in (at_once, chunks)]
    assert torch.equal(*rows)


@pytest.mark.parametrize("how", [THREADS, RANKS, TEAM])
def test_neither_the_order_of_threads_nor_their_number_matters(how):
    p = problem("rich")
    made = program("rich", how)
    solver = ocp.make_solver("ddp", engine="native")
    state = solver.init(p, torch.stack(guess(p, 3, 0.5)).movedim(0, 1))
    results = []
    for backwards, memory in ((False, 2**30), (True, 2**30), (False, 1), (True, 1)):
        assert isinstance(made.library, Twin)
        made.library.backwards, made.library.memory = backwards, memory
        engine = Cuda(p, made)
        results.append(solver.steps(p, state._replace(engine=engine), 8))
        assert (
            engine.data_block.threads
            == ({False: 8, True: 7} if memory > 1 else {False: 4, True: 1})[how.single]  # units
        )
        engine.work.fill_(255)  # nan: nothing is kept from call to call
        again = solver.steps(p, state._replace(engine=engine), 8)
        assert torch.equal(again.us, results[-1].us)
    made.library.backwards, made.library.memory = False, 2**30
    for other in results[1:]:
        assert torch.equal(other.us, results[0].us) and torch.equal(other.cost, results[0].cost)


def test_sizes_choose_the_form_and_the_grid():
    assert form(5, 1) == (True, 32, 1) and form(48, 16384) == (True, 128, 1)
    found = [form(5, count) for count in (2048, 4224, 8000, 16384, 16897)]
    assert [f.ranks for f in found] == [8, 8, 4, 2, 1]  # what 132 multiprocessors hold
    assert form(5, 2048, processors=16).ranks == 2
    assert {f.beside for f in found} == {32} and not any(f.single for f in found)
    threads, ranks = Form(False, 32), Form(False, 128, 4)
    for how in (threads, ranks):
        assert units(how, 1000, 10_000, 2**40) == 1024  # whole blocks
        assert units(how, 1000, 10_000, 32 * 10_000) == 32  # the rest take turns
    assert units(form(48, 10), 10, 10_000, 35_000) == 3
    data = ocp.engines.native.abi.Data(100, 1000, 0, 1024)
    for how, counts in ((threads, (32, 3125, 375, 32)), (ranks, (32, 782, 94, 8))):
        asked = "ocp_iterate", "ocp_gaps", "ocp_total_cost", "ocp_costates"
        assert tuple(blocks(how, entry, data, 12_000) for entry in asked) == counts


def test_a_form_that_spills_gives_way_to_one_that_does_not():
    assert others(Form(True, 128)) == []
    assert others(Form(False, 32)) == [Form(False, 64, 2), Form(True, 32)]
    assert others(Form(False, 64, 2)) == [Form(True, 32)]
