// Box-constrained quadratic programs by projected Newton steps, in step in all lanes.
//
// minimise 1/2 x' H x + g' x  subject to  lo <= x <= hi   (Tassa, Mansard, Todorov 2014, III-B)
// The choices are those of the module box_qp of the eager engine.
#pragma once
#include "linalg.h"

namespace ocp {

template <int m, class V> struct BoxQP {
  V x[m];
  MaskOf<V> free[m];  // not held by a limit
  Factor<m, V> factor;             // of H on the free components, of the identity on the others
  MaskOf<V> definite;  // H is, on the free components, and x is optimal
};

template <class V>
constexpr double epsilon = is_double<V> ? 2.220446049250313e-16 : 1.1920928955078125e-07;

// Gradient at x, who is free, and the factor there. Where every free component of the gradient is
// rounding, or H is not definite, the search is over: returns that. `again`: the factor is there of
// those that were free before.
template <int m, class V>
OCP_FN MaskOf<V> box_state(const V* H, const V* g, const V* lo, const V* hi, bool again,
                           BoxQP<m, V>& qp, V* slope) {
  V masked[tri_size(m)];
  auto flat = always<V>(), other = !flat;
  OCP_UNROLL
  for (int i = 0; i < m; ++i) {
    V size = abs_(g[i]);
    slope[i] = g[i];
    OCP_UNROLL
    for (int j = 0; j < m; ++j) {
      V term = H[sym(i, j)] * qp.x[j];
      slope[i] += term;
      size += abs_(term);
    }
    auto held = ((qp.x[i] <= lo[i]) & (slope[i] > V(0))) | ((qp.x[i] >= hi[i]) & (slope[i] < V(0)));
    if (again) other = other | (held & qp.free[i]) | !(held | qp.free[i]);
    qp.free[i] = !held;
    flat = flat & ((abs_(slope[i]) <= V(16 * epsilon<V>)*size) | !qp.free[i]);
  }
  if (again && !any(other)) return flat | !qp.factor.definite;
  OCP_UNROLL
  for (int i = 0; i < m; ++i) {
    OCP_UNROLL
    for (int j = 0; j <= i; ++j)
      masked[tri(i, j)] = select(qp.free[i] & qp.free[j], H[tri(i, j)], V(i == j ? 1 : 0));
  }
  qp.factor = factor<m>(masked);
  return flat | !qp.factor.definite;
}

// Move x along the projected step, the largest of 1, 1/2, ... with enough decrease. Lanes that are
// not searching stay; returns those that find no decrease. `cut`: the limits cut the last trial.
template <int m, class V>
OCP_FN MaskOf<V> box_move(const V* H, const V* lo, const V* hi, const V* slope, const V* step,
                          BoxQP<m, V>& qp, MaskOf<V> searching, MaskOf<V>& cut) {
  V x[m];
  for (int i = 0; i < m; ++i) x[i] = qp.x[i];
  double shrink = 1;
  for (int trial = 0; trial < 10 && any(searching); ++trial, shrink *= 0.5) {
    V at[m], moved[m], gain = V(0), bend = V(0);
    cut = !always<V>();
    for (int i = 0; i < m; ++i) {
      const V wanted = x[i] + V(shrink) * step[i];
      at[i] = min_(max_(wanted, lo[i]), hi[i]);
      cut = cut | (at[i] != wanted);
      moved[i] = at[i] - x[i];
      gain += slope[i] * moved[i];
    }
    for (int i = 0; i < m; ++i) {
      V row = V(0);
      for (int j = 0; j < m; ++j) row += H[sym(i, j)] * moved[j];
      bend += moved[i] * row;
    }
    auto good = searching & (gain + bend * V(0.5) <= V(0.1) * gain);
    for (int i = 0; i < m; ++i) qp.x[i] = select(good, at[i], qp.x[i]);
    searching = searching & !good;
  }
  return searching;
}

// Where a component is a last bit off its limit, Newton's step of the others counts on a move that
// the limit cuts off, and may climb whatever its length. The gradient, each component scaled by its
// curvature, always descends, and puts such a component on its limit (Bertsekas 1982). Lanes
// without a decrease are done: optimal to rounding.
template <int m, class V>
OCP_FN void box_step(const V* H, const V* lo, const V* hi, const V* slope, const V* step,
                     BoxQP<m, V>& qp, MaskOf<V>& done) {
  MaskOf<V> cut = done;
  MaskOf<V> stuck = box_move<m>(H, lo, hi, slope, step, qp, !done, cut);
  if (m == 1) cut = !always<V>();
  done = done | (stuck & !cut), stuck = stuck & cut;
  if (!any(stuck)) return;
  V scaled[m];
  for (int i = 0; i < m; ++i)
    scaled[i] = select(qp.free[i], -slope[i] / select(qp.free[i], H[tri(i, i)], V(1)), V(0));
  done = done | box_move<m>(H, lo, hi, slope, scaled, qp, stuck, cut);
}

// Where nothing is held and Newton's step ends inside the limits it ends at the solution: returns who
// is done then.
template <int m, class V>
OCP_FN MaskOf<V> box_reach(
    const V* lo, const V* hi, const V* step, BoxQP<m, V>& qp, MaskOf<V> done) {
  V at[m];
  auto inside = !done;
  OCP_UNROLL
  for (int i = 0; i < m; ++i) {
    at[i] = qp.x[i] + step[i];
    inside = inside & qp.free[i] & (at[i] > lo[i]) & (at[i] < hi[i]);
  }
  OCP_UNROLL
  for (int i = 0; i < m; ++i) qp.x[i] = select(inside, at[i], qp.x[i]);
  return done | inside;
}

template <int m, class V>
OCP_FN BoxQP<m, V> box_qp(const V* H, const V* g, const V* lo, const V* hi) {
  BoxQP<m, V> qp;
  auto done = !always<V>();
  for (int i = 0; i < m; ++i) qp.x[i] = min_(max_(V(0), lo[i]), hi[i]);
  for (int iteration = 0; iteration < 50; ++iteration) {
    V slope[m], step[m];
    done = done | box_state<m>(H, g, lo, hi, iteration > 0, qp, slope);
    if (all(done)) break;
    for (int i = 0; i < m; ++i) step[i] = select(qp.free[i], slope[i], V(0));
    solve_negative<m>(qp.factor, step);
    done = box_reach<m>(lo, hi, step, qp, done);
    if (all(done)) break;
    box_step<m>(H, lo, hi, slope, step, qp, done);
  }
  qp.definite = qp.factor.definite & done;
  return qp;
}

}  // namespace ocp
