// The roll-out of a policy of an ensemble.
#pragma once
#include "ensemble.h"

namespace ocp {

// Second argument of `ocp_ensemble_follow`. Fields are 8 bytes each.
struct EnsembleFollow {
  const Real *xs, *us;        // (T + 1, S, n), (T, m)
  const Real* gaps;           // (T, S, n), optional
  const Real *k, *K;          // (T, m), (T, m, N); K optional: no feedback
  const Real* step_sizes;     // (A,)
  Int A;
  Real *trial_xs, *trial_us;  // out: (T + 1, A, S, n), (T, A, m)
  Real* cost;                 // out: (A,), means over the samples
};

namespace ensemble {

// sum K (x' - x) over N states
OCP_FN Real feedback(Int N, const Real* K, const Real* moved, const Real* x) {
  Wide sum = Wide(0);
  Int i = block_rank() * OCP_LANES;
  for (; i + OCP_LANES <= N; i += block_size() * OCP_LANES)
    sum += load<Wide>(K + i) * (load<Wide>(moved + i) - load<Wide>(x + i));
  Real rest = sum_lanes(sum);
  for (; i < N; ++i) rest += K[i] * (moved[i] - x[i]);  // none where a pack is one number
  return block_sum(rest);
}

OCP_FN void follow(const Data& data, const EnsembleFollow& call, Int j) {
  const Int S = data.B, N = S * n;
  const Real a = call.step_sizes[j];
  Wide cost = Wide(0);
  each_number(N, [&](Int i) { call.trial_xs[j * N + i] = call.xs[i]; });
  for (Int t = 0; t <= data.T; ++t) {
    const Real* x = call.trial_xs + (t * call.A + j) * N;
    Real *after = call.trial_xs + ((t + 1) * call.A + j) * N;
    Wide u[m];
    for (int i = 0; t < data.T && i < m; ++i) {
      Real v = call.us[t * m + i] + a * call.k[t * m + i];
      if (call.K) v += feedback(N, call.K + (t * m + i) * N, x, call.xs + t * N);
      if constexpr (bounded) v = min_(max_(v, data.lower[t * m + i]), data.upper[t * m + i]);
      if (block_rank() == 0) call.trial_us[(t * call.A + j) * m + i] = v;
      u[i] = Wide(v);
    }
    each_pack(S, [&](Int r) {
      Wide at_x[n], next[n], l;
      const Block block = block_at(data, S, t * S + r, (t + 1) * S);
      Int own[OCP_LANES];
      for (int i = 0; i < OCP_LANES; ++i) own[i] = block.row[i] - t * S;
      gather(x, n, own, at_x);
      if (t == data.T) {
        Model::phi(at_x, block.c, &l);
      } else {
        Model::l(at_x, u, block.c, &l);
        Model::f(at_x, u, block.c, next);
        if (call.gaps) {
          Wide gap[n];
          gather(call.gaps, n, block.row, gap);
          for (int i = 0; i < n; ++i) next[i] -= Wide(1 - a) * gap[i];
        }
        scatter(next, n, own, block.count, after);
      }
      clear_rest(&l, 1, block.count);
      cost += l;
    });
  }
  const Real sum = total(cost);
  if (block_rank() == 0) call.cost[j] = sum / Real(S);
}

}  // namespace ensemble
}  // namespace ocp
