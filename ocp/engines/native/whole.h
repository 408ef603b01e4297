// A solve of one problem from its guess to its certificate, in one call. For the CPU.
#pragma once
#include "begin.h"
#include "loop.h"

namespace ocp {

// Second argument of `ocp_whole`. Fields are 8 bytes each.
struct Whole {
  const Real *x0, *us;     // (n,), (T, m)
  const Real* states;      // (T + 1, n) which may leave gaps; or null, to roll out
  Real* out;               // the trajectory and what is said of it, see `Answer`
  const Iterate* iterate;  // its rows, limits, step sizes and K; gaps (T, n) are work memory
  Int* facts;              // out: steps, finished, then as `SweepCall`: indefinite, failed
  Real* told;              // out: cost, residual, hamiltonian, gap
  Int goes_on;             // us and states, numbers and gaps are those an earlier call ended with
  Int half;                // steps after which it stops where more gaps are left than is
  double enough;           // of those at first
};

// What `out` holds, end to end.
struct Answer {
  Real *xs, *us;  // (T + 1, n), (T, m)
  Real *p, *vx;   // (T + 1, n)
  Real* k;        // (T, m)
  Real* vxx;      // (T + 1, n, n)
  Real* K;        // (T, m, n)
  Real *policy_xs, *policy_us;
  Real* rest;     // slope and curvature of the sweep; H_u (T, m)
};

OCP_FN Answer answer_at(Real* next, Int T) {
  const auto take = [&next](Int count) { return (next += count) - count; };
  const Int x = (T + 1) * n, u = T * m;
  Answer a;
  a.xs = take(x), a.us = take(u);
  a.p = take(x), a.vx = take(x), a.k = take(u), a.vxx = take(x * n), a.K = take(u * n);
  a.policy_xs = take(x), a.policy_us = take(u);
  a.rest = take(2 + u);
  return a;
}

OCP_FN void appraise_whole(const Data& data, const Whole& call, const Answer& to) {
  const Real none = 0;
  const Int full = 1;
  Int finite;
  Real* told = call.told;
  const SweepCall request = {
      {}, to.xs, to.us, nullptr, &none, &full, 0, to.k, to.K, to.vx, to.vxx, to.p, to.rest + 2,
      call.facts + 2, to.rest, to.rest + 1, told + 1, call.facts + 3, &finite, told + 2, told + 3};
  ocp_sweep(data, request);
  OCP_COPY(to.policy_xs, to.xs, (data.T + 1) * n * sizeof(Real));
  OCP_COPY(to.policy_us, to.us, data.T * m * sizeof(Real));
}

// The first trajectory; false where it is not finite.
OCP_FN bool place(const Data& data, const Whole& call, const Answer& to, Iterate& loop) {
  loop.xs = to.xs, loop.us = to.us;
  if (call.goes_on) {
    OCP_COPY(to.xs, call.states, (data.T + 1) * n * sizeof(Real));
    OCP_COPY(to.us, call.us, data.T * m * sizeof(Real));
    if (!(loop.reals[GAP] > 0)) loop.gaps = nullptr;
    return true;
  }
  Int finite = 0;
  ocp_begin(data, {call.x0, call.us, call.states, to.xs, to.us, loop.gaps, loop.reals + COST,
                   loop.reals + GAP, &finite});
  loop.reals[START_COST] = loop.reals[COST];
  if (!call.states) loop.gaps = nullptr;
  return finite;
}

// Steps taken: all of them, or `half` where those have not closed enough of the gaps.
OCP_FN Int iterations(const Data& data, const Whole& call, Iterate loop) {
  if (call.half >= loop.steps) return ocp_iterate(data, loop);
  const Real enough = Real(call.enough) * loop.reals[GAP];
  const Int rest = loop.steps - call.half;
  loop.steps = call.half;
  const Int taken = ocp_iterate(data, loop);
  const bool ended = loop.counts[STATUS - REALS] != RUNNING || taken < call.half;
  if (ended || loop.reals[GAP] > enough) return taken;
  loop.steps = rest, loop.rows += taken * ROW;
  return taken + ocp_iterate(data, loop);
}

// Reals and counts hold what iterations begin with, but for the cost and the gap of a new solve.
// Where they do not begin at finite numbers, or are handed back, the answer is not finished.
OCP_FN void whole(const Data& data, const Whole& call) {
  const Answer to = answer_at(call.out, data.T);
  Iterate loop = *call.iterate;
  call.facts[0] = call.facts[1] = 0;
  if (!place(data, call, to, loop)) {
    loop.counts[STATUS - REALS] = NON_FINITE;
    return;
  }
  call.facts[0] = iterations(data, call, loop);
  call.told[0] = loop.reals[COST];
  const Int status = loop.counts[STATUS - REALS];
  if (status == RUNNING || status == NON_FINITE) return;
  appraise_whole(data, call, to);
  call.facts[1] = 1;
}

}  // namespace ocp
