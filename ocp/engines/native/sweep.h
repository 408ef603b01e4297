// The backward pass of LQR, iLQR, DDP and Newton's method: the recursion of the module riccati.
//
// Sources: Tassa, Erez, Todorov, IROS 2012 (eq. 5-11: model, gains, value, regularisation); Tassa,
// Mansard, Todorov, ICRA 2014 (bounds); Mastalli et al., ICRA 2020 (gaps).
// Needs `Model`, the generated functions. Rows are accumulated in a local array, the innermost
// loop along a row: small sizes unroll into registers, large ones are vectorised.
#pragma once
#include "box_qp.h"
#include "context.h"

#ifndef OCP_BOUNDS
#define OCP_BOUNDS 0
#endif
#ifndef OCP_SECOND_ORDER
#define OCP_SECOND_ORDER 1
#endif

namespace ocp {

constexpr int n = Model::n, m = Model::m, d = n + m;
constexpr bool bounded = OCP_BOUNDS;

// First derivatives of f, first and second of l, with z = (x, u); H is a lower triangle.
template <class V> struct Stage {
  V F[n * d];
  V g[d];
  V H[tri_size(d)];
};
template <class V> constexpr int stage_size = sizeof(Stage<V>) / sizeof(V);

template <class V>
OCP_FN void expand_stage(const V* x, const V* u, const Context<V>& c, Stage<V>& s) {
  V H[d * d];
  Model::f_jacobian(x, u, c, s.F);
  Model::l_expansion(x, u, c, s.g, H);
  OCP_UNROLL
  for (int i = 0; i < d; ++i) {
    OCP_UNROLL
    for (int j = 0; j <= i; ++j) s.H[tri(i, j)] = H[i * d + j];
  }
}

// 0 while everything added is finite, nan from then on.
template <class V> OCP_FN void add_residue(V& residue, const V* values, int count) {
  V more[3] = {V(0), V(0), V(0)};  // each sum waits for its last addition
  int i = 0;
  for (; i + 4 <= count; i += 4) {
    residue += values[i] * V(0);
    OCP_UNROLL
    for (int k = 0; k < 3; ++k) more[k] += values[i + 1 + k] * V(0);
  }
  for (; i < count; ++i) residue += values[i] * V(0);
  residue += (more[0] + more[1]) + more[2];
}

template <class V> OCP_FN void add_stage_residue(V& residue, const Stage<V>& s) {
  add_residue(residue, s.F, n * d);
  add_residue(residue, s.g, d);
  add_residue(residue, s.H, tri_size(d));
}

// Quadratic model of the value at a stage: p is the gradient of J for the policy without its k,
// which gives the slope when gaps are open.
template <class V> struct Value {
  V x[n], xx[n * n], p[n];
};

// What a policy promises, see `Sweep` of the module base; change = slope + curvature / 2.
template <class V> struct Promise {
  V slope, change, residual, failed;
};

template <class V> struct Quadratic {
  V q[d], Q[tri_size(d)];
};

// y += a x
template <int size, class V> OCP_FN void add_row(V a, const V* x, V* y) {
  if constexpr (blocked(size)) {
    add_multiple<size>(a, x, y);
  } else {
    OCP_UNROLL
    for (int i = 0; i < size; ++i) y[i] += a * x[i];
  }
}

// y += A' x of a matrix (rows, columns), row by row.
template <int rows, int columns, class V> OCP_FN void add_rows_of(const V* x, const V* A, V* y) {
  if constexpr (blocked(d)) {
    add_product<1, rows, columns, false>(x, 0, 1, A, columns, y, columns);
  } else {
    OCP_UNROLL
    for (int k = 0; k < rows; ++k) add_row<columns>(x[k], A + k * columns, y);
  }
}

// -- one stage ----------------------------------------------------------------------------------
template <class V> OCP_FN void cross_gap(const V* gap, Value<V>& v, Promise<V>& promise) {
  V moved[n];
  OCP_UNROLL
  for (int i = 0; i < n; ++i) moved[i] = dot<n>(v.xx + i * n, gap);
  OCP_UNROLL
  for (int i = 0; i < n; ++i) {
    promise.change += gap[i] * (v.x[i] + moved[i] * V(0.5));
    promise.slope += gap[i] * v.p[i];
    v.x[i] += moved[i];
  }
}

// Q = l_zz + f_z' v_xx f_z
template <class V> OCP_FN void curve_small(const Stage<V>& s, const V* xx, V* Q) {
  V product[n * d];  // v_xx f_z
  OCP_UNROLL
  for (int i = 0; i < n; ++i) {
    V row[d];
    OCP_UNROLL
    for (int j = 0; j < d; ++j) row[j] = xx[i * n] * s.F[j];
    OCP_UNROLL
    for (int k = 1; k < n; ++k) {
      OCP_UNROLL
      for (int j = 0; j < d; ++j) row[j] += xx[i * n + k] * s.F[k * d + j];
    }
    OCP_UNROLL
    for (int j = 0; j < d; ++j) product[i * d + j] = row[j];
  }
  OCP_UNROLL
  for (int i = 0; i < d; ++i) {
    V row[d];
    OCP_UNROLL
    for (int j = 0; j <= i; ++j) row[j] = s.H[tri(i, j)];
    OCP_UNROLL
    for (int k = 0; k < n; ++k) {
      OCP_UNROLL
      for (int j = 0; j <= i; ++j) row[j] += s.F[k * d + i] * product[k * d + j];
    }
    OCP_UNROLL
    for (int j = 0; j <= i; ++j) Q[tri(i, j)] = row[j];
  }
}

template <class V> OCP_FN void curve_large(const Stage<V>& s, const V* xx, V* Q) {
  V product[n * d], full[d * d];
  add_product<n, n, d, false, true>(xx, n, 1, s.F, d, product, d);
  add_product<d, n, d, true, true>(s.F, 1, d, product, d, full, d);
  for (int i = 0; i < d; ++i) add(i + 1, s.H + tri(i, 0), full + i * d, Q + tri(i, 0));
}

// And q = l_z + f_z' v_x.
template <class V>
OCP_FN void quadratic(const Stage<V>& s, const Value<V>& v, Quadratic<V>& model) {
  if constexpr (blocked(d)) curve_large(s, v.xx, model.Q);
  else curve_small(s, v.xx, model.Q);
  OCP_UNROLL
  for (int i = 0; i < d; ++i) model.q[i] = s.g[i];
  add_rows_of<n, d>(v.x, s.F, model.q);
}

// Q_uu (a lower triangle) and Q_ux (m, n) with the damping on Q_uu, or on v_xx inside both.
template <class V>
OCP_FN void regularise(
    const Stage<V>& s, const Quadratic<V>& model, V damping, bool on_state, V* uu, V* ux) {
  OCP_UNROLL
  for (int a = 0; a < m; ++a) {
    OCP_UNROLL
    for (int j = 0; j < n; ++j) ux[a * n + j] = model.Q[tri(n + a, j)];
    OCP_UNROLL
    for (int b = 0; b <= a; ++b) uu[tri(a, b)] = model.Q[tri(n + a, n + b)];
    if (!on_state) uu[tri(a, a)] += damping;
  }
  if (!on_state) return;
  for (int k = 0; k < n; ++k)
    for (int a = 0; a < m; ++a) {
      V scaled = damping * s.F[k * d + n + a];
      for (int j = 0; j < n; ++j) ux[a * n + j] += scaled * s.F[k * d + j];
      for (int b = 0; b <= a; ++b) uu[tri(a, b)] += scaled * s.F[k * d + n + b];
    }
}

// The step of the controls, and the factor of Q_uu on those that are free.
template <class V>
OCP_FN BoxQP<m, V> control_step(const V* uu, const V* qu, const V* lo, const V* hi) {
  if constexpr (bounded) return box_qp<m>(uu, qu, lo, hi);
  BoxQP<m, V> qp;
  qp.factor = factor<m>(uu);
  qp.definite = qp.factor.definite;
  OCP_UNROLL
  for (int a = 0; a < m; ++a) qp.x[a] = qu[a], qp.free[a] = always<V>();
  solve_negative<m>(qp.factor, qp.x);
  return qp;
}

// k (m) and K (m, n), 0 where Q_uu is not positive definite on the free controls: returns where it
// is. K comes in as Q_ux.
template <class V>
OCP_FN MaskOf<V> gains(const V* uu, const V* qu, const V* lo, const V* hi, V* k, V* K) {
  const BoxQP<m, V> step = control_step(uu, qu, lo, hi);
  if constexpr (bounded) {
    OCP_UNROLL
    for (int a = 0; a < m; ++a) {
      OCP_UNROLL
      for (int j = 0; j < n; ++j) K[a * n + j] = select(step.free[a], K[a * n + j], V(0));
    }
  }
  solve_columns<m, n>(step.factor, K);
  OCP_UNROLL
  for (int a = 0; a < m; ++a) {
    k[a] = select(step.definite, step.x[a], V(0));
    OCP_UNROLL
    for (int j = 0; j < n; ++j) K[a * n + j] = select(step.definite, K[a * n + j], V(0));
  }
  return step.definite;
}

// Largest |u - clip(u - Q_u, lo, hi)|.
template <class V> OCP_FN V projected(const V* qu, const V* lo, const V* hi) {
  V largest = V(0);
  OCP_UNROLL
  for (int a = 0; a < m; ++a) {
    V moved = bounded ? min_(max_(-qu[a], lo[a]), hi[a]) : qu[a];
    largest = max_(largest, abs_(moved));
  }
  return largest;
}

// p = l_x + f_x' p + K' (l_u + f_u' p); the slope gains k . (l_u + f_u' p).
template <class V>
OCP_FN void carry_slope(
    const Stage<V>& s, const V* k, const V* K, Value<V>& v, Promise<V>& promise) {
  V along[d];
  OCP_UNROLL
  for (int i = 0; i < d; ++i) along[i] = s.g[i];
  add_rows_of<n, d>(v.p, s.F, along);
  OCP_UNROLL
  for (int a = 0; a < m; ++a) promise.slope += k[a] * along[n + a];
  add_rows_of<m, n>(along + n, K, along);
  OCP_UNROLL
  for (int i = 0; i < n; ++i) v.p[i] = along[i];
}

// v_xx = Q_xx + K' R + Q_ux' K, R = Q_uu K + Q_ux
template <class V>
OCP_FN void hessian_small(const Quadratic<V>& model, const V* K, const V* R, V* xx) {
  OCP_UNROLL
  for (int i = 0; i < n; ++i) {
    V row[n];
    OCP_UNROLL
    for (int j = 0; j <= i; ++j) row[j] = model.Q[tri(i, j)];
    OCP_UNROLL
    for (int a = 0; a < m; ++a) {
      V gain = K[a * n + i], ux = model.Q[tri(n + a, i)];
      OCP_UNROLL
      for (int j = 0; j <= i; ++j) row[j] += gain * R[a * n + j] + ux * K[a * n + j];
    }
    OCP_UNROLL
    for (int j = 0; j <= i; ++j) xx[i * n + j] = xx[j * n + i] = row[j];
  }
}

template <class V>
OCP_FN void hessian_large(const Quadratic<V>& model, const V* K, const V* R, V* xx) {
  V ux[m * n];
  for (int a = 0; a < m; ++a)
    for (int j = 0; j < n; ++j) ux[a * n + j] = model.Q[tri(n + a, j)];
  for (int i = 0; i < n; ++i)
    for (int j = 0; j <= i; ++j) xx[i * n + j] = model.Q[tri(i, j)];
  V left[2 * m * n], right[2 * m * n];  // one product instead of two
  for (int i = 0; i < m * n; ++i) {
    left[i] = K[i], right[i] = R[i];
    left[m * n + i] = ux[i], right[m * n + i] = K[i];
  }
  add_product<n, 2 * m, n, true>(left, 1, n, right, n, xx, n);
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < i; ++j) xx[j * n + i] = xx[i * n + j];
}

// The value of this very policy, with the undamped Q_uu: the damping of a trajectory shortens the
// step but must not bias the model that earlier stages see.
template <class V>
OCP_FN void value_of(
    const Quadratic<V>& model, const V* k, const V* K, Value<V>& v, Promise<V>& promise) {
  V uuk[m], R[m * n], uu[m * m];  // Q_uu k + Q_u, Q_uu K + Q_ux, Q_uu
  OCP_UNROLL
  for (int a = 0; a < m; ++a) {
    const V* ux = model.Q + tri(n + a, 0);
    V sum = V(0);
    OCP_UNROLL
    for (int j = 0; j < n; ++j) R[a * n + j] = ux[j];
    OCP_UNROLL
    for (int b = 0; b < m; ++b) {
      uu[a * m + b] = model.Q[sym(n + a, n + b)];
      sum += uu[a * m + b] * k[b];
      if constexpr (!blocked(d)) add_row<n>(uu[a * m + b], K + b * n, R + a * n);
    }
    uuk[a] = sum + model.q[n + a];
    promise.change += k[a] * (model.q[n + a] + sum * V(0.5));
  }
  if constexpr (blocked(d)) add_product<m, m, n, false>(uu, m, 1, K, n, R, n);
  OCP_UNROLL
  for (int i = 0; i < n; ++i) v.x[i] = model.q[i];
  add_rows_of<m, n>(uuk, K, v.x);
  OCP_UNROLL
  for (int a = 0; a < m; ++a) add_row<n>(k[a], model.Q + tri(n + a, 0), v.x);
  if constexpr (blocked(d)) hessian_large(model, K, R, v.xx);
  else hessian_small(model, K, R, v.xx);
}

// -- the pass -----------------------------------------------------------------------------------
template <class V> struct Pass {
  const Data* data;
  Array<const V> us;    // [T][m], about which the bounds lie
  Array<const V> gaps;  // [T][n]; null if there are none
  V damping;
  bool on_state;     // the damping is on v_xx (Tassa 2012, eq. 10)
  MaskOf<V> full;  // the model has its second-order terms
  Array<V> k;        // [T][m], as the rest written by the pass
  Array<V> K;        // [T][m][n]
  Array<V> vx;       // [T + 1][n] and [T + 1][n][n], or null
  Array<V> vxx;
  Array<V> p;        // costates [T + 1][n], and H_u along them [T][m]; or null
  Array<V> hu;
  bool hasty;          // end where all active lanes have failed with second-order terms:
  MaskOf<V> active;    // what they computed will not be used
};

template <class V> OCP_FN void record_value(const Pass<V>& pass, Int t, const Value<V>& v) {
  if (!pass.vx) return;
  write<n>(v.x, pass.vx + t * n);
  write<n * n>(v.xx, pass.vxx + t * n * n);
}

// The costate at t, and H_u, from that at t + 1.
template <class V> OCP_FN void record_costate(const Pass<V>& pass, Int t, const Stage<V>& s) {
  V along[d];
  OCP_UNROLL
  for (int i = 0; i < d; ++i) along[i] = s.g[i];
  V after[n];
  read<n>(pass.p + (t + 1) * n, after);
  add_rows_of<n, d>(after, s.F, along);
  write<n>(along, pass.p + t * n);
  write<m>(along + n, pass.hu + t * m);
}

// Source gives `end(v_x, v_xx)`, `stage(t, room for it)` and `curve(t, v, full, H)`: v . f_zz of the
// lanes in `full`, a lower triangle. `failed` of the result is the last stage with Q_uu not
// definite, or -1.
template <class V, class Source> OCP_FN Promise<V> sweep(const Pass<V>& pass, Source& source) {
  Value<V> v;
  Stage<V> own;
  Quadratic<V> model;
  Promise<V> promise = {V(0), V(0), V(0), V(-1)};
  source.end(v.x, v.xx);
  for (int i = 0; i < n; ++i) v.p[i] = v.x[i];
  record_value(pass, pass.data->T, v);
  for (int i = 0; pass.p && i < n; ++i) pass.p[pass.data->T * n + i] = v.x[i];
  bool curved = any(pass.full);
  for (Int t = pass.data->T - 1; t >= 0; --t) {
    V k[m], K[m * n], uu[tri_size(m)], lo[m], hi[m];
    if (pass.gaps) {
      V gap[n];
      read<n>(pass.gaps + t * n, gap);
      cross_gap(gap, v, promise);
    }
    V bend[tri_size(d)];  // before the stage, while there is little else to keep in registers
    if (curved) source.curve(t, v.x, pass.full, bend);
    const Stage<V>& s = source.stage(t, own);
    if (pass.p) record_costate(pass, t, s);
    quadratic(s, v, model);
    if (curved) add_row<tri_size(d)>(V(1), bend, model.Q);
    regularise(s, model, pass.damping, pass.on_state, uu, K);
    if constexpr (bounded) {  // braces: NVRTC 12.4 drops what follows a bare loop here
      for (int a = 0; a < m; ++a) {
        lo[a] = V(pass.data->lower[t * m + a]) - pass.us[t * m + a];
        hi[a] = V(pass.data->upper[t * m + a]) - pass.us[t * m + a];
      }
    }
    auto definite = gains(uu, model.q + n, lo, hi, k, K);
    promise.failed = select(!definite & (promise.failed < V(0)), V(double(t)), promise.failed);
    if (curved && pass.hasty && !any(pass.active & !(pass.full & (promise.failed >= V(0)))))
      break;
    promise.residual = max_(promise.residual, projected(model.q + n, lo, hi));
    carry_slope(s, k, K, v, promise);
    value_of(model, k, K, v, promise);
    write<m>(k, pass.k + t * m);
    write<m * n>(K, pass.K + t * m * n);
    record_value(pass, t, v);
  }
  return promise;
}

}  // namespace ocp
