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
  Int goes_on;             // us and states, numbers and gaps are those an earlier call ended with
};

// What `out` holds, end to end.
struct Answer {
  Real *xs, *p, *vx;  // (T + 1, n)
  Real *us, *k, *hu;  // (T, m)
  Real* vxx;          // (T + 1, n, n)
  Real* K;            // (T, m, n)
  Real* told;         // cost, residual, hamiltonian, gap; slope and curvature of the sweep
};

OCP_FN Answer answer_at(Real* next, Int T) {
  const auto take = [&next](Int count) { return (next += count) - count; };
  const Int x = (T + 1) * n, u = T * m;
  Answer a;
  a.xs = take(x), a.p = take(x), a.vx = take(x);
  a.us = take(u), a.k = take(u), a.hu = take(u);
  a.vxx = take(x * n), a.K = take(u * n), a.told = take(6);
  return a;
}

// What is left to say where the last sweep has said the rest.
OCP_FN void complete_whole(
    const Data& data, const Whole& call, const Answer& to, const Promise<Real>& promise) {
  Arena arena = arena_of(data, 0);
  Group<Real> g;
  g.place(data, arena);
  g.take(0, 0);
  g.x = to.xs, g.u = to.us;
  Real* told = to.told;
  told[1] = promise.residual;
  told[2] = largest_projected(g, to.hu);
  told[3] = largest_gap(g);
  told[4] = promise.slope;
  told[5] = 2 * (promise.change - promise.slope);
  call.facts[2] = call.facts[3] = -1;
}

OCP_FN void appraise_whole(const Data& data, const Whole& call, const Answer& to) {
  const Real none = 0;
  const Int full = 1;
  Int finite;
  Real* told = to.told;
  const SweepCall request = {
      {}, to.xs, to.us, nullptr, &none, &full, 0, to.k, to.K, to.vx, to.vxx, to.p, to.hu,
      call.facts + 2, told + 4, told + 5, told + 1, call.facts + 3, &finite, told + 2, told + 3};
  ocp_sweep(data, request);
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
  Certificate certificate = {to.vx, to.vxx, to.p, to.hu, to.k, to.K, {}, false};
  loop.taken[0] = loop.handed[0] = 0;
  iterate_range(data, loop, arena_of(data, 0), 0, 1, &certificate);
  call.facts[0] = loop.taken[0];
  to.told[0] = loop.reals[COST];
  const Int status = loop.counts[STATUS - REALS];
  if (status == RUNNING || status == NON_FINITE) return;
  if (certificate.holds) complete_whole(data, call, to, certificate.promise);
  else appraise_whole(data, call, to);
  call.facts[1] = 1;
}

}  // namespace ocp
