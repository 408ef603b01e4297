// Work memory and teams on a GPU; host.h has the same for a CPU.
//
// Two forms of program. Without OCP_SINGLE a problem belongs to one thread, and in work memory the
// problem is the fastest index: neighbours read neighbours. With OCP_SINGLE a problem belongs to a
// team, the OCP_TEAM threads of a block: they share out stages when expanding, entries of matrices
// in the sweep (team_sweep.h), and step sizes in the line search. All threads of a team hold the
// same numbers and take the same branches.
#pragma once
#include "maths.h"

#ifndef OCP_TEAM  // threads of a block
#define OCP_TEAM 32
#endif

#if OCP_CUDA
#define OCP_KERNEL extern "C" __global__ void __launch_bounds__(OCP_TEAM)
#define OCP_GIVEN(Kind) const __grid_constant__ Kind
#endif

namespace ocp {

constexpr int team = OCP_TEAM;

// A unit of work memory: of a thread, or of a team. `Data::threads` is their number, and kernels
// that use them are launched with just so many.
OCP_FN Int thread_index() { return Int(blockIdx.x) * team + threadIdx.x; }
OCP_FN Int thread_count() { return Int(gridDim.x) * team; }
OCP_FN Int unit_index() { return single ? Int(blockIdx.x) : thread_index(); }
OCP_FN Int unit_count() { return single ? Int(gridDim.x) : thread_count(); }

OCP_FN Int team_rank() { return single ? Int(threadIdx.x) : 0; }
constexpr Int team_size() { return single ? team : 1; }
OCP_FN void team_sync() {
  if constexpr (single) __syncthreads();
}

// What the threads of a team have, joined in the order of their ranks: the same for all of them.
template <class Join> OCP_FN Real team_joined(Real own, Join join) {
  if constexpr (!single) return own;
  __shared__ Real parts[team];
  parts[threadIdx.x] = own;
  __syncthreads();
  Real all = parts[0];
  for (int i = 1; i < team; ++i) all = join(all, parts[i]);
  __syncthreads();
  return all;
}
OCP_FN Real team_sum(Real own) {
  return team_joined(own, [](Real a, Real b) { return a + b; });
}
OCP_FN Real team_max(Real own) {
  return team_joined(own, [](Real a, Real b) { return max_(a, b); });
}

// As a stride: no registers, unlike a number that each array would carry.
struct Every {
  OCP_METHOD operator Int() const { return unit_count(); }
};

// The numbers of a trajectory in work memory: one apart for all units, or, of trials, `stride`.
template <class V> struct Array {
  V* first;
#if OCP_SINGLE
  Int stride;
  OCP_METHOD Array(V* at, Int apart = 1) : first(at), stride(apart) {}
#else
  static constexpr Every stride = {};
  OCP_METHOD Array(V* at, Every = {}) : first(at) {}
#endif
  Array() = default;
  OCP_METHOD V& operator[](Int i) const { return first[i * stride]; }
  OCP_METHOD Array operator+(Int i) const { return {first + i * stride, stride}; }
  OCP_METHOD operator Array<const V>() const { return {first, stride}; }
  explicit OCP_METHOD operator bool() const { return first != nullptr; }
};

// Hands out pieces of one block to `units` units. Beginning at 0 it measures what one will need.
struct Arena {
  typedef unsigned long long Address;
  static constexpr Address alignment = 64;
  Address next;
  Int unit, units;

  explicit OCP_METHOD Arena(const void* block, Int own = 0, Int all = 1)
      : next(((Address)block + alignment - 1) & ~(alignment - 1)), unit(own), units(all) {}
  template <class V> OCP_METHOD Array<V> take(Int count) {
    const Array<V> piece((V*)next + unit);
    next += (Address(count) * units * sizeof(V) + alignment - 1) & ~(alignment - 1);
    return piece;
  }
};

// body(thread, begin, end) on parts of 0..count, for all threads of the grid.
template <class Body> OCP_FN void parallel(Int, Int count, Body body) {
  for (Int i = thread_index(); i < count; i += thread_count()) body(i, i, i + 1);
}
// The same for units.
template <class Body> OCP_FN void parallel_units(Int, Int count, Body body) {
  for (Int i = unit_index(); i < count; i += unit_count()) body(unit_index(), i, i + 1);
}

// One row of the caller's arrays: lanes are single numbers here.
template <class V>
OCP_FN void gather(const Real* array, Int width, const Int* row, Array<V> values) {
  for (Int j = 0; j < width; ++j) values[j] = array[*row * width + j];
}
template <class V>
OCP_FN void scatter(Array<V> values, Int width, const Int* row, int, Real* array) {
  for (Int j = 0; j < width; ++j) array[*row * width + j] = values[j];
}

}  // namespace ocp
