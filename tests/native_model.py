"""Model texts written by hand for the native engine's headers, and the problems they belong to.

Derivatives come from second-order jets (value, gradient, Hessian carried through every operation):
another route than the generated programs take, and than PyTorch takes.
"""

from __future__ import annotations

JETS = r"""
template <class V, int N> struct Jet {  // value, gradient, Hessian in N variables
  V v, g[N], H[N * N];
  Jet() = default;
  explicit Jet(double constant) { make(V(constant)); }
  inline void make(V value, int variable = -1) {
    v = value;
    for (int i = 0; i < N; ++i) g[i] = V(i == variable ? 1 : 0);
    for (int i = 0; i < N * N; ++i) H[i] = V(0);
  }
};
template <class V, int N> OCP_FN Jet<V, N> chain(const Jet<V, N>& a, V f, V f1, V f2) {
  Jet<V, N> r;
  r.v = f;
  for (int i = 0; i < N; ++i) r.g[i] = f1 * a.g[i];
  for (int i = 0; i < N; ++i)
    for (int j = 0; j < N; ++j) r.H[i * N + j] = f1 * a.H[i * N + j] + f2 * a.g[i] * a.g[j];
  return r;
}
template <class V, int N> OCP_FN Jet<V, N> operator+(const Jet<V, N>& a, const Jet<V, N>& b) {
  Jet<V, N> r;
  r.v = a.v + b.v;
  for (int i = 0; i < N; ++i) r.g[i] = a.g[i] + b.g[i];
  for (int i = 0; i < N * N; ++i) r.H[i] = a.H[i] + b.H[i];
  return r;
}
template <class V, int N> OCP_FN Jet<V, N> operator*(const Jet<V, N>& a, const Jet<V, N>& b) {
  Jet<V, N> r;
  r.v = a.v * b.v;
  for (int i = 0; i < N; ++i) r.g[i] = a.v * b.g[i] + a.g[i] * b.v;
  for (int i = 0; i < N; ++i)
    for (int j = 0; j < N; ++j)
      r.H[i * N + j] = a.v * b.H[i * N + j] + a.H[i * N + j] * b.v + a.g[i] * b.g[j] +
                       a.g[j] * b.g[i];
  return r;
}
template <class V, int N> OCP_FN Jet<V, N> operator*(double s, const Jet<V, N>& a) {
  return chain(a, V(s) * a.v, V(s), V(0));
}
template <class V, int N> OCP_FN Jet<V, N> operator-(const Jet<V, N>& a, const Jet<V, N>& b) {
  return a + (-1.0) * b;
}
template <class V, int N> OCP_FN Jet<V, N> reciprocal(const Jet<V, N>& a) {
  V r = V(1) / a.v;
  return chain(a, r, -r * r, V(2) * r * r * r);
}
template <class V, int N> OCP_FN Jet<V, N> sin(const Jet<V, N>& a) {
  return chain(a, sin(a.v), cos(a.v), -sin(a.v));
}
template <class V, int N> OCP_FN Jet<V, N> cos(const Jet<V, N>& a) {
  return chain(a, cos(a.v), -sin(a.v), -cos(a.v));
}
template <class V, int N> OCP_FN Jet<V, N> cosh(const Jet<V, N>& a) {
  return chain(a, cosh(a.v), sinh(a.v), cosh(a.v));
}
template <class V> OCP_FN V reciprocal(V a) { return V(1) / a; }
template <class V> OCP_FN V operator*(double s, V a) { return V(s) * a; }

// What headers want, from Functions written for any number type N: N is V or a jet over V.
template <class Functions, int n_, int m_> struct Differentiated {
  static constexpr int n = n_, m = m_, d = n_ + m_;
  template <class V, class C> OCP_FN void f(const V* x, const V* u, const C& c, V* y) {
    Functions::f(x, u, c, y, [](V a) { return a; });
  }
  template <class V, class C> OCP_FN void l(const V* x, const V* u, const C& c, V* y) {
    y[0] = Functions::l(x, u, c, [](V a) { return a; });
  }
  template <class V, class C> OCP_FN void phi(const V* x, const C& c, V* y) {
    y[0] = Functions::phi(x, c, [](V a) { return a; });
  }
  template <class J, class V> OCP_FN J constant(V a) {
    J r;
    r.make(a);
    return r;
  }
  template <class V, class C> OCP_FN void f_jacobian(const V* x, const V* u, const C& c, V* F) {
    Jet<V, d> z[d], y[n];
    for (int i = 0; i < d; ++i) z[i].make(i < n ? x[i] : u[i - n], i);
    Functions::f(z, z + n, c, y, constant<Jet<V, d>, V>);
    for (int i = 0; i < n; ++i)
      for (int j = 0; j < d; ++j) F[i * d + j] = y[i].g[j];
  }
  template <class V, class C>
  OCP_FN void f_contracted(const V* x, const V* u, const C& c, const V* v, V* H) {
    Jet<V, d> z[d], y[n];
    for (int i = 0; i < d; ++i) z[i].make(i < n ? x[i] : u[i - n], i);
    Functions::f(z, z + n, c, y, constant<Jet<V, d>, V>);
    for (int k = 0; k < d * d; ++k) {
      H[k] = V(0);
      for (int i = 0; i < n; ++i) H[k] += v[i] * y[i].H[k];
    }
  }
  template <class V, class C>
  OCP_FN void l_expansion(const V* x, const V* u, const C& c, V* g, V* H) {
    Jet<V, d> z[d];
    for (int i = 0; i < d; ++i) z[i].make(i < n ? x[i] : u[i - n], i);
    Jet<V, d> y = Functions::l(z, z + n, c, constant<Jet<V, d>, V>);
    for (int i = 0; i < d; ++i) g[i] = y.g[i];
    for (int i = 0; i < d * d; ++i) H[i] = y.H[i];
  }
  template <class V, class C> OCP_FN void phi_expansion(const V* x, const C& c, V* g, V* H) {
    Jet<V, n> z[n];
    for (int i = 0; i < n; ++i) z[i].make(x[i], i);
    Jet<V, n> y = Functions::phi(z, c, constant<Jet<V, n>, V>);
    for (int i = 0; i < n; ++i) g[i] = y.g[i];
    for (int i = 0; i < n * n; ++i) H[i] = y.H[i];
  }
};
"""

RICH = r"""
struct RichFunctions {  // f_rich, RichCost of the module models; par = gain, reference; dat = mass
  template <class N, class C, class K>
  OCP_FN void f(const N* x, const N* u, const C& c, N* y, K k) {
    N force = u[0] * cos(x[1]) + 0.3 * (u[1] * u[1]);
    y[0] = x[0] + 0.2 * (sin(x[1]) + u[1] * x[2]);
    y[1] = x[1] + 0.2 * (k(c.par(0)) * x[2] + 0.5 * (u[0] * u[1]));
    y[2] = x[2] + 0.2 * (force * reciprocal(k(c.dat(0))) - 0.5 * (x[0] * x[2])) +
           k(as_float(decltype(c.t())(0.02f) * c.t()));  // t is an integer tensor: single precision
  }
  template <class N, class C, class K> OCP_FN N l(const N* x, const N* u, const C& c, K k) {
    N sum = cosh(0.3 * x[0]) + 0.1 * (u[1] * x[2] * x[0]);
    for (int i = 0; i < 3; ++i) {
      N error = x[i] - k(c.par_at(1 + i, 3));
      sum = sum + 0.5 * (error * error);
    }
    sum = sum + u[0] * u[0] + u[1] * u[1] + 0.1 * (u[0] * x[1]);
    return sum + 0.05 * (u[0] * u[0] * (u[0] * u[0]));
  }
  template <class N, class C, class K> OCP_FN N phi(const N* x, const C& c, K k) {
    N s = sin(x[0] + x[2]);
    return k(c.dat(0)) * (x[0] * x[0] + x[1] * x[1] + x[2] * x[2]) + 0.3 * (s * s);
  }
};
typedef Differentiated<RichFunctions, 3, 2> Model;
"""

CARTPOLE = r"""
struct CartpoleFunctions {  // cartpoles of the module models; dat = mass, goal
  template <class N> OCP_FN void ode(const N* x, N u, N mass, N* y) {
    N s = sin(x[1]), c = cos(x[1]), pull = 0.5 * (x[3] * x[3]), one = N(1.0);
    N inverse = reciprocal(one + mass * (s * s));
    y[0] = x[2];
    y[1] = x[3];
    y[2] = (u + mass * s * (pull + 9.81 * c)) * inverse;
    y[3] = 2.0 * (inverse * (N(0.0) - u * c - mass * pull * (c * s) - 9.81 * ((one + mass) * s)));
  }
  template <class N, class C, class K>
  OCP_FN void f(const N* x, const N* u, const C& c, N* y, K k) {
    const double dt = 0.05;
    N mass = k(c.dat(0)), a[4], b[4], e[4], g[4], at[4];
    ode(x, u[0], mass, a);
    for (int i = 0; i < 4; ++i) at[i] = x[i] + (dt / 2) * a[i];
    ode(at, u[0], mass, b);
    for (int i = 0; i < 4; ++i) at[i] = x[i] + (dt / 2) * b[i];
    ode(at, u[0], mass, e);
    for (int i = 0; i < 4; ++i) at[i] = x[i] + dt * e[i];
    ode(at, u[0], mass, g);
    for (int i = 0; i < 4; ++i) y[i] = x[i] + (dt / 6) * (a[i] + 2.0 * (b[i] + e[i]) + g[i]);
  }
  template <class N, class C, class K> OCP_FN N phi(const N* x, const C& c, K k) {
    N sum = N(0.0);
    for (int i = 0; i < 4; ++i) {
      N error = x[i] - k(c.dat(1 + i));
      sum = sum + error * error;
    }
    return 5.0 * sum;
  }
  template <class N, class C, class K> OCP_FN N l(const N* x, const N* u, const C& c, K k) {
    return 0.01 * phi(x, c, k) + 0.005 * (u[0] * u[0]);
  }
};
typedef Differentiated<CartpoleFunctions, 4, 1> Model;
"""

BROAD = r"""
struct BroadFunctions {  // `broad` below: more controls than states
  template <class N, class C, class K> OCP_FN void f(const N* x, const N* u, const C&, N* y, K) {
    y[0] = 0.9 * x[0] + sin(x[1] * u[0]) + 0.3 * u[2];
    y[1] = x[0] * u[1] + 0.5 * cos(u[2]) - 0.4 * x[1];
  }
  template <class N, class C, class K> OCP_FN N l(const N* x, const N* u, const C&, K) {
    N sum = 0.5 * (x[0] * x[0] + x[1] * x[1]) + 0.2 * (x[0] * u[1]) + 0.1 * (u[0] * u[2]);
    for (int i = 0; i < 3; ++i) sum = sum + 0.4 * (u[i] * u[i]) + 0.3 * sin(u[i]);
    return sum;
  }
  template <class N, class C, class K> OCP_FN N phi(const N* x, const C&, K) {
    return cosh(x[0] - N(1.0)) + x[1] * x[1];
  }
};
typedef Differentiated<BroadFunctions, 2, 3> Model;
"""

CHAIN = r"""
struct ChainFunctions {  // `chain` of the tests: sizes that are computed block by block
  template <class N, class C, class K>
  OCP_FN void f(const N* x, const N* u, const C& c, N* y, K k) {
    for (int i = 0; i < 10; ++i) {
      N push = u[i % 3] * x[(i + 3) % 10] + sin(x[(i + 1) % 10]);
      y[i] = 0.9 * x[i] + k(c.par(i)) * push + 0.05 * u[(i + 1) % 3];
    }
  }
  template <class N, class C, class K> OCP_FN N l(const N* x, const N* u, const C&, K) {
    N sum = 0.1 * (x[0] * u[2]);
    for (int i = 0; i < 10; ++i) sum = sum + 0.5 * (x[i] * x[i]) + 0.1 * (x[i] * x[(i + 4) % 10]);
    for (int i = 0; i < 3; ++i) sum = sum + 0.3 * (u[i] * u[i]) + 0.1 * cosh(u[i]);
    return sum;
  }
  template <class N, class C, class K> OCP_FN N phi(const N* x, const C&, K) {
    N sum = cosh(0.3 * x[1]);
    for (int i = 0; i < 10; ++i) sum = sum + x[i] * x[i] + 0.2 * (x[i] * x[(i + 7) % 10]);
    return sum;
  }
};
typedef Differentiated<ChainFunctions, 10, 3> Model;
"""
