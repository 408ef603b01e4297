// The backward pass of sweep.h for a problem that belongs to a block of threads.
//
// Each phase writes arrays that no other thread of the phase reads, entry by entry, and ends at a
// barrier. What a policy promises, every thread computes for itself from the same numbers.
#pragma once
#include "group.h"

namespace ocp {

// body(i) for i in 0..count, shared out.
template <class Body> OCP_FN void each(int count, Body body) {
  for (int i = int(team_rank()); i < count; i += int(team_size())) body(i);
}

OCP_FN void team_end(Group<Real>& g, TeamWork& w) {
  if (team_rank() == 0) {
    g.end(w.x, w.xx);
    for (int i = 0; i < n; ++i) w.p[i] = w.x[i];
  }
  team_sync();
}

OCP_FN void team_gap(const Pass<Real>& pass, Int t, TeamWork& w, Promise<Real>& promise) {
  each(n, [&](int i) {
    w.gap[i] = pass.gaps[t * n + i];
    Real sum = 0;
    for (int j = 0; j < n; ++j) sum += w.xx[i * n + j] * pass.gaps[t * n + j];
    w.moved[i] = sum;
  });
  team_sync();
  for (int i = 0; i < n; ++i) {
    promise.change += w.gap[i] * (w.x[i] + w.moved[i] * Real(0.5));
    promise.slope += w.gap[i] * w.p[i];
  }
  team_sync();
  each(n, [&](int i) { w.x[i] += w.moved[i]; });
  team_sync();
}

// Q = l_zz + f_z' v_xx f_z, q = l_z + f_z' v_x, along = l_z + f_z' p; bend: v_x . f_zz or null.
OCP_FN void team_quadratic(const FullStage& s, const Real* bend, TeamWork& w) {
  each(n * d, [&](int e) {
    const int i = e / d, j = e % d;
    Real sum = 0;
    for (int k = 0; k < n; ++k) sum += w.xx[i * n + k] * s.F[k * d + j];
    w.product[e] = sum;
  });
  each(d, [&](int j) {
    Real q = s.g[j], along = s.g[j];
    for (int k = 0; k < n; ++k) q += s.F[k * d + j] * w.x[k], along += s.F[k * d + j] * w.p[k];
    w.q[j] = q, w.along[j] = along;
  });
  team_sync();
  each(d * d, [&](int e) {
    const int i = e / d, j = e % d;
    if (j > i) return;
    Real sum = s.H[e] + (bend ? bend[e] : Real(0));
    for (int k = 0; k < n; ++k) sum += s.F[k * d + i] * w.product[k * d + j];
    w.Q[tri(i, j)] = sum;
  });
  team_sync();
}

// Q_uu and Q_ux with the damping, as `regularise`, and the bounds of the change of control.
OCP_FN void team_regularise(const Pass<Real>& pass, Int t, const FullStage& s, TeamWork& w) {
  each(m * d, [&](int e) {
    const int a = e / d, j = e % d;
    if (j > n + a) return;
    Real value = w.Q[tri(n + a, j)];
    if (!pass.on_state && j == n + a) value += pass.damping;
    for (int k = 0; pass.on_state && k < n; ++k)
      value += pass.damping * s.F[k * d + n + a] * s.F[k * d + j];
    if (j < n) w.K[a * n + j] = value;
    else w.uu[tri(a, j - n)] = value;
  });
  if constexpr (bounded)
    each(m, [&](int a) {
      w.lo[a] = pass.data->lower[t * m + a] - pass.us[t * m + a];
      w.hi[a] = pass.data->upper[t * m + a] - pass.us[t * m + a];
    });
  team_sync();
}

// k and K, as `gains`: the m x m problem by one thread, the columns of K by all.
OCP_FN void team_gains(TeamWork& w) {
  if (team_rank() == 0) {
    const BoxQP<m, Real> step = control_step(w.uu, w.q + n, w.lo, w.hi);
    for (int a = 0; a < m; ++a) w.k[a] = step.x[a], w.free[a] = step.free[a];
    w.factor = step.factor;
    w.definite = step.definite;
    for (int a = 0; a < m; ++a) w.k[a] = w.definite ? w.k[a] : Real(0);
  }
  team_sync();
  each(n, [&](int j) {
    for (int a = 0; a < m; ++a)
      if (!w.free[a]) w.K[a * n + j] = 0;
    solve_negative<m>(w.factor, w.K + j, n);
    for (int a = 0; a < m; ++a)
      if (!w.definite) w.K[a * n + j] = 0;
  });
  team_sync();
}

// The value of this policy, as `value_of` and `carry_slope`.
OCP_FN void team_value(TeamWork& w, Promise<Real>& promise) {
  each(m * n, [&](int e) {
    const int a = e / n, j = e % n;
    Real sum = w.Q[tri(n + a, j)];
    for (int b = 0; b < m; ++b) sum += w.Q[sym(n + a, n + b)] * w.K[b * n + j];
    w.R[e] = sum;
  });
  each(m, [&](int a) {
    Real sum = 0;
    for (int b = 0; b < m; ++b) sum += w.Q[sym(n + a, n + b)] * w.k[b];
    w.uuk[a] = sum;
  });
  team_sync();
  for (int a = 0; a < m; ++a) {
    promise.change += w.k[a] * (w.q[n + a] + w.uuk[a] * Real(0.5));
    promise.slope += w.k[a] * w.along[n + a];
  }
  each(n * n, [&](int e) {
    const int i = e / n, j = e % n;
    if (j > i) return;
    Real sum = w.Q[tri(i, j)];
    for (int a = 0; a < m; ++a)
      sum += w.K[a * n + i] * w.R[a * n + j] + w.Q[tri(n + a, i)] * w.K[a * n + j];
    w.xx[i * n + j] = w.xx[j * n + i] = sum;
  });
  each(n, [&](int i) {
    Real x = w.q[i], p = w.along[i];
    for (int a = 0; a < m; ++a) {
      x += (w.uuk[a] + w.q[n + a]) * w.K[a * n + i] + w.k[a] * w.Q[tri(n + a, i)];
      p += w.along[n + a] * w.K[a * n + i];
    }
    w.x[i] = x, w.p[i] = p;
  });
  team_sync();
}

OCP_FN void team_record(const Pass<Real>& pass, Int t, const TeamWork& w) {
  if (!pass.vx) return;
  each(n, [&](int i) { pass.vx[t * n + i] = w.x[i]; });
  each(n * n, [&](int i) { pass.vxx[t * n * n + i] = w.xx[i]; });
}

// As `record_costate`.
OCP_FN void team_costate(const Pass<Real>& pass, Int t, const FullStage& s) {
  each(d, [&](int i) {
    Real along = s.g[i];
    for (int r = 0; r < n; ++r) along += pass.p[(t + 1) * n + r] * s.F[r * d + i];
    if (i < n) pass.p[t * n + i] = along;
    else pass.hu[t * m + i - n] = along;
  });
  team_sync();
}

// v_x . f_zz of a stage into g.bend; null where the model has no such terms.
OCP_FN const Real* team_curve(Group<Real>& g, Int t, bool full, const TeamWork& w) {
  if (!full) return nullptr;
  if (g.given && g.given->table)
    return g.given->table + (t * g.data->B + g.rows[0]) * d * d;
  if (team_rank() == 0) g.contract(t, w.x, g.bend);
  team_sync();
  return g.bend;
}

OCP_FN Promise<Real> team_pass(const Pass<Real>& pass, Group<Real>& g, TeamWork& w) {
  Promise<Real> promise = {0, 0, 0, -1};
  team_end(g, w);
  add_residue(g.residue, w.x, n);
  add_residue(g.residue, w.xx, n * n);
  team_record(pass, pass.data->T, w);
  if (pass.p) each(n, [&](int i) { pass.p[pass.data->T * n + i] = w.x[i]; });
  team_sync();
  for (Int t = pass.data->T - 1; t >= 0; --t) {
    const FullStage& s = g.stages[t];
    if (pass.gaps) team_gap(pass, t, w, promise);
    if (pass.p) team_costate(pass, t, s);
    team_quadratic(s, team_curve(g, t, pass.full, w), w);
    team_regularise(pass, t, s, w);
    team_gains(w);
    if (!w.definite && promise.failed < 0) promise.failed = Real(t);
    if (pass.hasty && pass.full && promise.failed >= 0) break;
    promise.residual = max_(promise.residual, projected(w.q + n, w.lo, w.hi));
    each(m, [&](int a) { pass.k[t * m + a] = w.k[a]; });
    each(m * n, [&](int i) { pass.K[t * m * n + i] = w.K[i]; });
    team_value(w, promise);
    team_record(pass, t, w);
  }
  team_sync();
  return promise;
}

OCP_FN Promise<Real> sweep(const Pass<Real>& pass, Group<Real>& g) {
  if constexpr (fits) {
    __shared__ TeamWork work;
    return team_pass(pass, g, work);
  } else {
    return team_pass(pass, g, *g.team_work);
  }
}

}  // namespace ocp
