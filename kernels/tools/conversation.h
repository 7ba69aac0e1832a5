// A chat on the terminal: lines from stdin, answers to stdout, both kept for the next turn.
#pragma once

#include <string>

#include "generation.h"

namespace edgeqat_run {

// tokens: of an answer at most; 0: what the context holds.
void converse(edgeqat_engine* engine, const std::string& folder, Generation& generation,
              int64_t tokens);

}  // namespace edgeqat_run
