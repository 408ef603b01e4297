// What the entries `ocp_sweep` and `ocp_follow` are given and do, and how entries share out their work.
#pragma once
#include "appraise.h"

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

}  // namespace ocp
