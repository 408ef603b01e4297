// The same few iterations again, from the plan of the last time and another state: what a receding
// horizon asks for, in one call. For the CPU; `FollowCall` is of pieces.h.
#pragma once
#include "loop.h"

namespace ocp {

// Second argument of `ocp_again`. Fields are 8 bytes each.
struct Again {
  Int shift;                         // stages that have passed since
  const Real* x0;                    // (B, n)
  const Real *xs, *us, *K;           // (T + 1, B, n), (T, B, m), (T, B, m, n): the last trajectory
  Real *plan_xs, *plan_us, *plan_K;  // out: the same, shifted, with x0 and its control in front
  const Real* reals;                 // (REALS, B) and (COUNTS, B): what iterations begin with
  const Int* counts;
  const FollowCall* follow;          // the plan, into the trajectory and its cost
  const Iterate* iterate;
};

// Row t is row t + shift, or the last one.
OCP_FN void shift_rows(const Real* from, Int rows, Int width, Int shift, Real* to) {
  const Int kept = shift < rows ? rows - shift : 0;
  OCP_COPY(to, from + (rows - kept) * width, kept * width * sizeof(Real));
  for (Int t = kept; t < rows; ++t)
    for (Int i = 0; i < width; ++i) to[t * width + i] = from[(rows - 1) * width + i];
}

OCP_FN void shift_plan(const Data& data, const Again& call) {
  const Int T = data.T, B = data.B, kept = call.shift < T ? T - call.shift : 0;
  shift_rows(call.xs, T + 1, B * n, call.shift, call.plan_xs);
  shift_rows(call.us, T, B * m, call.shift, call.plan_us);
  shift_rows(call.K, T, B * m * n, call.shift, call.plan_K);
  for (Int i = kept * B * m * n; i < T * B * m * n; ++i) call.plan_K[i] = 0;
  for (Int b = 0; b < B; ++b)
    for (Int j = 0; j < n; ++j) {
      const Real dx = call.x0[b * n + j] - call.plan_xs[b * n + j];
      for (Int i = 0; i < m; ++i)
        call.plan_us[b * m + i] += call.plan_K[(b * m + i) * n + j] * dx;
      call.plan_xs[b * n + j] = call.x0[b * n + j];
    }
}

// Whether all problems began at a finite cost and none was handed back.
OCP_FN bool went_well(const Data& data, const Iterate& call) {
  Real residue = 0;
  Int handed = 0;
  for (Int b = 0; b < data.B; ++b) {
    residue += call.reals[START_COST * data.B + b] * 0;
    handed += call.handed[b];
  }
  return residue == 0 && handed == 0;
}

}  // namespace ocp
