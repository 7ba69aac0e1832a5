// AVX-512 with VNNI.

#include "avx512.h"

namespace edgeqat {

const Isa kAvx512Vnni = row_of<Avx512Vnni>("avx512vnni", &has_vnni);

}  // namespace edgeqat
