// The entry points of a compiled program.
//
// Arrays are contiguous, Real or int64, of the shapes given; d = n + m. Optional ones may be null.
// The first argument is `Data`, see context.h; its work memory is overwritten. Programs built with
// OCP_SINGLE for a CPU take B = 1 only. No entry keeps a pointer, and calls with different work
// memory may run at the same time. On a GPU entries are kernels, and structures are passed by value.
#pragma once
#include "appraise.h"
#include "group.h"
#if OCP_DECIDE
#include "loop.h"
#endif
#if OCP_ENSEMBLE
#include "ensemble.h"
#endif

#if OCP_GRID
#define OCP_ENTRY OCP_KERNEL
#else
#define OCP_ENTRY extern "C" __attribute__((visibility("default"))) void
#define OCP_GIVEN(Kind) const Kind&
#endif

namespace ocp {

// body(block, x, u) for all samples of T stages and L lines, W at a time.
template <class Body>
OCP_FN void each_block(const Data& data, Int lines, const Real* xs, const Real* us, Body body) {
  const Int samples = data.T * lines, count = (samples + OCP_LANES - 1) / OCP_LANES;
  parallel(data.threads, count, [&](Int, Int begin, Int end) {
    for (Int i = begin; i < end; ++i) {
      Wide x[n], u[m];
      const Block block = block_at(data, lines, i * OCP_LANES, samples);
      gather(xs, n, block.row, x);
      gather(us, m, block.row, u);
      body(block, x, u);
    }
  });
}

// body(block, x) for the last states (L, n), W at a time.
template <class Body>
OCP_FN void each_end(const Data& data, Int lines, const Real* end, Body body) {
  parallel(data.threads, (lines + OCP_LANES - 1) / OCP_LANES, [&](Int, Int begin, Int last) {
    for (Int i = begin; i < last; ++i) {
      Wide x[n];
      const Block block = block_at(data, lines, i * OCP_LANES, lines);
      gather(end, n, block.row, x);
      body(block, x);
    }
  });
}

// body(group, first problem, how many) for all groups, each thread with its own work memory.
template <class Body> OCP_FN void each_group(const Data& data, Body body) {
  parallel_units(data.threads, group_count(data.B), [&](Int thread, Int begin, Int end) {
    Arena arena = arena_of(data, thread);
    Group<Lane> group;
    group.place(data, arena);
    for (Int i = begin; i < (side_by_side ? begin + 1 : end); ++i) {
      team_sync();  // the last problem has left
      const int count = take_consecutive(group, i * lanes);
      body(group, count, arena);
    }
  });
}

// Second argument of `ocp_sweep`. Fields are 8 bytes each.
struct SweepCall {
  Given given;           // without fz, stages are expanded along xs, us
  const Real* xs;        // (T + 1, B, n); optional with a given expansion and no second order
  const Real* us;        // (T, B, m)
  const Real* gaps;      // (T, B, n), optional
  const Real* damping;   // (B,)
  const Int* full;       // (B,) nonzero where the model has second-order terms; optional: nowhere
  Int on_state;          // the damping is on V_xx
  Real *k, *K;           // out: (T, B, m), (T, B, m, n)
  Real *vx, *vxx;        // out, optional: (T + 1, B, n), (T + 1, B, n, n)
  Real *p, *hu;          // out, optional: costates (T + 1, B, n), H_u along them (T, B, m)
  Int* indefinite;       // out, with p: (B,) see `appraise`
  Real *slope, *curvature, *residual;  // out: (B,)
  Int *failed, *finite;  // out: (B,); finite: 1 where all derivatives that were used are
  Real *hamiltonian, *gap;  // out, with p: (B,), largest projected |H_u| and largest |f - x'|
};

template <class V>
OCP_FN void sweep_group(
    const Data& data, const SweepCall& call, Group<V>& g, int count, Arena arena) {
  const Int T = data.T, B = data.B;
  Pass<V> pass = {};
  pass.data = &data;
  pass.full = !always<V>();
  for (int l = 0; l < lanes; ++l) {
    set(pass.damping, l, call.damping[g.rows[l]]);
    if (call.full) set(pass.full, l, call.full[g.rows[l]] != 0);
  }
  if (call.xs) gather(call.xs, T + 1, B, n, g.rows, g.x);
  gather(call.us, T, B, m, g.rows, g.u);
  if (call.gaps) gather(call.gaps, T, B, n, g.rows, g.gap);
  pass.us = g.u;
  pass.gaps = call.gaps ? g.gap : nullptr;
  pass.on_state = call.on_state != 0;
  pass.k = g.k;
  pass.K = g.K;
  if (call.vx) {
    pass.vx = arena.template take<V>((T + 1) * n);
    pass.vxx = arena.template take<V>((T + 1) * n * n);
  }
  if (call.p) {
    pass.p = arena.template take<V>((T + 1) * n);
    pass.hu = arena.template take<V>(T * m);
  }
  g.given = call.given.fz || call.given.table ? &call.given : nullptr;
  g.begin(any(pass.full));
  V indefinite = V(-1);
  const Promise<V> promise = call.p ? appraise(pass, g, indefinite) : swept(pass, g);
  scatter(g.k, T, B, m, g.rows, count, call.k);
  scatter(g.K, T, B, m * n, g.rows, count, call.K);
  if (call.vx) {
    scatter(pass.vx, T + 1, B, n, g.rows, count, call.vx);
    scatter(pass.vxx, T + 1, B, n * n, g.rows, count, call.vxx);
  }
  if (call.p) {
    scatter(pass.p, T + 1, B, n, g.rows, count, call.p);
    scatter(pass.hu, T, B, m, g.rows, count, call.hu);
  }
  const V hamiltonian = call.p ? largest_projected(g, pass.hu) : V(0);
  const V gap = call.p ? largest_gap(g) : V(0);
  for (int l = 0; l < count; ++l) {
    const Int b = g.rows[l];
    call.slope[b] = get(promise.slope, l);
    call.curvature[b] = 2 * (get(promise.change, l) - get(promise.slope, l));
    call.residual[b] = get(promise.residual, l);
    call.failed[b] = Int(get(promise.failed, l));
    call.finite[b] = get(g.residue, l) == 0;
    if (!call.p) continue;
    call.indefinite[b] = Int(get(indefinite, l));
    call.hamiltonian[b] = get(hamiltonian, l);
    call.gap[b] = get(gap, l);
  }
}

// Second argument of `ocp_follow`. Fields are 8 bytes each.
struct FollowCall {
  const Real *xs, *us;      // (T + 1, B, n), (T, B, m)
  const Real* gaps;         // (T, B, n), optional
  const Real *k, *K;        // (T, B, m), (T, B, m, n); K optional: no feedback
  const Real* step_sizes;   // (A,)
  Int A;
  Real *trial_xs, *trial_us;  // out: (T + 1, A, B, n), (T, A, B, m)
  Real* cost;                 // out: (A, B)
};

template <class V>
OCP_FN void follow_single(const Data& data, const FollowCall& call, Group<V>& g, int there) {
  const Int T = data.T, B = data.B, b = g.rows[0];
  gather_lane(call.xs, T + 1, B, n, b, 0, g.x);
  gather_lane(call.us, T, B, m, b, 0, g.u);
  gather_lane(call.k, T, B, m, b, 0, g.k);
  if (call.gaps) gather_lane(call.gaps, T, B, n, b, 0, g.gap);
  if (call.K) gather_lane(call.K, T, B, m * n, b, 0, g.K);
  team_sync();
  const Nominal<V> about = {g.x, g.u, call.gaps ? g.gap : nullptr, g.k, call.K ? g.K : nullptr};
  for (int first = 0, count; first < int(call.A); first += count) {
    count = tried_at_once(first, int(call.A));
    Real cost[at_once], residue[at_once];
    const Real* sizes = call.step_sizes + first;
    follow_each(data, g.c, about, sizes, count, g.trial_x, g.trial_u, cost, residue);
    for (int l = 0; there && l < count; ++l) {
      const Int line = (first + l) * B + b, lines = call.A * B, xs = (T + 1) * n, us = T * m;
      for (Int i = team_rank(); i < xs; i += team_size())
        call.trial_xs[(i / n * lines + line) * n + i % n] = trial_entry(g.trial_x, xs, i, l);
      for (Int i = team_rank(); i < us; i += team_size())
        call.trial_us[(i / m * lines + line) * m + i % m] = trial_entry(g.trial_u, us, i, l);
      call.cost[line] = cost[l];
    }
    team_sync();
  }
}

template <class V>
OCP_FN void follow_group(const Data& data, const FollowCall& call, Group<V>& g, int count) {
  const Int T = data.T, B = data.B;
  gather(call.xs, T + 1, B, n, g.rows, g.x);
  gather(call.us, T, B, m, g.rows, g.u);
  gather(call.k, T, B, m, g.rows, g.k);
  if (call.gaps) gather(call.gaps, T, B, n, g.rows, g.gap);
  if (call.K) gather(call.K, T, B, m * n, g.rows, g.K);
  const Nominal<V> about = {g.x, g.u, call.gaps ? g.gap : nullptr, g.k, call.K ? g.K : nullptr};
  for (Int j = 0; j < call.A; ++j) {
    Int line[lanes];
    for (int l = 0; l < lanes; ++l) line[l] = j * B + g.rows[l];
    const auto out = follow(data, g.c, about, Wide(call.step_sizes[j]), g.trial_x, g.trial_u);
    scatter(g.trial_x, T + 1, call.A * B, n, line, count, call.trial_xs);
    scatter(g.trial_u, T, call.A * B, m, line, count, call.trial_us);
    scatter(&out.cost, 1, line, count, call.cost);
  }
}

template <class V>
OCP_FN void follow_lanes(const Data& data, const FollowCall& call, Group<V>& g, int count) {
  if constexpr (together) follow_single(data, call, g, count);
  else follow_group(data, call, g, count);
}

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
