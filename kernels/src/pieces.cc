#include "pieces.h"

#include <algorithm>

namespace edgeqat {

void Pieces::join(std::vector<Part>& parts, Cut how) {
  std::vector<Part> made;
  bool previous = false;
  const auto grow = [&](const Part& part, bool joins) {
    if (!joins || made.empty()) {
      made.push_back(part);
    } else {
      made.back().begin = std::min(made.back().begin, part.begin);
      made.back().end = std::max(made.back().end, part.end);
    }
    previous = part.match;
  };
  switch (how) {
    case Cut::isolated: return;
    case Cut::removed:
      for (const Part& part : parts)
        if (!part.match) made.push_back(part);
      break;
    case Cut::contiguous:
      for (const Part& part : parts) grow(part, part.match == previous);
      break;
    case Cut::with_previous:
      for (const Part& part : parts) grow(part, part.match && !previous);
      break;
    case Cut::with_next:
      std::reverse(parts.begin(), parts.end());
      for (const Part& part : parts) grow(part, part.match && !previous);
      std::reverse(made.begin(), made.end());
  }
  parts.swap(made);
}

}  // namespace edgeqat
