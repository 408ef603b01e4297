// Stages of several kinds: a function for each, chosen by stage.
#pragma once
#include "context.h"

namespace ocp {

// Whether the lane's kind is that of a lane before it.
template <class V> OCP_FN bool met(const V& kind, int lane) {
  for (int l = 0; l < lane; ++l)
    if (get(kind, l) == get(kind, lane)) return true;
  return false;
}

template <class V> OCP_FN bool alike(const V& kind) { return !any(kind != V(get(kind, 0))); }

// The lanes of `mask` of what was computed for all of them.
template <int size, class V> OCP_FN void blend(MaskOf<V> mask, const V* from, V* to) {
  for (int i = 0; i < size; ++i) to[i] = select(mask, from[i], to[i]);
}

}  // namespace ocp
