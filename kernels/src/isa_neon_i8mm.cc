// NEON with usdot (Armv8.6, i8mm): unsigned by signed, as the codes are stored.

#include "neon.h"

namespace edgeqat {
namespace {

struct NeonI8mm : Neon {
  static constexpr bool kSigned = false;

  static Bytes eight(const Bytes& a) { return a; }
  template <bool WIDE>
  static Ints dot(Ints sum, const Bytes& codes, Four x) {
    each([&](int i) { sum.v[i] = vusdotq_s32(sum.v[i], codes.v[i], x); });
    return sum;
  }
};

bool has_i8mm() { return getauxval(AT_HWCAP2) & HWCAP2_I8MM; }

}  // namespace

const Isa kNeonI8mm = row_of<NeonI8mm>("neon_i8mm", &has_i8mm);

}  // namespace edgeqat
