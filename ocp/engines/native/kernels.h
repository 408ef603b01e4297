// Entries that differ on a GPU: no kernel returns a number, and none sees what all others wrote.
#pragma once
#include "group.h"

OCP_ENTRY ocp_info(Int* out) {
  if (ocp::thread_index() != 0) return;
  for (int i = 0; i < 8; ++i) out[i] = ocp::facts[i];
}

// Bytes of work memory for `Data::threads` units.
OCP_ENTRY ocp_work_bytes(OCP_GIVEN(Data) data, Int* out) {
  if (ocp::thread_index() == 0) *out = ocp::group_bytes(data) * data.threads;
}

// xs (T + 1, B, n) of controls us (T, B, m) from x0 (B, n).
OCP_ENTRY ocp_rollout(OCP_GIVEN(Data) data, const Real* x0, const Real* us, Real* xs) {
  using namespace ocp;
  parallel(0, data.B, [&](Int b, Int, Int) {
    Real x[n], u[m], next[n];
    Context<Real> c = context_of<Real>(data, &b);
    read<n>(x0 + b * n, x);
    write<n>(x, xs + b * n);
    for (Int t = 0; t < data.T; ++t) {
      c.at(t);
      read<m>(us + (t * data.B + b) * m, u);
      Model::f(x, u, c, next);
      write<n>(next, xs + ((t + 1) * data.B + b) * n);
      for (int i = 0; i < n; ++i) x[i] = next[i];
    }
  });
}

// cost (L,) of lines xs (T + 1, L, n), us (T, L, m); line i is of problem i % B.
OCP_ENTRY ocp_total_cost(OCP_GIVEN(Data) data, Int L, const Real* xs, const Real* us, Real* cost) {
  using namespace ocp;
  parallel(0, L, [&](Int line, Int, Int) {
    Real x[n], u[m], l, sum;
    const Int b = line % data.B;
    Context<Real> c = context_of<Real>(data, &b);
    read<n>(xs + (data.T * L + line) * n, x);
    Model::phi(x, c, &sum);
    for (Int t = 0; t < data.T; ++t) {
      c.at(t);
      read<n>(xs + (t * L + line) * n, x);
      read<m>(us + (t * L + line) * m, u);
      Model::l(x, u, c, &l);
      sum += l;
    }
    cost[line] = sum;
  });
}

#if OCP_DECIDE
OCP_ENTRY ocp_iterate(OCP_GIVEN(Data) data, OCP_GIVEN(ocp::Iterate) call) {
  using namespace ocp;
  parallel_units(0, data.B, [&](Int unit, Int begin, Int end) {
    if (begin < end) call.taken[begin] = call.handed[begin] = 0;
    iterate_range(data, call, arena_of(data, unit), begin, end);
  });
}

// After `ocp_iterate`; most: the largest number of steps that a problem took.
OCP_ENTRY ocp_fill_rows(OCP_GIVEN(Data) data, OCP_GIVEN(ocp::Iterate) call, Int most) {
  ocp::parallel(0, data.B, [&](Int b, Int, Int) { ocp::fill_rows(data, call, b, most); });
}
#endif

#if OCP_ENSEMBLE
// By blocks of OCP_WIDE_TEAM threads: the sweep by one, the roll-out of a policy by one for each
// step size.
OCP_ENTRY ocp_ensemble_bytes(OCP_GIVEN(Data) data, Int* out) {
  if (ocp::thread_index() == 0) *out = ocp::ensemble::bytes(data);
}

OCP_WIDE_KERNEL ocp_ensemble_sweep(OCP_GIVEN(Data) data, OCP_GIVEN(ocp::EnsembleSweep) call) {
  ocp::ensemble::sweep(data, call);
}

OCP_WIDE_KERNEL ocp_ensemble_follow(OCP_GIVEN(Data) data, OCP_GIVEN(ocp::EnsembleFollow) call) {
  for (Int j = blockIdx.x; j < call.A; j += gridDim.x) ocp::ensemble::follow(data, call, j);
}
#endif
