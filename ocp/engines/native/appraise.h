// What is said of a trajectory in the end: a sweep without damping, and the residuals that do not
// depend on it.
#pragma once
#include "group.h"

namespace ocp {

// Second order; where that is not definite, the same damped at the level of rounding; where that is
// not either, Gauss-Newton, and `indefinite` is the stage. What `Eager.appraise` does.
template <class V> OCP_FN Promise<V> appraise(Pass<V>& pass, Group<V>& g, V& indefinite) {
  Promise<V> promise = swept(pass, g);
  MaskOf<V> failed = promise.failed >= V(0);
  if (anyone(any(failed))) {
    V size = V(0);
    StageOf<V> own;
    for (Int t = team_rank(); t < g.data->T; t += team_size()) {
      const StageOf<V>& s = g.stage(t, own);
      const V* H = g.hessian(t, s);
      for (int i = 0; i < hessian_size; ++i) size = max_(size, abs_(H[i]));
    }
    size = team_max(size);
    const V rounding = V(sizeof(Real) == 8 ? 1.4901161193847656e-08 : 3.4526698300124393e-04);
    const V least = V(sizeof(Real) == 8 ? 2.2250738585072014e-308 : 1.1754943508222875e-38);
    pass.damping = select(failed, rounding * max_(size, least), V(0));
    promise = swept(pass, g);
    failed = promise.failed >= V(0);
  }
  indefinite = promise.failed;
  if (anyone(any(failed))) {
    pass.damping = select(failed, V(0), pass.damping);
    pass.full = pass.full & !failed;
    promise = swept(pass, g);
  }
  return promise;
}

// A sweep of the iterations that is the one `appraise` begins with, kept so that it is not made
// again. For a single problem on a CPU.
struct Certificate {
  Real *vx, *vxx, *p, *hu, *k, *K;  // as of `Pass`
  Promise<Real> promise;
  bool holds;
};

// Lets a sweep write what it says where it is that one, and the last if steps square the residual:
// writing takes a few per cent of a sweep. Returns whether; `to` may be null.
template <class V>
OCP_FN bool keep(const Certificate* to, V residual_before, Real tolerance, Pass<V>& pass) {
  if constexpr (single && !OCP_GRID) {
    if (!to || !pass.full || pass.gaps || pass.damping != 0) return false;
    if (!(residual_before * residual_before <= tolerance)) return false;
    pass.vx = to->vx, pass.vxx = to->vxx, pass.p = to->p, pass.hu = to->hu;
    return true;
  }
  return false;
}

// After the search: `moved`, from the trajectory that was swept.
template <class V> OCP_FN void complete(
    Certificate* to, const Group<V>& g, const Promise<V>& promise, MaskOf<V> moved) {
  if constexpr (single && !OCP_GRID) {
    if (to) to->holds = to->holds && !moved;
    if (!to || !to->holds) return;
    to->promise = promise;
    OCP_COPY(to->k, g.k, g.data->T * m * sizeof(Real));
    OCP_COPY(to->K, g.K, g.data->T * m * n * sizeof(Real));
  }
}

// Largest |u - clip(u - H_u, lo, hi)|; hu [T][m].
template <class V> OCP_FN V largest_projected(const Group<V>& g, Array<V> hu) {
  V worst = V(0);
  for (Int i = team_rank(); i < g.data->T * m; i += team_size()) {
    V move = -hu[i];
    if constexpr (bounded)
      move = min_(max_(move, V(g.data->lower[i]) - g.u[i]), V(g.data->upper[i]) - g.u[i]);
    worst = max_(worst, abs_(move));
  }
  return team_max(worst);
}

// Largest |f(x, u) - x'|.
template <class V> OCP_FN V largest_gap(Group<V>& g) {
  const Int T = g.data->T;
  V worst = V(0);
#if OCP_SINGLE && !OCP_GRID  // packs over stages
  Wide most = Wide(0), x[n], u[m], next[n], given[n];
  for (Int first = 0; first < T; first += OCP_LANES) {
    const Block block = block_at(*g.data, 1, first, T);
    gather(g.x, n, block.row, x);
    gather(g.u, m, block.row, u);
    gather(g.x + n, n, block.row, given);
    Model::f(x, u, block.c, next);
    for (int i = 0; i < n; ++i) most = max_(most, abs_(next[i] - given[i]));
  }
  for (int l = 0; l < OCP_LANES; ++l) worst = max_(worst, get(most, l));
#else
  for (Int t = team_rank(); t < T; t += team_size()) {
    V x[n], u[m], next[n], given[n];
    read<n>(g.x + t * n, x);
    read<m>(g.u + t * m, u);
    read<n>(g.x + (t + 1) * n, given);
    g.c.at(t);
    Model::f(x, u, g.c, next);
    for (int i = 0; i < n; ++i) worst = max_(worst, abs_(next[i] - given[i]));
  }
#endif
  return team_max(worst);
}

}  // namespace ocp
