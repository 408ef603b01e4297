// The entry points of a compiled program.
//
// Arrays are contiguous, Real or int64, of the shapes given; d = n + m. Optional ones may be null.
// The first argument is `Data`, see context.h; its work memory is overwritten. Programs built with
// OCP_SINGLE for a CPU take B = 1 only. No entry keeps a pointer, and calls with different work
// memory may run at the same time. On a GPU entries are kernels, and structures are passed by value.
#pragma once
#include "pieces.h"
#if OCP_DECIDE
#include "loop.h"
#endif
#if OCP_ENSEMBLE
#include "ensemble_follow.h"
#include "ensemble_sweep.h"
#endif

#if OCP_GRID
#define OCP_ENTRY OCP_KERNEL
#else
#define OCP_ENTRY extern "C" __attribute__((visibility("default"))) void
#define OCP_GIVEN(Kind) const Kind&
#endif

namespace ocp {

// n, m, lanes, single, bounds, second order, step sizes tried (0 without Decide), bytes of a Real.
constexpr Int facts[] = {n, m, OCP_LANES, single, bounded, OCP_SECOND_ORDER,
#if OCP_DECIDE
                         trials,
#else
                         0,
#endif
                         sizeof(Real)};

}  // namespace ocp

using ocp::Data;
using ocp::Int;
using ocp::Real;

// gaps (T, B, n): f(x[t], u[t]) - x[t + 1].
OCP_ENTRY ocp_gaps(OCP_GIVEN(Data) data, const Real* xs, const Real* us, Real* gaps) {
  using namespace ocp;
  each_block(data, data.B, xs, us, [&](const Block& block, const Wide* x, const Wide* u) {
    Wide next[n], given[n];
    gather(xs + data.B * n, n, block.row, given);
    Model::f(x, u, block.c, next);
    for (int i = 0; i < n; ++i) next[i] -= given[i];
    scatter(next, n, block.row, block.count, gaps);
  });
}

// fz (T, B, n, d), lz (T, B, d), lzz (T, B, d, d), phix (B, n), phixx (B, n, n).
OCP_ENTRY ocp_expand(OCP_GIVEN(Data) data, const Real* xs, const Real* us, Real* fz, Real* lz,
                     Real* lzz, Real* phix, Real* phixx) {
  using namespace ocp;
  each_block(data, data.B, xs, us, [&](const Block& block, const Wide* x, const Wide* u) {
    Stage<Wide> s;
    Wide H[d * d];
    expand_stage(x, u, block.c, s);
    for (int i = 0; i < d * d; ++i) H[i] = s.H[sym(i / d, i % d)];
    scatter(s.F, n * d, block.row, block.count, fz);
    scatter(s.g, d, block.row, block.count, lz);
    scatter(H, d * d, block.row, block.count, lzz);
  });
  each_end(data, data.B, xs + data.T * data.B * n, [&](const Block& block, const Wide* x) {
    Wide g[n], H[n * n];
    Model::phi_expansion(x, block.c, g, H);
    scatter(g, n, block.row, block.count, phix);
    scatter(H, n * n, block.row, block.count, phixx);
  });
}

#if OCP_SECOND_ORDER
// H (T, B, d, d): v . f_zz at every stage, v (T, B, n).
OCP_ENTRY ocp_contracted(OCP_GIVEN(Data) data, const Real* xs, const Real* us, const Real* v,
                         Real* H) {
  using namespace ocp;
  each_block(data, data.B, xs, us, [&](const Block& block, const Wide* x, const Wide* u) {
    Wide along[n], out[d * d];
    gather(v, n, block.row, along);
    f_contracted(x, u, block.c, along, out);
    scatter(out, d * d, block.row, block.count, H);
  });
}
#endif

// ps (T + 1, B, n) and hus (T, B, m) of an expansion.
OCP_ENTRY ocp_costates(OCP_GIVEN(Data) data, const Real* fz, const Real* lz, const Real* phix,
                       Real* ps, Real* hus) {
  ocp::parallel(data.threads, data.B, [&](Int, Int begin, Int end) {
    for (Int b = begin; b < end; ++b)
      ocp::costates(data.T, data.B, b, fz, lz, phix, ps, hus);
  });
}

// dxs (T + 1, B, n) and dus (T, B, m) under linearised dynamics; K and gaps are optional.
OCP_ENTRY ocp_linear_rollout(OCP_GIVEN(Data) data, const Real* fz, const Real* k, const Real* K,
                             const Real* gaps, Real* dxs, Real* dus) {
  ocp::parallel(data.threads, data.B, [&](Int, Int begin, Int end) {
    for (Int b = begin; b < end; ++b)
      ocp::linear_rollout(data.T, data.B, b, fz, k, K, gaps, dxs, dus);
  });
}

OCP_ENTRY ocp_sweep(OCP_GIVEN(Data) data, OCP_GIVEN(ocp::SweepCall) call) {
  ocp::each_group(data, [&](auto& g, int count, auto& arena) {
    ocp::sweep_group(data, call, g, count, arena);
  });
}

OCP_ENTRY ocp_follow(OCP_GIVEN(Data) data, OCP_GIVEN(ocp::FollowCall) call) {
  ocp::each_group(data, [&](auto& g, int count, auto&) {
    ocp::follow_lanes(data, call, g, count);
  });
}

#if OCP_GRID
#include "kernels.h"
#else
OCP_ENTRY ocp_info(Int* out) {
  for (int i = 0; i < 8; ++i) out[i] = ocp::facts[i];
}

extern "C" __attribute__((visibility("default"))) Int ocp_work_bytes(OCP_GIVEN(Data) data) {
  return ocp::group_bytes(data) * ocp::threads_for(data.threads, ocp::group_count(data.B));
}

// xs (T + 1, B, n) of controls us (T, B, m) from x0 (B, n).
OCP_ENTRY ocp_rollout(OCP_GIVEN(Data) data, const Real* x0, const Real* us, Real* xs) {
  ocp::each_group(data, [&](auto& g, int count, auto&) {
    const Int T = data.T, B = data.B;
#if OCP_INNER && OCP_SINGLE
    OCP_COPY(xs, x0, ocp::n * sizeof(Real));
    rollout(data, g.c, (Real*)us, xs);
    return;
#endif
    Int rows[OCP_LANES];
    for (int l = 0; l < OCP_LANES; ++l) rows[l] = g.rows[l % ocp::lanes];
    gather(x0, ocp::n, rows, g.trial_x);
    gather(us, T, B, ocp::m, rows, g.trial_u);
    rollout(data, ocp::context_of<ocp::Wide>(data, rows), g.trial_u, g.trial_x);
    scatter(g.trial_x, T + 1, B, ocp::n, rows, count, xs);
  });
}

// cost (L,) of lines xs (T + 1, L, n), us (T, L, m); line i is of problem i % B.
OCP_ENTRY ocp_total_cost(OCP_GIVEN(Data) data, Int L, const Real* xs, const Real* us, Real* cost) {
  using namespace ocp;
  each_end(data, L, xs + data.T * L * n, [&](const Block& block, const Wide* x) {
    Wide phi;
    Model::phi(x, block.c, &phi);
    scatter(&phi, 1, block.row, block.count, cost);
  });
  Data alone = data;  // lines collect stages in turn: one thread
  alone.threads = 1;
  each_block(alone, L, xs, us, [&](const Block& block, const Wide* x, const Wide* u) {
    Wide l;
    Model::l(x, u, block.c, &l);
    for (int i = 0; i < block.count; ++i) cost[block.row[i] % L] += get(l, i);
  });
}

#include "begin.h"

OCP_ENTRY ocp_begin(OCP_GIVEN(Data) data, OCP_GIVEN(ocp::BeginCall) call) {
  if (call.states) return ocp::begin_with_gaps(data, call);
  ocp::each_group(data, [&](auto& g, int count, auto&) { ocp::begin_group(data, call, g, count); });
}

#if OCP_DECIDE
// Returns the largest number of steps that a problem took.
extern "C" __attribute__((visibility("default"))) Int ocp_iterate(
    const Data& data, const ocp::Iterate& call) {
  for (Int b = 0; b < data.B; ++b) call.taken[b] = call.handed[b] = 0;
  const Int B = data.B;
  ocp::parallel(data.threads, ocp::group_count(B), [&](Int thread, Int begin, Int end) {
    const Int last = end * ocp::lanes;
    ocp::iterate_range(data, call, ocp::arena_of(data, thread), begin * ocp::lanes,
                       last < B ? last : B);
  });
  Int most = 0;
  for (Int b = 0; b < B; ++b) most = call.taken[b] > most ? call.taken[b] : most;
  for (Int b = 0; b < B; ++b) ocp::fill_rows(data, call, b, most);
  return most;
}

#include "again.h"
#include "whole.h"

#if OCP_SINGLE
extern "C" __attribute__((visibility("default"))) void ocp_whole(
    const Data& data, const ocp::Whole& call) {
  ocp::whole(data, call);
}
#endif

// Steps as `ocp_iterate`; 0 where the caller has to go on from the plan by the pieces.
extern "C" __attribute__((visibility("default"))) Int ocp_again(
    const Data& data, const ocp::Again& call) {
  const ocp::Iterate& loop = *call.iterate;
  const Int B = data.B;
  ocp::shift_plan(data, call);
  for (Int i = 0; i < ocp::REALS * B; ++i) loop.reals[i] = call.reals[i];
  for (Int i = 0; i < (ocp::NUMBERS - ocp::REALS) * B; ++i) loop.counts[i] = call.counts[i];
  ocp_follow(data, *call.follow);
  for (Int b = 0; b < B; ++b)
    loop.reals[ocp::START_COST * B + b] = loop.reals[ocp::COST * B + b];
  const Int steps = ocp_iterate(data, loop);
  return ocp::went_well(data, loop) ? steps : 0;
}
#endif

#if OCP_ENSEMBLE && !OCP_GRID
// Problems whose samples share their controls; Data::B is their number. Work memory of the sweep:
extern "C" __attribute__((visibility("default"))) Int ocp_ensemble_bytes(const Data& data) {
  return ocp::ensemble::bytes(data);
}

OCP_ENTRY ocp_ensemble_sweep(const Data& data, const ocp::EnsembleSweep& call) {
  ocp::ensemble::sweep(data, call);
}

OCP_ENTRY ocp_ensemble_follow(const Data& data, const ocp::EnsembleFollow& call) {
  ocp::parallel(data.threads, call.A, [&](Int, Int begin, Int end) {
    for (Int j = begin; j < end; ++j) ocp::ensemble::follow(data, call, j);
  });
}
#endif
#endif
