// What a single problem keeps of its stages on a CPU, matrices by rows of packs.
#pragma once
#include "contracted.h"
#include "rollout.h"
#include "row_layout.h"

namespace ocp {

template <class V> struct RowStage {
  V F[n * D];
  V g[D];
};
constexpr int hessian_size = low(d, 0);  // numbers of l_zz
#ifndef OCP_SAME_HESSIAN
#define OCP_SAME_HESSIAN 0
#endif
constexpr bool same_hessian = OCP_SAME_HESSIAN;  // at all stages: kept once

// Derivatives by z at W stages; l_zz and what a table is made of where they are wanted (not null).
OCP_FN void expand_rows(const Wide* x, const Wide* u, const Context<Wide>& c, RowStage<Wide>& s,
                        Wide* hessian, Tabled* second) {
  Wide F[n * d], g[d], H[d * d], *to = D == d ? s.F : F;
#if OCP_TABLE
  if (second) f_second(x, u, c, *second, to);
#endif
  if (!OCP_FIRST || !second) Model::f_jacobian(x, u, c, to);
  if constexpr (D > d)
    for (int i = 0; i < n; ++i) padded<D>(F + i * d, d, s.F + i * D);
  Model::l_expansion(x, u, c, g, H);
  padded<D>(g, d, s.g);
  if (!hessian) return;
  OCP_UNROLL
  for (int i = 0; i < d; ++i) {
    OCP_UNROLL
    for (int j = 0; j < (i / W + 1) * W; ++j) hessian[low(i, j)] = j <= i ? H[i * d + j] : Wide(0);
  }
}

// Stages of one problem with their l_zz, and tables of what v . f_zz is made of, each where it is
// wanted (not null); returns the residue of the stages.
OCP_FN Real expand_over_time(const Data& data, const Real* xs, const Real* us,
                             RowStage<Real>* stages, Real* hessians, Tabled* table) {
  RowStage<Wide> s;
  constexpr int size = sizeof s / sizeof(Wide);
  Wide residue = Wide(0), x[n], u[m], H[hessian_size];
  for (Int first = 0; first < data.T; first += W) {
    const Block block = block_at(data, 1, first, data.T);
    const bool bends = stages && (!same_hessian || first == 0);
    gather(xs, n, block.row, x);
    gather(us, m, block.row, u);
    expand_rows(x, u, block.c, s, bends ? H : nullptr, table ? table + first / W : nullptr);
    if (!stages) continue;
    add_residue(residue, (const Wide*)&s, size);
    store_lanes((const Wide*)&s, size, block.count, (Real*)(stages + first), size);
    if (!bends) continue;
    add_residue(residue, H, hessian_size);
    const int count = same_hessian ? 1 : block.count;
    store_lanes(H, hessian_size, count, hessians + first * hessian_size, hessian_size);
  }
  Real sum = 0;
  OCP_UNROLL
  for (int l = 0; l < W; ++l) sum += get(residue, l);
  return sum;
}

}  // namespace ocp
