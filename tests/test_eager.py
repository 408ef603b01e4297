"""The eager engine against plain Python roll-outs and dense derivatives of one sample."""

import pytest
import references
import torch
from models import SIZES, cartpoles, guess, resizing, rich, single
from references import close, lists_close
from torch.func import hessian, jacfwd

from ocp.engines import Eager, eager, riccati

F64 = torch.float64
MAKES = [rich, resizing]


def set_up(problem, seed=0, size=0.3):
    us = guess(problem, seed, size)
    engine = Eager(problem)
    us = torch.stack(us) if problem.uniform else us
    return engine, engine.rollout(us), us


def derivatives(problem, xs, us, b, vs):
    """One-sample derivatives in forward mode, stage by stage: f_z, l_z, l_zz, v . f_zz."""
    p, rows = references.sample_data(problem, b), []
    for t in range(problem.horizon):
        n, stage = len(xs[t][b]), references.stage_of(problem, t)
        f = lambda z, n=n, s=stage: problem.f(z[:n], z[n:], s, p)
        l = lambda z, n=n, s=stage: problem.l(z[:n], z[n:], s, p)
        z = torch.cat((xs[t][b], us[t][b]))
        tensor3 = jacfwd(jacfwd(f))(z)
        rows.append(
            (jacfwd(f)(z), jacfwd(l)(z), hessian(l)(z), torch.tensordot(vs[t][b], tensor3, 1))
        )
    return rows


@pytest.mark.parametrize("make", MAKES)
def test_roll_out_and_cost_equal_a_plain_loop(make):
    problem = make(batch=3)
    engine, xs, us = set_up(problem)
    total = engine.total_cost(xs, us)
    for b in range(3):
        expected, J = references.roll_out(problem, [u[b] for u in us], b)
        lists_close([x[b] for x in xs], expected, 1e-13)
        close(total[b], J, 1e-13)


@pytest.mark.parametrize("make", MAKES)
def test_expansion_and_contractions_equal_forward_mode_on_one_sample(make):
    problem = make(batch=3)
    engine, xs, us = set_up(problem)
    g = torch.Generator().manual_seed(1)
    vs = [torch.randn(x.shape, generator=g, dtype=F64) for x in xs[1:]]
    ps = [torch.zeros_like(xs[0]), *vs]
    e, second = engine.expand(xs, us), engine.curvature(xs, us)
    along = engine.curvature_along(xs, us, torch.stack(ps) if problem.uniform else ps)
    for b in range(3):
        for t, (fz, lz, lzz, vfzz) in enumerate(derivatives(problem, xs, us, b, vs)):
            close(e.fz[t][b], fz, 1e-12)
            close(e.lz[t][b], lz, 1e-12)
            close(e.lzz[t][b], lzz, 1e-12)
            close(second(t, vs[t])[b], vfzz, 1e-12)
            close(along(t, vs[t])[b], vfzz, 1e-12)
        p = references.sample_data(problem, b)
        phi = lambda x, p=p: problem.phi(x, p)
        close(e.phix[b], jacfwd(phi)(xs[-1][b]), 1e-12)
        close(e.phixx[b], hessian(phi)(xs[-1][b]), 1e-12)


def test_the_table_of_contractions_and_the_calls_by_stage_agree(monkeypatch):
    engine, xs, us = set_up(rich(batch=3))
    vs = torch.randn(5, 3, 3, generator=torch.Generator().manual_seed(2)).double()
    table = engine.curvature(xs, us)
    monkeypatch.setattr(eager, "TABLE", 0)
    monkeypatch.setattr(Eager, "_along_units", None)  # the table would fail now
    by_stage = engine.curvature(xs, us)
    for t in range(5):
        close(by_stage(t, vs[t]), table(t, vs[t]), 1e-13)


def test_chunks_change_nothing(monkeypatch):
    engine, xs, us = set_up(rich(batch=3))
    ps = torch.randn(6, 3, 3, generator=torch.Generator().manual_seed(2)).double()

    def everything():
        e = engine.expand(xs, us)
        second = [engine.curvature(xs, us)(t, ps[t]) for t in range(5)]
        along = [engine.curvature_along(xs, us, ps)(t, ps[t]) for t in range(5)]
        return [*e[:5], *second, *along, engine.total_cost(xs, us), engine.gaps(xs, us)]

    whole = everything()
    monkeypatch.setattr(eager, "CHUNK", 4)  # 15 samples: chunks of 4, the last one shorter
    lists_close(everything(), whole, 1e-14)


@pytest.mark.parametrize("uniform_sizes", [True, False])
def test_stagewise_functions_get_an_int_in_every_computation(uniform_sizes):
    kinds = set()
    make = rich if uniform_sizes else resizing
    base = make(batch=2)

    def f(x, u, t, p):
        kinds.add(type(t))
        return base.dynamics(x, u, t, p)

    problem = base.replace(dynamics=f, stagewise=True)
    engine, xs, us = set_up(problem)
    kinds.clear()
    second, e = engine.curvature(xs, us), engine.expand(xs, us)
    engine.gaps(xs, us)
    engine.curvature_along(xs, us, xs)
    sweep = engine.sweep(e, us, None, torch.ones(2).double(), second)
    engine.follow(xs, us, None, sweep.policy, torch.ones(2).double())
    assert kinds == {int}
    if uniform_sizes:
        same = Eager(base)
        lists_close(e[:5], same.expand(xs, us)[:5], 1e-14)
        for t in range(5):
            close(second(t, xs[t + 1]), same.curvature(xs, us)(t, xs[t + 1]), 1e-14)


def dense_augmented(problem, xs, us, vs):
    """Derivatives of all samples as one state by dense autograd of the augmented functions."""
    S, rows = problem.samples, []
    data = [references.sample_data(problem, s) for s in range(S)]
    for t in range(problem.horizon):
        n, stage = problem.state_dims[t], references.stage_of(problem, t)

        def split(z, n=n):
            return z[: S * n].reshape(S, n), z[S * n :]

        def f(z, stage=stage, split=split):
            x, u = split(z)
            return torch.cat([problem.f(x[s], u, stage, data[s]) for s in range(S)])

        def mean(z, stage=stage, split=split):
            x, u = split(z)
            return torch.stack([problem.l(x[s], u, stage, data[s]) for s in range(S)]).mean()

        z = torch.cat((xs[t][0], us[t][0]))
        second = torch.tensordot(vs[t][0], jacfwd(jacfwd(f))(z), 1)
        rows.append((jacfwd(f)(z), jacfwd(mean)(z), hessian(mean)(z), second))
    return rows


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("table", [True, False])
def test_shared_controls_are_the_augmented_problem(make, table, monkeypatch):
    if not table:
        monkeypatch.setattr(eager, "TABLE", 0)
    problem = make(batch=3, shared_controls=True)
    engine, xs, us = set_up(problem)
    assert xs[0].shape == (1, 3 * problem.state_dims[0]) and us[0].shape[0] == 1
    g = torch.Generator().manual_seed(1)
    vs = [torch.randn(x.shape, generator=g, dtype=F64) for x in xs[1:]]
    ps = [torch.zeros_like(xs[0]), *vs]
    e, second = engine.expand(xs, us), engine.curvature(xs, us)
    along = engine.curvature_along(xs, us, torch.stack(ps) if problem.uniform else ps)
    for t, (fz, lz, lzz, vfzz) in enumerate(dense_augmented(problem, xs, us, vs)):
        close(e.fz[t][0], fz, 1e-12)
        close(e.lz[t][0], lz, 1e-12)
        close(e.lzz[t][0], lzz, 1e-12)
        close(second(t, vs[t])[0], vfzz, 1e-12)
        close(along(t, vs[t])[0], vfzz, 1e-12)
    flat = [u[0] for u in us]
    costs = torch.stack([references.roll_out(problem, flat, s)[1] for s in range(3)])
    close(engine.total_cost(xs, us)[0], costs.mean(), 1e-13)
    _, hus = riccati.costates(e)
    lists_close([h[0] for h in hus], references.gradient(problem, flat, None), 1e-12)


def test_data_of_each_problem_reaches_each_function_in_every_layout():
    """Integer labels, matrices and scalars per problem; batch rows equal problems of their own."""
    base = rich(batch=3)
    g = torch.Generator().manual_seed(3)
    labels, matrices = torch.tensor([2, 0, 1]), torch.randn(3, 3, 3, generator=g, dtype=F64)

    def f(x, u, t, p):
        return base.dynamics(x, u, t, p) + 0.1 * p["M"] @ x * p["table"][p["label"]]

    problem = base.replace(
        dynamics=f,
        parameters={**base.parameters, "table": torch.tensor([0.3, 1.0, -2.0]).double()},
        per_problem={**base.per_problem, "label": labels, "M": matrices},
    )
    engine, xs, us = set_up(problem)
    a = torch.tensor([1.0, 0.5], dtype=F64)
    sweep = engine.sweep(
        engine.expand(xs, us), us, None, torch.ones(3).double(), engine.curvature(xs, us)
    )
    trials = engine.follow(xs, us, None, sweep.policy, a)
    for b in range(3):
        alone, one_x, one_u = Eager(single(problem, b)), xs[:, b : b + 1], us[:, b : b + 1]
        close(alone.rollout(one_u), one_x, 1e-13)
        own = alone.sweep(
            alone.expand(one_x, one_u), one_u, None, torch.ones(1).double(),
            alone.curvature(one_x, one_u),
        )  # fmt: skip
        close(sweep.policy.K[:, b], own.policy.K[:, 0], 1e-12)
        one = alone.follow(one_x, one_u, None, own.policy, a)
        close(trials.xs[:, :, b], one.xs[:, :, 0], 1e-12)
        close(trials.cost[:, b], one.cost[:, 0], 1e-12)


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("with_gaps", [False, True])
def test_follow_is_one_roll_out_for_each_step_size(make, with_gaps):
    problem = make(batch=2)
    engine, xs, us = set_up(problem)
    gaps = None
    if with_gaps:
        g = torch.Generator().manual_seed(5)
        moved = [x + 0.1 * torch.randn(x.shape, generator=g, dtype=F64) for x in xs[1:]]
        xs = torch.stack([xs[0], *moved]) if problem.uniform else [xs[0], *moved]
        gaps = engine.gaps(xs, us)
    sweep = engine.sweep(engine.expand(xs, us), us, gaps, torch.ones(2).double(), None)
    a = torch.tensor([1.0, 0.3], dtype=F64)
    trials = engine.follow(xs, us, gaps, sweep.policy, a)
    for i, size in enumerate(a.tolist()):
        for b in range(2):
            p, x, J = references.sample_data(problem, b), xs[0][b], 0.0
            for t in range(problem.horizon):
                stage = references.stage_of(problem, t)
                k, K = sweep.policy.k[t][b], sweep.policy.K[t][b]
                u = us[t][b] + size * k + K @ (x - xs[t][b])
                close(trials.us[t][i, b], u, 1e-12)
                J = J + problem.l(x, u, stage, p)
                x = problem.f(x, u, stage, p)
                if gaps is not None:
                    x = x - (1 - size) * gaps[t][b]
                close(trials.xs[t + 1][i, b], x, 1e-12)
            close(trials.cost[i, b], J + problem.phi(x, p), 1e-12)


def test_follow_without_feedback_and_within_bounds():
    problem = rich(batch=2, control_bounds=([-0.1, -0.2], [0.3, 0.2]))
    engine, xs, us = set_up(problem, size=0.05)
    policy = riccati.Policy(torch.full_like(us, 0.2), None)
    trials = engine.follow(xs, us, None, policy, torch.ones(1).double())
    lower, upper = torch.tensor([[-0.1, -0.2], [0.3, 0.2]], dtype=F64)
    close(trials.us[:, 0], torch.minimum(torch.maximum(us + 0.2, lower), upper), 1e-15)


def test_sizes_of_everything_where_they_change():
    problem = resizing(batch=2)
    engine, xs, us = set_up(problem)
    assert [x.shape[1] for x in xs] == list(SIZES) == list(problem.state_dims)
    e = engine.expand(xs, us)
    assert [tuple(f.shape[1:]) for f in e.fz] == [(2, 4), (4, 2), (4, 6), (1, 7)]
    sweep = engine.sweep(e, us, None, torch.ones(2).double(), None)
    assert [tuple(K.shape[1:]) for K in sweep.policy.K] == [(1, 3), (0, 2), (2, 4), (3, 4)]


@pytest.mark.parametrize(("horizon", "batch"), [(1, 1), (1, 3), (2, 1)])
def test_one_stage_and_one_problem(horizon, batch):
    problem = cartpoles(batch, horizon=horizon)
    engine, xs, us = set_up(problem)
    sweep = engine.sweep(
        engine.expand(xs, us), us, None, torch.zeros(batch).double(), engine.curvature(xs, us)
    )
    assert sweep.policy.K.shape == (horizon, batch, 1, 4)
    for b in range(batch):
        oracle = references.ddp_sweep(
            problem, [x[b] for x in xs], [u[b] for u in us], b=b, second_order=True
        )
        lists_close([K[b] for K in sweep.policy.K], oracle.K)


def test_nothing_given_to_the_engine_is_changed():
    problem = rich(batch=2, control_bounds=([-1.0, -1.0], [1.0, 1.0]))
    engine, xs, us = set_up(problem)
    xs[2:] += 0.1
    copies = [v.clone() for v in (xs, us, problem.x0)]
    gaps = engine.gaps(xs, us)
    sweep = engine.sweep(
        engine.expand(xs, us), us, gaps, torch.ones(2).double(), engine.curvature(xs, us)
    )
    engine.follow(xs, us, gaps, sweep.policy, torch.ones(2).double())
    assert all(torch.equal(a, b) for a, b in zip((xs, us, problem.x0), copies, strict=True))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_agrees_with_the_cpu():
    problem = rich(batch=3)
    engine, xs, us = set_up(problem)
    there = Eager(problem.replace(
        x0=problem.x0.cuda(),
        parameters={k: v.cuda() for k, v in problem.parameters.items()},
        per_problem={k: v.cuda() for k, v in problem.per_problem.items()},
    ))  # fmt: skip
    close(there.rollout(us.cuda()).cpu(), xs, 1e-12)
    lists_close(
        [v.cpu() for v in there.expand(xs.cuda(), us.cuda())[:5]], engine.expand(xs, us)[:5]
    )
