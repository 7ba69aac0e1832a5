// AVX2 with FMA and F16C: two registers hold a plane.
//
// vpmaddubsw saturates at 16 bits. Codes of at most 6 bits cannot reach that (2 * 63 * 128); 8-bit
// codes are split into their upper bit and the rest, whose pair sums both fit.

#include <immintrin.h>

#include "isa_row.h"

namespace edgeqat {
namespace {

struct Avx2 {
  static constexpr int kTokens = 4;  // 8 of 16 registers accumulate
  static constexpr int kTiles = 1;
  static constexpr int kFew = 2;
  static constexpr bool kSigned = false;

  struct Bytes {
    __m256i a, b;
  };
  using Ints = Bytes;
  struct Floats {
    __m256 a, b;
  };
  using Four = __m256i;

  static void prefetch(const uint8_t* p) {
    _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0);
  }

  static Bytes load(const uint8_t* p) {
    const __m256i* q = reinterpret_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
  }
  static void store(uint8_t* p, Bytes v) {
    __m256i* q = reinterpret_cast<__m256i*>(p);
    _mm256_storeu_si256(q, v.a);
    _mm256_storeu_si256(q + 1, v.b);
  }

  template <int SHIFT, int MASK>
  static __m256i field_of(__m256i v) {
    if constexpr (SHIFT > 0) v = _mm256_srli_epi16(v, SHIFT);
    if constexpr (SHIFT < 0) v = _mm256_slli_epi16(v, -SHIFT);
    return _mm256_and_si256(v, _mm256_set1_epi8(MASK));
  }
  template <int SHIFT, int MASK>
  static Bytes field(Bytes v) {
    return {field_of<SHIFT, MASK>(v.a), field_of<SHIFT, MASK>(v.b)};
  }
  template <int SHIFT, int MASK, int SHIFT_HIGH, int MASK_HIGH>
  static Bytes fields(Bytes low, Bytes high) {
    return {_mm256_or_si256(field_of<SHIFT, MASK>(low.a), field_of<SHIFT_HIGH, MASK_HIGH>(high.a)),
            _mm256_or_si256(field_of<SHIFT, MASK>(low.b), field_of<SHIFT_HIGH, MASK_HIGH>(high.b))};
  }
  static Bytes eight(Bytes v) { return v; }

  static Four four(const int8_t* x) {
    int32_t word;
    std::memcpy(&word, x, 4);
    return _mm256_set1_epi32(word);
  }
  static Ints splat(int32_t value) {
    return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)};
  }
  static Ints add(Ints x, Ints y) {
    return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)};
  }
  static __m256i pairs(__m256i codes, Four x) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), _mm256_set1_epi16(1));
  }
  template <bool WIDE>
  static __m256i dot_of(__m256i sum, __m256i codes, Four x) {
    if constexpr (!WIDE) return _mm256_add_epi32(sum, pairs(codes, x));
    const __m256i upper = _mm256_and_si256(codes, _mm256_set1_epi8(-128));
    const __m256i rest = _mm256_and_si256(codes, _mm256_set1_epi8(127));
    return _mm256_add_epi32(sum, _mm256_add_epi32(pairs(upper, x), pairs(rest, x)));
  }
  template <bool WIDE>
  static Ints dot(Ints sum, Bytes codes, Four x) {
    return {dot_of<WIDE>(sum.a, codes.a, x), dot_of<WIDE>(sum.b, codes.b, x)};
  }

  static Floats zero() { return splat(0.0f); }
  static Floats splat(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
  static Floats load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static void store(float* p, Floats v) {
    _mm256_storeu_ps(p, v.a);
    _mm256_storeu_ps(p + 8, v.b);
  }
  static void store_rows(float* p, Floats v, int64_t rows) {
    if (rows >= 16) return store(p, v);
    float all[16];
    store(all, v);
    for (int64_t i = 0; i < rows; ++i) p[i] = all[i];
  }
  static Floats half16(const uint16_t* p) {
    const __m128i* q = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
  }
  static Floats to_float(Ints v) { return {_mm256_cvtepi32_ps(v.a), _mm256_cvtepi32_ps(v.b)}; }
  static Floats add(Floats x, Floats y) {
    return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
  }
  static Floats multiply(Floats x, Floats y) {
    return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
  }
  static Floats fma(Floats x, Floats y, Floats z) {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
  }
};

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

}  // namespace

const Isa kAvx2 = row_of<Avx2>("avx2", &has_avx2);

}  // namespace edgeqat
