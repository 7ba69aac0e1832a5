// edgeqat-bench: single kernels of every available instruction set on one thread, by CPU time.
//
//   edgeqat-bench [ISA]      one row per kernel: GB/s of matrix or values read, GOP/s of products

#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <vector>

#include "buffer.h"
#include "inputs.h"
#include "registry.h"
#include "tile.h"

namespace {

using namespace edgeqat;

constexpr int64_t kColumns = 2048, kRowCount = 2048, kGroup = 128, kValues = 5632;
constexpr double kLeast = 0.004;  // seconds of a round: short, so that some are undisturbed
constexpr int kRounds = 40;

double seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

// Seconds of one call: the best of several rounds.
template <class Work>
double timed(const Work& work) {
  work();
  double best = 1e9;
  for (int round = 0; round < kRounds; ++round) {
    const double start = seconds();
    int64_t calls = 0;
    do {
      work();
      ++calls;
    } while (seconds() - start < kLeast);
    best = std::min(best, (seconds() - start) / double(calls));
  }
  return best;
}

void report(const Isa& isa, const std::string& kernel, double bytes, double operations,
            double taken) {
  std::printf("%-12s %-24s %10.2f us %8.2f GB/s", isa.name, kernel.c_str(), taken * 1e6,
              bytes / taken / 1e9);
  if (operations > 0) std::printf(" %9.1f GOP/s", operations / taken / 1e9);
  std::printf("\n");
}

void products(const Isa& isa) {
  std::vector<float> values(kColumns * 240, 0.5f), out(kRowCount * 240);
  for (int bits : {1, 2, 3, 4, 6, 8, kHalfBits}) {
    Matrix m;
    m.rows = kRowCount;
    m.columns = kColumns;
    m.group_size = bits == kHalfBits ? kColumns : kGroup;
    m.groups = kColumns / m.group_size;
    m.tile_row_bytes = tiles_of(kColumns, bits) * tile_bytes(bits);
    m.bits = bits;
    Buffer<uint8_t> tiles(m.tile_rows() * m.tile_row_bytes);
    Buffer<uint16_t> scales(m.tile_rows() * m.groups * kRows);
    m.tiles = tiles.data();
    if (bits != kHalfBits) m.scales = scales.data();
    for (int64_t tokens : {1, 2, 128}) {
      InputBuffer buffer;
      const InputSpec spec = {kColumns, m.group_size, m.groups, 0, bits == kHalfBits ? bits : 8};
      const Inputs& x = buffer.fill(isa, nullptr, values.data(), tokens, kColumns, spec);
      const double taken =
          timed([&] { isa.product(m, x, out.data(), kRowCount, 0, m.tile_rows()); });
      report(isa, "w" + std::to_string(bits) + " x " + std::to_string(tokens),
             double(tiles.size() + 2 * scales.size()),
             2.0 * double(kRowCount * kColumns * tokens), taken);
    }
  }
}

void elementwise(const Isa& isa) {
  std::vector<float> x(kValues), y(kValues, 1.0f), out(kValues);
  for (int64_t i = 0; i < kValues; ++i) x[i] = float(i % 173) - 86.0f;
  std::vector<int8_t> codes(kValues), low(kValues);
  std::vector<uint16_t> halves(kValues, to_half(0.01f));
  const auto row = [&](const char* name, const auto& work) {
    report(isa, name, 4.0 * kValues, 0, timed(work));
  };
  row("quantize", [&] { isa.quantize(x.data(), kValues, 8, 1.0f, codes.data()); });
  row("rms_norm", [&] { isa.rms_norm(x.data(), y.data(), 1e-5f, kValues, out.data()); });
  row("swiglu", [&] { isa.swiglu(x.data(), y.data(), kValues, out.data()); });
  row("copy + softmax", [&] {
    std::copy(x.begin(), x.end(), out.begin());
    isa.softmax(out.data(), 0.01f, kValues);
  });
  row("split", [&] { isa.split(out.data(), halves.data(), kValues, codes.data(), low.data()); });
  row("copy + rotate", [&] {
    std::copy(x.begin(), x.end(), out.begin());
    isa.rotate(out.data(), kValues, 32);
  });
}

}  // namespace

int main(int count, char** arguments) {
  for (const edgeqat::Isa* isa : edgeqat::registry()) {
    if (!isa->available() || (count > 1 && std::strcmp(arguments[1], isa->name))) continue;
    products(*isa);
    elementwise(*isa);
  }
}
