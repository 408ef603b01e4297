// Problems that are computed together, one in each lane, and where their expansions come from.
//
// A program built with OCP_SINGLE solves one problem: its sweep has packs along the rows of
// matrices (row_sweep.h), its expansions are packs over stages, and its line search rolls out W step
// sizes at once. Otherwise lanes are problems throughout, and a stage is expanded when the sweep
// arrives at it. On a GPU a pack is one number of a thread, and the threads of a team are what the
// lanes of OCP_SINGLE are here.
#pragma once
#include "contracted.h"
#include "rollout.h"
#if OCP_GRID
#include "team.h"
#else
#include "past.h"
#if OCP_SINGLE
#include "rows.h"
#endif
#include "threads.h"
#endif

namespace ocp {

template <bool one> struct Either {
  typedef Real type;
};
template <> struct Either<false> {
  typedef Wide type;
};
typedef Either<single>::type Lane;  // what sweeps compute on

// Arrays of the caller that replace the expansion of the model; fz null for none.
struct Given {
  const Real* fz;     // (T, B, n, d)
  const Real* lz;     // (T, B, d)
  const Real* lzz;    // (T, B, d, d)
  const Real* phix;   // (B, n)
  const Real* phixx;  // (B, n, n)
  const Real* table;  // (T, B, d, d): second-order terms that are known ahead, or null
};

// -- a single problem ------------------------------------------------------------------------
#if !OCP_GRID
#if OCP_SINGLE
template <class V> using StageOf = RowStage<V>;
constexpr int stage_row = D;
constexpr int in_stage(int i, int j) { return i < j ? low(j, i) : low(i, j); }
#else
template <class V> using StageOf = Stage<V>;
constexpr int stage_row = d;  // from one row of F to the next
constexpr int in_stage(int i, int j) { return sym(i, j); }  // of H
constexpr int hessian_size = tri_size(d);
#endif

// Trajectories of a single problem for `count` step sizes, and their costs and residues.
constexpr int at_once = OCP_LANES;
constexpr bool together = single;
OCP_FN void follow_each(const Data& data, const Context<Real>& c, const Nominal<Real>& about,
                        const Real* sizes, int count, Wide* xs, Wide* us, Real* cost,
                        Real* residue) {
#if OCP_INNER
  if (count == 1) {  // the loops of the model fill the lanes
    const auto out = follow(data, c, about, sizes[0], (Real*)xs, (Real*)us);
    cost[0] = out.cost, residue[0] = out.residue;
    for (Int i = (data.T + 1) * n - 1; i >= 0; --i) xs[i] = Wide(((const Real*)xs)[i]);
    for (Int i = data.T * m - 1; i >= 0; --i) us[i] = Wide(((const Real*)us)[i]);
    return;
  }
#endif
  const Int same[OCP_LANES] = {};
  Wide a;
  for (int l = 0; l < OCP_LANES; ++l) set(a, l, sizes[l < count ? l : count - 1]);
  const auto out = follow(data, context_of<Wide>(data, same), about, a, xs, us);
  for (int l = 0; l < count; ++l) cost[l] = get(out.cost, l), residue[l] = get(out.residue, l);
}
OCP_FN Wide* trial_room(Arena& arena, Int count) { return arena.take<Wide>(count); }
OCP_FN Real trial_entry(const Wide* trials, Int, Int i, int trial) { return get(trials[i], trial); }
#endif

// -- a group ------------------------------------------------------------------------------------
template <class V> struct Group {
  static constexpr int lanes = Of<V>::lanes;
  const Data* data;
  Int problem[lanes];  // -1 where there is none; such a lane computes on, unread
  Context<V> c;
  Array<V> x, u, gap;  // [T + 1][n], [T][m], [T][n]
  Array<V> k, K;       // [T][m], [T][m][n]
  Array<Wide> trial_x, trial_u;
  Array<StageOf<V>> stages;  // of a single problem
#if OCP_GRID
  Array<V> expanded;    // where problems lie side by side: [T][stage_size]
  V* bend;              // [d][d] v_x . f_zz of the stage in work
  TeamWork* team_work;  // for models whose work does not fit in fast memory
#else
  Tabled* table;  // of a single problem: of W stages each
  V* hessians;    // and l_zz, stage by stage or once
#endif
  V residue;  // 0 while all derivatives are finite, else nan
  const Given* given;
  Int rows[lanes];  // problems again, an idle lane reading problem 0

  // Lay a group out in the memory that begins at `arena`.
  OCP_METHOD void place(const Data& of, Arena& arena) {
    const Int T = of.T;
    data = &of;
    given = nullptr;
    x = arena.template take<V>((T + 1) * n);
    u = arena.template take<V>(T * m);
    gap = arena.template take<V>(T * n);
    k = arena.template take<V>(T * m);
    K = arena.template take<V>(T * m * n);
    trial_x = trial_room(arena, (T + 1) * n);
    trial_u = trial_room(arena, T * m);
    if constexpr (single) stages = arena.template take<StageOf<V>>(T);
#if OCP_GRID
    if constexpr (side_by_side) expanded = arena.template take<V>(T * stage_size<V>);
    if constexpr (single) {
      bend = arena.template take<V>(OCP_SECOND_ORDER ? d * d : 0).first;
      team_work = arena.template take<TeamWork>(fits ? 0 : 1).first;
    }
#else
    table = arena.template take<Tabled>(single && OCP_TABLE ? (T + OCP_LANES - 1) / OCP_LANES : 0);
    hessians = arena.template take<V>(single ? T * hessian_size : 0);
#endif
  }

  OCP_METHOD void take(int lane, Int b) {
    problem[lane] = b;
    rows[lane] = b < 0 ? 0 : b;
    c = context_of<V>(*data, rows);
  }

  // -- what a sweep asks for; `curved`: second-order terms too
  OCP_METHOD void begin(bool curved) {
    residue = V(0);
    team_sync();  // x and u are there
#if OCP_GRID
    if constexpr (side_by_side) {
      if (!given) residue = expand_over_time(*data, c, x, u, expanded);
      team_sync();
    }
#endif
    if constexpr (single) {
      for (Int t = team_rank(); given && t < data->T; t += team_size()) read_stage(t, stages[t]);
#if OCP_GRID
      if (!given) residue = expand_over_time(*data, c, x, u, stages);
#elif OCP_SINGLE
      Tabled* tabled = OCP_TABLE && curved && !(given && given->table) ? table : nullptr;
      if (!given || tabled) residue = expand_over_time(
            *data, x, u, given ? nullptr : stages, hessians, tabled);
#endif
      team_sync();
    }
  }
  OCP_METHOD void end(V* at_x, V* at_xx) {
    if (given) {
      gather(given->phix, n, rows, at_x);
      gather(given->phixx, n * n, rows, at_xx);
    } else if constexpr (single && !OCP_GRID) {
      Wide x_end[n], g[n], H[n * n];
      const Int same[OCP_LANES] = {};
      for (int i = 0; i < n; ++i) x_end[i] = Wide(x[data->T * n + i]);
      Model::phi_expansion(x_end, context_of<Wide>(*data, same), g, H);
      for (int i = 0; i < n; ++i) at_x[i] = get(g[i], 0);
      for (int i = 0; i < n * n; ++i) at_xx[i] = get(H[i], 0);
    } else {
      V x_end[n];
      ocp::read<n>(x + data->T * n, x_end);
      Model::phi_expansion(x_end, c, at_x, at_xx);
    }
    add_residue(residue, at_x, n);
    add_residue(residue, at_xx, n * n);
  }
  // l_zz of a stage, with entries as `in_stage` says.
  OCP_METHOD const V* hessian(Int t, const StageOf<V>& s) const {
#if OCP_SINGLE && !OCP_GRID
    return hessians + (same_hessian && !given ? 0 : t * hessian_size);
#else
    return s.H;
#endif
  }
  OCP_METHOD const StageOf<V>& stage(Int t, StageOf<V>& own) {
    if constexpr (single) {
      return stages[t];
    } else if (given) {
      read_stage(t, own);
#if OCP_GRID
    } else if constexpr (side_by_side) {
      ocp::read<stage_size<V>>(expanded + t * stage_size<V>, (V*)&own);
#endif
    } else {
      V at_x[n], at_u[m];
      ocp::read<n>(x + t * n, at_x);
      ocp::read<m>(u + t * m, at_u);
      c.at(t);
      expand_stage(at_x, at_u, c, own);
      add_stage_residue(residue, own);
    }
    return own;
  }
  OCP_METHOD void curve(Int t, const V* v, MaskOf<V> full, V* bend) {
    V H[d * d];
    curvature(t, v, H);
    for (int i = 0; i < d; ++i)
      for (int j = 0; j <= i; ++j) bend[tri(i, j)] = H[i * d + j];
    if (!all(full))
      for (int i = 0; i < tri_size(d); ++i) bend[i] = select(full, bend[i], V(0));
  }
  OCP_METHOD void curvature(Int t, const V* v, V* H) {
    if (given && given->table) gather(given->table + t * data->B * d * d, d * d, rows, H);
    else contract(t, v, H);
  }
  // v . f_zz. A single problem fills all lanes with itself: as fast, and half the text to compile.
  OCP_METHOD void contract(Int t, const V* v, V* H) {
#if OCP_SECOND_ORDER
#if OCP_ROWS
    Real rows[combined_size];
    f_combined(table[t / OCP_LANES], int(t % OCP_LANES), v, rows);
    for (int i = 0; i < d; ++i)
      for (int j = 0; j < d; ++j) H[i * d + j] = rows[in_combined(i, j)];
    return;
#elif OCP_LONG
    f_combined(table[t / OCP_LANES], int(t % OCP_LANES), v, H);
    return;
#elif OCP_TABLE
    Second::f_combined(in_lane(table[t / OCP_LANES], int(t % OCP_LANES)), v, H);
    return;
#endif
    if constexpr (single && !OCP_GRID && !OCP_ALONG_Z) {
      const Int same[OCP_LANES] = {};
      Context<Wide> wide = context_of<Wide>(*data, same);
      Wide at_x[n], at_u[m], along[n], out[d * d];
      for (int i = 0; i < n; ++i) at_x[i] = Wide(x[t * n + i]), along[i] = Wide(v[i]);
      for (int i = 0; i < m; ++i) at_u[i] = Wide(u[t * m + i]);
      wide.at(t);
      f_contracted(at_x, at_u, wide, along, out);
      for (int i = 0; i < d * d; ++i) H[i] = get(out[i], 0);
    } else {
      V at_x[n], at_u[m];
      ocp::read<n>(x + t * n, at_x);
      ocp::read<m>(u + t * m, at_u);
      c.at(t);
      f_contracted(at_x, at_u, c, v, H);
    }
#endif
  }
  template <class S> OCP_METHOD void read_stage(Int t, S& s) {
    V* bends = (V*)hessian(t, s);
    gather(given->lz + t * data->B * d, d, rows, s.g);
    if constexpr (hessian_size == d * d) {
      gather(given->fz + t * data->B * n * d, n * d, rows, s.F);
      gather(given->lzz + t * data->B * d * d, d * d, rows, bends);
    } else {
      V H[d * d], F[n * d];
      gather(given->fz + t * data->B * n * d, n * d, rows, F);
      for (int i = 0; i < n; ++i)
        for (int j = 0; j < d; ++j) s.F[i * stage_row + j] = F[i * d + j];
      gather(given->lzz + t * data->B * d * d, d * d, rows, H);
      for (int i = 0; i < d; ++i)
        for (int j = 0; j <= i; ++j) bends[in_stage(i, j)] = H[i * d + j];
    }
  }
};

// Problems first..first + lanes - 1; the ragged end repeats the last. Returns how many are there.
template <class V> OCP_FN int take_consecutive(Group<V>& group, Int first) {
  const Int left = group.data->B - first;
  const int count = int(left < group.lanes ? left : group.lanes);
  for (int l = 0; l < group.lanes; ++l) group.take(l, first + (l < count ? l : count - 1));
  return count;
}

// Step sizes that a single problem tries together from the j-th on; the first alone where that is
// less to do: it is mostly taken.
OCP_FN int tried_at_once(int j, int all) {
  const int most = OCP_INNER && !OCP_GRID && j == 0 ? 1 : at_once;
  return all - j < most ? all - j : most;
}

constexpr int lanes = Of<Lane>::lanes;
OCP_FN Int group_count(Int problems) { return (problems + lanes - 1) / lanes; }

// Bytes of the group of each thread (on a GPU, of each unit), equal for all.
OCP_FN Int group_bytes(const Data& data) {
  Arena arena(nullptr);
  Group<Lane> group;
  group.place(data, arena);
  const Int sizes[] = {n, n * n, n, m};  // of a stage, see `sweep_group`
  for (Int size : sizes) arena.take<Lane>((data.T + 1) * size);
#if !OCP_GRID
  Past<Lane> past;
  past.place(data, arena);
#endif
  return Int(arena.next) + Int(Arena::alignment);
}

// The work memory of a thread or unit.
OCP_FN Arena arena_of(const Data& data, Int thread) {
#if OCP_GRID
  if constexpr (!single) return Arena(data.work, thread, data.threads);
#endif
  return Arena(data.work + thread * group_bytes(data));
}

}  // namespace ocp

#if OCP_GRID && OCP_SINGLE
#include "team_sweep.h"
#elif OCP_SINGLE
#include "row_sweep.h"
#endif

namespace ocp {

// The backward pass by all threads of a problem, or by the first of them.
template <class V> OCP_FN Promise<V> swept(const Pass<V>& pass, Group<V>& g) {
#if OCP_GRID
  if constexpr (side_by_side) {
    Promise<V> own = {};
    if (team_rank() == 0) own = sweep(pass, g);
    g.residue = team_first(g.residue);
    return {team_first(own.slope), team_first(own.change), team_first(own.residual),
            team_first(own.failed)};
  }
#endif
  return sweep(pass, g);
}

}  // namespace ocp
