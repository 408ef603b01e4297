// Iterations of ILQR, DDP and PMP: what `Solver.step` does, for each problem until it stops.
//
// `Decide`, generated from the function `decide` of the package, is asked before any roll-out and
// after each one: its answer is the first step size that is good enough, whatever comes after it,
// so that trials not made may be called refused. Needs Decide::inputs = 14 + 2 A + LIMITS for A
// step sizes: the fields of `Record`, then those of `Limits`.
#pragma once
#include "appraise.h"
#if !OCP_GRID
#include "descent.h"
#endif

namespace ocp {

// Second argument of `ocp_iterate`. Fields are 8 bytes each; arrays are read and written.
struct Iterate {
  Int steps;               // at most so many, of each problem
  Int method;              // second-order terms: 0 never, 1 as `second_order` says, 2 always; or
                           // DESCENT: PMP, with Data::slots
  Int on_state;            // where the damping goes, see `Pass`
  const Real* step_sizes;  // (A,)
  Real* xs;                // (T + 1, B, n)
  Real* us;                // (T, B, m)
  Real* gaps;              // (T, B, n), or null
  Real* reals;             // (6, B): COST .. RESIDUAL
  Int* counts;             // (6, B): SECOND_ORDER .. SWEEPS
  Real* rows;              // (steps, ROW, B): the history
  Int* taken;              // (B,) out: steps taken
  Int* handed;             // (B,) out: 1 where the Gauss-Newton Q_uu is indefinite, which is the
                           // caller's to go on with; that step is not taken
  const Real* limits;      // (LIMITS,): what `Decide` compares with
  Real* K;                 // (T, B, m, n) out, or null: feedback of the last backward pass
  Real* memory;            // (3 + 2 pairs, B, T m) of PMP, see `recall_lane`
  Int fresh;               // there is nothing in it yet
};
enum { DESCENT = 3 };

enum Number {
  COST, GAP, START_COST, DAMPING, PENALTY, RESIDUAL,
  SECOND_ORDER, WEAK, STATUS, ITERATIONS, ROLLOUTS, SWEEPS, NUMBERS, REALS = 6
};
enum Column { ROW_COST, EXPECTED, DECREASE, STEP_SIZE, ROW_DAMPING, ROW_RESIDUAL, ROW_GAP,
              ROW_SECOND_ORDER, ROW_RUNNING, ROW };
enum Code { RUNNING = -1, CONVERGED = 0, NON_FINITE = 5 };  // of `Status`

constexpr int LIMITS = 15, trials = (Decide::inputs - 14 - LIMITS) / 2;
static_assert(Decide::inputs == 14 + 2 * trials + LIMITS && Decide::outputs == 12,
              "another Record, Limits or Decision");
enum In { IN_COST, IN_GAP, IN_SLOPE, IN_CURVATURE, IN_RESIDUAL, IN_USABLE, IN_FINITE, IN_TRIAL_COST,
          IN_TRIAL_FINITE = 7 + trials, IN_START_COST = 7 + 2 * trials, IN_DAMPING, IN_PENALTY,
          IN_SECOND_ORDER, IN_WEAK, IN_STATUS, IN_ITERATIONS, IN_LIMITS };
enum Out { CHOICE, ACCEPTED, OUT_STEP_SIZE, OUT_EXPECTED, OUT_DECREASE, OUT_DAMPING, OUT_PENALTY,
           OUT_SECOND_ORDER, OUT_WEAK, OUT_STATUS, OUT_ITERATIONS, OUT_ROLLOUTS };

template <class V> OCP_FN V number(MaskOf<V> mask) { return select(mask, V(1), V(0)); }

// -- problems in and out of lanes ---------------------------------------------------------------
template <class V> struct Lanes {
  const Iterate* call;
  Group<V> group;
  V numbers[NUMBERS];
  MaskOf<V> active;
  Int left[Of<V>::lanes];   // steps that a lane may still take
#if !OCP_GRID
  Past<V> past;
  bool descends;
#endif
  Certificate* certificate;  // or null
};

template <class V> OCP_FN void enter(Lanes<V>& w, int lane, Int b) {
  const Iterate& call = *w.call;
  Group<V>& g = w.group;
  const Int T = g.data->T, B = g.data->B;
  g.take(lane, b);
  gather_lane(call.xs, T + 1, B, n, b, lane, g.x);
  gather_lane(call.us, T, B, m, b, lane, g.u);
  if (call.gaps) gather_lane(call.gaps, T, B, n, b, lane, g.gap);
  for (int i = 0; i < NUMBERS; ++i) {
    const Real value = i < REALS ? call.reals[i * B + b] : Real(call.counts[(i - REALS) * B + b]);
    set(w.numbers[i], lane, value);
  }
#if !OCP_GRID
  if (w.descends) recall_lane(*g.data, w.past, call.memory, call.fresh != 0, lane, b);
#endif
  set(w.active, lane, true);
  w.left[lane] = call.steps;
}

template <class V> OCP_FN void leave(Lanes<V>& w, int lane) {
  const Iterate& call = *w.call;
  Group<V>& g = w.group;
  const Int T = g.data->T, B = g.data->B, b = g.problem[lane];
  scatter_lane(g.x, T + 1, B, n, b, lane, call.xs);
  scatter_lane(g.u, T, B, m, b, lane, call.us);
  if (call.gaps) scatter_lane(g.gap, T, B, n, b, lane, call.gaps);
  if (call.K) scatter_lane(g.K, T, B, m * n, b, lane, call.K);
  for (int i = 0; team_rank() == 0 && i < NUMBERS; ++i) {
    const Real value = get(w.numbers[i], lane);
    if (i < REALS) call.reals[i * B + b] = value;
    else call.counts[(i - REALS) * B + b] = Int(value);
  }
#if !OCP_GRID
  if (w.descends) keep_lane(*g.data, w.past, call.memory, lane, b);
#endif
  call.taken[b] = call.steps - w.left[lane];
  set(w.active, lane, false);
  g.take(lane, -1);
}

// -- the direction ------------------------------------------------------------------------------
template <class V> struct Direction {
  Promise<V> promise;
  MaskOf<V> finite, handed;
  MaskOf<V> retried;  // took two passes
  bool gaps;                       // some are open
};

template <class V> OCP_FN MaskOf<V> second_order(const Lanes<V>& w) {
  if (!OCP_SECOND_ORDER || w.call->method == 0) return !always<V>();
  if (w.call->method == 2) return w.active;
  return w.active & (w.numbers[SECOND_ORDER] != V(0));
}

#if !OCP_GRID
template <class V> OCP_FN Direction<V> downhill(Lanes<V>& w) {
  Direction<V> out;
  Real shrink = 1;
  for (int i = 0; i < trials; ++i) shrink /= 2;
  out.gaps = false;
  out.retried = out.handed = !always<V>();
  out.promise = descent(w.group, w.past, shrink, w.active);
  out.finite = w.group.residue == V(0);
  return out;
}
#endif

// One backward pass; a second one, Gauss-Newton, for problems whose second-order model it finds
// indefinite.
template <class V> OCP_FN Direction<V> direction(Lanes<V>& w) {
#if !OCP_GRID
  if (w.descends) return downhill(w);
#endif
  Group<V>& g = w.group;
  Direction<V> out;
  out.gaps = w.call->gaps && anyone(any(w.active & (w.numbers[GAP] > V(0))));
  Pass<V> pass = {g.data, g.u, out.gaps ? g.gap : nullptr, w.numbers[DAMPING],
                  w.call->on_state != 0, second_order(w), g.k, g.K, nullptr, nullptr,
                  nullptr, nullptr, true, w.active};
  const bool kept = keep(w.certificate, w.numbers[RESIDUAL], w.call->limits[0], pass);
  g.begin(any(pass.full));
  MaskOf<V> failed = !always<V>(), dropping = failed;
  for (bool again = false;; again = true) {
    pass.hasty = !again;
    out.promise = swept(pass, g);
    if (again) break;
    failed = w.active & (out.promise.failed >= V(0)), dropping = failed & pass.full;
    if (!anyone(any(dropping))) break;
    pass.full = pass.full & !dropping;
  }
  out.retried = failed;
  out.finite = g.residue == V(0);
  out.handed = failed & !dropping & out.finite;  // where they are not, `Decide` says so
  if (w.certificate) w.certificate->holds = kept && !any(failed);
  return out;
}

// -- the line search ----------------------------------------------------------------------------
template <class V> OCP_FN void record(const Lanes<V>& w, const Direction<V>& to, V* in) {
  static constexpr int same[][2] = {
      {IN_COST, COST}, {IN_GAP, GAP}, {IN_START_COST, START_COST}, {IN_DAMPING, DAMPING},
      {IN_PENALTY, PENALTY}, {IN_SECOND_ORDER, SECOND_ORDER}, {IN_WEAK, WEAK},
      {IN_STATUS, STATUS}, {IN_ITERATIONS, ITERATIONS}};
  for (const auto& pair : same) in[pair[0]] = w.numbers[pair[1]];
  for (int i = 0; i < LIMITS; ++i) in[IN_LIMITS + i] = V(w.call->limits[i]);
  in[IN_SLOPE] = to.promise.slope;
  in[IN_CURVATURE] = V(2) * (to.promise.change - to.promise.slope);
  in[IN_RESIDUAL] = to.promise.residual;
  in[IN_USABLE] = number<V>(to.promise.failed < V(0));
  in[IN_FINITE] = number<V>(to.finite);
  for (int j = 0; j < trials; ++j) {
    in[IN_TRIAL_COST + j] = w.numbers[COST];
    in[IN_TRIAL_FINITE + j] = V(0);
  }
}

// Roll out step sizes j.. (a single problem: W of them), and note their costs; returns how many.
template <class V> OCP_FN int roll_out(Lanes<V>& w, bool gaps, int j, V* in) {
  Group<V>& g = w.group;
  Nominal<V> about = {g.x, g.u, gaps ? g.gap : nullptr, g.k, g.K};
#if !OCP_GRID
  if (w.descends) about.K = nullptr;
#endif
  const Real* sizes = w.call->step_sizes;
  if constexpr (together) {
    const int count = tried_at_once(j, trials);
    Real cost[at_once], residue[at_once];
    follow_each(*g.data, g.c, about, sizes + j, count, g.trial_x, g.trial_u, cost, residue);
    for (int l = 0; l < count; ++l) {
      in[IN_TRIAL_COST + j + l] = cost[l];
      in[IN_TRIAL_FINITE + j + l] = Real(residue[l] == 0);
    }
    return count;
  } else {
    const auto out = follow(*g.data, g.c, about, Wide(sizes[j]), g.trial_x, g.trial_u);
    in[IN_TRIAL_COST + j] = out.cost;
    in[IN_TRIAL_FINITE + j] = number<V>(out.residue == V(0));
    return 1;
  }
}

// The trajectory that was just rolled out becomes that of the lanes `mask`.
template <class V> OCP_FN void accept(Lanes<V>& w, MaskOf<V> mask, int trial) {
  Group<V>& g = w.group;
  const Int xs = (g.data->T + 1) * n, us = g.data->T * m;
  if constexpr (together) {
    if (any(mask)) {
      for (Int i = team_rank(); i < xs; i += team_size())
        g.x[i] = trial_entry(g.trial_x, xs, i, trial);
      for (Int i = team_rank(); i < us; i += team_size())
        g.u[i] = trial_entry(g.trial_u, us, i, trial);
    }
    team_sync();
  } else if (!any(w.active & !mask)) {
    const Array<V> x = g.x, u = g.u;
    g.x = g.trial_x, g.u = g.trial_u;
    g.trial_x = x, g.trial_u = u;
  } else {
    for (Int i = 0; i < xs; ++i) g.x[i] = select(mask, g.trial_x[i], g.x[i]);
    for (Int i = 0; i < us; ++i) g.u[i] = select(mask, g.trial_u[i], g.u[i]);
  }
}

// Try step sizes until every problem has one or there are none left; `out` is the last decision.
template <class V> OCP_FN void search(Lanes<V>& w, const Direction<V>& to, V* in, V* out) {
  record(w, to, in);
  MaskOf<V> found = !always<V>();
  int made = 0, count = 0;
  for (;;) {
    Decide::run(in, out);
    const MaskOf<V> accepted = w.active & (out[ACCEPTED] != V(0));
    const MaskOf<V> fresh = accepted & !found;
    if (anyone(any(fresh))) accept(w, fresh, int(get(out[CHOICE], 0)) - (made - count));
    found = accepted;
    const MaskOf<V> hopeless = (in[IN_USABLE] == V(0)) | (out[OUT_STATUS] == V(CONVERGED)) |
                               (out[OUT_STATUS] == V(NON_FINITE));
    if (made == trials || !anyone(any(w.active & !found & !hopeless))) return;
    count = roll_out(w, to.gaps, made, in);
    made += count;
  }
}

// -- a step -------------------------------------------------------------------------------------
OCP_FN void write_row(const Iterate& call, Int B, Int b, Int step, const Real* row) {
  for (int i = 0; team_rank() == 0 && i < ROW; ++i) call.rows[(step * ROW + i) * B + b] = row[i];
}

// State and history after a step, as `advance` of the loop.
template <class V>
OCP_FN void advance(Lanes<V>& w, const Direction<V>& to, const V* in, const V* out) {
  const Iterate& call = *w.call;
  const MaskOf<V> moved = w.active & (out[ACCEPTED] != V(0));
  const V a = select(moved, out[OUT_STEP_SIZE], V(0));
  for (int l = 0; l < lanes; ++l) {
    if (!get(w.active, l)) continue;
    const V* s = w.numbers;
    const Real row[ROW] = {
        get(s[COST], l), get(out[OUT_EXPECTED], l), get(out[OUT_DECREASE], l),
        get(out[OUT_STEP_SIZE], l), get(s[DAMPING], l), get(to.promise.residual, l),
        get(s[GAP], l), get(s[SECOND_ORDER], l), Real(1)};
    write_row(call, w.group.data->B, w.group.problem[l], call.steps - w.left[l], row);
    if (get(moved, l))
      set(w.numbers[COST], l, get(in[IN_TRIAL_COST + int(get(out[CHOICE], l))], l));
  }
  if (to.gaps) {
    const Int gaps = w.group.data->T * n;
    for (Int i = team_rank(); i < gaps; i += team_size()) w.group.gap[i] *= V(1) - a;
    team_sync();
  }
  w.numbers[GAP] = select(moved, (V(1) - a) * w.numbers[GAP], w.numbers[GAP]);
  w.numbers[RESIDUAL] = to.promise.residual;
  w.numbers[DAMPING] = out[OUT_DAMPING];
  w.numbers[PENALTY] = out[OUT_PENALTY];
  w.numbers[SECOND_ORDER] = out[OUT_SECOND_ORDER];
  w.numbers[WEAK] = out[OUT_WEAK];
  w.numbers[STATUS] = out[OUT_STATUS];
  w.numbers[ITERATIONS] = out[OUT_ITERATIONS];
  w.numbers[ROLLOUTS] += out[OUT_ROLLOUTS];
  w.numbers[SWEEPS] += V(1) + number<V>(to.retried);
}

template <class V> OCP_FN void step(Lanes<V>& w) {
  V in[Decide::inputs], out[Decide::outputs];
  const Direction<V> to = direction(w);
  for (int l = 0; l < lanes; ++l)
    if (get(to.handed, l)) {
      w.call->handed[w.group.problem[l]] = 1;
      leave(w, l);
    }
  if (!anyone(any(w.active))) return;
  search(w, to, in, out);
  complete(w.certificate, w.group, to.promise, out[ACCEPTED] != V(0));
  advance(w, to, in, out);
  for (int l = 0; l < lanes; ++l)
    if (get(w.active, l) && (--w.left[l] == 0 || get(w.numbers[STATUS], l) != Real(RUNNING)))
      leave(w, l);
}

// The problems begin..end - 1 that are running. A lane that is free takes the next one: what a
// lane computes does not depend on its neighbours.
OCP_FN void iterate_range(const Data& data, const Iterate& call, Arena arena, Int begin, Int end,
                          Certificate* certificate = nullptr) {
  Lanes<Lane> w;
  w.call = &call;
  w.active = !always<Lane>();
  w.group.place(data, arena);
#if !OCP_GRID
  w.past.place(data, arena);
  w.descends = call.method == DESCENT;
#endif
  w.certificate = certificate;
  for (int i = 0; i < NUMBERS; ++i) w.numbers[i] = Lane(0);
  for (int l = 0; l < lanes; ++l) w.group.take(l, -1);
  if constexpr (lanes > 1 || side_by_side) {  // idle ones: tame numbers
    team_sync();  // the last problem has left
    for (Int i = team_rank(); i < (data.T + 1) * n; i += team_size()) w.group.x[i] = Lane(0);
    for (Int i = team_rank(); i < data.T * m; i += team_size()) w.group.u[i] = Lane(0);
  }
  Int next = begin;
  const Int* status = call.counts + (STATUS - REALS) * data.B;
  do {
    team_sync();  // those that stopped have left
    for (int l = 0; l < lanes; ++l) {
      while (next < end && status[next] != RUNNING) ++next;
      if (next < end && !get(w.active, l)) enter(w, l, next++);
    }
    if (anyone(any(w.active))) step(w);
  } while (anyone(any(w.active) || next < end));
}

// Rows of problems that have stopped, up to the last step that any has taken: they stand still.
OCP_FN void fill_rows(const Data& data, const Iterate& call, Int b, Int most) {
  const auto real = [&](int i) { return call.reals[i * data.B + b]; };
  const Real row[ROW] = {real(COST), 0, 0, 0, real(DAMPING), real(RESIDUAL), real(GAP),
                         Real(call.counts[b]), 0};
  for (Int s = call.taken[b]; s < most; ++s)
    for (int i = 0; i < ROW; ++i) call.rows[(s * ROW + i) * data.B + b] = row[i];
}

}  // namespace ocp
