// Runs the tapes of large functions: see duals.py, which writes them.
//
// A tape carries tangents, derivatives along the entries of z = (x, u). Only those are stored that
// can differ from 0: a tangent is a short row of R, the directions of its support. R is V itself,
// a direction each; or, for one problem at a time (V a scalar), the pack of as many directions as
// the machine computes at once. Coefficients p are the results of the straight-line program.
#pragma once
#include "linalg.h"

#if OCP_CUDA
#define OCP_APART static __device__ __noinline__
#else
#define OCP_APART __attribute__((noinline, unused)) static
#endif

namespace ocp {

// The functions of maths.h as calls: inlined hundreds of times they would take minutes to compile.
namespace apart {
#define OCP_CALL(name) template <class V> OCP_APART V name(V x) { return ocp::name(x); }
#define OCP_CALL2(name) template <class V> OCP_APART V name(V a, V b) { return ocp::name(a, b); }
OCP_CALL(sin) OCP_CALL(cos) OCP_CALL(tan) OCP_CALL(asin) OCP_CALL(acos) OCP_CALL(atan)
OCP_CALL(sinh) OCP_CALL(cosh) OCP_CALL(tanh) OCP_CALL(exp) OCP_CALL(expm1) OCP_CALL(log)
OCP_CALL(log1p) OCP_CALL(erf) OCP_CALL2(atan2) OCP_CALL2(pow)
#undef OCP_CALL
#undef OCP_CALL2
}  // namespace apart

enum Instruction { COMBINE, TAPE_ROW, MATVEC, TAPE_END };

// y (count) = W x, entries of W `row_step` and `column_step` apart.
template <int count, int columns, int row_step, int column_step, class V>
OCP_FN void matvec_rows(const Real* W, const V* x, V* y) {
  V sum[count];
  OCP_UNROLL
  for (int i = 0; i < count; ++i) sum[i] = V(W[i * row_step]) * x[0];
  for (int k = 1; k < columns; ++k) {
    OCP_UNROLL
    for (int i = 0; i < count; ++i) sum[i] += V(W[i * row_step + k * column_step]) * x[k];
  }
  OCP_UNROLL
  for (int i = 0; i < count; ++i) y[i] = sum[i];
}

// The same for scalars: R of them at once, along the rows or the columns that lie side by side.
template <int count, int columns, int row_step, class R, class V>
OCP_FN void matvec_dots(const Real* W, const V* x, V* y) {
  constexpr int step = int(sizeof(R) / sizeof(V)), whole = columns / step * step;
  R sum[count];
  OCP_UNROLL
  for (int i = 0; i < count; ++i) sum[i] = R(0);
  for (int k = 0; k < whole; k += step) {
    const R at = load<R>(x + k);
    OCP_UNROLL
    for (int i = 0; i < count; ++i) sum[i] += load<R>(W + i * row_step + k) * at;
  }
  OCP_UNROLL
  for (int i = 0; i < count; ++i) {
    V total = V(0);
    OCP_UNROLL
    for (int l = 0; l < step; ++l) total += get(sum[i], l);
    for (int k = whole; k < columns; ++k) total += W[i * row_step + k] * x[k];
    y[i] = total;
  }
}
template <int columns, int column_step, class R, class V>
OCP_FN void matvec_strip(const Real* W, const V* x, V* y) {
  R sum = R(0);
  for (int k = 0; k < columns; ++k) sum += R(x[k]) * load<R>(W + k * column_step);
  store(sum, y);
}

// y (rows) = W x
template <int rows, int columns, int row_step, int column_step, class V>
OCP_APART void matvec(const Real* W, const V* x, V* y) {
  typedef typename Chunk<V>::type R;
  constexpr int step = Chunk<V>::size;
  constexpr bool dots = step > 1 && column_step == 1 && columns >= step;
  constexpr bool strips = !dots && step > 1 && row_step == 1;
  constexpr int block = dots ? 4 : strips ? step : 8, whole = rows / block * block;
  for (int i = 0; i < whole; i += block) {
    const Real* from = W + i * row_step;
    if constexpr (dots) matvec_dots<block, columns, row_step, R>(from, x, y + i);
    else if constexpr (strips) matvec_strip<columns, column_step, R>(from, x, y + i);
    else matvec_rows<block, columns, row_step, column_step>(from, x, y + i);
  }
  if constexpr (whole < rows)
    matvec_rows<rows - whole, columns, row_step, column_step>(W + whole * row_step, x, y + whole);
}

// A block of Y (rows, width) = W X (inner, width): `rows` of it, `columns` R of each.
template <int rows, int columns, class R>
OCP_FN void tangent_block(const Real* W, int row_step, int inner, int inner_step, const R* X,
                          int width, R* Y) {
  R sum[rows][columns];
  OCP_UNROLL
  for (int i = 0; i < rows; ++i) {
    OCP_UNROLL
    for (int j = 0; j < columns; ++j) sum[i][j] = R(0);
  }
  for (int k = 0; k < inner; ++k) {
    OCP_UNROLL
    for (int i = 0; i < rows; ++i) {
      const R w = R(W[i * row_step + k * inner_step]);
      OCP_UNROLL
      for (int j = 0; j < columns; ++j) sum[i][j] += w * X[k * width + j];
    }
  }
  OCP_UNROLL
  for (int i = 0; i < rows; ++i) {
    OCP_UNROLL
    for (int j = 0; j < columns; ++j) Y[i * width + j] = sum[i][j];
  }
}

template <int rows, class R>
OCP_FN void tangent_rows(const Real* W, int row_step, int inner, int inner_step, const R* X,
                         int width, R* Y) {
  int j = 0;
  for (; j + 2 <= width; j += 2)
    tangent_block<rows, 2>(W, row_step, inner, inner_step, X + j, width, Y + j);
  if (j < width) tangent_block<rows, 1>(W, row_step, inner, inner_step, X + j, width, Y + j);
}

// place of W, rows, row_step, columns, column_step
template <class R>
OCP_FN void tangent_product(const int* code, const Real* shared, int width, const R* X, R* Y) {
  const Real* W = shared + code[0];
  const int rows = code[1], step = code[2];
  int i = 0;
  for (; i + 4 <= rows; i += 4)
    tangent_rows<4>(W + i * step, step, code[3], code[4], X, width, Y + i * width);
  for (; i < rows; ++i)
    tangent_rows<1>(W + i * step, step, code[3], code[4], X, width, Y + i * width);
}

// y (width) = sum of coefficients times tangents and unit vectors; returns what follows.
template <class R, class V>
OCP_FN const int* combine(const int* code, const int* maps, const V* p, const R* t, R* y) {
  const int width = code[0], whole = code[1], parts = code[2], units = code[3];
  code += 4;
  int k = 0;
  if (whole == 0) {
    for (int i = 0; i < width; ++i) y[i] = R(0);
  } else if (whole == 1) {
    const R *a = t + code[0], p0 = R(p[code[1]]);
    for (int i = 0; i < width; ++i) y[i] = p0 * a[i];
    k = 1, code += 2;
  } else {
    const R *a = t + code[0], p0 = R(p[code[1]]), *b = t + code[2], p1 = R(p[code[3]]);
    for (int i = 0; i < width; ++i) y[i] = p0 * a[i] + p1 * b[i];
    k = 2, code += 4;
  }
  for (; k + 2 <= whole; k += 2, code += 4) {
    const R *a = t + code[0], p0 = R(p[code[1]]), *b = t + code[2], p1 = R(p[code[3]]);
    for (int i = 0; i < width; ++i) y[i] += p0 * a[i] + p1 * b[i];
  }
  for (; k < whole; ++k, code += 2) {
    const R *a = t + code[0], p0 = R(p[code[1]]);
    for (int i = 0; i < width; ++i) y[i] += p0 * a[i];
  }
  for (k = 0; k < parts; ++k, code += 4) {
    const R *a = t + code[0], p0 = R(p[code[1]]);
    const int count = code[2], *to = maps + code[3];
    for (int i = 0; i < count; ++i) y[to[i]] += p0 * a[i];
  }
  for (k = 0; k < units; ++k, code += 2) ((V*)y)[code[0]] += p[code[1]];
  return code;
}

// out (rows, directions), row by row; of a symmetric one the lower triangle counts.
template <int directions, bool symmetric, class R, class V>
OCP_APART void carry(
    const int* code, const int* maps, const V* p, const Real* shared, R* t, V* out) {
  constexpr int packed = int(sizeof(R) / sizeof(V)), width = (directions + packed - 1) / packed;
  R row[width];
  for (;;) {
    switch (*code++) {
      case COMBINE: {
        R* y = t + *code++;
        code = combine(code, maps, p, t, y);
        break;
      }
      case MATVEC:
        tangent_product(code + 3, shared, code[2], t + code[1], t + code[0]);
        code += 8;
        break;
      case TAPE_ROW: {
        const int i = *code++;
        code = combine(code, maps, p, t, row);
        const V* entries = (const V*)row;
        if (symmetric) {
          for (int j = 0; j <= i; ++j) out[i * directions + j] = out[j * directions + i] = entries[j];
        } else {
          OCP_COPY(out + i * directions, row, directions * sizeof(V));
        }
        break;
      }
      default: return;
    }
  }
}

}  // namespace ocp
