// What the checks share: a counter of failures that names each one, and random values.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>

namespace edgeqat {

struct Expect {
  int failures = 0, checks = 0;

  void that(bool holds, const std::string& what) {
    ++checks;
    if (holds) return;
    if (++failures <= 20) std::fprintf(stderr, "FAILED: %s\n", what.c_str());
  }
};

// splitmix64
struct Random {
  uint64_t state = 1;

  uint64_t next() {
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  int64_t below(int64_t count) { return int64_t(next() % uint64_t(count)); }
  float value() { return float(int64_t(next() >> 40)) * 0x1p-23f - 1.0f; }  // [-1, 1)
};

void check_rows(Expect& expect);                                // rows.cc
void check_pool(Expect& expect);                                // pool.cc
void check_lookup(Expect& expect);                              // lookup.cc
void check_engine(Expect& expect, const std::string& folder);  // sequence.cc

}  // namespace edgeqat
