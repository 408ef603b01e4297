// What PMP remembers of earlier steps: rows of T m numbers in work memory.
//
// They are read in parts: as many numbers of a single problem as a pack has, or one number of each
// lane. For the CPU.
#pragma once
#include "contracted.h"
#include "linalg.h"

namespace ocp {

constexpr int per_part = single ? OCP_LANES : 1;
OCP_FN Int parts_of(const Data& data) { return (data.T * m + per_part - 1) / per_part; }

// What a group remembers from step to step; its first rows are work memory of one.
enum Row { LAST_U, LAST_G, OPEN, FREE, WORK, PAIRS };

template <class V> struct Past {
  Wide* rows;   // [PAIRS + 2 slots][parts]: behind the first, a ring of pairs s, y
  V *alpha, *rho;  // [slots] of the two loops
  V scale;      // of the last step
  MaskOf<V> fresh;  // nothing is known of an earlier step
  Int parts, slots, head, kept;  // pairs head..head + kept - 1 of the ring, newest first

  OCP_METHOD void place(const Data& data, Arena& arena) {
    parts = parts_of(data), slots = data.slots;
    head = kept = 0;
    fresh = always<V>();
    scale = V(0);
    rows = arena.template take<Wide>(slots ? (PAIRS + 2 * slots) * parts : 0);
    alpha = arena.template take<V>(slots);
    rho = arena.template take<V>(slots);
  }
  OCP_METHOD Wide* row(Int i) const { return rows + i * parts; }
  OCP_METHOD Wide* s(Int i) const { return row(PAIRS + 2 * ((head + i) % slots)); }
  OCP_METHOD Wide* y(Int i) const { return s(i) + parts; }
  OCP_METHOD Int pairs() const { return slots - 1; }
};

// -- parts --------------------------------------------------------------------------------------
// A row number by number: [T m].
template <class V> OCP_FN V* numbers_of(Wide* row) { return (V*)row; }

// Part j of a row that is no multiple of parts long; what is missing in the last is 0.
template <class V> OCP_FN Wide part_of(const V* row, Int size, Int j) {
  if constexpr (sizeof(V) == sizeof(Wide)) return row[j];
  else {
    if ((j + 1) * per_part <= size) return load<Wide>(row + j * per_part);
    Wide part = Wide(0);
    for (Int i = j * per_part; i < size; ++i) set(part, int(i % per_part), row[i]);
    return part;
  }
}
template <class V> OCP_FN void put_part(const Wide& part, Int size, Int j, V* row) {
  if constexpr (sizeof(V) == sizeof(Wide)) row[j] = part;
  else
    for (Int i = j * per_part; i < size && i < (j + 1) * per_part; ++i)
      row[i] = get(part, int(i % per_part));
}
// Of bounds (T, m), which all problems share.
OCP_FN Wide limit_part(const Real* bound, Int size, Int j) {
  if constexpr (!single) return Wide(bound[j]);
  return part_of(bound, size, j);
}

// The sum of what the parts of a row have.
template <class V> OCP_FN V summed(const Wide& parts) {
  if constexpr (sizeof(V) == sizeof(Wide)) return parts;
  else {
    V sum = V(0);
    for (int l = 0; l < OCP_LANES; ++l) sum += get(parts, l);
    return sum;
  }
}
template <class V> OCP_FN V dot_rows(const Wide* a, const Wide* b, Int parts) {
  Wide sum = Wide(0);
  for (Int j = 0; j < parts; ++j) sum += a[j] * b[j];
  return summed<V>(sum);
}
OCP_FN MaskOf<Wide> spread(bool mask) { return mask ? always<Wide>() : !always<Wide>(); }
OCP_FN MaskOf<Wide> spread(MaskOf<Wide> mask) { return mask; }

// -- in and out of lanes ------------------------------------------------------------------------
// Where a lane's memory (3 + 2 pairs, B, T m) lies: controls, gradient, scale, s and y.
template <class V, class Body> OCP_FN void each_row(Past<V>& past, Int kept, Body body) {
  body(Int(0), past.row(LAST_U));
  body(Int(1), past.row(LAST_G));
  for (Int i = 0; i < kept; ++i) {
    body(3 + i, past.s(i));
    body(3 + past.pairs() + i, past.y(i));
  }
}

template <class V>
OCP_FN void recall_lane(
    const Data& data, Past<V>& past, const Real* memory, bool fresh, int lane, Int b) {
  const Int N = data.T * m;
  set(past.fresh, lane, fresh);
  set(past.scale, lane, fresh ? Real(0) : memory[(2 * data.B + b) * N]);
  if (!fresh) past.kept = past.pairs();
  if (single)  // parts have a rest
    each_row(past, past.kept, [&](Int, Wide* row) { row[past.parts - 1] = Wide(0); });
  each_row(past, past.kept, [&](Int i, Wide* row) {
    const Real* from = memory + (i * data.B + b) * N;
    for (Int j = 0; j < N; ++j) set(numbers_of<V>(row)[j], lane, fresh ? Real(0) : from[j]);
  });
}

template <class V>
OCP_FN void keep_lane(const Data& data, Past<V>& past, Real* memory, int lane, Int b) {
  const Int N = data.T * m;
  for (Int j = 0; j < N; ++j) memory[(2 * data.B + b) * N + j] = get(past.scale, lane);
  each_row(past, past.kept, [&](Int i, Wide* row) {
    Real* to = memory + (i * data.B + b) * N;
    for (Int j = 0; j < N; ++j) to[j] = get(numbers_of<V>(row)[j], lane);
  });
}

}  // namespace ocp
