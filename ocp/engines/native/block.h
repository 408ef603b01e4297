// Packs over stages, or over any samples.
#pragma once
#include "context.h"

namespace ocp {

#if OCP_GRID
typedef Real Wide;  // of each thread
#else
typedef Pack<Real, OCP_LANES> Wide;  // as many numbers as the machine computes at once
#endif

// W consecutive samples s = t L + line of T stages and L lines; line is of problem line % B.
struct Block {
  Int row[OCP_LANES];
  int count;  // the rest repeats the last
  Context<Wide> c;
};

OCP_FN Block block_at(const Data& data, Int lines, Int first, Int samples) {
  Block block;
  block.count = int(samples - first < OCP_LANES ? samples - first : OCP_LANES);
  block.c.shared = data.par;
  OCP_UNROLL
  for (int l = 0; l < OCP_LANES; ++l) {
    const Int row = first + (l < block.count ? l : block.count - 1);
    block.row[l] = row;
    block.c.stage[l] = int(row / lines);
    block.c.row[l] = data.dat + row % lines % data.B * data.P;
  }
  return block;
}

}  // namespace ocp
