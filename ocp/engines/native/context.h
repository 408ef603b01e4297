// What programs compute on: the caller's arrays, what functions read beside x and u, work memory.
//
// The caller's arrays have the layout of the package, (stage, problem, component), contiguous.
#pragma once
#include "maths.h"
#if OCP_GRID
#include "grid.h"
#else
#include "host.h"
#endif

namespace ocp {

// First argument of every entry point. Fields are 8 bytes each, in this order.
struct Data {
  Int T;              // stages
  Int B;              // problems
  Int P;              // numbers of a row of dat
  Int threads;        // at most so many; on a GPU, units of work that are there (grid.h)
  const Real* par;    // shared numbers
  const Real* dat;    // (B, P): numbers of each problem
  const Real* lower;  // (T, m) bounds of the controls; read by programs built with OCP_BOUNDS
  const Real* upper;
  char* work;         // ocp_work_bytes of them
  Int slots;          // room for steps that `PMP` remembers, one more than it keeps; 0 for none
};

// What a generated function reads: each lane has its own stage and its own row of data.
template <class V> struct Context {
  static constexpr int lanes = Of<V>::lanes;
  const Real* shared;
  const Real* row[lanes];
  int stage[lanes];

  OCP_METHOD V t() const {
    V value;
    OCP_UNROLL
    for (int l = 0; l < lanes; ++l) set(value, l, Real(stage[l]));
    return value;
  }
  OCP_METHOD V par(int i) const { return V(shared[i]); }
  OCP_METHOD V dat(int i) const {
    V value;
    OCP_UNROLL
    for (int l = 0; l < lanes; ++l) set(value, l, row[l][i]);
    return value;
  }
  OCP_METHOD V par_at(int i, int stride) const {
    V value;
    OCP_UNROLL
    for (int l = 0; l < lanes; ++l) set(value, l, shared[i + stride * stage[l]]);
    return value;
  }
  OCP_METHOD V dat_at(int i, int stride) const {
    V value;
    OCP_UNROLL
    for (int l = 0; l < lanes; ++l) set(value, l, row[l][i + stride * stage[l]]);
    return value;
  }
  OCP_METHOD void at(Int t) {
    OCP_UNROLL
    for (int l = 0; l < lanes; ++l) stage[l] = int(t);
  }
};

// The context of problems index[l] at stage 0.
template <class V> OCP_FN Context<V> context_of(const Data& data, const Int* index) {
  Context<V> c;
  c.shared = data.par;
  for (int l = 0; l < Context<V>::lanes; ++l) c.row[l] = data.dat + index[l] * data.P;
  c.at(0);
  return c;
}

// -- rows of the caller's arrays and lanes ------------------------------------------------------
// W rows of `width` numbers, row[l] in lane l.
template <class V> OCP_FN void gather(const Real* array, Int width, const Int* row, V* values) {
  for (Int j = 0; j < width; ++j)
    OCP_UNROLL
    for (int l = 0; l < Of<V>::lanes; ++l) set(values[j], l, array[row[l] * width + j]);
}
// The first `count` lanes back.
template <class V>
OCP_FN void scatter(const V* values, Int width, const Int* row, int count, Real* array) {
  for (int l = 0; l < count; ++l)
    for (Int j = 0; j < width; ++j) array[row[l] * width + j] = get(values[j], l);
}
// The same for (stages, lines, width) and V [stages][width], where lane l is line[l].
template <class V>
OCP_FN void gather(
    const Real* array, Int stages, Int lines, Int width, const Int* line, Array<V> values) {
  for (Int t = team_rank(); t < stages; t += team_size())
    gather(array + t * lines * width, width, line, values + t * width);
}
template <class V>
OCP_FN void scatter(
    Array<V> values, Int stages, Int lines, Int width, const Int* line, int count, Real* array) {
  for (Int t = team_rank(); t < stages; t += team_size())
    scatter(values + t * width, width, line, count, array + t * lines * width);
}
// One lane from and to one line.
template <class V>
OCP_FN void gather_lane(
    const Real* array, Int stages, Int lines, Int width, Int line, int lane, Array<V> values) {
  for (Int t = team_rank(); t < stages; t += team_size())
    for (Int j = 0; j < width; ++j)
      set(values[t * width + j], lane, array[(t * lines + line) * width + j]);
}
template <class V>
OCP_FN void scatter_lane(
    Array<V> values, Int stages, Int lines, Int width, Int line, int lane, Real* array) {
  for (Int t = team_rank(); t < stages; t += team_size())
    for (Int j = 0; j < width; ++j)
      array[(t * lines + line) * width + j] = get(values[t * width + j], lane);
}
// A stage's numbers out of work memory and back.
template <int count, class P, class V> OCP_FN void read(P from, V* values) {
  OCP_UNROLL
  for (int i = 0; i < count; ++i) values[i] = V(from[i]);
}
template <int count, class P, class V> OCP_FN void write(const V* values, P to) {
  OCP_UNROLL
  for (int i = 0; i < count; ++i) to[i] = values[i];
}

}  // namespace ocp
