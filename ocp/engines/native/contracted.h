// The second-order terms v . f_zz, apart from the rest.
//
// They are half of what there is to compile: with OCP_PART 1 a unit has nothing else, with 2 all
// the rest, so that both compile at the same time; without it, one unit has both.
//
// With OCP_TABLE the second derivatives of f are computed by themselves, that many of them that are
// not constant, and `Second` makes v . f_zz of them. Else those of a single problem with a tape
// (OCP_DUAL) are computed sample by sample, the directions side by side: they are wanted one stage
// after another.
#pragma once
#include "block.h"
#include "sweep.h"

#if !defined(OCP_TABLE) || OCP_GRID
#undef OCP_TABLE
#define OCP_TABLE 0
#endif
#ifndef OCP_DUAL
#define OCP_DUAL 0
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

#if OCP_TABLE
void f_second(const Wide* x, const Wide* u, const Context<Wide>& c, Wide* S);
#endif

#if OCP_ALONG_Z  // of one sample
void f_contracted(const Real* x, const Real* u, const Context<Real>& c, const Real* v, Real* H);
#endif

#if OCP_SECOND_ORDER && (!defined(OCP_PART) || OCP_PART == 1)
#if OCP_TABLE
void f_second(const Wide* x, const Wide* u, const Context<Wide>& c, Wide* S) {
  Second::f_second(x, u, c, S);
}
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
  Wide S[OCP_TABLE];
  f_second(x, u, c, S);
  Second::f_combined(S, v, H);
#else
  Model::f_contracted(x, u, c, v, H);
#endif
}
#endif
#endif
#endif

}  // namespace ocp
