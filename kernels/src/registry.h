// The instruction sets of this build and the one in use.
#pragma once

#include <vector>

#include "isa.h"

namespace edgeqat {

// Compiled for this architecture, best first; not all need be available on this machine.
const std::vector<const Isa*>& registry();

// The row that engines and training use, chosen at the first call: the best available one, or the
// one EDGEQAT_ISA names. An unavailable choice is an Error.
const Isa& active_isa();

// Makes a row the active one of later calls and engines; nullptr: the next call chooses again.
void choose_isa(const char* name);

// A row by name; an unknown or unavailable one is an Error.
const Isa& isa_named(const char* name);

}  // namespace edgeqat
