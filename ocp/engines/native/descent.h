// The direction of PMP: descent on the Hamiltonian along the costates, as `PMP.direction` has it.
// For the CPU.
#pragma once
#include "group.h"

namespace ocp {

// -- derivatives --------------------------------------------------------------------------------
// Apart: with a copy of the expansion in each loop there would be three to compile.
template <class V>
__attribute__((noinline)) const StageOf<V>& stage_of(Group<V>& g, Int t, StageOf<V>& own) {
  return g.stage(t, own);
}

// H_u along the costates into g.k, and phi_xx; returns the largest projected |H_u|.
template <class V> OCP_FN V gradient(Group<V>& g, V* end_xx) {
  const Data& data = *g.data;
  StageOf<V> own;
  V p[n], lo[m], hi[m], residual = V(0);
  g.begin(false);
  g.end(p, end_xx);
  for (Int t = data.T - 1; t >= 0; --t) {
    const StageOf<V>& s = stage_of(g, t, own);
    V along[d];
    OCP_UNROLL
    for (int i = 0; i < d; ++i) along[i] = s.g[i];
    OCP_UNROLL
    for (int r = 0; r < n; ++r) add_row<d>(p[r], s.F + r * stage_row, along);
    for (int i = 0; i < n; ++i) p[i] = along[i];
    if constexpr (bounded)
      for (int a = 0; a < m; ++a) {
        lo[a] = V(data.lower[t * m + a]) - g.u[t * m + a];
        hi[a] = V(data.upper[t * m + a]) - g.u[t * m + a];
      }
    residual = max_(residual, projected(along + n, lo, hi));
    write<m>(along + n, g.k + t * m);
  }
  return residual;
}

// Curvature of the Gauss-Newton model along minus the row OPEN.
template <class V> OCP_FN V curvature_along(Group<V>& g, Past<V>& past, const V* end_xx) {
  StageOf<V> own;
  const V* open = numbers_of<V>(past.row(OPEN));
  V dz[d], sum = V(0);
  for (int i = 0; i < n; ++i) dz[i] = V(0);
  for (Int t = 0; t < g.data->T; ++t) {
    const StageOf<V>& s = stage_of(g, t, own);
    const V* H = g.hessian(t, s);
    V after[n];
    for (int a = 0; a < m; ++a) dz[n + a] = -open[t * m + a];
    for (int i = 0; i < d; ++i) {
      V row = V(0);
      for (int j = 0; j < d; ++j) row += H[in_stage(i, j)] * dz[j];
      sum += dz[i] * row;
    }
    for (int i = 0; i < n; ++i) after[i] = dot<d>(s.F + i * stage_row, dz);
    for (int i = 0; i < n; ++i) dz[i] = after[i];
  }
  for (int i = 0; i < n; ++i) sum += dz[i] * dot<n>(end_xx + i * n, dz);
  return sum;
}

// -- what the last step says --------------------------------------------------------------------
template <class V> struct Last {
  V ss, sy, yy, square;  // of the step, of the open gradient
  MaskOf<V> moved;
};

// The open gradient, and the last step with the change of the gradient along it, which go into the
// slot in front of the ring. Controls and gradient become the last ones.
template <class V> OCP_FN Last<V> compare_with_last(Group<V>& g, Past<V>& past) {
  const Int N = g.data->T * m;
  Wide ss = Wide(0), sy = ss, yy = ss, square = ss, moves = ss;
  Wide *s = past.s(past.slots - 1), *y = past.y(past.slots - 1);
  for (Int j = 0; j < past.parts; ++j) {
    const Wide u = part_of(g.u, N, j), hu = part_of(g.k, N, j);
    Wide open = hu;
    if constexpr (bounded) {
      const Wide lo = limit_part(g.data->lower, N, j), hi = limit_part(g.data->upper, N, j);
      const auto held = ((u <= lo) & (hu > Wide(0))) | ((u >= hi) & (hu < Wide(0)));
      past.row(FREE)[j] = select(held, Wide(0), Wide(1));
      open = select(held, Wide(0), hu);
    }
    s[j] = u - past.row(LAST_U)[j];
    y[j] = hu - past.row(LAST_G)[j];
    ss += s[j] * s[j], sy += s[j] * y[j], yy += y[j] * y[j], square += open * open;
    moves += select(s[j] != Wide(0), Wide(1), Wide(0));
    past.row(LAST_U)[j] = u;
    past.row(LAST_G)[j] = hu;
    past.row(OPEN)[j] = open;
  }
  return {summed<V>(ss), summed<V>(sy), summed<V>(yy), summed<V>(square),
          summed<V>(moves) > V(0)};
}

template <class V> constexpr double least = is_double<V> ? 2.2250738585072014e-308
                                                         : 1.1754943508222875e-38;
constexpr double curved_least = 1e-10;  // s . y, relative, of a pair that tells a curvature

// The lanes of `mask` forget their pairs.
template <class V> OCP_FN void forget(Past<V>& past, MaskOf<V> mask) {
  const MaskOf<Wide> lanes = spread(mask);
  for (Int i = 0; i < past.kept; ++i)
    for (Int j = 0; j < past.parts; ++j) {
      past.s(i)[j] = select(lanes, Wide(0), past.s(i)[j]);
      past.y(i)[j] = select(lanes, Wide(0), past.y(i)[j]);
    }
}

// The lanes `mask` of those that are active keep the new pair: the ring turns, or their numbers
// move one slot on.
template <class V> OCP_FN void remember(Past<V>& past, MaskOf<V> mask, MaskOf<V> active) {
  if (!any(mask)) return;
  const Int slots = past.slots, front = (past.head + slots - 1) % slots, before = past.kept;
  if (past.kept < past.pairs()) ++past.kept;
  if (!any(active & !mask)) {
    past.head = front;
    return;
  }
  const MaskOf<Wide> lanes = spread(mask);
  for (int which = 0; which < 2; ++which) {
    const auto slot = [&](Int i) { return which ? past.y(i) : past.s(i); };
    for (Int j = 0; before < past.kept && j < past.parts; ++j) slot(before)[j] = Wide(0);
    for (Int i = past.kept - 1; i >= 0; --i) {
      const Wide* from = slot(i ? i - 1 : slots - 1);
      for (Int j = 0; j < past.parts; ++j) slot(i)[j] = select(lanes, from[j], slot(i)[j]);
    }
  }
}

// The scale of the step, and the pairs: `PMP.recall`.
template <class V>
OCP_FN void learn(Group<V>& g, Past<V>& past, const V* end_xx, Real shrink, MaskOf<V> active) {
  const Last<V> last = compare_with_last(g, past);
  const V none = V(0), norms = sqrt(last.ss) * sqrt(last.yy);
  const MaskOf<V> moved = last.moved & !past.fresh;
  const MaskOf<V> curved = moved & (last.sy > V(curved_least) * norms);
  const V measured = past.pairs() ? last.sy / last.yy : last.ss / last.sy;
  V scale = select(curved, measured, V(2) * past.scale);
  scale = select(moved, scale, past.scale * V(shrink));
  if (any(active & past.fresh)) {
    const V curvature = curvature_along(g, past, end_xx);
    const V unit = V(1) / sqrt(max_(last.square, V(least<V>)));
    const V first = select(curvature > none, last.square / curvature, unit);
    scale = select(past.fresh, first, scale);
  }
  past.scale = scale;
  if (any(active & !moved)) forget<V>(past, !moved);
  if (past.pairs()) remember<V>(past, curved & active, active);
  past.fresh = past.fresh & !active;
}

// -- the direction ------------------------------------------------------------------------------
// WORK becomes the L-BFGS product of the inverse Hessian with the open gradient (Nocedal, Wright
// 2006, algorithm 7.4), of the pairs restricted to what is free.
template <class V> OCP_FN void two_loop(Past<V>& past) {
  Wide* q = past.row(WORK);
  const Wide* free = past.row(FREE);
  const auto open = [&](const Wide* row, Int j) { return bounded ? row[j] * free[j] : row[j]; };
  for (Int j = 0; j < past.parts; ++j) q[j] = past.row(OPEN)[j];
  V gamma = past.scale;
  MaskOf<V> some = !always<V>();
  for (Int i = 0; i < past.kept; ++i) {
    const Wide *s = past.s(i), *y = past.y(i);
    Wide wide_ss = Wide(0), wide_sy = wide_ss, wide_yy = wide_ss, wide_sq = wide_ss;
    for (Int j = 0; j < past.parts; ++j) {
      const Wide a = open(s, j), b = open(y, j);
      wide_ss += a * a, wide_sy += a * b, wide_yy += b * b, wide_sq += a * q[j];
    }
    const V sy = summed<V>(wide_sy), yy = summed<V>(wide_yy);
    const MaskOf<V> used = sy > V(curved_least) * sqrt(summed<V>(wide_ss)) * sqrt(yy);
    past.rho[i] = select(used, V(1) / select(used, sy, V(1)), V(0));
    past.alpha[i] = past.rho[i] * summed<V>(wide_sq);
    gamma = select(used & !some, sy / select(yy > V(0), yy, V(1)), gamma);
    some = some | used;
    const Wide alpha = Wide(past.alpha[i]);
    for (Int j = 0; j < past.parts; ++j) q[j] -= alpha * open(y, j);
  }
  for (Int j = 0; j < past.parts; ++j) q[j] *= Wide(gamma);
  for (Int i = past.kept - 1; i >= 0; --i) {
    const Wide *s = past.s(i), *y = past.y(i);
    Wide yq = Wide(0);
    for (Int j = 0; j < past.parts; ++j) yq += open(y, j) * q[j];
    const Wide factor = Wide(past.alpha[i] - past.rho[i] * summed<V>(yq));
    for (Int j = 0; j < past.parts; ++j) q[j] += factor * open(s, j);
  }
}

// Part j of the controls after a step, within their bounds, less the controls.
OCP_FN Wide within(const Data& data, const Wide& u, const Wide& step, Int size, Int j) {
  Wide to = u + step;
  if constexpr (bounded)
    to = min_(max_(to, limit_part(data.lower, size, j)), limit_part(data.upper, size, j));
  return to - u;
}

// g.k becomes the direction: the quasi-Newton step, or the scaled gradient where clipping has
// turned that. Returns the slope.
template <class V> OCP_FN V descend(Group<V>& g, Past<V>& past) {
  const Data& data = *g.data;
  const Int N = data.T * m;
  const Wide scale = Wide(past.scale), *u = past.row(LAST_U), *hu = past.row(LAST_G);
  Wide *open = past.row(OPEN), *q = past.row(WORK);
  Wide plain = Wide(0), newton = plain;
  if (past.pairs()) two_loop(past);
  for (Int j = 0; j < past.parts; ++j) {
    open[j] = within(data, u[j], -(scale * open[j]), N, j);
    plain += hu[j] * open[j];
    if (!past.pairs()) continue;
    q[j] = within(data, u[j], bounded ? -(q[j] * past.row(FREE)[j]) : -q[j], N, j);
    newton += hu[j] * q[j];
  }
  const V slope = summed<V>(plain), newton_slope = summed<V>(newton);
  const MaskOf<V> better = past.pairs() ? newton_slope < V(1e-4) * slope : !always<V>();
  const MaskOf<Wide> lanes = spread(better);
  for (Int j = 0; j < past.parts; ++j)
    put_part(select(lanes, q[j], open[j]), N, j, g.k);
  return select(better, newton_slope, slope);
}

template <class V>
__attribute__((noinline)) Promise<V> descent(
    Group<V>& g, Past<V>& past, Real shrink, MaskOf<V> active) {
  V end_xx[n * n];
  Promise<V> promise;
  promise.residual = gradient(g, end_xx);
  learn(g, past, end_xx, shrink, active);
  promise.slope = promise.change = descend(g, past);
  promise.failed = select(promise.slope * V(0) == V(0), V(-1), V(0));
  return promise;
}

}  // namespace ocp
