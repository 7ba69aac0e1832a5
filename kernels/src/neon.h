// What both NEON rows share: four registers hold a plane (internal linkage, as in vector.h).
#pragma once

#include <arm_neon.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>

#include "isa_row.h"

namespace edgeqat {
namespace {

struct Neon {
  static constexpr int kTokens = 5;  // 20 of 32 registers accumulate
  static constexpr int kTiles = 1;
  static constexpr int kFew = 2;

  struct Bytes {
    uint8x16_t v[4];
  };
  struct Ints {
    int32x4_t v[4];
  };
  struct Floats {
    float32x4_t v[4];
  };
  using Four = int8x16_t;

  static void prefetch(const uint8_t* p) { __builtin_prefetch(p); }

  template <class F>
  static void each(F&& f) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) f(i);
  }

  static Bytes load(const uint8_t* p) {
    Bytes out;
    each([&](int i) { out.v[i] = vld1q_u8(p + 16 * i); });
    return out;
  }
  static void store(uint8_t* p, const Bytes& a) {
    each([&](int i) { vst1q_u8(p + 16 * i, a.v[i]); });
  }

  template <int SHIFT, int MASK>
  static Bytes field(Bytes a) {
    each([&](int i) {
      if constexpr (SHIFT > 0) a.v[i] = vshrq_n_u8(a.v[i], SHIFT);
      if constexpr (SHIFT < 0) a.v[i] = vshlq_n_u8(a.v[i], -SHIFT);
      a.v[i] = vandq_u8(a.v[i], vdupq_n_u8(MASK));
    });
    return a;
  }
  template <int SHIFT, int MASK, int SHIFT_HIGH, int MASK_HIGH>
  static Bytes fields(Bytes low, Bytes high) {
    low = field<SHIFT, MASK>(low);
    high = field<SHIFT_HIGH, MASK_HIGH>(high);
    each([&](int i) { low.v[i] = vorrq_u8(low.v[i], high.v[i]); });
    return low;
  }

  static Four four(const int8_t* x) {
    int32_t word;
    std::memcpy(&word, x, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(word));
  }
  static Ints splat(int32_t value) {
    const int32x4_t v = vdupq_n_s32(value);
    return {{v, v, v, v}};
  }
  static Ints add(Ints a, const Ints& b) {
    each([&](int i) { a.v[i] = vaddq_s32(a.v[i], b.v[i]); });
    return a;
  }

  static Floats zero() { return splat(0.0f); }
  static Floats splat(float value) {
    const float32x4_t v = vdupq_n_f32(value);
    return {{v, v, v, v}};
  }
  static Floats load(const float* p) {
    Floats out;
    each([&](int i) { out.v[i] = vld1q_f32(p + 4 * i); });
    return out;
  }
  static void store(float* p, const Floats& a) {
    each([&](int i) { vst1q_f32(p + 4 * i, a.v[i]); });
  }
  static void store_rows(float* p, const Floats& a, int64_t rows) {
    if (rows >= 16) return store(p, a);
    float all[16];
    store(all, a);
    for (int64_t i = 0; i < rows; ++i) p[i] = all[i];
  }
  static Floats half16(const uint16_t* p) {
    Floats out;
    each([&](int i) { out.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
    return out;
  }
  static Floats to_float(const Ints& a) {
    Floats out;
    each([&](int i) { out.v[i] = vcvtq_f32_s32(a.v[i]); });
    return out;
  }
  static Floats add(Floats a, const Floats& b) {
    each([&](int i) { a.v[i] = vaddq_f32(a.v[i], b.v[i]); });
    return a;
  }
  static Floats multiply(Floats a, const Floats& b) {
    each([&](int i) { a.v[i] = vmulq_f32(a.v[i], b.v[i]); });
    return a;
  }
  static Floats fma(const Floats& a, const Floats& b, Floats c) {
    each([&](int i) { c.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
    return c;
  }
};

}  // namespace
}  // namespace edgeqat
