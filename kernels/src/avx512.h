// What both AVX-512 rows share: one register holds a plane, vpdpbusd multiplies unsigned by signed
// bytes (internal linkage, as in vector.h).
#pragma once

#include <immintrin.h>

#include "isa_row.h"

namespace edgeqat {
namespace {

struct Avx512Vnni {
  static constexpr int kTokens = 12;  // 24 of 32 registers accumulate
  static constexpr int kTiles = 2;
  static constexpr int kFew = 8;
  static constexpr bool kSigned = false;

  using Bytes = __m512i;
  using Ints = __m512i;
  using Floats = __m512;
  using Four = __m512i;

  static void prefetch(const uint8_t* p) {
    _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0);
  }

  static Bytes load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static void store(uint8_t* p, Bytes a) { _mm512_storeu_si512(p, a); }

  template <int SHIFT>
  static Bytes shifted(Bytes a) {
    if constexpr (SHIFT > 0) a = _mm512_srli_epi16(a, SHIFT);
    if constexpr (SHIFT < 0) a = _mm512_slli_epi16(a, -SHIFT);
    return a;
  }
  template <int SHIFT, int MASK>
  static Bytes field(Bytes a) {
    return _mm512_and_si512(shifted<SHIFT>(a), _mm512_set1_epi8(MASK));
  }
  template <int SHIFT, int MASK, int SHIFT_HIGH, int MASK_HIGH>
  static Bytes fields(Bytes low, Bytes high) {
    constexpr int kFirstOrBoth = 0xF8;  // a | (b & c)
    const Bytes first = field<SHIFT, MASK>(low);  // a macro without optimization: no commas there
    return _mm512_ternarylogic_epi32(first, shifted<SHIFT_HIGH>(high), _mm512_set1_epi8(MASK_HIGH),
                                     kFirstOrBoth);
  }
  static Bytes eight(Bytes a) { return a; }

  static Four four(const int8_t* x) {
    int32_t word;
    std::memcpy(&word, x, 4);
    return _mm512_set1_epi32(word);
  }
  static Ints splat(int32_t value) { return _mm512_set1_epi32(value); }
  static Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  template <bool WIDE>
  static Ints dot(Ints sum, Bytes codes, Four x) {
    return _mm512_dpbusd_epi32(sum, codes, x);
  }

  static Floats zero() { return _mm512_setzero_ps(); }
  static Floats splat(float value) { return _mm512_set1_ps(value); }
  static Floats load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Floats a) { _mm512_storeu_ps(p, a); }
  static void store_rows(float* p, Floats a, int64_t rows) {
    if (rows >= 16) return _mm512_storeu_ps(p, a);
    _mm512_mask_storeu_ps(p, __mmask16((1u << rows) - 1), a);
  }
  static Floats half16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Floats to_float(Ints a) { return _mm512_cvtepi32_ps(a); }
  static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
};

bool has_vnni() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma");
}

}  // namespace
}  // namespace edgeqat
