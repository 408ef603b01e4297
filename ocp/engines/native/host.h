// Work memory and teams on a CPU; grid.h has the same for a GPU.
#pragma once
#include "pack.h"

namespace ocp {

// The numbers of a trajectory in work memory.
template <class V> using Array = V*;

// Threads that work on the same problem: here it is one.
constexpr Int team_rank() { return 0; }
constexpr Int team_size() { return 1; }
constexpr bool side_by_side = false;
OCP_FN void team_sync() {}
OCP_FN bool anyone(bool own) { return own; }
template <class V> OCP_FN V team_max(V own) { return own; }

// The same for all threads of a block, whatever they belong to.
constexpr Int block_rank() { return 0; }
constexpr Int block_size() { return 1; }
OCP_FN void block_sync() {}
OCP_FN Real block_sum(Real own) { return own; }

// Hands out pieces of one block. Beginning at 0 it measures what will be needed.
struct Arena {
  typedef unsigned long long Address;
  static constexpr Address alignment = 64;
  Address next;

  explicit OCP_METHOD Arena(const void* block)
      : next(((Address)block + alignment - 1) & ~(alignment - 1)) {}
  template <class V> OCP_METHOD V* take(Int count) {
    V* piece = (V*)next;
    next += (Address(count) * sizeof(V) + alignment - 1) & ~(alignment - 1);
    return piece;
  }
};

}  // namespace ocp
