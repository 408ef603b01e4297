"""The box-QP against SciPy and against its optimality conditions; the compiled one against it."""

from ctypes import c_int64, c_void_p

import numpy as np
import pytest
import references
import torch
from native_cases import needs_compiler

from ocp.engines.box_qp import box_qp
from ocp.engines.native import build

F64 = torch.float64


def random_problems(B, m, seed, condition=10.0):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=F64)
    Q, _ = torch.linalg.qr(draw(B, m, m))
    H = Q @ torch.diag_embed(condition ** torch.linspace(0, 1, m, dtype=F64).expand(B, m)) @ Q.mT
    middle, half = draw(B, m), 0.05 + torch.rand(B, m, generator=g, dtype=F64)
    return H, 3 * draw(B, m), middle - half, middle + half


@pytest.mark.parametrize(("m", "condition"), [(1, 1.0), (2, 10.0), (5, 10.0), (5, 1e6), (12, 1e3)])
def test_agrees_with_scipy(m, condition):
    H, g, lo, hi = random_problems(20, m, seed=m, condition=condition)
    x, free, _, good = box_qp(H, g, lo, hi)
    assert bool(good.all())
    for b in range(len(H)):
        expected = references.box_qp(*(v[b].numpy() for v in (H, g, lo, hi)))
        value = lambda y, b=b: y @ H[b].numpy() @ y / 2 + g[b].numpy() @ y
        assert value(x[b].numpy()) <= value(expected) + 1e-9 * (1 + abs(value(expected)))
        np.testing.assert_allclose(x[b], expected, atol=1e-7 * condition**0.5)
    assert bool((x[free] > lo[free]).all()) or bool((x[free] >= lo[free]).all())


@pytest.mark.parametrize("m", [1, 3, 8])
def test_meets_the_optimality_conditions_to_rounding(m):
    H, g, lo, hi = random_problems(200, m, seed=10 + m, condition=100.0)
    x, free, L, good = box_qp(H, g, lo, hi)
    slope = g + (H @ x[..., None])[..., 0]
    assert bool(good.all()) and bool(((x >= lo) & (x <= hi)).all())
    assert float(slope[free].abs().max()) < 1e-11
    assert bool((slope[~free & (x == lo)] > 0).all()) and bool((slope[~free & (x == hi)] < 0).all())
    assert bool(((x == lo) | (x == hi))[~free].all())
    both = free[:, :, None] & free[:, None, :]
    torch.testing.assert_close(L @ L.mT, torch.where(both, H, torch.eye(m, dtype=F64)))


def test_infinite_limits_give_the_newton_step():
    H, g, lo, hi = random_problems(5, 4, seed=3)
    x, free, _, good = box_qp(H, g, lo - torch.inf, hi + torch.inf)
    torch.testing.assert_close(x, -torch.linalg.solve(H, g))
    assert bool(free.all()) and bool(good.all())


def test_a_closed_box_and_no_control_at_all():
    H, g, lo, _ = random_problems(5, 3, seed=4)
    x, _, _, good = box_qp(H, g, lo, lo)
    assert torch.equal(x, lo) and bool(good.all())
    empty = torch.zeros(5, 0, dtype=F64)
    x, free, L, good = box_qp(torch.zeros(5, 0, 0, dtype=F64), empty, empty, empty)
    assert x.shape == (5, 0) and free.shape == (5, 0) and L.shape == (5, 0, 0)
    assert bool(good.all())


def test_an_indefinite_problem_is_reported_and_harms_no_other():
    H, g, lo, hi = random_problems(4, 3, seed=5)
    alone = box_qp(H, g, lo - 5, hi + 5)
    broken = H.clone()
    broken[2] = -H[2]
    x, _, _, good = box_qp(broken, g, lo - 5, hi + 5)
    assert good.tolist() == [True, True, False, True]
    keep = [0, 1, 3]
    assert torch.equal(x[keep], alone[0][keep])


def test_nan_in_one_problem_harms_no_other():
    H, g, lo, hi = random_problems(4, 3, seed=6)
    alone = box_qp(H, g, lo, hi)
    broken = g.clone()
    broken[1] = torch.nan
    x, free, _, good = box_qp(H, broken, lo, hi)
    keep = [0, 2, 3]
    assert torch.equal(x[keep], alone[0][keep]) and torch.equal(free[keep], alone[1][keep])
    assert bool(good[keep].all())


def test_an_indefinite_matrix_is_fine_where_it_is_definite_on_the_free_controls():
    H = torch.tensor([[[-1.0, 0.0], [0.0, 2.0]]], dtype=F64)
    g = torch.tensor([[5.0, -1.0]], dtype=F64)
    x, free, _, good = box_qp(H, g, torch.zeros(1, 2).double(), torch.full((1, 2), 3.0).double())
    torch.testing.assert_close(x, torch.tensor([[0.0, 0.5]], dtype=F64))
    assert free.tolist() == [[False, True]] and bool(good)


def test_float32():
    H, g, lo, hi = random_problems(50, 4, seed=7)
    expected, *_ = box_qp(H, g, lo, hi)
    x, _, _, good = box_qp(*(v.float() for v in (H, g, lo, hi)))
    assert x.dtype == torch.float32 and bool(good.all())
    torch.testing.assert_close(x.double(), expected, rtol=1e-4, atol=1e-4)


def last_bit_off(B, m, seed):
    """Zero, where the search begins, lies a last bit off a limit for every other component."""
    H, g, lo, hi = random_problems(B, m, seed, condition=300.0)
    lo, hi = lo - hi - 0.1, hi - lo + 0.1
    at = torch.arange(m) % 2 == seed % 2
    return H, g, torch.where(at & (g > 0), -1e-16, lo), torch.where(at & (g <= 0), 1e-16, hi)


@pytest.mark.parametrize("m", [2, 3, 6])
def test_a_start_a_last_bit_off_its_limit_holds_nobody_up(m):
    problems = last_bit_off(300, m, seed=m)
    x, free, _, good = box_qp(*problems)
    slope = problems[1] + (problems[0] @ x[..., None])[..., 0]
    assert bool(good.all())
    assert float(slope[free].abs().max()) < 1e-11
    for b in range(0, 300, 10):
        expected = references.box_qp(*(v[b].numpy() for v in problems))
        np.testing.assert_allclose(x[b], expected, atol=1e-8)


BOX = """
#define OCP_REAL {real}
#include "box_qp.h"
using namespace ocp;
extern "C" __attribute__((visibility("default"))) void many(
    const Real* H, const Real* g, const Real* lo, const Real* hi, Real* x, Real* good, Int B) {{
  constexpr int m = {m};
  using V = {lanes};
  for (Int b = 0; b < B; b += {step}) {{
    V h[tri_size(m)], q[m], l[m], u[m];
    for (int s = 0; s < {step}; ++s)
      for (int i = 0; i < m; ++i) {{
        for (int j = 0; j <= i; ++j) set(h[tri(i, j)], s, H[((b + s) * m + i) * m + j]);
        set(q[i], s, g[(b + s) * m + i]);
        set(l[i], s, lo[(b + s) * m + i]);
        set(u[i], s, hi[(b + s) * m + i]);
      }}
    const auto qp = box_qp<m>(h, q, l, u);
    for (int s = 0; s < {step}; ++s) {{
      for (int i = 0; i < m; ++i) x[(b + s) * m + i] = get(qp.x[i], s);
      good[b + s] = get(select(qp.definite, V(1), V(0)), s);
    }}
  }}
}}
"""


@needs_compiler
@pytest.mark.parametrize("m", [1, 2, 5])
@pytest.mark.parametrize("lanes", [False, True], ids=["one", "lanes"])
def test_the_compiled_one_is_the_same(m, lanes):
    kinds = ("Pack<Real, OCP_LANES>", "OCP_LANES") if lanes else ("Real", "1")
    library = build.load(BOX.format(real="double", m=m, lanes=kinds[0], step=kinds[1]))
    library.many.argtypes = [c_void_p] * 6 + [c_int64]
    for problems in (
        random_problems(64, m, m, 1e3),
        last_bit_off(64, m, m),
        last_bit_off(64, m, 0),
    ):
        expected, _, _, found = box_qp(*problems)
        x, good = torch.full((64, m), torch.nan, dtype=F64), torch.zeros(64, dtype=F64)
        given = [v.contiguous() for v in problems]
        library.many(*(v.data_ptr() for v in (*given, x, good)), 64)
        assert bool(good.all()) and bool(found.all())
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-11)
