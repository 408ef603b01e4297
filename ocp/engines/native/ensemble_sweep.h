// The backward pass of an ensemble.
#pragma once
#include "ensemble.h"

namespace ocp {

// Second argument of `ocp_ensemble_sweep`. Fields are 8 bytes each; d = n + m, N = S n.
struct EnsembleSweep {
  const Real *xs, *us;   // (T + 1, S, n), (T, m)
  const Real* gaps;      // (T, S, n), optional
  const Real* table;     // (T, S, d, d), optional: second-order terms that are known ahead
  const Real* damping;   // (1,)
  Int second_order;      // whether the model has second-order terms
  Int on_state;          // the damping is on V_xx
  Real *k, *K;           // out: (T, m), (T, m, N)
  Real *vx, *vxx;        // out, optional: (T + 1, N), (T + 1, N, N)
  Real* promise;         // out: (3,), slope, curvature and residual
  Int* facts;            // out: (2,), last stage with Q_uu not definite or -1; 1 where all is finite
};

namespace ensemble {

// -- the model of a stage -------------------------------------------------------------------------
OCP_FN void begin(const EnsembleSweep& call, Ensemble& e) {
  const Wide share = Wide(1.0 / double(e.S));
  each_number(e.S * n * n * e.width, [&](Int i) { e.xx[i] = 0; });
  each_number(m * n * e.width, [&](Int i) { e.vu[i] = 0; });
  each_pack(e.width, [&](Int r) {
    Wide at_x[n], gradient[n], H[n * n];
    const Block block = e.block(e.data->T, r);
    gather(call.xs, n, block.row, at_x);
    Model::phi_expansion(at_x, block.c, gradient, H);
    add_residue(e.residue, gradient, n);
    add_residue(e.residue, H, n * n);
    clear_rest(gradient, n, block.count);
    for (int i = 0; i < n; ++i) {
      e.put(e.x, i, r, gradient[i] * share);
      e.put(e.p, i, r, gradient[i] * share);
    }
    for (int l = 0; l < block.count; ++l)
      for (int i = 0; i < n * n; ++i)
        e.xx[((r + l) * n * n + i) * e.width + r + l] = get(H[i] * share, l);
  });
}

OCP_FN void expand(const EnsembleSweep& call, Int t, Ensemble& e) {
  const Wide share = Wide(1.0 / double(e.S));
  each_pack(e.width, [&](Int r) {
    Wide at_x[n], at_u[m], along[n], curved[d * d];
    Stage<Wide> s;
    const Block block = e.block(t, r);
    gather(call.xs, n, block.row, at_x);
    for (int a = 0; a < m; ++a) at_u[a] = Wide(call.us[t * m + a]);
    expand_stage(at_x, at_u, block.c, s);
    add_residue(e.residue, (const Wide*)&s, stage_size<Wide>);
    for (int i = 0; i < d; ++i) s.g[i] *= share;
    for (int i = 0; i < tri_size(d); ++i) s.H[i] *= share;
    if (call.second_order) {
      for (int i = 0; i < n; ++i) along[i] = e.at(e.x, i, r);
      if (call.table) gather(call.table, d * d, block.row, curved);
      else f_contracted(at_x, at_u, block.c, along, curved);
      for (int i = 0; i < d; ++i)
        for (int j = 0; j <= i; ++j) s.H[tri(i, j)] += curved[i * d + j];
    }
    clear_rest((Wide*)&s, stage_size<Wide>, block.count);
    for (int i = 0; i < n * d; ++i) e.put(e.F, i, r, s.F[i]);
    for (int i = 0; i < d; ++i) e.put(e.g, i, r, s.g[i]);
    for (int i = 0; i < tri_size(d); ++i) e.put(e.H, i, r, s.H[i]);
  });
}

// -- one stage of the recursion -------------------------------------------------------------------
// sum over j of V_xx[s][i][j] y[j], y [n] with samples innermost
OCP_FN Real times(const Ensemble& e, Int s, int i, const Real* y) {
  Wide sum = Wide(0);
  const Real* row = e.xx + (s * n + i) * n * e.width;
  for (Int r = 0; r < n * e.width; r += OCP_LANES) sum += load<Wide>(row + r) * load<Wide>(y + r);
  return sum_lanes(sum);
}

OCP_FN void cross_gap(const Real* gap, Ensemble& e, Promise<Real>& promise) {
  Real *y = e.R, *moved = e.q;  // both are free
  each_number(n * e.width, [&](Int i) { y[i] = 0; });
  each_row(e.S, [&](Int s, int i) { y[i * e.width + s] = gap[s * n + i]; });
  each_row(e.S, [&](Int s, int i) { moved[i * e.width + s] = times(e, s, i, y); });
  Real change = 0, slope = 0;
  each_row(e.S, [&](Int s, int i) {
    const Int at = i * e.width + s;
    change += y[at] * (e.x[at] + moved[at] * Real(0.5));
    slope += y[at] * e.p[at];
    e.x[at] += moved[at];
  });
  promise.change += block_sum(change);
  promise.slope += block_sum(slope);
}

// xx becomes l_xx + f_x' V_xx f_x, and vu V_xx f_u.
OCP_FN void curve(Ensemble& e) {
  each_row(e.S, [&](Int s, int i) {
    Real* V = e.xx + s * n * n * e.width;
    Wide sums[m], v[n];
    for (int a = 0; a < m; ++a) sums[a] = Wide(0);
    for (Int r = 0; r < e.width; r += OCP_LANES) {
      for (int k = 0; k < n; ++k) v[k] = e.at(V, i * n + k, r);
      for (int j = 0; j < d; ++j) {
        Wide sum = v[0] * e.at(e.F, j, r);
        OCP_UNROLL
        for (int k = 1; k < n; ++k) sum += v[k] * e.at(e.F, k * d + j, r);
        if (j < n) e.put(V, i * n + j, r, sum);
        else sums[j - n] += sum;
      }
    }
    for (int a = 0; a < m; ++a) e.vu[(a * n + i) * e.width + s] = sum_lanes(sums[a]);
  });
  each_row(e.S, [&](Int s, int j) {
    Real *V = e.xx + s * n * n * e.width, own[n * n];
    for (int i = 0; i < n * n; ++i) own[i] = e.F[(i / n * d + i % n) * e.width + s];
    for (Int r = 0; r < e.width; r += OCP_LANES) {
      Wide v[n];
      for (int k = 0; k < n; ++k) v[k] = e.at(V, k * n + j, r);
      for (int i = 0; i < n; ++i) {
        Wide sum = Wide(own[i]) * v[0];
        OCP_UNROLL
        for (int k = 1; k < n; ++k) sum += Wide(own[k * n + i]) * v[k];
        e.put(V, i * n + j, r, sum);
      }
    }
    for (int i = 0; i < n; ++i)
      V[(i * n + j) * e.width + s] += e.H[sym(i, j) * e.width + s];
  });
}

// The derivatives of Q by u, of one stage.
struct Controls {
  Real uu[tri_size(m)], u[m], along[m];  // along: l_u + f_u' p
};

// Q_x, Q_ux, and what is summed over the samples; p becomes l_x + f_x' p.
OCP_FN Controls gather_controls(Ensemble& e) {
  Wide uu[tri_size(m)], u[m], along[m];
  for (int i = 0; i < tri_size(m); ++i) uu[i] = Wide(0);
  for (int a = 0; a < m; ++a) u[a] = along[a] = Wide(0);
  each_pack(e.width, [&](Int r) {
    Wide q[d], p[d];
    for (int i = 0; i < d; ++i) q[i] = p[i] = e.at(e.g, i, r);
    for (int k = 0; k < n; ++k)
      for (int i = 0; i < d; ++i) {
        const Wide f = e.at(e.F, k * d + i, r);
        q[i] += f * e.at(e.x, k, r);
        p[i] += f * e.at(e.p, k, r);
      }
    for (int i = 0; i < n; ++i) e.put(e.q, i, r, q[i]);
    for (int i = 0; i < n; ++i) e.put(e.p, i, r, p[i]);
    for (int a = 0; a < m; ++a) {
      u[a] += q[n + a];
      along[a] += p[n + a];
      for (int j = 0; j < n; ++j) {
        Wide sum = e.at(e.H, tri(n + a, j), r);
        for (int k = 0; k < n; ++k) sum += e.at(e.vu, a * n + k, r) * e.at(e.F, k * d + j, r);
        e.put(e.ux, a * n + j, r, sum);
      }
      for (int b = 0; b <= a; ++b) {
        uu[tri(a, b)] += e.at(e.H, tri(n + a, n + b), r);
        for (int k = 0; k < n; ++k)
          uu[tri(a, b)] += e.at(e.vu, a * n + k, r) * e.at(e.F, k * d + n + b, r);
      }
    }
  });
  Controls c;
  for (int i = 0; i < tri_size(m); ++i) c.uu[i] = total(uu[i]);
  for (int a = 0; a < m; ++a) c.u[a] = total(u[a]), c.along[a] = total(along[a]);
  return c;
}

// Adds the damping to uu, and puts the damped Q_ux into K.
OCP_FN void regularise(Ensemble& e, Real damping, bool on_state, Real* uu) {
  each_number(m * n * e.width, [&](Int i) { e.K[i] = e.ux[i]; });
  if (!on_state) {
    for (int a = 0; a < m; ++a) uu[tri(a, a)] += damping;
    return;
  }
  Wide sums[tri_size(m)];
  for (int i = 0; i < tri_size(m); ++i) sums[i] = Wide(0);
  each_pack(e.width, [&](Int r) {
    for (int k = 0; k < n; ++k)
      for (int a = 0; a < m; ++a) {
        const Wide scaled = Wide(damping) * e.at(e.F, k * d + n + a, r);
        for (int j = 0; j < n; ++j)
          e.put(e.K, a * n + j, r, e.at(e.K, a * n + j, r) + scaled * e.at(e.F, k * d + j, r));
        for (int b = 0; b <= a; ++b) sums[tri(a, b)] += scaled * e.at(e.F, k * d + n + b, r);
      }
  });
  for (int i = 0; i < tri_size(m); ++i) uu[i] += total(sums[i]);
}

// k and K; false where Q_uu is not positive definite on the free controls, k and K are then 0.
OCP_FN bool gains(
    Ensemble& e, const Real* uu, const Real* qu, const Real* lo, const Real* hi, Real* k) {
  const BoxQP<m, Real> step = control_step(uu, qu, lo, hi);
  Factor<m, Wide> wide;
  for (int i = 0; i < tri_size(m); ++i) wide.L[i] = Wide(step.factor.L[i]);
  for (int a = 0; a < m; ++a) wide.inverse[a] = Wide(step.factor.inverse[a]);
  for (int a = 0; a < m; ++a) k[a] = step.definite ? step.x[a] : Real(0);
  each_pack(e.width, [&](Int r) {
    for (int j = 0; j < n; ++j) {
      Wide b[m];
      for (int a = 0; a < m; ++a) b[a] = step.free[a] ? e.at(e.K, a * n + j, r) : Wide(0);
      solve_negative<m>(wide, b);
      for (int a = 0; a < m; ++a) e.put(e.K, a * n + j, r, step.definite ? b[a] : Wide(0));
    }
  });
  return step.definite;
}

// The value of this very policy, with the undamped Q_uu.
OCP_FN void value_of(const Controls& c, const Real* k, Ensemble& e, Promise<Real>& promise) {
  Real uuk[m];
  for (int a = 0; a < m; ++a) {
    Real sum = 0;
    for (int b = 0; b < m; ++b) sum += c.uu[sym(a, b)] * k[b];
    promise.change += k[a] * (c.u[a] + sum * Real(0.5));
    promise.slope += k[a] * c.along[a];
    uuk[a] = sum + c.u[a];
  }
  each_pack(e.width, [&](Int r) {
    for (int j = 0; j < n; ++j) {
      Wide x = e.at(e.q, j, r), p = e.at(e.p, j, r);
      for (int a = 0; a < m; ++a) {
        const Wide gain = e.at(e.K, a * n + j, r), ux = e.at(e.ux, a * n + j, r);
        Wide R = ux;
        for (int b = 0; b < m; ++b) R += Wide(c.uu[sym(a, b)]) * e.at(e.K, b * n + j, r);
        e.put(e.R, a * n + j, r, R);
        x += Wide(uuk[a]) * gain + Wide(k[a]) * ux;
        p += Wide(c.along[a]) * gain;
      }
      e.put(e.x, j, r, x);
      e.put(e.p, j, r, p);
    }
  });
  each_row(e.S, [&](Int s, int i) {
    Wide gain[m], ux[m];
    for (int a = 0; a < m; ++a) gain[a] = Wide(e.K[(a * n + i) * e.width + s]);
    for (int a = 0; a < m; ++a) ux[a] = Wide(e.ux[(a * n + i) * e.width + s]);
    Real* row = e.xx + (s * n + i) * n * e.width;
    for (int j = 0; j < n; ++j)
      for (Int r = 0; r < e.width; r += OCP_LANES) {
        Wide sum = e.at(row, j, r);
        for (int a = 0; a < m; ++a)
          sum += gain[a] * e.at(e.R, a * n + j, r) + ux[a] * e.at(e.K, a * n + j, r);
        e.put(row, j, r, sum);
      }
  });
}

OCP_FN void symmetrise(Ensemble& e) {
  const auto at = [&](Int s, int i, Int r, int j) -> Real& {
    return e.xx[((s * n + i) * n + j) * e.width + r];
  };
  each_row(e.S, [&](Int s, int i) {
    for (int j = 0; j < n; ++j)
      for (Int r = 0; r < s + (j < i); ++r)
        at(s, i, r, j) = at(r, j, s, i) = (at(s, i, r, j) + at(r, j, s, i)) * Real(0.5);
  });
}

OCP_FN void record(const EnsembleSweep& call, Int t, const Ensemble& e) {
  if (!call.vx) return;
  const Int N = e.S * n;
  Real *vx = call.vx + t * N, *vxx = call.vxx + t * N * N;
  each_number(N, [&](Int a) {
    vx[a] = e.x[a % n * e.width + a / n];
    for (Int b = 0; b < N; ++b) vxx[a * N + b] = e.xx[(a * n + b % n) * e.width + b / n];
  });
}

OCP_FN void sweep(const Data& data, const EnsembleSweep& call) {
  Ensemble e;
  Arena arena(data.work);
  Promise<Real> promise = {0, 0, 0, -1};
  e.place(data, arena);
  begin(call, e);
  record(call, data.T, e);
  for (Int t = data.T - 1; t >= 0; --t) {
    Real lo[m], hi[m], uu[tri_size(m)], k[m], *K = call.K + t * m * n * e.S;
    if (call.gaps) cross_gap(call.gaps + t * e.S * n, e, promise);
    expand(call, t, e);
    curve(e);
    const Controls c = gather_controls(e);
    for (int i = 0; i < tri_size(m); ++i) uu[i] = c.uu[i];
    regularise(e, *call.damping, call.on_state != 0, uu);
    for (int a = 0; bounded && a < m; ++a) {
      lo[a] = data.lower[t * m + a] - call.us[t * m + a];
      hi[a] = data.upper[t * m + a] - call.us[t * m + a];
    }
    if (!gains(e, uu, c.u, lo, hi, k) && promise.failed < 0) promise.failed = Real(t);
    promise.residual = max_(promise.residual, projected(c.u, lo, hi));
    value_of(c, k, e, promise);
    symmetrise(e);
    for (int a = 0; block_rank() == 0 && a < m; ++a) call.k[t * m + a] = k[a];
    each_number(m * n * e.S, [&](Int i) {
      K[i] = e.K[(i / (n * e.S) * n + i % n) * e.width + i / n % e.S];
    });
    record(call, t, e);
  }
  const Real residue = total(e.residue);
  if (block_rank() != 0) return;
  call.promise[0] = promise.slope;
  call.promise[1] = 2 * (promise.change - promise.slope);
  call.promise[2] = promise.residual;
  call.facts[0] = Int(promise.failed);
  call.facts[1] = residue == 0;
}

}  // namespace ensemble
}  // namespace ocp
