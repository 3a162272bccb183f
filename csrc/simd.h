#pragma once

// Vectors of kWidth floats, written once for every instruction set. The compiler's vector types
// carry the arithmetic. The compiler's flags (see setup.py) choose the width, unless
// COLLAMO_VECTOR_WIDTH does.

#include <cstdint>
#include <cstring>
#include <initializer_list>

// The instruction set that setup.py compiles this for.
#ifndef COLLAMO_CAPABILITY
#define COLLAMO_CAPABILITY baseline
#endif
#define COLLAMO_TEXT(x) #x
#define COLLAMO_TEXT_OF(x) COLLAMO_TEXT(x)

#if defined(COLLAMO_VECTOR_WIDTH)
#elif defined(__AVX512F__)
#define COLLAMO_VECTOR_WIDTH 16
#elif defined(__AVX2__)
#define COLLAMO_VECTOR_WIDTH 8
#else
#define COLLAMO_VECTOR_WIDTH 4  // SSE2, NEON, or whatever the compiler makes of it
#endif

// Everything here has internal linkage: the linker must never merge a function compiled for AVX-512
// with its namesake for an older processor.
namespace {

constexpr const char* kCapability = COLLAMO_TEXT_OF(COLLAMO_CAPABILITY);
constexpr int kWidth = COLLAMO_VECTOR_WIDTH;
constexpr int64_t W = kWidth;  // for counting

typedef float Vec __attribute__((vector_size(4 * COLLAMO_VECTOR_WIDTH)));
typedef int32_t IntVec __attribute__((vector_size(4 * COLLAMO_VECTOR_WIDTH)));
typedef uint32_t BitsVec __attribute__((vector_size(4 * COLLAMO_VECTOR_WIDTH)));  // wraps around
typedef uint64_t WideVec __attribute__((vector_size(8 * COLLAMO_VECTOR_WIDTH)));
typedef uint16_t ShortVec __attribute__((vector_size(2 * COLLAMO_VECTOR_WIDTH)));

template <typename V>
inline V load_as(const void* from) {
  V value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

inline Vec load(const float* from) { return load_as<Vec>(from); }
inline void store(float* to, Vec x) { std::memcpy(to, &x, sizeof x); }
inline Vec broadcast(float x) { return x - Vec{}; }
inline void add_to(float* to, Vec x) { store(to, load(to) + x); }

inline Vec as_float(IntVec x) { return load_as<Vec>(&x); }
inline IntVec as_int(Vec x) { return load_as<IntVec>(&x); }
inline IntVec choose(IntVec mask, IntVec yes, IntVec no) { return mask ? yes : no; }
inline Vec choose(IntVec mask, Vec yes, Vec no) { return mask ? yes : no; }
inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }
inline Vec smaller(Vec a, Vec b) { return a < b ? a : b; }

// e^x for x ≤ 88: about one ulp off down to e^-87.3, 0 below, NaN for NaN. x = n·ln 2 + f with
// |f| ≤ ln 2 / 2; the minimax polynomial 1 + f + f²·(…) of degree 6 is 2⁻²⁸ off.
inline Vec exponential(Vec x) {
  constexpr float kRound = 12582912.0f;  // 1.5·2²³: adding it rounds to an integer
  const Vec shifted = x * 1.44269504f + kRound;
  const Vec n = shifted - kRound;
  const Vec f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec p = f * 1.38144669e-3f + 8.36878041e-3f;
  p = p * f + 4.16683942e-2f;
  p = p * f + 1.66665201e-1f;
  p = p * f + 4.99999934e-1f;
  p = p * (f * f) + f;
  p = p + 1.0f;
  const BitsVec scale =
      (load_as<BitsVec>(&shifted) << 23) + 0x3F800000;  // 2ⁿ: n is in the low bits
  return choose(x < -87.33654f, Vec{}, p * load_as<Vec>(&scale));
}

// --- 16-bit floats ------------------------------------------------------------------------------

inline Vec from_bfloat16(ShortVec x) { return as_float(__builtin_convertvector(x, IntVec) << 16); }

inline ShortVec to_bfloat16(Vec x) {
  const BitsVec bits = load_as<BitsVec>(&x), nan = (bits >> 16) | 0x40;
  const BitsVec rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  const IntVec is_nan = x != x;
  return __builtin_convertvector(choose(is_nan, (IntVec)nan, (IntVec)rounded), ShortVec);
}

inline Vec from_half(ShortVec x) {
  const IntVec bits = __builtin_convertvector(x, IntVec);
  const IntVec magnitude = (bits & 0x7FFF) << 13;
  const IntVec special = (bits & 0x7C00) == 0x7C00;  // infinity and NaN
  const IntVec finite = as_int(as_float(magnitude) * 0x1p112f);
  const IntVec value = choose(special, magnitude | 0x7F800000, finite);
  return as_float(value | ((bits & 0x8000) << 16));
}

inline ShortVec to_half(Vec x) {
  const IntVec sign = (as_int(x) >> 16) & 0x8000;
  const Vec magnitude = as_float(as_int(x) & 0x7FFFFFFF);
  // Below the smallest normal half, adding 0.5 leaves the rounded subnormal in the low bits.
  const IntVec subnormal = as_int(magnitude + 0.5f) - 0x3F000000;
  const IntVec bits = as_int(magnitude) - (112 << 23);
  const IntVec normal = (bits + 0xFFF + ((bits >> 13) & 1)) >> 13;
  IntVec value = choose(magnitude < 0x1p-14f, subnormal, normal);
  value = choose(magnitude >= 65520.0f, IntVec{} + 0x7C00, value);
  value = choose(x != x, IntVec{} + 0x7E00, value);
  return __builtin_convertvector(value | sign, ShortVec);
}

// --- random numbers -----------------------------------------------------------------------------

// The first word of Philox4x32-10 (Salmon et al. 2011) of each lane's counter.
inline BitsVec philox(BitsVec c0, BitsVec c1, BitsVec c2, BitsVec c3, uint64_t key) {
  uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u) {
    const WideVec a = __builtin_convertvector(c0, WideVec) * 0xD2511F53u;
    const WideVec b = __builtin_convertvector(c2, WideVec) * 0xCD9E8D57u;
    c0 = __builtin_convertvector(b >> 32, BitsVec) ^ c1 ^ key0;
    c2 = __builtin_convertvector(a >> 32, BitsVec) ^ c3 ^ key1;
    c1 = __builtin_convertvector(b, BitsVec);
    c3 = __builtin_convertvector(a, BitsVec);
  }
  return c0;
}

// --- across lanes -------------------------------------------------------------------------------

template <int... Lane>
struct Lanes {};
template <int Count, int... Lane>
struct CountLanes : CountLanes<Count - 1, Count - 1, Lane...> {};
template <int... Lane>
struct CountLanes<0, Lane...> {
  using type = Lanes<Lane...>;
};

// One step of a transposition: lanes whose number has the bit Step go across. First = true gives
// the new a: a's lanes without the bit, and b's, moved up by Step; first = false the new b.
template <int Step, bool First, int... Lane>
inline Vec exchange(Vec a, Vec b, Lanes<Lane...>) {
#if defined(__clang__)
  return First ? __builtin_shufflevector(a, b, (Lane & Step ? Lane - Step + kWidth : Lane)...)
               : __builtin_shufflevector(a, b, (Lane & Step ? Lane + kWidth : Lane + Step)...);
#else
  return First ? __builtin_shuffle(a, b, IntVec{(Lane & Step ? Lane - Step + kWidth : Lane)...})
               : __builtin_shuffle(a, b, IntVec{(Lane & Step ? Lane + kWidth : Lane + Step)...});
#endif
}

// The largest lane, unless one is NaN.
template <int Step = kWidth / 2>
inline float largest_lane(Vec x) {
  x = larger(x, exchange<Step, false>(x, x, CountLanes<kWidth>::type{}));
  if constexpr (Step > 1) return largest_lane<Step / 2>(x);
  return x[0];
}

// The sum of all lanes, in halves.
template <int Step = kWidth / 2>
inline float sum_lanes(Vec x) {
  x = x + exchange<Step, false>(x, x, CountLanes<kWidth>::type{});
  if constexpr (Step > 1) return sum_lanes<Step / 2>(x);
  return x[0];
}

// Lane i of the result: the sum of all lanes of rows[i].
template <int Step = kWidth / 2>
inline Vec sum_lanes(Vec (&rows)[kWidth]) {
  using All = typename CountLanes<kWidth>::type;
#pragma GCC unroll 16
  for (int i = 0; i < Step; ++i) {
    const Vec a = rows[i], b = rows[i + Step];
    rows[i] = exchange<Step, true>(a, b, All{}) + exchange<Step, false>(a, b, All{});
  }
  if constexpr (Step > 1) return sum_lanes<Step / 2>(rows);
  return rows[0];
}

// rows[i][j] becomes rows[j][i], for the bits of i and j from Count / 2 down. With
// Count = kWidth / 2 these are two squares side by side.
template <int Count, int Step = Count / 2>
inline void transpose(Vec (&rows)[Count]) {
  using All = typename CountLanes<kWidth>::type;
#pragma GCC unroll 16
  for (int i = 0; i < Count; ++i) {
    if (i & Step) continue;
    const Vec a = rows[i], b = rows[i + Step];
    rows[i] = exchange<Step, true>(a, b, All{});
    rows[i + Step] = exchange<Step, false>(a, b, All{});
  }
  if constexpr (Step > 1) transpose<Count, Step / 2>(rows);
}

}  // namespace
