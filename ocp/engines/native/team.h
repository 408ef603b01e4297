// What the threads of a block share out when a problem belongs to them all (OCP_SINGLE on a GPU).
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
#else
template <class V> using StageOf = Stage<V>;
#endif

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

// Trajectories of one problem for `count` step sizes, one a thread, and their costs and residues.
constexpr int at_once = team < 16 ? team : 16;
OCP_FN void follow_each(const Data& data, const Context<Real>& c, const Nominal<Real>& about,
                        const Real* sizes, int count, Array<Real> xs, Array<Real> us, Real* cost,
                        Real* residue) {
  __shared__ Real costs[at_once], residues[at_once];
  const int j = int(team_rank());
  if (j < count) {
    const auto out = follow(data, c, about, sizes[j], xs, us);
    costs[j] = out.cost, residues[j] = out.residue;
  }
  team_sync();
  for (int i = 0; i < count; ++i) cost[i] = costs[i], residue[i] = residues[i];
  team_sync();
}

// Room for the trajectories of all step sizes; each thread has its own, side by side.
OCP_FN Array<Real> trial_room(Arena& arena, Int count) {
#if OCP_SINGLE
  return {arena.take<Real>(count * at_once).first + team_rank() % at_once, at_once};
#else
  return arena.take<Real>(count);
#endif
}
OCP_FN Real trial_entry(const Array<Real>& trials, Int i, int trial) {
  return trials.first[i * trials.stride + trial - team_rank() % at_once];
}

}  // namespace ocp
