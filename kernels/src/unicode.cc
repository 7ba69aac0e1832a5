#include "unicode.h"

#include <algorithm>

#include "unicode_tables.h"
#include "utf8.h"

namespace edgeqat {
namespace {

// Hangul syllables are computed, section 3.12 of the Unicode standard.
constexpr uint32_t kSyllables = 0xac00, kLeads = 0x1100, kVowels = 0x1161, kTrails = 0x11a7;
constexpr uint32_t kLeadCount = 19, kVowelCount = 21, kTrailCount = 28;
constexpr uint32_t kSyllableCount = kLeadCount * kVowelCount * kTrailCount;
constexpr uint32_t kDottedI = 0x130;  // the only letter whose small letter has two code points

struct Numbers {  // of a table
  explicit Numbers(const uint32_t* table) : next(table + 1), end(next + table[0]) {}
  const uint32_t *next, *end;
};

uint64_t key_of(uint32_t first, uint32_t second) { return uint64_t(first) << 32 | second; }

}  // namespace

const Unicode& Unicode::tables() {
  static const Unicode made;
  return made;
}

Unicode::Unicode() : classes_(kCodes), masks_(kClassMasks + 1, kClassMasks + 1 + kClassMasks[0]) {
  uint32_t code = 0;
  for (Numbers runs(kClassRuns); runs.next < runs.end; ++runs.next) {
    const uint32_t length = *runs.next / 64;
    std::fill_n(classes_.begin() + code, length, uint8_t(*runs.next % 64));
    code += length;
  }
  code = 0;
  for (Numbers runs(kLower); runs.next < runs.end; runs.next += 4) {
    const uint32_t count = runs.next[1], step = runs.next[2], small = runs.next[3];
    code += runs.next[0];
    for (uint32_t i = 0; i < count; ++i) {
      lower_.insert(code + i * step, small + i * step);
      if (!upper_.find(small + i * step)) upper_.insert(small + i * step, code + i * step);
    }
    code += step * (count - 1);
  }
  code = 0;
  for (Numbers steps(kCanonical); steps.next < steps.end; steps.next += 3) {
    const uint32_t first = steps.next[1], second = steps.next[2];
    code += steps.next[0] / 2;
    canonical_.insert(code, {first, second});
    if (steps.next[0] % 2) composed_.insert(key_of(first, second), code);
  }
  code = 0;
  for (Numbers runs(kCombining); runs.next < runs.end; runs.next += 3) {
    code += runs.next[0];
    for (const uint32_t end = code + runs.next[1]; code < end; ++code)
      ranks_.insert(code, runs.next[2]);
  }
  code = 0;
  for (Numbers all(kCompatible); all.next < all.end;) {
    const uint32_t count = *all.next % 32;
    code += *all.next++ / 32;
    const uint32_t length = count ? 1 : *all.next++;  // of a run
    for (uint32_t i = 0; i < length; ++i) {
      compatible_.insert(code + i, {uint32_t(spelled_.size()), std::max(count, 1u)});
      if (!count) spelled_.push_back(*all.next + i);
    }
    if (count) spelled_.insert(spelled_.end(), all.next, all.next + count);
    code += length - 1;
    all.next += std::max(count, 1u);
  }
}

void Unicode::append_lower(std::string& out, uint32_t code) const {
  if (code == kDottedI) {
    out += "i\xcc\x87";
    return;
  }
  const uint32_t* small = lower_.find(code);
  append_code(out, small ? *small : code);
}

uint32_t Unicode::upper(uint32_t code) const {
  const uint32_t* capital = upper_.find(code);
  return capital ? *capital : code;
}

uint32_t Unicode::rank(uint32_t code) const {
  const uint32_t* found = ranks_.find(code);
  return found ? *found : 0;
}

void Unicode::decompose(std::vector<uint32_t>& out, uint32_t code, bool compatible) const {
  if (code < 0x80) return out.push_back(code);
  const Pair* spelled = compatible ? compatible_.find(code) : nullptr;
  if (spelled) {
    const auto from = spelled_.begin() + spelled->first;
    out.insert(out.end(), from, from + spelled->second);
  } else if (code >= kSyllables && code < kSyllables + kSyllableCount) {
    const uint32_t index = code - kSyllables;
    out.push_back(kLeads + index / (kVowelCount * kTrailCount));
    out.push_back(kVowels + index / kTrailCount % kVowelCount);
    if (index % kTrailCount) out.push_back(kTrails + index % kTrailCount);
  } else if (const Pair* pair = canonical_.find(code)) {
    decompose(out, pair->first, compatible);
    if (pair->second) decompose(out, pair->second, compatible);
  } else {
    out.push_back(code);
  }
}

void Unicode::order(std::vector<uint32_t>& codes) const {
  for (std::size_t at = 0; at < codes.size();) {
    std::size_t end = at;
    while (end < codes.size() && rank(codes[end])) ++end;
    if (end - at > 1)
      std::stable_sort(codes.begin() + at, codes.begin() + end,
                       [&](uint32_t a, uint32_t b) { return rank(a) < rank(b); });
    at = end + 1;
  }
}

uint32_t Unicode::composed(uint32_t first, uint32_t second) const {
  if (first - kLeads < kLeadCount && second - kVowels < kVowelCount)
    return kSyllables + ((first - kLeads) * kVowelCount + second - kVowels) * kTrailCount;
  if (first - kSyllables < kSyllableCount && (first - kSyllables) % kTrailCount == 0 &&
      second - kTrails - 1 < kTrailCount - 1)
    return first + second - kTrails;
  const uint32_t* found = composed_.find(key_of(first, second));
  return found ? *found : 0;
}

void Unicode::compose(std::vector<uint32_t>& codes) const {
  constexpr std::size_t kNone = ~std::size_t(0);
  std::size_t starter = kNone, kept = 0;
  uint32_t last = 0;  // rank of what was kept behind the starter
  for (const uint32_t code : codes) {
    const uint32_t own = rank(code);
    const bool adjacent = starter != kNone && kept == starter + 1;
    if (starter != kNone && (adjacent || last < own)) {
      if (const uint32_t whole = composed(codes[starter], code)) {
        codes[starter] = whole;
        continue;
      }
    }
    if (!own) starter = kept;
    last = own;
    codes[kept++] = code;
  }
  codes.resize(kept);
}

std::string Unicode::normal_form(std::string_view text, bool compatible, bool composed) const {
  const auto is_ascii = [](char c) { return static_cast<unsigned char>(c) < 0x80; };
  if (std::all_of(text.begin(), text.end(), is_ascii)) return std::string(text);
  std::vector<uint32_t> codes;
  codes.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) decompose(codes, next_code(text, at), compatible);
  order(codes);
  if (composed) compose(codes);
  std::string out;
  out.reserve(text.size());
  for (const uint32_t code : codes) append_code(out, code);
  return out;
}

}  // namespace edgeqat
