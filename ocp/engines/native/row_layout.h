// Matrices by rows, each of whole packs, so that several entries of a row are computed at once. What
// lies beyond the end of a row is never read.
#pragma once
#include "block.h"
#include "sweep.h"

namespace ocp {

constexpr int W = OCP_LANES;
constexpr int packs(int size) { return (size + W - 1) / W; }
constexpr int D = packs(d) * W, N = packs(n) * W;  // numbers of a row of f_z, of K

// Entry (i, j), j <= i, of a symmetric matrix: row i ends with the pack that has the diagonal.
constexpr int low(int i, int j) {
  return W * (W * (i / W) * (i / W + 1) / 2 + i % W * (i / W + 1)) + j;
}

OCP_FN Wide row(const Real* from, int p) { return load<Wide>(from + p * W); }
OCP_FN void put(const Wide& value, Real* to, int p) { store(value, to + p * W); }

// What rows have beyond their end is 0.
template <int size, class V> OCP_FN void padded(const V* values, int end, V* row) {
  OCP_UNROLL
  for (int j = 0; j < size; ++j) row[j] = j < end ? values[j] : V(0);
}

}  // namespace ocp
