// A text and the pieces that it is cut into; what lies in none of them is dropped.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "split_pattern.h"

namespace edgeqat {

// What becomes of the text that a pattern matches.
enum class Cut { removed, isolated, with_previous, with_next, contiguous };

struct Piece {
  std::size_t begin, end;
  bool first;  // it starts where the whole text does
};

struct Pieces {
  std::string text;
  std::vector<Piece> all;

  std::string_view view(const Piece& piece) const {
    return std::string_view(text).substr(piece.begin, piece.end - piece.begin);
  }

  // A part of a piece: a match, or what lies between two.
  struct Part {
    std::size_t begin, end;
    bool match;
  };

  // Cuts every piece where find(view, from, begin, end) finds matches. invert: what lies between
  // the matches counts as a match, and the matches do not.
  template <class Find>
  void cut(const Find& find, Cut how, bool invert = false) {
    std::vector<Piece> made;
    std::vector<Part> parts;
    for (const Piece& piece : all) {
      parts.clear();
      const std::string_view own = view(piece);
      std::size_t at = 0, begin = 0, end = 0;
      while (at < own.size() && find(own, at, begin, end)) {
        if (begin > at) parts.push_back({at, begin, invert});
        parts.push_back({begin, end, !invert});
        at = end;
      }
      if (at < own.size()) parts.push_back({at, own.size(), invert});
      join(parts, how);
      for (const Part& part : parts)
        made.push_back({piece.begin + part.begin, piece.begin + part.end,
                        piece.first && part.begin == 0});
    }
    all.swap(made);
  }

  // The text of every piece becomes what each(out, view, first) appends; empty pieces go.
  template <class Each>
  void rewrite(const Each& each) {
    Pieces made;
    made.text.reserve(text.size() + text.size() / 4);
    for (const Piece& piece : all) {
      const std::size_t begin = made.text.size();
      each(made.text, view(piece), piece.first);
      if (made.text.size() > begin) made.all.push_back({begin, made.text.size(), piece.first});
    }
    *this = std::move(made);
  }

 private:
  static void join(std::vector<Part>& parts, Cut how);
};

}  // namespace edgeqat
