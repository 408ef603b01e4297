// Where a solve begins: controls within their bounds, rolled out. For the CPU.
#pragma once
#include "group.h"

namespace ocp {

// Second argument of `ocp_begin`. Fields are 8 bytes each.
struct BeginCall {
  const Real *x0, *us;  // (B, n), (T, B, m)
  Real *xs, *clipped;   // out: (T + 1, B, n), (T, B, m)
  Real* cost;           // out: (B,)
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
    for (Int i = 0; i < (T + 1) * n; ++i) call.xs[i] = trial_entry(g.trial_x, i, 0);
    for (Int i = 0; i < T * m; ++i) call.clipped[i] = trial_entry(g.trial_u, i, 0);
  } else {
    const auto out = follow(data, g.c, about, Wide(1), g.trial_x, g.trial_u);
    scatter(g.trial_x, T + 1, B, n, g.rows, count, call.xs);
    scatter(g.trial_u, T, B, m, g.rows, count, call.clipped);
    for (int l = 0; l < count; ++l) cost[l] = get(out.cost, l), residue[l] = get(out.residue, l);
  }
  for (int l = 0; l < count; ++l) {
    call.cost[g.rows[l]] = cost[l];
    call.finite[g.rows[l]] = residue[l] == 0;
  }
}

}  // namespace ocp
