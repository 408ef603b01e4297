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

template <class V>
OCP_FN void expand_rows(const V* x, const V* u, const Context<V>& c, RowStage<V>& s) {
  V F[n * d], g[d], H[d * d];
  if constexpr (D == d) {
    Model::f_jacobian(x, u, c, s.F);
  } else {
    Model::f_jacobian(x, u, c, F);
    for (int i = 0; i < n; ++i) {
      OCP_UNROLL
      for (int j = 0; j < D; ++j) s.F[i * D + j] = j < d ? F[i * d + j] : V(0);
    }
  }
  Model::l_expansion(x, u, c, g, H);
  OCP_UNROLL
  for (int j = 0; j < D; ++j) s.g[j] = j < d ? g[j] : V(0);
  OCP_UNROLL
  for (int i = 0; i < d; ++i) {
    OCP_UNROLL
    for (int j = 0; j < (i / W + 1) * W; ++j) s.H[low(i, j)] = j <= i ? H[i * d + j] : V(0);
  }
}

// Stages of one problem; returns their residue.
OCP_FN Real expand_over_time(const Data& data, const Context<Real>&, const Real* xs,
                             const Real* us, RowStage<Real>* stages) {
  RowStage<Wide> s;
  constexpr int size = sizeof s / sizeof(Wide);
  Wide residue = Wide(0), x[n], u[m];
  for (Int first = 0; first < data.T; first += W) {
    const Block block = block_at(data, 1, first, data.T);
    gather(xs, n, block.row, x);
    gather(us, m, block.row, u);
    expand_rows(x, u, block.c, s);
    add_residue(residue, (const Wide*)&s, size);
    store_lanes((const Wide*)&s, size, block.count, (Real*)(stages + first), size);
  }
  Real sum = 0;
  OCP_UNROLL
  for (int l = 0; l < W; ++l) sum += get(residue, l);
  return sum;
}

}  // namespace ocp
