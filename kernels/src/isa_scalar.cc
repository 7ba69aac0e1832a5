// Plain C++: the truth that every other instruction set is tested against, and what a new one has
// to offer. Bytes are the 64 bytes of a plane, Ints and Floats its 16 rows.

#include <cmath>

#include "isa_row.h"

namespace edgeqat {
namespace {

struct Scalar {
  static constexpr int kTokens = 4;       // tokens of a block of many_tokens
  static constexpr int kTiles = 1;        // tile rows of a panel
  static constexpr int kFew = 2;         // tokens that need no panel
  static constexpr bool kSigned = false;  // whether 8-bit codes enter `dot` as signed bytes

  struct Bytes {
    uint8_t v[64];
  };
  struct Ints {
    int32_t v[16];
  };
  struct Floats {
    float v[16];
  };
  struct Four {
    int8_t v[4];
  };

  static void prefetch(const uint8_t*) {}

  static Bytes load(const uint8_t* p) {
    Bytes out;
    std::memcpy(out.v, p, 64);
    return out;
  }
  static void store(uint8_t* p, Bytes a) { std::memcpy(p, a.v, 64); }

  // (byte >> SHIFT) & MASK of every byte; a negative SHIFT goes left.
  template <int SHIFT, int MASK>
  static Bytes field(Bytes a) {
    for (auto& byte : a.v) {
      if constexpr (SHIFT < 0) byte = uint8_t(byte << -SHIFT & MASK);
      else byte = uint8_t(byte >> SHIFT & MASK);
    }
    return a;
  }
  // The fields of two, side by side.
  template <int SHIFT, int MASK, int SHIFT_HIGH, int MASK_HIGH>
  static Bytes fields(Bytes low, Bytes high) {
    low = field<SHIFT, MASK>(low);
    high = field<SHIFT_HIGH, MASK_HIGH>(high);
    for (int i = 0; i < 64; ++i) low.v[i] |= high.v[i];
    return low;
  }
  // Stored 8-bit codes as `dot` wants them.
  static Bytes eight(Bytes a) { return a; }

  static Four four(const int8_t* x) {
    Four out;
    std::memcpy(out.v, x, 4);
    return out;
  }
  static Ints splat(int32_t value) {
    Ints out;
    for (auto& lane : out.v) lane = value;
    return out;
  }
  static Ints add(Ints a, const Ints& b) {
    for (int i = 0; i < 16; ++i) a.v[i] += b.v[i];
    return a;
  }
  // Adds to each row the dot product of its 4 unsigned codes and the 4 signed ones of x; WIDE when
  // the unsigned ones need all 8 bits.
  template <bool WIDE>
  static Ints dot(Ints sum, const Bytes& codes, Four x) {
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < 4; ++j) sum.v[i] += int32_t(codes.v[4 * i + j]) * x.v[j];
    return sum;
  }

  static Floats zero() { return splat(0.0f); }
  static Floats splat(float value) {
    Floats out;
    for (auto& lane : out.v) lane = value;
    return out;
  }
  static Floats load(const float* p) {
    Floats out;
    std::memcpy(out.v, p, sizeof out.v);
    return out;
  }
  static void store(float* p, const Floats& a) { std::memcpy(p, a.v, sizeof a.v); }
  // The first min(16, rows) lanes.
  static void store_rows(float* p, const Floats& a, int64_t rows) {
    for (int64_t i = 0; i < least(16, rows); ++i) p[i] = a.v[i];
  }
  static Floats half16(const uint16_t* p) {
    Floats out;
    for (int i = 0; i < 16; ++i) out.v[i] = from_half(p[i]);
    return out;
  }
  static Floats to_float(const Ints& a) {
    Floats out;
    for (int i = 0; i < 16; ++i) out.v[i] = float(a.v[i]);
    return out;
  }
  static Floats add(Floats a, const Floats& b) {
    for (int i = 0; i < 16; ++i) a.v[i] += b.v[i];
    return a;
  }
  static Floats multiply(Floats a, const Floats& b) {
    for (int i = 0; i < 16; ++i) a.v[i] *= b.v[i];
    return a;
  }
  // a * b + c, rounded once.
  static Floats fma(const Floats& a, const Floats& b, Floats c) {
    for (int i = 0; i < 16; ++i) c.v[i] = std::fma(a.v[i], b.v[i], c.v[i]);
    return c;
  }
};

bool always() { return true; }

}  // namespace

const Isa kScalar = row_of<Scalar>("scalar", &always);

}  // namespace edgeqat
