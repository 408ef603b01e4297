// The second-order terms v . f_zz, apart from the rest.
//
// They are half of what there is to compile: with OCP_PART 1 a unit has nothing else, with 2 all
// the rest, so that both compile at the same time; without it, one unit has both.
//
// With OCP_TABLE what v . f_zz is made of besides v is computed by itself, that many numbers, and
// `Second` makes v . f_zz of them; of scalars only, in a call, where that is long (OCP_LONG). With
// OCP_FIRST f_z is computed with the table. With OCP_ROWS the table begins with so many rows of a
// matrix (chain.h). Else
// those of a single problem with a tape (OCP_DUAL) are computed sample by sample, the directions
// side by side: they are wanted one stage after another.
#pragma once
#include "block.h"
#include "sweep.h"

#if !defined(OCP_TABLE) || OCP_GRID || !OCP_SINGLE
#undef OCP_TABLE
#undef OCP_LONG
#undef OCP_FIRST
#undef OCP_ROWS
#define OCP_TABLE 0
#define OCP_LONG 0
#define OCP_FIRST 0
#endif
#ifndef OCP_ROWS
#define OCP_ROWS 0
#endif
#if OCP_ROWS
#include "chain.h"
#endif
#ifndef OCP_DUAL
#define OCP_DUAL 0
#endif
#ifndef OCP_INNER  // 1: the model itself is made of loops over vectors, see net.h
#define OCP_INNER 0
#endif
#if OCP_SINGLE && OCP_DUAL && !OCP_TABLE && !OCP_GRID
#define OCP_ALONG_Z 1
#else
#define OCP_ALONG_Z 0
#endif

namespace ocp {

#if OCP_GRID
OCP_COLD void f_contracted(  // apart: most of what the sweep keeps in registers would give way to it
    const Wide* x, const Wide* u, const Context<Wide>& c, const Wide* v, Wide* H) {
#if OCP_SECOND_ORDER
  Model::f_contracted(x, u, c, v, H);
#endif
}
#else
void f_contracted(const Wide* x, const Wide* u, const Context<Wide>& c, const Wide* v, Wide* H);

// What v . f_zz is made of besides v, of W stages: lane by lane; and rows (W, OCP_ROWS, D).
struct Tabled {
  Wide S[OCP_TABLE + !OCP_TABLE];
#if OCP_ROWS
  Real rows[W * OCP_ROWS * D];
#endif
};

// Of the stage in one of the lanes.
struct InLane {
  const Real* first;
  OCP_METHOD Real operator[](int k) const { return first[k * OCP_LANES]; }
};
OCP_FN InLane in_lane(const Tabled& from, int lane) { return {(const Real*)from.S + lane}; }

#if OCP_TABLE
void f_second(const Wide* x, const Wide* u, const Context<Wide>& c, Tabled& to, Wide* F);
#endif
#if OCP_LONG  // H (d, d), or with OCP_ROWS as of `low`
void f_combined(const Tabled& from, int lane, const Real* v, Real* H);
#if OCP_ROWS
constexpr int combined_size = low(d, 0);
constexpr int in_combined(int i, int j) { return i < j ? low(j, i) : low(i, j); }
#else
constexpr int combined_size = d * d;
constexpr int in_combined(int i, int j) { return i * d + j; }
#endif
#endif

#if OCP_ALONG_Z  // of one sample
void f_contracted(const Real* x, const Real* u, const Context<Real>& c, const Real* v, Real* H);
#endif

#if OCP_SECOND_ORDER && (!defined(OCP_PART) || OCP_PART == 1)
#if OCP_TABLE
void f_second(const Wide* x, const Wide* u, const Context<Wide>& c, Tabled& to, Wide* F) {
#if OCP_ROWS
  Wide Y[OCP_ROWS * d];
  Second::f_second(x, u, c, to.S, F, Y);
  store_rows(Y, to.rows);
#elif OCP_FIRST
  Second::f_second(x, u, c, to.S, F);
#else
  (void)F;
  Second::f_second(x, u, c, to.S);
#endif
}
#if OCP_ROWS
void f_combined(const Tabled& from, int lane, const Real* v, Real* H) {
  along_chain(in_lane(from, lane), from.rows + lane * OCP_ROWS * D, v, H);
}
#elif OCP_LONG
void f_combined(const Tabled& from, int lane, const Real* v, Real* H) {
  Second::f_combined(in_lane(from, lane), v, H);
}
#endif
#endif
#if OCP_ALONG_Z
void f_contracted(const Real* x, const Real* u, const Context<Real>& c, const Real* v, Real* H) {
  Model::f_contracted(x, u, c, v, H);
}
void f_contracted(const Wide* x, const Wide* u, const Context<Wide>& c, const Wide* v, Wide* H) {
  Real at_x[n], at_u[m], along[n], out[d * d];
  for (int l = 0; l < OCP_LANES; ++l) {
    Context<Real> one;
    one.shared = c.shared;
    one.row[0] = c.row[l];
    one.stage[0] = c.stage[l];
    for (int i = 0; i < n; ++i) at_x[i] = get(x[i], l), along[i] = get(v[i], l);
    for (int i = 0; i < m; ++i) at_u[i] = get(u[i], l);
    f_contracted(at_x, at_u, one, along, out);
    for (int i = 0; i < d * d; ++i) set(H[i], l, out[i]);
  }
}
#else
void f_contracted(const Wide* x, const Wide* u, const Context<Wide>& c, const Wide* v, Wide* H) {
#if OCP_TABLE
  Wide F[n * d];
  Tabled second;
  f_second(x, u, c, second, F);
#if OCP_LONG
  Real along[n], out[combined_size];
  for (int l = 0; l < OCP_LANES; ++l) {
    for (int i = 0; i < n; ++i) along[i] = get(v[i], l);
    f_combined(second, l, along, out);
    for (int i = 0; i < d; ++i)
      for (int j = 0; j < d; ++j) set(H[i * d + j], l, out[in_combined(i, j)]);
  }
#else
  Second::f_combined((const Wide*)second.S, v, H);
#endif
#else
  Model::f_contracted(x, u, c, v, H);
#endif
}
#endif
#endif
#endif

}  // namespace ocp
