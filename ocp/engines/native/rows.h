// What a single problem keeps of its stages on a CPU: matrices by rows, each of whole packs, so that
// several entries of a row are computed at once. What lies beyond the end of a row is never read.
#pragma once
#include "contracted.h"
#include "rollout.h"

namespace ocp {

constexpr int W = OCP_LANES;
constexpr int packs(int size) { return (size + W - 1) / W; }
constexpr int D = packs(d) * W, N = packs(n) * W;  // numbers of a row of f_z, of K

// Entry (i, j), j <= i, of a symmetric matrix: row i ends with the pack that has the diagonal.
constexpr int low(int i, int j) {
  return W * (W * (i / W) * (i / W + 1) / 2 + i % W * (i / W + 1)) + j;
}

template <class V> struct RowStage {
  V F[n * D];
  V g[D];
  V H[low(d, 0)];
};

// What rows have beyond their end is 0.
template <int size, class V> OCP_FN void padded(const V* values, int end, V* row) {
  OCP_UNROLL
  for (int j = 0; j < size; ++j) row[j] = j < end ? values[j] : V(0);
}

// Derivatives by z at W stages; with the table S, where that is wanted.
OCP_FN void expand_rows(
    const Wide* x, const Wide* u, const Context<Wide>& c, RowStage<Wide>& s, Wide* S) {
  Wide F[n * d], g[d], H[d * d], *to = D == d ? s.F : F;
#if OCP_TABLE
  if (S) f_second(x, u, c, S, to);
#endif
  if (!OCP_FIRST || !S) Model::f_jacobian(x, u, c, to);
  if constexpr (D > d)
    for (int i = 0; i < n; ++i) padded<D>(F + i * d, d, s.F + i * D);
  Model::l_expansion(x, u, c, g, H);
  padded<D>(g, d, s.g);
  OCP_UNROLL
  for (int i = 0; i < d; ++i) {
    OCP_UNROLL
    for (int j = 0; j < (i / W + 1) * W; ++j) s.H[low(i, j)] = j <= i ? H[i * d + j] : Wide(0);
  }
}

// Stages of one problem, and the table [T][OCP_TABLE] of what v . f_zz is made of, each where it is
// wanted (not null); returns the residue of the stages.
OCP_FN Real expand_over_time(
    const Data& data, const Real* xs, const Real* us, RowStage<Real>* stages, Real* table) {
  RowStage<Wide> s;
  constexpr int size = sizeof s / sizeof(Wide);
  Wide residue = Wide(0), x[n], u[m], S[OCP_TABLE ? OCP_TABLE : 1];
  for (Int first = 0; first < data.T; first += W) {
    const Block block = block_at(data, 1, first, data.T);
    gather(xs, n, block.row, x);
    gather(us, m, block.row, u);
    expand_rows(x, u, block.c, s, table ? S : nullptr);
    if (table) store_lanes(S, OCP_TABLE, block.count, table + first * OCP_TABLE, OCP_TABLE);
    if (!stages) continue;
    add_residue(residue, (const Wide*)&s, size);
    store_lanes((const Wide*)&s, size, block.count, (Real*)(stages + first), size);
  }
  Real sum = 0;
  OCP_UNROLL
  for (int l = 0; l < W; ++l) sum += get(residue, l);
  return sum;
}

}  // namespace ocp
