// The instruction sets of this build and the one in use.
#pragma once

#include <vector>

#include "isa.h"

namespace edgeqat {

// Compiled for this architecture, best first; not all need be available on this machine.
const std::vector<const Isa*>& registry();

// The best available row, or the one EDGEQAT_ISA names; an unavailable choice is an Error.
const Isa& active_isa();

// A row by name; an unknown or unavailable one is an Error.
const Isa& isa_named(const char* name);

}  // namespace edgeqat
