// Newton's correction of the boundary value problem of the maximum principle: what `correction` of
// the module indirect does, for lines that share the linearisation of their problem.
//
// Sizes are known at run time alone: one program serves all problems of a kind of number.
#pragma once
#include "threads.h"

namespace ocp {

// Argument of `ocp_boundary`; line i is of problem i % B. Fields are 8 bytes each; d = n + m.
struct Boundary {
  Int T, B, L, n, m, threads;
  const Real *fz, *lzz, *table, *phixx;    // (T, B, n, d), (T, B, d, d) twice, (B, n, n)
  const Real *gaps, *hx, *hu, *end;        // (T, L, n) twice, (T, L, m), (L, n)
  Real *V, *K, *ux, *lu;                   // work: (T + 1, B, n, n), (T, B, m, n) twice,
                                           // (T, B, m, m)
  Int* pivots;                             // work: (T, B, m)
  Real* room;                              // work: (B, n d + d d)
  Real *dxs, *dus, *dps;                   // out: (T + 1, L, n), (T, L, m), (T + 1, L, n)
  Int* regular;                            // out: (L,)
};

// A (m, m) becomes its LU factors, rows exchanged as in `pivots`; whether no pivot is 0.
OCP_FN bool lu_factor(Int m, Real* A, Int* pivots) {
  bool regular = true;
  for (Int j = 0; j < m; ++j) {
    Int best = j;
    for (Int i = j + 1; i < m; ++i) {
      const Real a = A[i * m + j], b = A[best * m + j];
      if ((a < 0 ? -a : a) > (b < 0 ? -b : b)) best = i;
    }
    pivots[j] = best;
    for (Int k = 0; best != j && k < m; ++k) {
      const Real a = A[j * m + k];
      A[j * m + k] = A[best * m + k];
      A[best * m + k] = a;
    }
    if (A[j * m + j] == 0) {
      regular = false;
      continue;
    }
    for (Int i = j + 1; i < m; ++i) {
      const Real scale = A[i * m + j] / A[j * m + j];
      A[i * m + j] = scale;
      for (Int k = j + 1; k < m; ++k) A[i * m + k] -= scale * A[j * m + k];
    }
  }
  return regular;
}

// b becomes -A^-1 b; its entries lie `step` apart.
OCP_FN void lu_solve_negative(Int m, const Real* lu, const Int* pivots, Real* b, Int step) {
  for (Int j = 0; j < m; ++j) {
    const Real a = b[j * step];
    b[j * step] = b[pivots[j] * step];
    b[pivots[j] * step] = a;
  }
  for (Int i = 0; i < m; ++i)
    for (Int j = 0; j < i; ++j) b[i * step] -= lu[i * m + j] * b[j * step];
  for (Int i = m - 1; i >= 0; --i) {
    for (Int j = i + 1; j < m; ++j) b[i * step] -= lu[i * m + j] * b[j * step];
    b[i * step] /= lu[i * m + i];
  }
  for (Int i = 0; i < m; ++i) b[i * step] = -b[i * step];
}

// Q = l_zz + table + f_z' V f_z of one stage; product has room for V f_z.
OCP_FN void stage_hessian(const Boundary& of, Int at, const Real* V, Real* product, Real* Q) {
  const Int n = of.n, d = of.n + of.m;
  const Real* F = of.fz + at * n * d;
  for (Int i = 0; i < n; ++i)
    for (Int j = 0; j < d; ++j) {
      Real sum = 0;
      for (Int k = 0; k < n; ++k) sum += V[i * n + k] * F[k * d + j];
      product[i * d + j] = sum;
    }
  for (Int i = 0; i < d * d; ++i) Q[i] = of.lzz[at * d * d + i] + of.table[at * d * d + i];
  for (Int k = 0; k < n; ++k)
    for (Int i = 0; i < d; ++i)
      for (Int j = 0; j < d; ++j) Q[i * d + j] += F[k * d + i] * product[k * d + j];
}

// The part of the recursion that depends on the linearisation alone: V, K and the factors of Q_uu.
OCP_FN bool factorise(const Boundary& of, Int b) {
  const Int n = of.n, m = of.m, d = n + m;
  Real *product = of.room + b * (n * d + d * d), *Q = product + n * d, residue = 0;
  bool regular = true;
  for (Int i = 0; i < n * n; ++i) of.V[(of.T * of.B + b) * n * n + i] = of.phixx[b * n * n + i];
  for (Int t = of.T - 1; t >= 0; --t) {
    const Int at = t * of.B + b;
    Real *ux = of.ux + at * m * n, *K = of.K + at * m * n, *lu = of.lu + at * m * m;
    Real* V = of.V + at * n * n;
    stage_hessian(of, at, of.V + (at + of.B) * n * n, product, Q);
    for (Int a = 0; a < m; ++a) {
      for (Int j = 0; j < n; ++j) K[a * n + j] = ux[a * n + j] = Q[(n + a) * d + j];
      for (Int c = 0; c < m; ++c) lu[a * m + c] = Q[(n + a) * d + n + c];
    }
    regular = lu_factor(m, lu, of.pivots + at * m) && regular;
    for (Int j = 0; j < n; ++j) lu_solve_negative(m, lu, of.pivots + at * m, K + j, n);
    for (Int i = 0; i < m * n; ++i) residue += K[i] * 0;
    for (Int i = 0; i < n; ++i)
      for (Int j = 0; j < n; ++j) {
        Real sum = Q[i * d + j];
        for (Int a = 0; a < m; ++a) sum += ux[a * n + i] * K[a * n + j];
        V[i * n + j] = sum;
      }
    for (Int i = 0; i < n; ++i)
      for (Int j = 0; j < i; ++j) V[i * n + j] = V[j * n + i] = (V[i * n + j] + V[j * n + i]) / 2;
  }
  return regular && residue == 0;
}

// The rest for one line: k and v backward, then the changes forward; v and k lie where dp and du
// will. Returns whether all is finite.
OCP_FN bool correct(const Boundary& of, Int line) {
  const Int n = of.n, m = of.m, d = n + m, B = of.B, L = of.L, b = line % B;
  Real residue = 0;
  const auto moved = [&](const Real* V, const Real* x, Int i) {  // (V x)_i
    Real sum = 0;
    for (Int j = 0; j < n; ++j) sum += V[i * n + j] * x[j];
    return sum;
  };
  for (Int i = 0; i < n; ++i) {
    of.dps[(of.T * L + line) * n + i] = of.end[line * n + i];
    residue += of.end[line * n + i] * 0;
  }
  for (Int t = of.T - 1; t >= 0; --t) {
    const Int at = t * B + b, row = t * L + line;
    const Real *F = of.fz + at * n * d, *ux = of.ux + at * m * n;
    Real *v = of.dps + row * n, *k = of.dus + row * m;
    for (Int i = 0; i < n; ++i) v[i] = of.hx[row * n + i];
    for (Int a = 0; a < m; ++a) k[a] = of.hu[row * m + a];
    for (Int r = 0; r < n; ++r) {
      const Real* V = of.V + (at + B) * n * n;
      const Real after = of.dps[(row + L) * n + r] + moved(V, of.gaps + row * n, r);
      for (Int i = 0; i < n; ++i) v[i] += F[r * d + i] * after;
      for (Int a = 0; a < m; ++a) k[a] += F[r * d + n + a] * after;
    }
    lu_solve_negative(m, of.lu + at * m * m, of.pivots + at * m, k, 1);
    for (Int a = 0; a < m; ++a) {
      residue += k[a] * 0;
      for (Int i = 0; i < n; ++i) v[i] += ux[a * n + i] * k[a];
    }
  }
  for (Int i = 0; i < n; ++i) of.dxs[line * n + i] = 0;
  for (Int t = 0; t <= of.T; ++t) {
    const Int at = t * B + b, row = t * L + line;
    const Real* dx = of.dxs + row * n;
    for (Int i = 0; i < n; ++i) of.dps[row * n + i] += moved(of.V + at * n * n, dx, i);
    if (t == of.T) break;
    const Real *F = of.fz + at * n * d, *K = of.K + at * m * n;
    Real *du = of.dus + row * m, *next = of.dxs + (row + L) * n;
    for (Int a = 0; a < m; ++a)
      for (Int j = 0; j < n; ++j) du[a] += K[a * n + j] * dx[j];
    for (Int i = 0; i < n; ++i) {
      next[i] = of.gaps[row * n + i];
      for (Int j = 0; j < n; ++j) next[i] += F[i * d + j] * dx[j];
      for (Int a = 0; a < m; ++a) next[i] += F[i * d + n + a] * du[a];
    }
  }
  return residue == 0;
}

}  // namespace ocp

extern "C" __attribute__((visibility("default"))) void ocp_boundary(const ocp::Boundary& of) {
  ocp::parallel(of.threads, of.B, [&](ocp::Int, ocp::Int begin, ocp::Int end) {
    for (ocp::Int b = begin; b < end; ++b) {
      const bool regular = ocp::factorise(of, b);
      for (ocp::Int line = b; line < of.L; line += of.B)
        of.regular[line] = ocp::correct(of, line) && regular;
    }
  });
}
