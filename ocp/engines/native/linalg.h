// Matrices of sizes known when compiling; symmetric ones are lower triangles, by rows.
//
// Small ones unroll into registers. From `blocked` on, products go block by block: a block of the
// result stays in registers while the inner index runs, several columns of scalars in one pack.
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

// b becomes -A^-1 b; entries of b, numbers or packs of them, lie `step` apart.
template <int m, class V, class B>
OCP_FN void solve_negative(const Factor<m, V>& f, B* b, int step = 1) {
  OCP_UNROLL
  for (int i = 0; i < m; ++i) {
    OCP_UNROLL
    for (int j = 0; j < i; ++j) b[i * step] -= B(f.L[tri(i, j)]) * b[j * step];
  }
  OCP_UNROLL
  for (int i = m - 1; i >= 0; --i) {
    b[i * step] = -(b[i * step] * B(f.inverse[i]));
    OCP_UNROLL
    for (int j = i + 1; j < m; ++j) b[i * step] -= B(f.L[tri(j, i)]) * b[j * step];
  }
}

template <int size, class V> OCP_FN V dot(const V* a, const V* b) {
  V sum = a[0] * b[0];
  OCP_UNROLL
  for (int i = 1; i < size; ++i) sum += a[i] * b[i];
  return sum;
}

// -- large sizes --------------------------------------------------------------------------------
constexpr bool blocked(int size) { return size > 8; }

// What a row of V is moved by: as many scalars as the machine computes at once, or one pack.
template <class V> struct Chunk {
  typedef V type;
  static constexpr int size = 1;
};
#if !OCP_CUDA
template <> struct Chunk<Real> {
  typedef Pack<Real, OCP_LANES> type;
  static constexpr int size = OCP_LANES;
};
#endif

template <class R, class V> OCP_FN R load(const V* from) {
  R r;
  OCP_COPY(&r, from, sizeof r);
  return r;
}
template <class R, class V> OCP_FN void store(const R& r, V* to) {
  OCP_COPY(to, &r, sizeof r);
}

// y += a x
template <int size, class V> OCP_FN void add_multiple(V a, const V* x, V* y) {
  typedef typename Chunk<V>::type R;
  constexpr int step = Chunk<V>::size, whole = size / step * step;
  for (int i = 0; i < whole; i += step) store(load<R>(y + i) + R(a) * load<R>(x + i), y + i);
  for (int i = whole; i < size; ++i) y[i] += a * x[i];
}

// z = x + y, `count` of them
template <class V> OCP_FN void add(int count, const V* x, const V* y, V* z) {
  typedef typename Chunk<V>::type R;
  constexpr int step = Chunk<V>::size;
  int i = 0;
  for (; i + step <= count; i += step) store(load<R>(x + i) + load<R>(y + i), z + i);
  for (; i < count; ++i) z[i] = x[i] + y[i];
}

// Has a value stay there: GCC reads it from memory again for each use, which is as many
// instructions, but memory answers less often than products can be made.
template <class R> OCP_FN void in_register(R&) {}
#if defined(__x86_64__) && !defined(__clang__) && !OCP_CUDA
template <class S, int W> OCP_FN void in_register(Pack<S, W>& a) { asm("" : "+x"(a.v)); }
#endif

// A block of C += A B, or C = A B where that is `fresh`; its columns moved by R.
template <int rows, int columns, int inner, bool fresh, class R, class V>
OCP_FN void add_block(const V* A, int a_row, int a_inner, const V* B, int b_row, V* C, int c_row) {
  constexpr int step = sizeof(R) / sizeof(V);
  R sum[rows][columns];
  OCP_UNROLL
  for (int i = 0; i < rows; ++i) {
    OCP_UNROLL
    for (int j = 0; j < columns; ++j)
      sum[i][j] = fresh ? R(0) : load<R>(C + i * c_row + j * step);
  }
  for (int k = 0; k < inner; ++k) {
    R b[columns];
    OCP_UNROLL
    for (int j = 0; j < columns; ++j) in_register(b[j] = load<R>(B + k * b_row + j * step));
    OCP_UNROLL
    for (int i = 0; i < rows; ++i) {
      const R a = R(A[i * a_row + k * a_inner]);
      OCP_UNROLL
      for (int j = 0; j < columns; ++j) sum[i][j] += a * b[j];
    }
  }
  OCP_UNROLL
  for (int i = 0; i < rows; ++i) {
    OCP_UNROLL
    for (int j = 0; j < columns; ++j) store(sum[i][j], C + i * c_row + j * step);
  }
}

template <int rows, int inner, bool fresh, class V>
OCP_FN void add_rows(
    int columns, const V* A, int a_row, int a_inner, const V* B, int b_row, V* C, int c_row) {
  typedef typename Chunk<V>::type R;
  constexpr int step = Chunk<V>::size;
  int j = 0;
  for (; j + 3 * step <= columns && j + 4 * step != columns; j += 3 * step)  // 16 registers
    add_block<rows, 3, inner, fresh, R>(A, a_row, a_inner, B + j, b_row, C + j, c_row);
  for (; j + 2 * step <= columns; j += 2 * step)
    add_block<rows, 2, inner, fresh, R>(A, a_row, a_inner, B + j, b_row, C + j, c_row);
  for (; j + step <= columns; j += step)
    add_block<rows, 1, inner, fresh, R>(A, a_row, a_inner, B + j, b_row, C + j, c_row);
  for (; j < columns; ++j)
    add_block<rows, 1, inner, fresh, V>(A, a_row, a_inner, B + j, b_row, C + j, c_row);
}

// C += A B with A (rows, inner) at A[i a_row + k a_inner], so that it may be a transpose. `lower`:
// entries above the diagonal need not be right. `fresh`: C = A B.
template <int rows, int inner, int columns, bool lower, bool fresh = false, class V>
OCP_FN void add_product(
    const V* A, int a_row, int a_inner, const V* B, int b_row, V* C, int c_row) {
  constexpr int whole = rows / 4 * 4;
  for (int i = 0; i < whole; i += 4) {
    const int needed = lower && i + 4 < columns ? i + 4 : columns;
    add_rows<4, inner, fresh>(needed, A + i * a_row, a_row, a_inner, B, b_row, C + i * c_row, c_row);
  }
  if constexpr (whole < rows) {
    A += whole * a_row, C += whole * c_row;
    add_rows<rows - whole, inner, fresh>(columns, A, a_row, a_inner, B, b_row, C, c_row);
  }
}

// C += A B of a symmetric result, `size` rows of whole packs that end with the pack of the diagonal;
// rows of B are `wide` numbers.
template <int size, int inner, class V>
OCP_FN void add_low(const V* A, int a_row, int a_inner, const V* B, int wide, V* C) {
  constexpr int step = Chunk<V>::size, rows = step < 4 ? step : 4;
  int i = 0;
  for (; i + rows <= size; i += rows) {
    const int columns = (i / step + 1) * step;
    add_rows<rows, inner, false>(columns, A + i * a_row, a_row, a_inner, B, wide, C, columns);
    C += rows * columns;
  }
  for (; i < size; ++i) {
    const int columns = (i / step + 1) * step;
    add_rows<1, inner, false>(columns, A + i * a_row, a_row, a_inner, B, wide, C, columns);
    C += columns;
  }
}

// `count` R of each row of B, which stay in registers while a row is eliminated.
template <int m, int count, class R, class V>
OCP_FN void solve_strip(const Factor<m, V>& f, V* B, int columns) {
  constexpr int step = int(sizeof(R) / sizeof(V));
  R sum[count];
  for (int i = 0; i < m; ++i) {
    OCP_UNROLL
    for (int c = 0; c < count; ++c) sum[c] = load<R>(B + i * columns + c * step);
    const V* row = f.L + tri(i, 0);
    for (int j = 0; j < i; ++j) {
      const R l = R(row[j]);
      OCP_UNROLL
      for (int c = 0; c < count; ++c) sum[c] -= l * load<R>(B + j * columns + c * step);
    }
    OCP_UNROLL
    for (int c = 0; c < count; ++c) store(sum[c], B + i * columns + c * step);
  }
  for (int i = m - 1; i >= 0; --i) {
    const R scale = R(-f.inverse[i]);
    OCP_UNROLL
    for (int c = 0; c < count; ++c) sum[c] = scale * load<R>(B + i * columns + c * step);
    const V* below = f.L + tri(i, i);
    for (int j = i + 1; j < m; ++j) {
      const R l = R(*(below += j));
      OCP_UNROLL
      for (int c = 0; c < count; ++c) sum[c] -= l * load<R>(B + j * columns + c * step);
    }
    OCP_UNROLL
    for (int c = 0; c < count; ++c) store(sum[c], B + i * columns + c * step);
  }
}

// The columns of B (m, columns) become those of -A^-1 B.
template <int m, int columns, class V> OCP_FN void solve_columns(const Factor<m, V>& f, V* B) {
  if constexpr (!blocked(m + columns)) {
    OCP_UNROLL
    for (int j = 0; j < columns; ++j) solve_negative<m>(f, B + j, columns);
  } else {
    typedef typename Chunk<V>::type R;
    constexpr int step = Chunk<V>::size;
    int j = 0;
    for (; j + 4 * step <= columns; j += 4 * step) solve_strip<m, 4, R>(f, B + j, columns);
    for (; j + step <= columns; j += step) solve_strip<m, 1, R>(f, B + j, columns);
    for (; j < columns; ++j) solve_strip<m, 1, V>(f, B + j, columns);
  }
}

}  // namespace ocp
