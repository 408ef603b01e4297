// Loops over the vectors of networks: see nets.py and net_text.py, whose text calls them.
//
// Several columns of a vector (tangents, adjoints) lie one after another, `ld` apart. With V a pack
// its lanes are stages or problems, and an entry of a matrix is read once for all of them; with V a
// scalar, R is as many neighbours along a vector as the machine computes at once.
#pragma once
#include "linalg.h"

namespace ocp {

// Room for a vector, of whole packs of any width; never a power of two, whose multiples would all
// meet in the same places of the cache.
constexpr int padded(int size) { return ((size + 15) / 16 | 1) * 16; }

template <class V> OCP_FN void fill(V* to, int count, V value) {
  for (int i = 0; i < count; ++i) to[i] = value;
}

// -- products ------------------------------------------------------------------------------------
// What the entries of a matrix and of a vector meet as: an entry of the matrix for all lanes, or
// neighbours in a row of it with neighbours in the vector.
enum Way { BROADCAST, ALONG_ROWS };

// y[c][i] of `rows` rows and `columns` vectors, which stay in registers.
template <Way way, int rows, int columns, class R, class V>
OCP_FN void layer_block(const Real* W, int row_step, int inner, int inner_step, const V* x, int x_ld,
                        V* y, int y_ld) {
  constexpr int step = int(sizeof(R) / sizeof(V));
  R sum[rows][columns];
  OCP_UNROLL
  for (int i = 0; i < rows; ++i) {
    OCP_UNROLL
    for (int c = 0; c < columns; ++c) sum[i][c] = R(0);
  }
  int k = 0;
  for (; k + step <= inner; k += step) {
    R at[columns];
    OCP_UNROLL
    for (int c = 0; c < columns; ++c) at[c] = load<R>(x + c * x_ld + k);
    OCP_UNROLL
    for (int i = 0; i < rows; ++i) {
      const Real* from = W + i * row_step + k * inner_step;
      R w;
      if constexpr (way == BROADCAST) w = R(*from);
      else w = load<R>(from);
      OCP_UNROLL
      for (int c = 0; c < columns; ++c) sum[i][c] += w * at[c];
    }
  }
  OCP_UNROLL
  for (int i = 0; i < rows; ++i) {
    OCP_UNROLL
    for (int c = 0; c < columns; ++c) {
      V* to = y + c * y_ld + i;
      if constexpr (step == 1) {
        *to = sum[i][c];
      } else {
        V total = V(0);
        OCP_UNROLL
        for (int l = 0; l < step; ++l) total += get(sum[i][c], l);
        for (int j = k; j < inner; ++j) total += W[i * row_step + j] * x[c * x_ld + j];
        *to = total;
      }
    }
  }
}

// All rows for `columns` vectors, `most` rows at a time.
template <Way way, int most, int columns, class R, class V>
OCP_APART void layer_rows(const Real* W, int rows, int row_step, int inner, int inner_step,
                          const V* x, int x_ld, V* y, int y_ld) {
  int i = 0;
  for (; i + most <= rows; i += most)
    layer_block<way, most, columns, R>(
        W + i * row_step, row_step, inner, inner_step, x, x_ld, y + i, y_ld);
  for (; i < rows; ++i)
    layer_block<way, 1, columns, R>(
        W + i * row_step, row_step, inner, inner_step, x, x_ld, y + i, y_ld);
}

// For any number of vectors, as many sums as there are registers for.
template <Way way, class R, class V>
OCP_FN void layer_by_rows(const Real* W, int rows, int row_step, int inner, int inner_step,
                          int columns, const V* x, int x_ld, V* y, int y_ld) {
  while (columns > 0) {
    constexpr int most = way == ALONG_ROWS ? 5 : 4;
    const int now = columns <= most ? columns : columns < 2 * most ? columns / 2 : most;
#define OCP_COLUMNS(rows_at_once, count)                                                         \
  layer_rows<way, rows_at_once, count, R>(                                                       \
      W, rows, row_step, inner, inner_step, x, x_ld, y, y_ld)
    switch (now) {
      case 1: OCP_COLUMNS(8, 1); break;
      case 2: OCP_COLUMNS(4, 2); break;
      case 3: OCP_COLUMNS(4, 3); break;
      case 4: OCP_COLUMNS(3, 4); break;
      default:
        if constexpr (most == 5) OCP_COLUMNS(2, 5);
    }
#undef OCP_COLUMNS
    columns -= now, x += now * x_ld, y += now * y_ld;
  }
}

// y[c] += W x[c] where neighbours in a column of W lie side by side: `count` columns of W at once,
// which are read as they lie.
template <int count, int columns, class V>
OCP_APART void add_columns(const Real* W, int rows, int inner_step, const V* x, int x_ld, V* y,
                           int y_ld) {
  typedef typename Chunk<V>::type R;
  constexpr int step = Chunk<V>::size;
  R at[count][columns];
  OCP_UNROLL
  for (int k = 0; k < count; ++k) {
    OCP_UNROLL
    for (int c = 0; c < columns; ++c) at[k][c] = R(x[c * x_ld + k]);
  }
  int i = 0;
  for (; i + step <= rows; i += step) {
    R sum[columns];
    OCP_UNROLL
    for (int c = 0; c < columns; ++c) sum[c] = load<R>(y + c * y_ld + i);
    OCP_UNROLL
    for (int k = 0; k < count; ++k) {
      R w;
      if constexpr (step == 1) w = R(W[k * inner_step + i]);
      else w = load<R>(W + k * inner_step + i);
      OCP_UNROLL
      for (int c = 0; c < columns; ++c) sum[c] += w * at[k][c];
    }
    OCP_UNROLL
    for (int c = 0; c < columns; ++c) store(sum[c], y + c * y_ld + i);
  }
  for (; i < rows; ++i)
    for (int c = 0; c < columns; ++c)
      for (int k = 0; k < count; ++k) y[c * y_ld + i] += V(W[k * inner_step + i]) * x[c * x_ld + k];
}

template <int most, int columns, class V>
OCP_FN void add_by_columns(const Real* W, int rows, int inner, int inner_step, const V* x, int x_ld,
                           V* y, int y_ld) {
  int k = 0;
  for (; k + most <= inner; k += most)
    add_columns<most, columns>(W + k * inner_step, rows, inner_step, x + k, x_ld, y, y_ld);
  for (; k < inner; ++k)
    add_columns<1, columns>(W + k * inner_step, rows, inner_step, x + k, x_ld, y, y_ld);
}

// y[c] (rows) += W x[c] (inner)
template <class V>
OCP_APART void add_layer(const Real* W, int rows, int row_step, int inner, int inner_step,
                         int columns, const V* x, int x_ld, V* y, int y_ld) {
  if (row_step != 1) {
    for (int c = 0; c < columns; ++c)
      for (int i = 0; i < rows; ++i)
        for (int k = 0; k < inner; ++k)
          y[c * y_ld + i] += V(W[i * row_step + k * inner_step]) * x[c * x_ld + k];
    return;
  }
  while (columns > 0) {
    const int now = columns <= 3 ? columns : columns == 4 ? 2 : 3;
    switch (now) {
      case 1: add_by_columns<8, 1>(W, rows, inner, inner_step, x, x_ld, y, y_ld); break;
      case 2: add_by_columns<4, 2>(W, rows, inner, inner_step, x, x_ld, y, y_ld); break;
      default: add_by_columns<3, 3>(W, rows, inner, inner_step, x, x_ld, y, y_ld);
    }
    columns -= now, x += now * x_ld, y += now * y_ld;
  }
}

// y[c] (rows) = W x[c] (inner)
template <class V>
OCP_APART void layer(const Real* W, int rows, int row_step, int inner, int inner_step, int columns,
                     const V* x, int x_ld, V* y, int y_ld) {
  typedef typename Chunk<V>::type R;
  if (row_step == 1 && inner_step != 1) {
    for (int c = 0; c < columns; ++c) fill(y + c * y_ld, rows, V(0));
    return add_layer(W, rows, row_step, inner, inner_step, columns, x, x_ld, y, y_ld);
  }
  if constexpr (Chunk<V>::size > 1)
    if (inner_step == 1 && inner >= Chunk<V>::size)
      return layer_by_rows<ALONG_ROWS, R>(W, rows, row_step, inner, 1, columns, x, x_ld, y, y_ld);
  layer_by_rows<BROADCAST, V>(
      W, rows, row_step, inner, inner_step, columns, x, x_ld, y, y_ld);
}

// Tangents of W z along `columns` inputs, where z has inputs `first`.. of them.
template <class V>
OCP_FN void layer_of_inputs(const Real* W, int rows, int row_step, int inner, int inner_step,
                            int first, int columns, V* y, int y_ld) {
  for (int c = 0; c < columns; ++c)
    for (int i = 0; i < rows; ++i)
      y[c * y_ld + i] = c < first || c >= first + inner
                            ? V(0)
                            : V(W[i * row_step + (c - first) * inner_step]);
}

// -- entry by entry ------------------------------------------------------------------------------
// Run-time numbers i.. of `count`, `stride` apart.
template <class V, class R>
OCP_FN R parameters(const Real* from, int stride, int i, int count) {
  if constexpr (Chunk<V>::size == 1) {
    return R(from[i * stride]);
  } else {
    if (stride == 1 && i + Chunk<V>::size <= count) return load<R>(from + i);
    R r = R(0);
    for (int l = 0; l < Chunk<V>::size && i + l < count; ++l) set(r, l, from[(i + l) * stride]);
    return r;
  }
}

// All entries of a pack, added.
template <class V, class R> OCP_FN V folded(R sum) {
  if constexpr (Chunk<V>::size == 1) {
    return sum;
  } else {
    V total = V(0);
    OCP_UNROLL
    for (int l = 0; l < Chunk<V>::size; ++l) total += get(sum, l);
    return total;
  }
}

// sum_i x[i] y[i]; y null for ones
template <class V> OCP_FN V inner_product(int count, const V* x, const V* y) {
  typedef typename Chunk<V>::type R;
  constexpr int step = Chunk<V>::size;
  R sum = R(0);
  int i = 0;
  for (; i + step <= count; i += step)
    sum += y ? load<R>(x + i) * load<R>(y + i) : load<R>(x + i);
  V total = folded<V>(sum);
  for (; i < count; ++i) total += y ? x[i] * y[i] : x[i];
  return total;
}

// z[i] = s x[i] y[i], or added to what is there; `steps` of x and y are 1, or 0 for one entry that
// meets all of the other; null for ones
template <class V>
OCP_FN void products(int count, double s, const V* x, int x_step, const V* y, int y_step, V* z,
                     bool add) {
  typedef typename Chunk<V>::type R;
  constexpr int step = Chunk<V>::size;
  int i = 0;
  for (; i + step <= count; i += step) {
    R value = R(s);
    if (x) value = value * (x_step ? load<R>(x + i) : R(x[0]));
    if (y) value = value * (y_step ? load<R>(y + i) : R(y[0]));
    store(add ? load<R>(z + i) + value : value, z + i);
  }
  for (; i < count; ++i) {
    V value = V(s);
    if (x) value = value * x[x_step * i];
    if (y) value = value * y[y_step * i];
    z[i] = add ? z[i] + value : value;
  }
}

// Tangents: y[c][i] += s d[i] x[c][i]; d null for ones; of an operand of one entry, x_step is 0.
template <class V>
OCP_APART void push(int columns, int count, double s, const V* d, const V* x, int x_ld, int x_step,
                    V* y, int y_ld) {
  for (int c = 0; c < columns; ++c)
    products(count, s, d, 1, x + c * x_ld, x_step, y + c * y_ld, true);
}

// Adjoints: x[c][i] += s d[i] y[c][i], summed over i for an operand of one entry.
template <class V>
OCP_APART void pull(int columns, int count, double s, const V* d, const V* y, int y_ld, V* x,
                    int x_ld, int x_step) {
  for (int c = 0; c < columns; ++c) {
    if (x_step) products(count, s, d, 1, y + c * y_ld, 1, x + c * x_ld, true);
    else x[c * x_ld] += V(s) * inner_product(count, y + c * y_ld, d);
  }
}

// H (a lower triangle) += sum_i s b[i] e[i] p[i] q[i]' with tangents p, q [inputs][..]; e null for
// ones. `two`: of two operands, and the transpose is added too. room: 2 padded(count) numbers.
template <class V>
OCP_APART void curve(int inputs, int count, double s, const V* b, const V* e, const V* p, int p_ld,
                     int p_step, const V* q, int q_ld, int q_step, bool two, V* room, V* H) {
  V *weights = room, *weighted = room + padded(count);
  products(count, s, b, 1, e, 1, weights, false);
  for (int j = 0; j < inputs; ++j) {
    products(count, 1.0, weights, 1, q + j * q_ld, q_step, weighted, false);
    const V all = p_step ? V(0) : inner_product<V>(count, weighted, nullptr);
    for (int i = two ? 0 : j; i < inputs; ++i) {
      const V* at = p + i * p_ld;
      const V value = p_step ? inner_product(count, weighted, at) : all * at[0];
      H[sym(i, j)] += two && i == j ? value + value : value;
    }
  }
}

}  // namespace ocp
