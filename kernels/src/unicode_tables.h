// The tables of unicode_*.cc as kernels/tools/unicode_tables.py wrote them, which says what their
// numbers mean. The first number of a table counts those behind it.
#pragma once

#include <cstdint>

namespace edgeqat {

extern const uint32_t kClassMasks[], kClassRuns[], kLower[], kCanonical[], kCombining[],
    kCompatible[];

}  // namespace edgeqat
