// The Hamiltonian of every stage as a function of the controls, and its minimiser.
//
// Needs `Model`, here the functions `h` and `h_expansion` of (x, u, c, v): v is what beside states
// and controls enters a stage, costates first. What is done is that of `ProjectedNewton`, for each
// sample (a stage of a line) by itself, W of them at a time.
#pragma once
#include "block.h"
#include "box_qp.h"
#include "threads.h"

#ifndef OCP_BOUNDS
#define OCP_BOUNDS 0
#endif

namespace ocp {

constexpr int n = Model::n, m = Model::m, extra = Model::extra;
constexpr bool bounded = OCP_BOUNDS;

// Second argument of all entries. Fields are 8 bytes each.
struct Samples {
  Int lines;       // L: line i is of problem i % B
  const Real* xs;  // (T, L, n)
  const Real* us;  // (T, L, m)
  const Real* vs;  // (T, L, extra)
};

// W samples, and where the model is evaluated.
struct Sample {
  Block block;
  Wide x[n], u[m], v[extra];
};

template <class Body> OCP_FN void each_sample(const Data& data, const Samples& of, Body body) {
  const Int samples = data.T * of.lines, count = (samples + OCP_LANES - 1) / OCP_LANES;
  parallel(data.threads, count, [&](Int, Int begin, Int end) {
    for (Int i = begin; i < end; ++i) {
      Sample s;
      s.block = block_at(data, of.lines, i * OCP_LANES, samples);
      gather(of.xs, n, s.block.row, s.x);
      gather(of.us, m, s.block.row, s.u);
      gather(of.vs, extra, s.block.row, s.v);
      body(s);
    }
  });
}

__attribute__((noinline)) static Wide value_at(const Sample& s, const Wide* u) {
  Wide h;
  Model::h(s.x, u, s.block.c, s.v, &h);
  return h;
}

// -- a convex model -----------------------------------------------------------------------------
// Eigenvalues on the diagonal of A (m, m), eigenvectors in the columns of E: Jacobi's rotations.
OCP_FN void diagonalise(Wide* A, Wide* E) {
  for (int i = 0; i < m * m; ++i) E[i] = Wide(i % (m + 1) == 0 ? 1 : 0);
  for (int sweep = 0; sweep < 30; ++sweep) {
    Wide off = Wide(0), size = Wide(0);
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < m; ++j) {
        size = max_(size, abs_(A[i * m + j]));
        if (i != j) off = max_(off, abs_(A[i * m + j]));
      }
    if (!any(off > Wide(epsilon<Wide> / 16) * size)) return;
    for (int p = 0; p < m; ++p)
      for (int q = p + 1; q < m; ++q) {
        const Wide apq = A[p * m + q];
        const auto there = apq != Wide(0);
        const Wide theta = (A[q * m + q] - A[p * m + p]) / (Wide(2) * select(there, apq, Wide(1)));
        const Wide root = abs_(theta) + sqrt(theta * theta + Wide(1));
        Wide tangent = select(theta < Wide(0), Wide(-1), Wide(1)) / root;
        tangent = select(there, tangent, Wide(0));
        const Wide c = Wide(1) / sqrt(tangent * tangent + Wide(1)), s = tangent * c;
        for (int k = 0; k < m; ++k) {  // columns p and q of A and of E
          for (int which = 0; which < 2; ++which) {
            Wide* of = which ? E : A;
            const Wide a = of[k * m + p], b = of[k * m + q];
            of[k * m + p] = c * a - s * b;
            of[k * m + q] = s * a + c * b;
          }
        }
        for (int k = 0; k < m; ++k) {
          const Wide a = A[p * m + k], b = A[q * m + k];
          A[p * m + k] = c * a - s * b;
          A[q * m + k] = s * a + c * b;
        }
        A[p * m + q] = A[q * m + p] = select(there, Wide(0), apq);
      }
  }
}

// H, a lower triangle, where it is positive definite; else its eigenvalues are reflected and kept
// off 0.
OCP_FN void make_convex(Wide* H) {
  const auto definite = factor<m>(H).definite;
  if (all(definite)) return;
  Wide A[m * m], E[m * m], largest = Wide(0), values[m];
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < m; ++j) A[i * m + j] = H[sym(i, j)];
  diagonalise(A, E);
  for (int i = 0; i < m; ++i) {
    values[i] = abs_(A[i * m + i]);
    largest = max_(largest, values[i]);
  }
  const Wide root = Wide(sizeof(Real) == 8 ? 1.4901161193847656e-08 : 3.4526698300124393e-04);
  const Wide floor = max_(root * largest, Wide(epsilon<Wide>));
  for (int i = 0; i < m; ++i) values[i] = max_(values[i], floor);
  for (int i = 0; i < m; ++i)
    for (int j = 0; j <= i; ++j) {
      Wide sum = Wide(0);
      for (int k = 0; k < m; ++k) sum += E[i * m + k] * values[k] * E[j * m + k];
      H[tri(i, j)] = select(definite, H[tri(i, j)], sum);
    }
}

// -- a step -------------------------------------------------------------------------------------
// Newton's step within the bounds; returns the decrease it promises to first order. 0 where a
// derivative is not finite.
OCP_FN Wide newton_step(const Data& data, const Sample& s, const Wide* u, Wide* k) {
  Wide g[m], full[m * m], H[tri_size(m)], residue = Wide(0), promise = Wide(0);
  Model::h_expansion(s.x, u, s.block.c, s.v, g, full);
  for (int i = 0; i < m; ++i) residue += g[i] * Wide(0);
  for (int i = 0; i < m * m; ++i) residue += full[i] * Wide(0);
  const auto fine = residue == Wide(0);
  for (int i = 0; i < m; ++i) k[i] = select(fine, g[i], Wide(0));
  for (int i = 0; i < m; ++i)
    for (int j = 0; j <= i; ++j)
      H[tri(i, j)] = select(fine, full[i * m + j], Wide(i == j ? 1 : 0));
  make_convex(H);
  if constexpr (bounded) {
    Wide lo[m], hi[m];
    for (int l = 0; l < OCP_LANES; ++l)
      for (int i = 0; i < m; ++i) {
        set(lo[i], l, data.lower[s.block.c.stage[l] * m + i]);
        set(hi[i], l, data.upper[s.block.c.stage[l] * m + i]);
      }
    for (int i = 0; i < m; ++i) lo[i] -= u[i], hi[i] -= u[i];
    const BoxQP<m, Wide> qp = box_qp<m>(H, k, lo, hi);
    for (int i = 0; i < m; ++i) k[i] = qp.x[i];
  } else {
    solve_negative<m>(factor<m>(H), k);
  }
  for (int i = 0; i < m; ++i) promise -= select(k[i] == Wide(0), Wide(0), g[i] * k[i]);
  return promise;
}

// u becomes a minimiser of h.
OCP_FN void minimise(const Data& data, const Sample& s, Int iterations, Int trials, Wide* u) {
  const Wide rounding = Wide(16 * epsilon<Wide>), fraction = Wide(1e-4);
  Wide value = value_at(s, u), k[m];
  auto active = always<Wide>();
  for (Int i = 0; i < iterations && any(active); ++i) {
    const Wide promise = newton_step(data, s, u, k), slack = rounding * (Wide(1) + abs_(value));
    // The values of h cannot tell this step from none, the control still can: it is the last.
    const auto last = active & !(promise > slack);
    for (int j = 0; j < m; ++j) u[j] = select(last, u[j] + k[j], u[j]);
    active = active & !last;
    auto searching = active;
    Wide size = Wide(1), start[m], found = value;
    for (int j = 0; j < m; ++j) start[j] = u[j];
    for (Int trial = 0; trial < trials && any(searching); ++trial, size *= Wide(0.5)) {
      Wide at[m];
      for (int j = 0; j < m; ++j) at[j] = start[j] + size * k[j];
      const Wide there = value_at(s, at);
      const auto good = searching & (there <= value - fraction * size * promise + slack);
      for (int j = 0; j < m; ++j) u[j] = select(good, at[j], u[j]);
      found = select(good, there, found);
      searching = searching & !good;
    }
    active = active & !searching;  // without a decrease the next step would be the same
    value = found;
  }
}

}  // namespace ocp

using ocp::Data;
using ocp::Int;
using ocp::Real;
#define OCP_ENTRY extern "C" __attribute__((visibility("default"))) void

// h (T, L) along us.
OCP_ENTRY ocp_value(const Data& data, const ocp::Samples& of, Real* h) {
  using namespace ocp;
  each_sample(data, of, [&](const Sample& s) {
    const Wide value = value_at(s, s.u);
    scatter(&value, 1, s.block.row, s.block.count, h);
  });
}

// Gradient (T, L, m) and Hessian (T, L, m, m) by u.
OCP_ENTRY ocp_derivatives(const Data& data, const ocp::Samples& of, Real* g, Real* H) {
  using namespace ocp;
  each_sample(data, of, [&](const Sample& s) {
    Wide first[m], second[m * m];
    Model::h_expansion(s.x, s.u, s.block.c, s.v, first, second);
    scatter(first, m, s.block.row, s.block.count, g);
    scatter(second, m * m, s.block.row, s.block.count, H);
  });
}

// us_out (T, L, m): minimisers, from us.
OCP_ENTRY ocp_minimise(
    const Data& data, const ocp::Samples& of, Int iterations, Int trials, Real* us_out) {
  using namespace ocp;
  each_sample(data, of, [&](const Sample& s) {
    Wide u[m];
    for (int i = 0; i < m; ++i) u[i] = s.u[i];
    minimise(data, s, iterations, trials, u);
    scatter(u, m, s.block.row, s.block.count, us_out);
  });
}
