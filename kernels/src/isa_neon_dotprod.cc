// NEON with sdot (Armv8.2): both sides signed. Codes of at most 6 bits are the same bytes either
// way; 8-bit ones get their upper bit flipped, which makes them the signed codes.

#include "neon.h"

namespace edgeqat {
namespace {

struct NeonDotprod : Neon {
  static constexpr bool kSigned = true;

  static Bytes eight(Bytes a) {
    each([&](int i) { a.v[i] = veorq_u8(a.v[i], vdupq_n_u8(0x80)); });
    return a;
  }
  template <bool WIDE>
  static Ints dot(Ints sum, const Bytes& codes, Four x) {
    each([&](int i) { sum.v[i] = vdotq_s32(sum.v[i], vreinterpretq_s8_u8(codes.v[i]), x); });
    return sum;
  }
};

bool has_dotprod() { return getauxval(AT_HWCAP) & HWCAP_ASIMDDP; }

}  // namespace

const Isa kNeonDotprod = row_of<NeonDotprod>("neon_dotprod", &has_dotprod);

}  // namespace edgeqat
