// Work memory and teams on a GPU; host.h has the same for a CPU.
//
// Three forms of program. A problem belongs to one thread; or, with OCP_RANKS above 1, to as many
// threads of a block, one in each of its warps (rank 0, 1, ...), which share out stages when
// expanding and step sizes in the line search, and leave the sweep to rank 0; or, with OCP_SINGLE,
// to all OCP_TEAM threads of a block, which share out the entries of matrices in the sweep too
// (team_sweep.h). In work memory the problem is the fastest index but for OCP_SINGLE: neighbours
// read neighbours.
//
// The threads of a problem are its team. They hold the same numbers; all threads of a block meet at
// the same barriers, so that where teams lie side by side in a block, branches with a barrier in
// them ask `anyone` in the block.
#pragma once
#include "maths.h"

#ifndef OCP_TEAM  // threads of a block
#define OCP_TEAM 32
#endif
#ifndef OCP_RANKS  // of them, of one problem; without OCP_SINGLE
#define OCP_RANKS 1
#endif
#ifndef OCP_BLOCKS  // of a multiprocessor at the same time, which leaves so many registers to each
#define OCP_BLOCKS 1
#endif

#ifndef OCP_WIDE_TEAM  // threads of a block of the kernels for shared controls
#define OCP_WIDE_TEAM 256
#endif

#if OCP_CUDA
#define OCP_WIDE_KERNEL extern "C" __global__ void __launch_bounds__(OCP_WIDE_TEAM)
#define OCP_KERNEL extern "C" __global__ void __launch_bounds__(OCP_TEAM, OCP_BLOCKS)
#define OCP_GIVEN(Kind) const __grid_constant__ Kind
#endif

namespace ocp {

constexpr int team = OCP_TEAM;
constexpr int ranks = single ? team : OCP_RANKS;
constexpr int beside = team / ranks;  // problems of a block
constexpr bool side_by_side = ranks > 1 && beside > 1;
static_assert(team % ranks == 0 && (single || ranks == 1 || beside > 1), "teams fill a block");

// A unit of work memory: of a thread, or of a team. `Data::threads` is their number, and kernels
// that use them are launched with just so many.
OCP_FN Int thread_index() { return Int(blockIdx.x) * team + threadIdx.x; }
OCP_FN Int thread_count() { return Int(gridDim.x) * team; }
OCP_FN Int place_in_block() { return Int(threadIdx.x) % beside; }
OCP_FN Int unit_index() { return Int(blockIdx.x) * beside + place_in_block(); }
OCP_FN Int unit_count() { return Int(gridDim.x) * beside; }

OCP_FN Int team_rank() { return ranks == 1 ? 0 : Int(threadIdx.x) / beside; }
constexpr Int team_size() { return ranks; }
OCP_FN void team_sync() {
  if constexpr (ranks > 1) __syncthreads();
}
// Whether it holds for any problem of those whose teams meet at barriers.
OCP_FN bool anyone(bool own) {
  if constexpr (side_by_side) return __syncthreads_or(own) != 0;
  return own;
}

// What the threads of a team have, joined in the order of their ranks: the same for all of them.
template <class Join> OCP_FN Real team_joined(Real own, Join join) {
  if constexpr (ranks == 1) return own;
  __shared__ Real parts[team];
  parts[threadIdx.x] = own;
  __syncthreads();
  Real all = parts[place_in_block()];
  for (int i = 1; i < ranks; ++i) all = join(all, parts[i * beside + place_in_block()]);
  __syncthreads();
  return all;
}
// What the first of a team has.
OCP_FN Real team_first(Real own) {
  return team_joined(own, [](Real a, Real) { return a; });
}
OCP_FN Real team_sum(Real own) {
  return team_joined(own, [](Real a, Real b) { return a + b; });
}
OCP_FN Real team_max(Real own) {
  return team_joined(own, [](Real a, Real b) { return max_(a, b); });
}

// The threads of a block that has but one problem, whatever the form: see ensemble.h.
constexpr int most_in_block = OCP_WIDE_TEAM;
OCP_FN Int block_rank() { return Int(threadIdx.x); }
OCP_FN Int block_size() { return Int(blockDim.x); }
OCP_FN void block_sync() { __syncthreads(); }
// The sum of what they have, in the same order always; their number is a power of 2.
OCP_FN Real block_sum(Real own) {
  __shared__ Real parts[most_in_block];
  parts[threadIdx.x] = own;
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
  }
  __syncthreads();
  const Real all = parts[0];
  __syncthreads();
  return all;
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
// The same for units. Those of a block go round together: an empty part stands for none.
template <class Body> OCP_FN void parallel_units(Int, Int count, Body body) {
  const Int own = place_in_block();
  for (Int first = unit_index() - own; first < count; first += unit_count()) {
    const Int begin = first + own < count ? first + own : count;
    body(unit_index(), begin, begin < count ? begin + 1 : count);
  }
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
