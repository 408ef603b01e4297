// The backward pass of sweep.h for a single problem on a CPU, with the rows of rows.h.
#pragma once
#include "group.h"

namespace ocp {

// Large ones have all of v_xx, (N, N); small ones the rows of `low`.
constexpr bool large = blocked(d);
constexpr int in_xx(int i, int j) { return large ? i * N + j : in_stage(i, j); }

struct alignas(64) RowValue {
  Real x[N], p[N], xx[large ? N * N : low(n, 0)];
};

// `along` is l_z + f_z' p.
struct alignas(64) RowQuadratic {
  Real q[D], along[D], Q[low(d, 0)];
};

// y += A' x of a matrix (count, wide packs).
template <int count, int wide> OCP_FN void add_rows_to(const Real* x, const Real* A, Wide* y) {
  OCP_UNROLL
  for (int k = 0; k < count; ++k) {
    OCP_UNROLL
    for (int p = 0; p < wide; ++p) y[p] += Wide(x[k]) * row(A + k * wide * W, p);
  }
}

template <int wide> OCP_FN void put_all(const Wide* values, Real* to) {
  OCP_UNROLL
  for (int p = 0; p < wide; ++p) put(values[p], to, p);
}

OCP_FN void row_end(Group<Real>& g, RowValue& v) {
  Real xx[n * n];
  g.end(v.x, xx);
  for (int i = 0; i < n; ++i) {
    v.p[i] = v.x[i];
    for (int j = 0; j < (large ? n : i + 1); ++j) v.xx[in_xx(i, j)] = xx[i * n + j];
  }
}

OCP_FN void row_gap(const Real* gap, RowValue& v, Promise<Real>& promise) {
  Real moved[n];
  for (int i = 0; i < n; ++i) {
    moved[i] = 0;
    for (int j = 0; j < n; ++j) moved[i] += v.xx[in_xx(i, j)] * gap[j];
  }
  for (int i = 0; i < n; ++i) {
    promise.change += gap[i] * (v.x[i] + moved[i] * Real(0.5));
    promise.slope += gap[i] * v.p[i];
    v.x[i] += moved[i];
  }
}

// -- the model of a stage -----------------------------------------------------------------------
// Q = base + f_z' v_xx f_z
OCP_FN void curve_rows(const RowStage<Real>& s, const Real* base, const RowValue& v, Real* Q) {
  if constexpr (large) {
    alignas(64) Real product[n * D];  // v_xx f_z
    add_product<n, n, D, false, true>(v.xx, N, 1, s.F, D, product, D);
    for (int i = 0; i < low(d, 0); i += W) put(row(base + i, 0), Q + i, 0);
    add_low<d, n>(s.F, 1, D, product, D, Q);
  } else {
    Wide product[n][packs(d)];
    OCP_UNROLL
    for (int i = 0; i < n; ++i) {
      OCP_UNROLL
      for (int p = 0; p < packs(d); ++p) product[i][p] = Wide(v.xx[in_xx(i, 0)]) * row(s.F, p);
      OCP_UNROLL
      for (int k = 1; k < n; ++k) {
        OCP_UNROLL
        for (int p = 0; p < packs(d); ++p)
          product[i][p] += Wide(v.xx[in_xx(i, k)]) * row(s.F + k * D, p);
      }
    }
    OCP_UNROLL
    for (int i = 0; i < d; ++i) {
      OCP_UNROLL
      for (int p = 0; p <= i / W; ++p) {
        Wide sum = Wide(s.F[i]) * product[0][p];
        OCP_UNROLL
        for (int k = 1; k < n; ++k) sum += Wide(s.F[k * D + i]) * product[k][p];
        put(sum + row(base + low(i, 0), p), Q + low(i, 0), p);
      }
    }
  }
}

OCP_FN void row_quadratic(
    const RowStage<Real>& s, const Real* base, const RowValue& v, RowQuadratic& model) {
  curve_rows(s, base, v, model.Q);
  Wide q[packs(d)], along[packs(d)];
  OCP_UNROLL
  for (int p = 0; p < packs(d); ++p) q[p] = along[p] = row(s.g, p);
  add_rows_to<n, packs(d)>(v.x, s.F, q);
  add_rows_to<n, packs(d)>(v.p, s.F, along);
  put_all<packs(d)>(q, model.q);
  put_all<packs(d)>(along, model.along);
}

// Q_uu (a lower triangle) and Q_ux (m, N), damped as `regularise` does.
OCP_FN void row_regularise(const RowStage<Real>& s, const RowQuadratic& model, Real damping,
                           bool on_state, Real* uu, Real* ux) {
  OCP_UNROLL
  for (int a = 0; a < m; ++a) {
    OCP_UNROLL
    for (int p = 0; p < packs(n); ++p) put(row(model.Q + low(n + a, 0), p), ux + a * N, p);
    OCP_UNROLL
    for (int b = 0; b <= a; ++b) uu[tri(a, b)] = model.Q[low(n + a, n + b)];
    if (!on_state) uu[tri(a, a)] += damping;
  }
  if (!on_state) return;
  for (int k = 0; k < n; ++k)
    for (int a = 0; a < m; ++a) {
      const Real scaled = damping * s.F[k * D + n + a];
      for (int j = 0; j < n; ++j) ux[a * N + j] += scaled * s.F[k * D + j];
      for (int b = 0; b <= a; ++b) uu[tri(a, b)] += scaled * s.F[k * D + n + b];
    }
}

// k (m) and K (m, N), which comes in as Q_ux: see `gains`.
OCP_FN bool row_gains(
    const Real* uu, const Real* qu, const Real* lo, const Real* hi, Real* k, Real* K) {
  const BoxQP<m, Real> step = control_step(uu, qu, lo, hi);
  OCP_UNROLL
  for (int a = 0; a < m; ++a) {
    k[a] = step.x[a];
    for (int p = 0; bounded && !step.free[a] && p < packs(n); ++p) put(Wide(0), K + a * N, p);
  }
  if (!step.definite) {
    for (int a = 0; a < m; ++a) k[a] = 0;
    for (int i = 0; i < m * N; ++i) K[i] = 0;
  } else if constexpr (m <= 4) {
    OCP_UNROLL
    for (int p = 0; p < packs(n); ++p) {
      Wide column[m];
      OCP_UNROLL
      for (int a = 0; a < m; ++a) column[a] = row(K + a * N, p);
      solve_negative<m>(step.factor, column);
      OCP_UNROLL
      for (int a = 0; a < m; ++a) put(column[a], K + a * N, p);
    }
  } else {
    solve_columns<m, N>(step.factor, K);
  }
  return step.definite;
}

// -- the value of the policy --------------------------------------------------------------------
// The lower triangle of xx (N, N) into the upper one.
OCP_FN void mirror(Real* xx) {
  for (int i = 0; i < N; i += W)
    for (int j = 0; j <= i; j += W) {
      Wide rows[W], turned[W];
      OCP_UNROLL
      for (int l = 0; l < W; ++l) rows[l] = turned[l] = row(xx + (i + l) * N + j, 0);
      transpose(turned);
      OCP_UNROLL
      for (int l = 0; l < W; ++l) {
        if (i == j) {
          MaskOf<Wide> above;
          OCP_UNROLL
          for (int k = 0; k < W; ++k) set(above, k, k > l);
          turned[l] = select(above, turned[l], rows[l]);
        }
        put(turned[l], xx + (j + l) * N + i, 0);
      }
    }
}

// v_xx = Q_xx + K' R + Q_ux' K, R = Q_uu K + Q_ux
OCP_FN void row_hessian(const RowQuadratic& model, const Real* K, RowValue& v) {
  const Real* Q = model.Q;
  if constexpr (large) {
    alignas(64) Real all[3][m * N];  // R, K, Q_ux: one product, of (K, Q_ux)' and (R, K)
    alignas(64) Real uu[m * m];
    for (int a = 0; a < m; ++a) {
      for (int p = 0; p < packs(n); ++p) {
        put(row(K + a * N, p), all[1] + a * N, p);
        put(row(Q + low(n + a, 0), p), all[0] + a * N, p);
        put(row(Q + low(n + a, 0), p), all[2] + a * N, p);
      }
      for (int b = 0; b < m; ++b) uu[a * m + b] = Q[in_stage(n + a, n + b)];
    }
    add_product<m, m, N, false>(uu, m, 1, K, N, all[0], N);
    for (int i = 0; i < n; ++i)
      for (int p = 0; p <= i / W; ++p) put(row(Q + low(i, 0), p), v.xx + i * N, p);
    add_product<n, 2 * m, N, true>(all[1], 1, N, all[0], N, v.xx, N);
    mirror(v.xx);
  } else {
    Wide R[m][packs(n)];
    OCP_UNROLL
    for (int a = 0; a < m; ++a) {
      OCP_UNROLL
      for (int p = 0; p < packs(n); ++p) {
        R[a][p] = row(Q + low(n + a, 0), p);
        OCP_UNROLL
        for (int b = 0; b < m; ++b)
          R[a][p] += Wide(Q[in_stage(n + a, n + b)]) * row(K + b * N, p);
      }
    }
    OCP_UNROLL
    for (int i = 0; i < n; ++i) {
      OCP_UNROLL
      for (int p = 0; p <= i / W; ++p) {
        Wide sum = row(Q + low(i, 0), p);
        OCP_UNROLL
        for (int a = 0; a < m; ++a)
          sum += Wide(K[a * N + i]) * R[a][p] + Wide(Q[low(n + a, i)]) * row(K + a * N, p);
        put(sum, v.xx + low(i, 0), p);
      }
    }
  }
}

// The value of this very policy, as `value_of`, and p, as `carry_slope`.
OCP_FN void row_value(const RowQuadratic& model, const Real* k, const Real* K, RowValue& v,
                      Promise<Real>& promise) {
  const Real *qu = model.q + n, *along = model.along + n;
  Wide x[packs(n)], p[packs(n)];
  OCP_UNROLL
  for (int i = 0; i < packs(n); ++i) x[i] = row(model.q, i), p[i] = row(model.along, i);
  OCP_UNROLL
  for (int a = 0; a < m; ++a) {
    Real sum = 0;
    OCP_UNROLL
    for (int b = 0; b < m; ++b)
      sum += model.Q[in_stage(n + a, n + b)] * k[b];
    promise.change += k[a] * (qu[a] + sum * Real(0.5));
    promise.slope += k[a] * along[a];
    OCP_UNROLL
    for (int i = 0; i < packs(n); ++i) {
      x[i] += Wide(sum + qu[a]) * row(K + a * N, i) + Wide(k[a]) * row(model.Q + low(n + a, 0), i);
      p[i] += Wide(along[a]) * row(K + a * N, i);
    }
  }
  put_all<packs(n)>(x, v.x);
  put_all<packs(n)>(p, v.p);
  row_hessian(model, K, v);
}

// -- the pass -----------------------------------------------------------------------------------
OCP_FN void record_rows(const Pass<Real>& pass, Int t, const RowValue& v) {
  if (!pass.vx) return;
  write<n>(v.x, pass.vx + t * n);
  Real* xx = pass.vxx + t * n * n;
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j) xx[i * n + j] = v.xx[in_xx(i, j)];
}

// The costate at t, and H_u, from that at t + 1.
OCP_FN void record_row_costate(const Pass<Real>& pass, Int t, const RowStage<Real>& s) {
  Wide along[packs(d)];
  alignas(64) Real all[D];
  OCP_UNROLL
  for (int p = 0; p < packs(d); ++p) along[p] = row(s.g, p);
  add_rows_to<n, packs(d)>(pass.p + (t + 1) * n, s.F, along);
  put_all<packs(d)>(along, all);
  write<n>(all, pass.p + t * n);
  write<m>(all + n, pass.hu + t * m);
}

// l_zz + v . f_zz
OCP_FN void bent(Group<Real>& g, Int t, const Real* v, const Real* lzz, Real* base) {
#if OCP_ROWS
  if (!(g.given && g.given->table)) {
    f_combined(g.table[t / W], int(t % W), v, base);
    for (int i = 0; i < low(d, 0); i += W) put(row(base + i, 0) + row(lzz + i, 0), base + i, 0);
    return;
  }
#endif
  Real H[d * d + W];  // the last row has a whole pack, too
  g.curvature(t, v, H);
  OCP_UNROLL
  for (int i = 0; i < d; ++i) {
    OCP_UNROLL
    for (int p = 0; p <= i / W; ++p) {
      Wide bend;
      if constexpr (large) {
        bend = row(H + i * d, p);
      } else {  // a load of what was just stored by numbers would have to wait
        OCP_UNROLL
        for (int l = 0; l < W; ++l) set(bend, l, p * W + l <= i ? H[i * d + p * W + l] : Real(0));
      }
      put(row(lzz + low(i, 0), p) + bend, base + low(i, 0), p);
    }
  }
}

OCP_FN Promise<Real> sweep(const Pass<Real>& pass, Group<Real>& g) {
  RowValue v = {};
  RowQuadratic model;
  alignas(64) Real base[low(d, 0)], K[m * N];
  Promise<Real> promise = {0, 0, 0, -1};
  const Data& data = *pass.data;
  row_end(g, v);
  record_rows(pass, data.T, v);
  for (int i = 0; pass.p && i < n; ++i) pass.p[data.T * n + i] = v.x[i];
  for (Int t = data.T - 1; t >= 0; --t) {
    Real k[m], uu[tri_size(m)], lo[m], hi[m];
    const RowStage<Real>& s = g.stages[t];
    if (pass.gaps) row_gap(pass.gaps + t * n, v, promise);
    const Real* lzz = g.hessian(t, s);
    if (pass.full) bent(g, t, v.x, lzz, base);
    if (pass.p) record_row_costate(pass, t, s);
    row_quadratic(s, pass.full ? base : lzz, v, model);
    row_regularise(s, model, pass.damping, pass.on_state, uu, K);
    if constexpr (bounded)
      for (int a = 0; a < m; ++a) {
        lo[a] = data.lower[t * m + a] - pass.us[t * m + a];
        hi[a] = data.upper[t * m + a] - pass.us[t * m + a];
      }
    const bool definite = row_gains(uu, model.q + n, lo, hi, k, K);
    if (!definite && promise.failed < 0) promise.failed = Real(t);
    if (pass.full && pass.hasty && promise.failed >= 0) break;
    promise.residual = max_(promise.residual, projected(model.q + n, lo, hi));
    row_value(model, k, K, v, promise);
    write<m>(k, pass.k + t * m);
    for (int a = 0; a < m; ++a) OCP_COPY(pass.K + (t * m + a) * n, K + a * N, n * sizeof(Real));
    record_rows(pass, t, v);
  }
  return promise;
}

}  // namespace ocp
