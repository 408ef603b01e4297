// Elementary functions of scalars and packs, called unqualified by generated programs.
//
// sin, cos, exp, tanh and log are polynomials evaluated in all lanes at once, within 2 units in
// the last place (tanh 2.5); lanes outside the range of their argument reduction, or not finite, are redone
// by the C library. The rarer functions are the C library's, lane by lane.
// Coefficients: fdlibm (Sun Microsystems, 1993) in double, Cephes (Moshier, 1992) in float; of
// Taylor in tanh.
#pragma once
#include "pack.h"

namespace ocp {

#if OCP_CUDA
#define OCP_LIBM(name) ::name
#else
#define OCP_LIBM(name) __builtin_##name
#endif

// -- the C library, lane by lane ----------------------------------------------------------------
#if OCP_CUDA
#define OCP_LANEWISE(name)
#define OCP_LANEWISE2(name)
#else
#define OCP_LANEWISE(name)                                                                      \
  template <class S, int W> OCP_FN Pack<S, W> name(Pack<S, W> x) {                              \
    Pack<S, W> y;                                                                               \
    OCP_UNROLL                                                                                  \
    for (int l = 0; l < W; ++l) y.v[l] = name(S(x.v[l]));                                       \
    return y;                                                                                   \
  }
#define OCP_LANEWISE2(name)                                                                     \
  template <class S, int W> OCP_FN Pack<S, W> name(Pack<S, W> a, Pack<S, W> b) {                \
    Pack<S, W> y;                                                                               \
    OCP_UNROLL                                                                                  \
    for (int l = 0; l < W; ++l) y.v[l] = name(S(a.v[l]), S(b.v[l]));                            \
    return y;                                                                                   \
  }
#endif
#define OCP_FUNCTION(name, function)                                                            \
  OCP_FN double name(double x) { return OCP_LIBM(function)(x); }                                \
  OCP_FN float name(float x) { return OCP_LIBM(function##f)(x); }                               \
  OCP_LANEWISE(name)
#define OCP_FUNCTION2(name, function)                                                           \
  OCP_FN double name(double a, double b) { return OCP_LIBM(function)(a, b); }                   \
  OCP_FN float name(float a, float b) { return OCP_LIBM(function##f)(a, b); }                   \
  OCP_LANEWISE2(name)

OCP_FUNCTION(sqrt, sqrt)
OCP_FUNCTION(floor, floor)
OCP_FUNCTION(tan, tan)
OCP_FUNCTION(asin, asin)
OCP_FUNCTION(acos, acos)
OCP_FUNCTION(atan, atan)
OCP_FUNCTION(sinh, sinh)
OCP_FUNCTION(cosh, cosh)
OCP_FUNCTION(expm1, expm1)
OCP_FUNCTION(log1p, log1p)
OCP_FUNCTION(erf, erf)
OCP_FUNCTION2(atan2, atan2)
OCP_FUNCTION2(pow, pow)
OCP_FUNCTION(sin_exact, sin)
OCP_FUNCTION(cos_exact, cos)
OCP_FUNCTION(exp_exact, exp)
OCP_FUNCTION(log_exact, log)

template <class V> OCP_FN V rsqrt(V x) { return V(1) / sqrt(x); }

// Rounded to single precision, as PyTorch does where an integer meets a Python number.
OCP_FN double as_float(double x) { return double(float(x)); }
OCP_FN float as_float(float x) { return x; }
#if !OCP_CUDA
template <class S, int W> OCP_FN Pack<S, W> as_float(Pack<S, W> x) {  // GCC 12 loses a loop's cast
  typedef float Single __attribute__((vector_size(W * sizeof(float))));
  Single rounded = __builtin_convertvector(x.v, Single);
  return packed<S, W>(__builtin_convertvector(rounded, typename Pack<S, W>::Vector));
}
#endif

// -- magnitudes and choices ---------------------------------------------------------------------

template <class V> OCP_FN V abs_(V x) { return Bits<V>::real(as_words(x) & ~as_words(V(-0.0))); }

template <class V> OCP_FN V flipped(V x, V by) {  // x, its sign changed where `by` has one
  return Bits<V>::real(as_words(x) ^ (as_words(by) & as_words(V(-0.0))));
}

// As torch.minimum and torch.maximum: nan if either is.
template <class V> OCP_FN V min_(V a, V b) { return select((a < b) | (a != a), a, b); }
template <class V> OCP_FN V max_(V a, V b) { return select((a > b) | (a != a), a, b); }

template <class V> OCP_FN V sign(V x) {
  return select(x > V(0), V(1), select(x < V(0), V(-1), V(0)));
}

// -- constants of the reductions ----------------------------------------------------------------
template <class S> struct Reduction;
template <> struct Reduction<double> {
  static constexpr double to_integer = 6755399441055744.0;  // 1.5 2^52: adding it rounds
  static constexpr int exponent_at = 52, sign_at = 62;      // sign_at: bit 1 shifted on the sign
  static constexpr double pio2_1 = 1.57079632673412561417e+00;  // 33 bits each
  static constexpr double pio2_2 = 6.07710050630396597660e-11;
  static constexpr double pio2_3 = 2.02226624879595063154e-21;
  static constexpr double far = 1e5;  // products with the pieces above are exact up to here
  static constexpr double ln2_high = 6.93147180369123816490e-01;
  static constexpr double ln2_low = 1.90821492927058770002e-10;
  static constexpr double exp_far = 708.0;
  static constexpr double smallest = 2.2250738585072014e-308, largest = 1.7976931348623157e308;
  static constexpr long long root_half = 0x3fe6a09e667f3bcdLL, shift = 1LL << 62;
};
template <> struct Reduction<float> {
  static constexpr double to_integer = 12582912.0;  // 1.5 2^23
  static constexpr int exponent_at = 23, sign_at = 30;
  static constexpr double pio2_1 = 1.5703125;
  static constexpr double pio2_2 = 4.837512969970703125e-4;
  static constexpr double pio2_3 = 7.5497899548918821275e-8;
  static constexpr double far = 8192;
  static constexpr double ln2_high = 0.693359375;
  static constexpr double ln2_low = -2.12194440e-4;
  static constexpr double exp_far = 87.0;
  static constexpr double smallest = 1.17549435e-38, largest = 3.40282347e38;
  static constexpr int root_half = 0x3f3504f3, shift = 1 << 30;
};
template <class V> using Constants = Reduction<typename Of<V>::Scalar>;

template <class V> constexpr bool is_double = sizeof(typename Of<V>::Scalar) == 8;

// c[0] + z c[1] + z^2 (c[2] + z c[3] + z^2 (...)): chains half as long as Horner's.
template <class V> OCP_FN V pairs(V, V, double last) { return V(last); }
template <class V> OCP_FN V pairs(V z, V, double first, double second) {
  return V(first) + z * V(second);
}
template <class V, class... More>
OCP_FN V pairs(V z, V square, double first, double second, More... more) {
  return (V(first) + z * V(second)) + square * pairs(z, square, more...);
}
template <class V, class... C> OCP_FN V polynomial(V z, C... c) { return pairs(z, z * z, c...); }

// y, and exact(x) in the lanes of a mask.
template <class V, class Exact> OCP_FN V redone(MaskOf<V> mask, V x, V y, Exact exact) {
  for (int l = 0; l < Of<V>::lanes; ++l)
    if (get(mask, l)) set(y, l, exact(get(x, l)));
  return y;
}

// -- sin, cos -----------------------------------------------------------------------------------
// x = quarter pi/2 + r with |r| <= pi/4, and the sine and cosine of r. Where a program needs both
// sin(x) and cos(x), the compiler finds all of this common to them.
template <class V> struct Turn {
  typename Of<V>::Words quarter;
  V sine, cosine;
};

template <class V> OCP_FN Turn<V> turn(V x) {
  typedef Constants<V> C;
  V shifted = x * V(0.63661977236758134308) + V(C::to_integer);
  V k = shifted - V(C::to_integer);
  V r = ((x - k * V(C::pio2_1)) - k * V(C::pio2_2)) - k * V(C::pio2_3);
  V z = r * r, s, c;
  if constexpr (is_double<V>) {
    s = polynomial(z, -1.66666666666666324348e-01, 8.33333333332248946124e-03,
                   -1.98412698298579493134e-04, 2.75573137070700676789e-06,
                   -2.50507602534068634195e-08, 1.58969099521155010221e-10);
    c = polynomial(z, 4.16666666666666019037e-02, -1.38888888888741095749e-03,
                   2.48015872894767294178e-05, -2.75573143513906633035e-07,
                   2.08757232129817482790e-09, -1.13596475577881948265e-11);
  } else {
    s = polynomial(z, -1.6666654611e-1, 8.3321608736e-3, -1.9515295891e-4);
    c = polynomial(z, 4.166664568298827e-2, -1.388731625493765e-3, 2.443315711809948e-5);
  }
  V half = V(0.5) * z, rest = V(1) - half;
  return {as_words(shifted), r + r * (z * s), rest + (((V(1) - rest) - half) + z * z * c)};
}

// Lanes that the reduction does not reach. Where x is not finite it gives nan, as it should, and at
// once: the states of a step that is too long are that, stage after stage.
template <class V> OCP_FN MaskOf<V> beyond(V x) {
  typedef Constants<V> C;
  return (abs_(x) > V(C::far)) & (abs_(x) <= V(C::largest));
}
template <class V> OCP_COLD V sin_far(V x, V y) {
  return redone(beyond(x), x, y, [](auto at) { return sin_exact(at); });
}
template <class V> OCP_COLD V cos_far(V x, V y) {
  return redone(beyond(x), x, y, [](auto at) { return cos_exact(at); });
}

template <class V> OCP_FN V sin(V x) {
  Turn<V> a = turn(x);
  V y = select(Bits<V>::nonzero(a.quarter & 1), a.cosine, a.sine);
  y = flipped(y, Bits<V>::real((a.quarter & 2) << Constants<V>::sign_at));
  if (OCP_UNLIKELY(any(beyond(x)))) y = sin_far(x, y);
  return y;
}

template <class V> OCP_FN V cos(V x) {
  Turn<V> a = turn(x);
  V y = select(Bits<V>::nonzero(a.quarter & 1), a.sine, a.cosine);
  y = flipped(y, Bits<V>::real(((a.quarter + 1) & 2) << Constants<V>::sign_at));
  if (OCP_UNLIKELY(any(beyond(x)))) y = cos_far(x, y);
  return y;
}

// -- exp, log, tanh -----------------------------------------------------------------------------
template <class V> OCP_FN V exp_near(V x) {  // |x| <= exp_far
  typedef Constants<V> C;
  V shifted = x * V(1.44269504088896338700) + V(C::to_integer);
  V k = shifted - V(C::to_integer);
  V high = x - k * V(C::ln2_high), low = k * V(C::ln2_low), r = high - low, y;
  if constexpr (is_double<V>) {
    V z = r * r;
    V c = r - z * polynomial(z, 1.66666666666666019037e-01, -2.77777777770155933842e-03,
                             6.61375632143793436117e-05, -1.65339022054652515390e-06,
                             4.13813679705723846039e-08);
    y = V(1) - ((low - (r * c) / (V(2) - c)) - high);
  } else {
    y = polynomial(r, 5.0000001201e-1, 1.6666665459e-1, 4.1665795894e-2, 8.3334519073e-3,
                   1.3981999507e-3, 1.9875691500e-4);
    y = V(1) + (r + r * r * y);
  }
  return Bits<V>::real(as_words(y) + (as_words(shifted) << C::exponent_at));
}

template <class V> OCP_COLD V exp_far(V x, V y) {
  const MaskOf<V> near = abs_(x) <= V(Constants<V>::exp_far);
  return redone(!near, x, y, [](auto at) { return exp_exact(at); });
}

template <class V> OCP_FN V exp(V x) {
  V y = exp_near(x);
  if (OCP_UNLIKELY(!all(abs_(x) <= V(Constants<V>::exp_far)))) y = exp_far(x, y);
  return y;
}

template <class V> OCP_COLD V log_far(V x, V y) {
  typedef Constants<V> C;
  const MaskOf<V> normal = (x >= V(C::smallest)) & (x <= V(C::largest));
  return redone(!normal, x, y, [](auto at) { return log_exact(at); });
}

template <class V> OCP_FN V log(V x) {
  typedef Constants<V> C;
  auto words = as_words(x) - C::root_half + C::shift;  // x = 2^k (1 + f), 1 + f in sqrt(1/2..2)
  auto k_words = Bits<V>::right(words, C::exponent_at) - (C::shift >> C::exponent_at);
  V k = Bits<V>::real(as_words(V(C::to_integer)) + k_words) - V(C::to_integer);
  V f = Bits<V>::real(as_words(x) - (k_words << C::exponent_at)) - V(1), y;
  V half = V(0.5) * f * f;
  if constexpr (is_double<V>) {
    V s = f / (V(2) + f), z = s * s;
    V R = z * polynomial(z, 6.666666666666735130e-01, 3.999999999940941908e-01,
                         2.857142874366239149e-01, 2.222219843214978396e-01,
                         1.818357216161805012e-01, 1.531383769920937332e-01,
                         1.479819860511658591e-01);
    y = k * V(C::ln2_high) - ((half - (s * (half + R) + k * V(C::ln2_low))) - f);
  } else {
    V p = polynomial(f, 3.3333331174e-1, -2.4999993993e-1, 2.0000714765e-1, -1.6668057665e-1,
                     1.4249322787e-1, -1.2420140846e-1, 1.1676998740e-1, -1.1514610310e-1,
                     7.0376836292e-2);
    y = f * f * f * p + k * V(C::ln2_low);
    y = (f + (y - half)) + k * V(C::ln2_high);
  }
  if (OCP_UNLIKELY(!all((x >= V(C::smallest)) & (x <= V(C::largest))))) y = log_far(x, y);
  return y;
}

// e / (e + 2) with e = exp(2 |x|) - 1 = 2^k (exp(r) - 1) + (2^k - 1): one division.
template <class V> OCP_FN V tanh(V x) {
  typedef Constants<V> C;
  V twice = V(2) * min_(abs_(x), V(22));  // 1 from there on
  V shifted = twice * V(1.44269504088896338700) + V(C::to_integer);
  V k = shifted - V(C::to_integer);
  V r = (twice - k * V(C::ln2_high)) - k * V(C::ln2_low), p;
  if constexpr (is_double<V>) {
    p = polynomial(r, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040, 1.0 / 40320,
                   1.0 / 362880, 1.0 / 3628800, 1.0 / 39916800, 1.0 / 479001600,
                   1.0 / 6227020800, 1.0 / 87178291200);
  } else {
    p = polynomial(r, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720, 1.0 / 5040, 1.0 / 40320);
  }
  V power = Bits<V>::real(as_words(V(1)) + (as_words(shifted) << C::exponent_at));
  V e = power * (r + r * r * p) + (power - V(1));
  return flipped(e / (e + V(2)), x);
}

}  // namespace ocp
