// What the threads of a problem share out on a GPU, where it belongs to several, see grid.h.
#pragma once
#include "contracted.h"
#include "rollout.h"

#ifndef OCP_TEAM_BYTES
#define OCP_TEAM_BYTES (40 * 1024)
#endif

namespace ocp {

// A stage of the problem, kept in work memory.
struct FullStage {
  Real F[n * d], g[d], H[d * d];
};
#if OCP_SINGLE
template <class V> using StageOf = FullStage;
constexpr int hessian_size = d * d;
#else
template <class V> using StageOf = Stage<V>;
constexpr int hessian_size = tri_size(d);
#endif
constexpr int stage_row = d;  // from one row of F to the next
constexpr int in_stage(int i, int j) { return sym(i, j); }  // of H

// What the threads of a sweep exchange, see team_sweep.h.
struct TeamWork {
  Real x[n], xx[n * n], p[n];  // the value model
  Real gap[n], moved[n];
  Real product[n * d];  // v_xx f_z
  Real q[d], along[d], Q[tri_size(d)];
  Real uu[tri_size(m)], lo[m], hi[m], k[m], K[m * n];  // K is Q_ux at first
  Real uuk[m], R[m * n];
  Factor<m, Real> factor;
  bool free[m], definite;
};

// A block has 48 kB of fast memory without asking for more; larger models work in global memory.
constexpr bool fits = sizeof(TeamWork) <= OCP_TEAM_BYTES;

// Whether the line search tries several step sizes at the same time.
constexpr bool together = ranks > 1;

// Stages of one problem, one a thread; returns their residue.
OCP_FN Real expand_over_time(const Data& data, Context<Real> c, Array<Real> xs, Array<Real> us,
                             Array<FullStage> stages) {
  Real residue = 0, x[n], u[m];
  for (Int t = team_rank(); t < data.T; t += team_size()) {
    FullStage& s = stages[t];
    read<n>(xs + t * n, x);
    read<m>(us + t * m, u);
    c.at(t);
    Model::f_jacobian(x, u, c, s.F);
    Model::l_expansion(x, u, c, s.g, s.H);
    for (int i = 0; i < n * d; ++i) residue += s.F[i] * 0;
    for (int i = 0; i < d; ++i) residue += s.g[i] * 0;
    for (int i = 0; i < d * d; ++i) residue += s.H[i] * 0;
  }
  return team_sum(residue);
}
// The same into numbers [T][stage_size], where problems lie side by side.
OCP_FN Real expand_over_time(const Data& data, Context<Real> c, Array<Real> xs, Array<Real> us,
                             Array<Real> stages) {
  Real residue = 0, x[n], u[m];
  for (Int t = team_rank(); t < data.T; t += team_size()) {
    Stage<Real> s;
    read<n>(xs + t * n, x);
    read<m>(us + t * m, u);
    c.at(t);
    expand_stage(x, u, c, s);
    add_stage_residue(residue, s);
    write<stage_size<Real>>((const Real*)&s, stages + t * stage_size<Real>);
  }
  return team_sum(residue);
}

// Trajectories of one problem for `count` step sizes, one a thread, and their costs and residues.
constexpr int at_once = ranks < 16 ? ranks : 16;
OCP_FN void follow_each(const Data& data, const Context<Real>& c, const Nominal<Real>& about,
                        const Real* sizes, int count, Array<Real> xs, Array<Real> us, Real* cost,
                        Real* residue) {
  __shared__ Real costs[at_once * beside], residues[at_once * beside];
  const int j = int(team_rank()), own = int(place_in_block());
  if (j < count) {
    const auto out = follow(data, c, about, sizes[j], xs, us);
    costs[j * beside + own] = out.cost, residues[j * beside + own] = out.residue;
  }
  team_sync();
  for (int i = 0; i < count; ++i)
    cost[i] = costs[i * beside + own], residue[i] = residues[i * beside + own];
  team_sync();
}

// Room for the trajectories of all step sizes, of `count` numbers each; every thread of a team has
// its own: side by side, or, where problems lie side by side, one after the other.
OCP_FN Array<Real> trial_room(Arena& arena, Int count) {
#if OCP_SINGLE
  return {arena.take<Real>(count * at_once).first + team_rank() % at_once, at_once};
#else
  return arena.take<Real>(count * at_once) + team_rank() * count;
#endif
}
OCP_FN Real trial_entry(const Array<Real>& trials, Int count, Int i, int trial) {
#if OCP_SINGLE
  return trials.first[i * trials.stride + trial - team_rank() % at_once];
#else
  return trials[(trial - team_rank()) * count + i];
#endif
}

}  // namespace ocp
