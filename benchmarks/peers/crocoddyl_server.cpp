// Crocoddyl and mim-solvers with generated derivatives, one solve at a time on request.
//
// Includes the driver `cpp_crocoddyl.cpp` of the peers directory for its action model and problem
// data; what is here only answers requests, so that a caller can interleave them with other
// solvers. Each line "PROBLEM SOLVER REPEATS" on stdin is answered by one line of JSON with the
// seconds of each solve by both clocks, and the controls of the last one.
#define main peers_main
#include "cpp_crocoddyl.cpp"
#undef main

#include <functional>
#include <iostream>
#include <map>
#include <sstream>

namespace {

constexpr int kMost = 500;           // iterations, as in the driver
constexpr double kStop = 1e-9;       // crocoddyl's default threshold
constexpr double kPart = 0.35;       // of the horizon on the way to the goal: FDDP_line

struct Result {
  bool converged;
  int iterations;
  double cost;
};
struct Runner {
  std::function<Result()> solve;
  std::function<std::vector<V>()> controls;
};
typedef std::shared_ptr<ActionModelAbstractTpl<double>> Action;

std::shared_ptr<ShootingProblem> shooting(const Spec& s) {
  Action model = std::make_shared<Model>(s);
  const V x0 = Eigen::Map<const V>(s.x0.data(), s.n);
  auto problem = std::make_shared<ShootingProblem>(x0, std::vector<Action>(s.T, model), model);
  problem->set_nthreads(1);
  return problem;
}

std::vector<V> first_controls(const Spec& s) {
  std::vector<V> us(s.T, V::Zero(s.m));
  for (int t = 0; t < s.T && !s.U0.empty(); ++t)
    us[t] = Eigen::Map<const V>(&s.U0[t * s.m], s.m);
  if (!s.lo.empty())
    for (auto& u : us)
      u = u.cwiseMax(Eigen::Map<const V>(s.lo.data(), s.m))
              .cwiseMin(Eigen::Map<const V>(s.hi.data(), s.m));
  return us;
}

// States to begin with: rolled out; x0 at every stage; or the line to the goal, then held.
enum class Guess { kRolled, kStill, kLine };

std::vector<V> first_states(const Spec& s, const V& goal, ShootingProblem& problem,
                            const std::vector<V>& us, Guess guess) {
  if (guess == Guess::kRolled) return problem.rollout_us(us);
  const V x0 = problem.get_x0();
  std::vector<V> xs(s.T + 1, x0);
  if (guess == Guess::kLine)
    for (int t = 0; t <= s.T; ++t)
      xs[t] += std::min(1.0, t / std::max(1.0, kPart * s.T)) * (goal - x0);
  return xs;
}

template <class Solver> Runner crocoddyl_runner(const Spec& s, const V& goal, Guess guess) {
  auto problem = shooting(s);
  auto solver = std::make_shared<Solver>(problem);
  solver->set_th_stop(kStop);
  const auto us = first_controls(s);
  auto solve = [=] {
    const auto xs = first_states(s, goal, *problem, us, guess);
    const double unset = std::numeric_limits<double>::quiet_NaN();
    const bool ok = solver->solve(xs, us, kMost, guess == Guess::kRolled, unset);
    return Result{ok, int(solver->get_iter()), solver->get_cost()};
  };
  return {solve, [=] { return std::vector<V>(solver->get_us()); }};
}

Runner sqp_runner(const Spec& s) {
  auto problem = shooting(s);
  auto solver = std::make_shared<mim_solvers::SolverSQP>(problem);
  solver->set_termination_tolerance(1e-6);
  const auto us = first_controls(s);
  auto solve = [=] {
    const auto xs = problem->rollout_us(us);
    const bool ok = solver->solve(xs, us, kMost, true, 1e-9);
    return Result{ok, int(solver->get_iter()), solver->get_cost()};
  };
  return {solve, [=] { return std::vector<V>(solver->get_us()); }};
}

Runner runner(const Spec& s, const V& goal, const std::string& name) {
  if (name == "DDP") return crocoddyl_runner<SolverDDP>(s, goal, Guess::kRolled);
  if (name == "FDDP") return crocoddyl_runner<SolverFDDP>(s, goal, Guess::kRolled);
  if (name == "FDDP_still") return crocoddyl_runner<SolverFDDP>(s, goal, Guess::kStill);
  if (name == "FDDP_line") return crocoddyl_runner<SolverFDDP>(s, goal, Guess::kLine);
  if (name == "BoxDDP") return crocoddyl_runner<SolverBoxDDP>(s, goal, Guess::kRolled);
  if (name == "BoxFDDP") return crocoddyl_runner<SolverBoxFDDP>(s, goal, Guess::kRolled);
  if (name == "BoxFDDP_still") return crocoddyl_runner<SolverBoxFDDP>(s, goal, Guess::kStill);
  if (name == "BoxFDDP_line") return crocoddyl_runner<SolverBoxFDDP>(s, goal, Guess::kLine);
  if (name == "SQP") return sqp_runner(s);
  throw std::invalid_argument("no solver " + name);
}

void number(double value) {
  if (std::isfinite(value)) std::printf("%.17g", value);
  else std::printf("NaN");
}

void list(const char* name, const std::vector<double>& values) {
  std::printf(",\"%s\":[", name);
  for (size_t i = 0; i < values.size(); ++i) {
    if (i) std::printf(",");
    number(values[i]);
  }
  std::printf("]");
}

void answer(Runner& run, int repeats) {
  Result last{};
  std::vector<double> cpu, seconds, controls;
  for (int i = 0; i < repeats; ++i) {
    const double a = now(), w = wall();
    last = run.solve();
    cpu.push_back(now() - a);
    seconds.push_back(wall() - w);
  }
  for (const auto& u : run.controls()) controls.insert(controls.end(), u.data(), u.data() + u.size());
  std::printf("{\"converged\":%s,\"iterations\":%d", last.converged ? "true" : "false",
              last.iterations);
  std::printf(",\"cost\":");
  number(last.cost);
  list("cpu", cpu);
  list("wall", seconds);
  list("controls", controls);
  std::printf("}\n");
  std::fflush(stdout);
}

}  // namespace

// A request may name the goal state, which FDDP_line needs when it is first asked for, and then first
// controls other than the definition's.
int main() {
  std::map<std::string, Spec> problems;
  for (const auto& s : specs()) problems.emplace(s.name, s);
  std::map<std::string, Runner> known;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string problem, solver;
    int repeats = 1;
    words >> problem >> solver >> repeats;
    const Spec& s = problems.at(problem);
    V goal = V::Zero(s.n);
    for (int i = 0; i < s.n; ++i) words >> goal[i];
    Spec own = s;
    own.U0.clear();
    for (double value; words >> value;) own.U0.push_back(value);
    if (!own.U0.empty()) {
      Runner once = runner(own, goal, solver);
      answer(once, repeats);
      continue;
    }
    const std::string key = problem + " " + solver;
    if (!known.count(key)) known.emplace(key, runner(s, goal, solver));
    answer(known.at(key), repeats);
  }
}
