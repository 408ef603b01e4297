// Where a solve begins: controls within their bounds, rolled out, or beside states that are given.
// For the CPU.
#pragma once
#include "group.h"

namespace ocp {

// Second argument of `ocp_begin`. Fields are 8 bytes each.
struct BeginCall {
  const Real *x0, *us;  // (B, n), (T, B, m)
  const Real* states;   // (T + 1, B, n); null to roll out. The first is x0 whatever it says
  Real *xs, *clipped;   // out: (T + 1, B, n), (T, B, m)
  Real* gaps;           // out, with states: (T, B, n)
  Real *cost, *gap;     // out: (B,); gap: sum of the magnitudes of the gaps
  Int* finite;          // out: (B,), 1 where states, controls and cost are
};

// The roll-out of a policy that changes nothing.
template <class V>
OCP_FN void begin_group(const Data& data, const BeginCall& call, Group<V>& g, int count) {
  const Int T = data.T, B = data.B;
  for (int l = 0; l < lanes; ++l) {
    gather_lane(call.x0, 1, B, n, g.rows[l], l, g.x);
    gather_lane(call.us, T, B, m, g.rows[l], l, g.u);
  }
  for (Int i = 0; i < T * m; ++i) g.k[i] = V(0);
  const Nominal<V> about = {g.x, g.u, nullptr, g.k, nullptr};
  Real cost[OCP_LANES], residue[OCP_LANES];
  if constexpr (single) {
    const Real full = 1;
    follow_each(data, g.c, about, &full, 1, g.trial_x, g.trial_u, cost, residue);
    const Int xs = (T + 1) * n, us = T * m;
    for (Int i = 0; i < xs; ++i) call.xs[i] = trial_entry(g.trial_x, xs, i, 0);
    for (Int i = 0; i < us; ++i) call.clipped[i] = trial_entry(g.trial_u, us, i, 0);
  } else {
    const auto out = follow(data, g.c, about, Wide(1), g.trial_x, g.trial_u);
    scatter(g.trial_x, T + 1, B, n, g.rows, count, call.xs);
    scatter(g.trial_u, T, B, m, g.rows, count, call.clipped);
    for (int l = 0; l < count; ++l) cost[l] = get(out.cost, l), residue[l] = get(out.residue, l);
  }
  for (int l = 0; l < count; ++l) {
    call.cost[g.rows[l]] = cost[l];
    call.gap[g.rows[l]] = 0;
    call.finite[g.rows[l]] = residue[l] == 0;
  }
}

// States that are given, which may leave gaps.
OCP_FN void begin_with_gaps(const Data& data, const BeginCall& call) {
  const Int T = data.T, B = data.B;
  OCP_COPY(call.xs, call.states, (T + 1) * B * n * sizeof(Real));
  OCP_COPY(call.xs, call.x0, B * n * sizeof(Real));
  for (Int i = 0; i < T * B * m; ++i) {
    Real u = call.us[i];
    const Int bound = i / (B * m) * m + i % m;
    if constexpr (bounded) u = min_(max_(u, data.lower[bound]), data.upper[bound]);
    call.clipped[i] = u;
  }
  ocp_gaps(data, call.xs, call.clipped, call.gaps);
  ocp_total_cost(data, B, call.xs, call.clipped, call.cost);
  for (Int b = 0; b < B; ++b) {
    call.gap[b] = 0;
    Real residue = call.cost[b] * 0;
    for (Int t = 0; t <= T; ++t)
      for (Int i = 0; i < n; ++i) {
        residue += call.xs[(t * B + b) * n + i] * 0;
        if (t < T) call.gap[b] += abs_(call.gaps[(t * B + b) * n + i]);
      }
    call.finite[b] = residue + call.gap[b] * 0 == 0;
  }
}

}  // namespace ocp
