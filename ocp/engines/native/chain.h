// v . f_zz = Y' M Y of a single problem: see the module chain. `Second` has the structure: the
// columns of Y that are not 0, row by row, and which entries of M are not.
#pragma once
#include "row_layout.h"

namespace ocp {

constexpr bool touches(unsigned long long columns, int p) {
  return columns >> (p * W) & ((1ull << W) - 1);
}

// y += a x of rows, without the packs that have none of the columns.
template <unsigned long long columns, int count>
OCP_FN void add_columns(Real a, const Wide* x, Wide* y) {
  OCP_UNROLL
  for (int p = 0; p < count; ++p)
    if (touches(columns, p)) y[p] += Wide(a) * x[p];
}

template <int i> OCP_FN const Real* chain_row(const Real* Y) {
  if constexpr (i < OCP_ROWS) return Y + i * D;
  else return Second::fixed[i - OCP_ROWS];
}

// H = Y' M Y, in rows as of `low`. Term<j, k>: row j of Y, times entry k of M.
struct Products {
  const Real *Y, *M;
  Real* H;
  Wide MY[Second::rows][packs(d)];

  template <int i, int... j, int... k> OCP_METHOD void along(Term<j, k>...) {
    Wide sum[packs(d)];
    for (int p = 0; p < packs(d); ++p) sum[p] = Wide(0);
    (add_columns<Second::columns[j], packs(d)>(M[k], (const Wide*)chain_row<j>(Y), sum), ...);
    for (int p = 0; p < packs(d); ++p) MY[i][p] = sum[p];
  }

  // Of the rows of Y that have the column.
  template <int column, int... i> OCP_METHOD void row() {
    constexpr int count = column / W + 1;
    Wide sum[count];
    for (int p = 0; p < count; ++p) sum[p] = Wide(0);
    (add_columns<Second::reach[i], count>(chain_row<i>(Y)[column], MY[i], sum), ...);
    OCP_UNROLL
    for (int p = 0; p < count; ++p) put(sum[p], H + low(column, 0), p);
  }
};

template <class Table>
OCP_FN void along_chain(Table S, const Real* Y, const Real* v, Real* H) {
  Real M[Second::pairs];
  Second::f_combined(S, v, M);
  Products products = {Y, M, H, {}};
  Second::products(products);
}

// What is not 0 of the rows (OCP_ROWS, d) of W stages into (W, OCP_ROWS, D).
OCP_FN void store_rows(const Wide* Y, Real* rows) {
  for (int i = 0; i < OCP_ROWS; ++i) {
    OCP_UNROLL
    for (int p = 0; p < packs(d); ++p) {
      if (!touches(Second::columns[i], p)) continue;
      const Wide* from = Y + i * d + p * W;
      Wide last[W];
      if (p * W + W > d) padded<W>(from, d - p * W, last), from = last;
      store_lanes(from, W, W, rows + i * D + p * W, OCP_ROWS * D);
    }
  }
}

}  // namespace ocp
