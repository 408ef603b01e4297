// Symmetric matrices of a size known when compiling: lower triangles, by rows.
#pragma once
#include "maths.h"

namespace ocp {

constexpr int tri(int i, int j) { return i * (i + 1) / 2 + j; }  // j <= i
constexpr int tri_size(int size) { return size * (size + 1) / 2; }
// An entry of a symmetric matrix.
constexpr int sym(int i, int j) { return i < j ? tri(j, i) : tri(i, j); }

template <class V> OCP_FN MaskOf<V> always() { return V(0) == V(0); }

// A = L D L' with a unit lower L: no roots, one division a row.
template <int m, class V> struct Factor {
  V L[tri_size(m)];
  V inverse[m];  // of D
  MaskOf<V> definite;
};

// Where a pivot is not positive (or nan), `definite` is false and the rest means nothing.
template <int m, class V> OCP_FN Factor<m, V> factor(const V* A) {
  Factor<m, V> f;
  f.definite = always<V>();
  OCP_UNROLL
  for (int i = 0; i < m; ++i) {
    V scaled[m], pivot = A[tri(i, i)];  // scaled[j] = L[i][j] D[j]
    OCP_UNROLL
    for (int j = 0; j < i; ++j) {
      scaled[j] = A[tri(i, j)];
      OCP_UNROLL
      for (int k = 0; k < j; ++k) scaled[j] -= scaled[k] * f.L[tri(j, k)];
      f.L[tri(i, j)] = scaled[j] * f.inverse[j];
      pivot -= scaled[j] * f.L[tri(i, j)];
    }
    auto good = pivot > V(0);
    f.definite = f.definite & good;
    f.inverse[i] = V(1) / select(good, pivot, V(1));
  }
  return f;
}

// b becomes -A^-1 b; entries of b lie `step` apart.
template <int m, class V> OCP_FN void solve_negative(const Factor<m, V>& f, V* b, int step = 1) {
  OCP_UNROLL
  for (int i = 0; i < m; ++i) {
    OCP_UNROLL
    for (int j = 0; j < i; ++j) b[i * step] -= f.L[tri(i, j)] * b[j * step];
  }
  OCP_UNROLL
  for (int i = m - 1; i >= 0; --i) {
    b[i * step] = -(b[i * step] * f.inverse[i]);
    OCP_UNROLL
    for (int j = i + 1; j < m; ++j) b[i * step] -= f.L[tri(j, i)] * b[j * step];
  }
}

// y = A x for a symmetric A.
template <int size, class V> OCP_FN void symmetric_times(const V* A, const V* x, V* y) {
  OCP_UNROLL
  for (int i = 0; i < size; ++i) {
    y[i] = A[sym(i, 0)] * x[0];
    OCP_UNROLL
    for (int j = 1; j < size; ++j) y[i] += A[sym(i, j)] * x[j];
  }
}

template <int size, class V> OCP_FN V dot(const V* a, const V* b) {
  V sum = a[0] * b[0];
  OCP_UNROLL
  for (int i = 1; i < size; ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace ocp
