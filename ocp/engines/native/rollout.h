// Forward passes: of controls alone, and of a policy about a trajectory.
#pragma once
#include "sweep.h"

namespace ocp {

// The trajectory that a policy is about. E is V, or Real where all lanes share it.
template <class E> struct Nominal {
  Array<const E> x;    // [T + 1][n]
  Array<const E> u;    // [T][m]
  Array<const E> gap;  // [T][n]; null if there are none
  Array<const E> k;    // [T][m]
  Array<const E> K;    // [T][m][n]; null for no feedback
};

template <class V> struct Outcome {
  V cost;
  V residue;  // 0 where states, controls and cost are finite, else nan
};

template <class V, class E>
OCP_FN void policy_control(
    const Nominal<E>& about, const Data& data, Int t, V a, const V* x, V* u) {
  OCP_UNROLL
  for (int i = 0; i < m; ++i) u[i] = V(about.u[t * m + i]) + a * V(about.k[t * m + i]);
  if (about.K) {
    OCP_UNROLL
    for (int j = 0; j < n; ++j) {
      V dx = x[j] - V(about.x[t * n + j]);
      OCP_UNROLL
      for (int i = 0; i < m; ++i) u[i] += V(about.K[(t * m + i) * n + j]) * dx;
    }
  }
  if constexpr (bounded) {
    OCP_UNROLL
    for (int i = 0; i < m; ++i)
      u[i] = min_(max_(u[i], V(data.lower[t * m + i])), V(data.upper[t * m + i]));
  }
}

// Roll out ``u + a k + K (x' - x)`` into xs [T + 1][n] and us [T][m]; (1 - a) of the gaps stays.
// The model is compiled into it: a call for each stage would be a tenth of the work.
template <class V, class E>
OCP_FLAT Outcome<V> follow(
    const Data& data, Context<V> c, const Nominal<E>& about, V a, Array<V> xs, Array<V> us) {
  Outcome<V> out = {V(0), V(0)};
  V x[n];
  read<n>(about.x, x);
  write<n>(x, xs);
  add_residue(out.residue, x, n);
  for (Int t = 0; t < data.T; ++t) {
    V u[m], next[n], l;
    c.at(t);
    policy_control(about, data, t, a, x, u);
    Model::f(x, u, c, next);
    Model::l(x, u, c, &l);
    out.cost += l;
    if (about.gap) {
      OCP_UNROLL
      for (int i = 0; i < n; ++i) next[i] -= (V(1) - a) * V(about.gap[t * n + i]);
    }
    add_residue(out.residue, next, n);
    add_residue(out.residue, u, m);
    write<m>(u, us + t * m);
    write<n>(next, xs + (t + 1) * n);
    OCP_UNROLL
    for (int i = 0; i < n; ++i) x[i] = next[i];
  }
  V phi;
  Model::phi(x, c, &phi);
  out.cost += phi;
  add_residue(out.residue, &out.cost, 1);
  return out;
}

// States [T + 1][n] of controls [T][m]; the first is given.
template <class V>
OCP_FN void rollout(const Data& data, Context<V> c, Array<V> us, Array<V> xs) {
  V x[n], u[m], next[n];
  read<n>(xs, x);
  for (Int t = 0; t < data.T; ++t) {
    c.at(t);
    read<m>(us + t * m, u);
    Model::f(x, u, c, next);
    write<n>(next, xs + (t + 1) * n);
    OCP_UNROLL
    for (int i = 0; i < n; ++i) x[i] = next[i];
  }
}

// ``p[T] = phi_x, p[t] = H_x`` and H_u, of the arrays of one problem with B in all.
OCP_FN void costates(
    Int T, Int B, Int b, const Real* fz, const Real* lz, const Real* phix, Real* ps, Real* hus) {
  Real p[n], h[d];
  for (int i = 0; i < n; ++i) ps[(T * B + b) * n + i] = p[i] = phix[b * n + i];
  for (Int t = T - 1; t >= 0; --t) {
    const Real *F = fz + (t * B + b) * n * d, *g = lz + (t * B + b) * d;
    for (int i = 0; i < d; ++i) h[i] = g[i];
    for (int r = 0; r < n; ++r)
      for (int i = 0; i < d; ++i) h[i] += F[r * d + i] * p[r];
    for (int i = 0; i < n; ++i) ps[(t * B + b) * n + i] = p[i] = h[i];
    for (int i = 0; i < m; ++i) hus[(t * B + b) * m + i] = h[n + i];
  }
}

// Changes of state [T + 1] and control [T] of one problem under its linearised dynamics.
OCP_FN void linear_rollout(Int T, Int B, Int b, const Real* fz, const Real* k, const Real* K,
                           const Real* gaps, Real* dxs, Real* dus) {
  Real dz[d];
  for (int i = 0; i < n; ++i) dxs[b * n + i] = dz[i] = 0;
  for (Int t = 0; t < T; ++t) {
    const Int at = t * B + b;
    for (int a = 0; a < m; ++a) {
      Real du = k[at * m + a];
      for (int j = 0; K && j < n; ++j) du += K[(at * m + a) * n + j] * dz[j];
      dus[at * m + a] = dz[n + a] = du;
    }
    Real* after = dxs + (at + B) * n;
    for (int i = 0; i < n; ++i) {
      after[i] = gaps ? gaps[at * n + i] : Real(0);
      for (int j = 0; j < d; ++j) after[i] += fz[(at * n + i) * d + j] * dz[j];
    }
    for (int i = 0; i < n; ++i) dz[i] = after[i];
  }
}

}  // namespace ocp
