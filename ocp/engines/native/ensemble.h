// S samples that share their controls: one problem whose state is the states of all of them.
//
// Its dynamics are block diagonal but for the control, which the sweep makes use of: with N = S n,
// a stage costs N^2 (2 n + 3 m) multiplications and no matrix of it is ever made. Arrays have the
// sample innermost, padded with zeros to whole packs (`width`), so that packs hold samples.
// Needs a program for batches: `Data::B` is S. On a GPU a pack is one number, and the threads of a
// block share out samples, or rows of V_xx, between barriers; what is small, all of them compute.
#pragma once
#include "group.h"

namespace ocp {

namespace ensemble {

OCP_FN Real sum_lanes(const Wide& a) {
  Real sum = 0;
  for (int l = 0; l < OCP_LANES; ++l) sum += get(a, l);
  return sum;
}

// body(r) for the packs of samples, body(s, i) for the rows of N, shared out; ends at a barrier.
template <class Body> OCP_FN void each_pack(Int width, Body body) {
  for (Int r = block_rank() * OCP_LANES; r < width; r += block_size() * OCP_LANES) body(r);
  block_sync();
}
template <class Body> OCP_FN void each_row(Int S, Body body) {
  for (Int a = block_rank(); a < S * n; a += block_size()) body(a / n, int(a % n));
  block_sync();
}
template <class Body> OCP_FN void each_number(Int count, Body body) {
  for (Int i = block_rank(); i < count; i += block_size()) body(i);
  block_sync();
}
OCP_FN Real total(const Wide& own) { return block_sum(sum_lanes(own)); }

OCP_FN Real* begin_of(Real* array) { return array; }
#if OCP_GRID
OCP_FN Real* begin_of(const Array<Real>& array) { return array.first; }
#endif

struct Ensemble {
  const Data* data;
  Int S, width;
  Real *F, *g, *H;   // of f, l / S (plus v . f_zz): [n][d], [d], [tri_size(d)]
  Real *x, *p, *q;   // [n], see `Value`; q is Q_x
  Real* xx;          // V_xx, on the way Q_xx: [S][n][n]
  Real *vu, *ux;     // V_xx f_u, Q_ux: [m][n]
  Real *K, *R;       // [m][n]; R = Q_uu K + Q_ux
  Wide residue;

  OCP_METHOD void place(const Data& of, Arena& arena) {
    data = &of;
    S = of.B;
    width = (S + OCP_LANES - 1) / OCP_LANES * OCP_LANES;
    Real** pieces[] = {&F, &g, &H, &x, &p, &q, &xx, &vu, &ux, &K, &R};
    const Int sizes[] = {n * d, d, tri_size(d), n, n, n, S * n * n, m * n, m * n, m * n, m * n};
    for (int i = 0; i < 11; ++i) *pieces[i] = begin_of(arena.take<Real>(sizes[i] * width));
    residue = Wide(0);
  }
  OCP_METHOD Wide at(const Real* array, Int row, Int r) const {
    return load<Wide>(array + row * width + r);
  }
  OCP_METHOD void put(Real* array, Int row, Int r, const Wide& value) const {
    store(value, array + row * width + r);
  }
  OCP_METHOD Block block(Int t, Int r) const { return block_at(*data, S, t * S + r, (t + 1) * S); }
};

// Lanes without a sample are 0.
OCP_FN void clear_rest(Wide* values, int size, int count) {
  for (int l = count; l < OCP_LANES; ++l)
    for (int i = 0; i < size; ++i) set(values[i], l, Real(0));
}

OCP_FN Int bytes(const Data& data) {
  Arena arena(nullptr);
  Ensemble e;
  e.place(data, arena);
  return Int(arena.next) + Int(Arena::alignment);
}

}  // namespace ensemble
}  // namespace ocp
