// The numbers of generated programs: a scalar, or a pack of W of them computed at once.
//
// Everything else is a template over V, which is Real or Pack<Real, W>. Packs are GCC vector
// extensions (g++, clang): AVX2, AVX-512 and NEON differ in W alone. Lanes never touch each other,
// so the result of a lane does not depend on what its neighbours hold.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define OCP_CUDA 1
#define OCP_FN static __device__ inline
#define OCP_METHOD __device__ inline
#define OCP_COPY memcpy
#define OCP_COLD static __device__ __noinline__
#define OCP_FLAT OCP_FN
#define OCP_UNROLL _Pragma("unroll")  // entirely: registers have no index
#define OCP_UNLIKELY(condition) (condition)
#else
#define OCP_CUDA 0
#define OCP_FN static inline
#define OCP_METHOD inline
#define OCP_COPY __builtin_memcpy
#define OCP_COLD __attribute__((noinline, cold, unused)) static
#define OCP_FLAT __attribute__((flatten)) static inline  // what it calls becomes part of it
#define OCP_UNLIKELY(condition) __builtin_expect(condition, 0)
#if defined(__clang__)
#define OCP_UNROLL _Pragma("clang loop unroll_count(8)")
#else
#define OCP_UNROLL _Pragma("GCC unroll 8")
#endif
#endif

#ifndef OCP_GRID  // 1: work is spread over the threads of a GPU, see grid.h
#define OCP_GRID 0
#endif
#ifndef OCP_SINGLE  // 1: one problem has a whole pack (a block of threads) to itself, see group.h
#define OCP_SINGLE 0
#endif
#ifndef OCP_REAL
#define OCP_REAL double
#endif
#ifndef OCP_LANES  // as many as the machine computes at once
#if defined(__AVX512F__)
#define OCP_LANES (64 / int(sizeof(OCP_REAL)))
#elif defined(__AVX__)
#define OCP_LANES (32 / int(sizeof(OCP_REAL)))
#else
#define OCP_LANES (16 / int(sizeof(OCP_REAL)))
#endif
#endif

namespace ocp {

constexpr bool single = OCP_SINGLE;
typedef OCP_REAL Real;
typedef long long Int;  // of the ABI: int64

// -- what a V is made of ------------------------------------------------------------------------
template <class V> struct Of;
template <> struct Of<double> {
  typedef double Scalar;
  typedef long long Word;  // the integer as wide
  typedef long long Words;
  typedef unsigned long long Unsigned;
  static constexpr int lanes = 1;
};
template <> struct Of<float> {
  typedef float Scalar;
  typedef int Word;
  typedef int Words;
  typedef unsigned int Unsigned;
  static constexpr int lanes = 1;
};

// What comparisons of V give.
template <class V> struct Mask {
  typedef bool type;
};
template <class V> using MaskOf = typename Mask<V>::type;

OCP_FN double select(bool mask, double a, double b) { return mask ? a : b; }
OCP_FN float select(bool mask, float a, float b) { return mask ? a : b; }
OCP_FN bool any(bool mask) { return mask; }
OCP_FN bool all(bool mask) { return mask; }
OCP_FN bool get(bool mask, int) { return mask; }
OCP_FN double get(double a, int) { return a; }
OCP_FN float get(float a, int) { return a; }
OCP_FN void set(double& a, int, double value) { a = value; }
OCP_FN void set(float& a, int, float value) { a = value; }
OCP_FN void set(bool& a, int, bool value) { a = value; }
OCP_FN long long as_words(double a) {
  long long word;
  OCP_COPY(&word, &a, sizeof a);
  return word;
}
OCP_FN int as_words(float a) {
  int word;
  OCP_COPY(&word, &a, sizeof a);
  return word;
}
// From the bits of a V back to it, and bits moved to the right with zeros entering.
template <class V> struct Bits {
  typedef typename Of<V>::Words Words;
  OCP_FN V real(Words words) {
    V a;
    OCP_COPY(&a, &words, sizeof a);
    return a;
  }
  OCP_FN Words right(Words words, int count) {
    return (Words)((typename Of<V>::Unsigned)words >> count);
  }
  OCP_FN MaskOf<V> nonzero(Words words) { return MaskOf<V>{words != 0}; }
};

#if !OCP_CUDA
// -- packs --------------------------------------------------------------------------------------
template <class S, int W> struct Pack {
  typedef S Vector __attribute__((vector_size(W * sizeof(S))));
  typedef typename Of<S>::Word Words __attribute__((vector_size(W * sizeof(S))));
  typedef typename Of<S>::Unsigned Unsigned __attribute__((vector_size(W * sizeof(S))));
  Vector v;
  Pack() = default;
  explicit OCP_METHOD Pack(double s) : v(S(s) - Vector{}) {}  // s - 0 keeps the sign of a zero
};

template <class S, int W> struct PackMask {
  typename Pack<S, W>::Words v;  // all bits of a lane, or none
};

template <class S, int W> struct Of<Pack<S, W>> {
  typedef S Scalar;
  typedef typename Of<S>::Word Word;
  typedef typename Pack<S, W>::Words Words;
  typedef typename Pack<S, W>::Unsigned Unsigned;
  static constexpr int lanes = W;
};
template <class S, int W> struct Mask<Pack<S, W>> {
  typedef PackMask<S, W> type;
};

template <class S, int W> OCP_FN Pack<S, W> packed(typename Pack<S, W>::Vector v) {
  Pack<S, W> r;
  r.v = v;
  return r;
}

#define OCP_OPERATOR(op)                                                                        \
  template <class S, int W> OCP_FN Pack<S, W> operator op(Pack<S, W> a, Pack<S, W> b) {         \
    return packed<S, W>(a.v op b.v);                                                            \
  }                                                                                             \
  template <class S, int W> OCP_FN Pack<S, W>& operator op##=(Pack<S, W>& a, Pack<S, W> b) {    \
    a.v = a.v op b.v;                                                                           \
    return a;                                                                                   \
  }
OCP_OPERATOR(+)
OCP_OPERATOR(-)
OCP_OPERATOR(*)
OCP_OPERATOR(/)
#undef OCP_OPERATOR
template <class S, int W> OCP_FN Pack<S, W> operator-(Pack<S, W> a) { return packed<S, W>(-a.v); }

#define OCP_COMPARISON(op)                                                                      \
  template <class S, int W> OCP_FN PackMask<S, W> operator op(Pack<S, W> a, Pack<S, W> b) {     \
    return {(typename Pack<S, W>::Words)(a.v op b.v)};                                          \
  }
OCP_COMPARISON(<)
OCP_COMPARISON(<=)
OCP_COMPARISON(>)
OCP_COMPARISON(>=)
OCP_COMPARISON(==)
OCP_COMPARISON(!=)
#undef OCP_COMPARISON
template <class S, int W> OCP_FN PackMask<S, W> operator&(PackMask<S, W> a, PackMask<S, W> b) {
  return {a.v & b.v};
}
template <class S, int W> OCP_FN PackMask<S, W> operator|(PackMask<S, W> a, PackMask<S, W> b) {
  return {a.v | b.v};
}
template <class S, int W> OCP_FN PackMask<S, W> operator!(PackMask<S, W> a) { return {~a.v}; }

template <class S, int W>
OCP_FN Pack<S, W> select(PackMask<S, W> mask, Pack<S, W> a, Pack<S, W> b) {
  return packed<S, W>(mask.v ? a.v : b.v);
}

template <class S, int W> OCP_FN bool any(PackMask<S, W> mask) {
#if defined(__AVX__)
  if constexpr (W == 4 && sizeof(S) == 8)
    return __builtin_ia32_movmskpd256((typename Pack<S, W>::Vector)mask.v) != 0;
  if constexpr (W == 8 && sizeof(S) == 4)
    return __builtin_ia32_movmskps256((typename Pack<S, W>::Vector)mask.v) != 0;
#endif
  typename Of<S>::Word word = 0;
  OCP_UNROLL
  for (int l = 0; l < W; ++l) word |= mask.v[l];
  return word != 0;
}
template <class S, int W> OCP_FN bool all(PackMask<S, W> mask) { return !any(!mask); }

template <class S, int W> OCP_FN S get(Pack<S, W> a, int lane) { return a.v[lane]; }
template <class S, int W> OCP_FN bool get(PackMask<S, W> a, int lane) { return a.v[lane] != 0; }
template <class S, int W> OCP_FN void set(Pack<S, W>& a, int lane, S value) { a.v[lane] = value; }
template <class S, int W> OCP_FN void set(PackMask<S, W>& a, int lane, bool value) {
  a.v[lane] = value ? -1 : 0;
}

template <class S, int W> OCP_FN typename Pack<S, W>::Words as_words(Pack<S, W> a) {
  return (typename Pack<S, W>::Words)a.v;
}

// -- W packs as rows of a matrix, transposed ----------------------------------------------------
template <int... I> struct Indices {};
template <int N, int... I> struct Counted : Counted<N - 1, N - 1, I...> {};
template <int... I> struct Counted<0, I...> {
  typedef Indices<I...> type;
};

// Exchange the blocks of `step` lanes beside the diagonal of two rows that are `step` apart.
template <int step, class S, int W, int... I>
OCP_FN void exchange(Pack<S, W>& a, Pack<S, W>& b, Indices<I...>) {
#if defined(__clang__)
  const auto low = __builtin_shufflevector(a.v, b.v, ((I & step) ? W + I - step : I)...);
  b.v = __builtin_shufflevector(a.v, b.v, ((I & step) ? W + I : I + step)...);
#else
  typedef typename Pack<S, W>::Words Words;
  const auto low = __builtin_shuffle(a.v, b.v, Words{((I & step) ? W + I - step : I)...});
  b.v = __builtin_shuffle(a.v, b.v, Words{((I & step) ? W + I : I + step)...});
#endif
  a.v = low;
}
template <int step = 1, class S, int W> OCP_FN void transpose(Pack<S, W>* rows) {
  if constexpr (step < W) {
    OCP_UNROLL
    for (int i = 0; i < W; ++i)
      if (!(i & step)) exchange<step>(rows[i], rows[i + step], typename Counted<W>::type());
    transpose<2 * step>(rows);
  }
}

// Lane l of values[i] to row l of an array, for the first `count` lanes.
template <class S, int W>
OCP_FN void store_lanes(const Pack<S, W>* values, int size, int count, S* array, Int stride) {
  int i = 0;
  for (; count == W && i + W <= size; i += W) {
    Pack<S, W> rows[W];
    OCP_UNROLL
    for (int l = 0; l < W; ++l) rows[l] = values[i + l];
    transpose(rows);
    OCP_UNROLL
    for (int l = 0; l < W; ++l) OCP_COPY(array + l * stride + i, &rows[l], sizeof rows[l]);
  }
  for (int l = 0; l < count; ++l)
    for (int j = i; j < size; ++j) array[l * stride + j] = values[j].v[l];
}
#endif

}  // namespace ocp
