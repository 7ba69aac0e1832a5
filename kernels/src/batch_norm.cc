// Batch norm over all pixels: blocks of them on the threads of the caller, their sums put together
// in double and in one order, so that results do not depend on the number of threads.
#include "batch_norm.h"

#include <cmath>
#include <vector>

#include "isa.h"
#include "registry.h"
#include "team.h"

namespace edgeqat {
namespace {

constexpr int64_t kShortestPeriod = 64;    // values that an inner loop is worth
constexpr int64_t kBlockValues = 1 << 15;  // of a block: both walks of `moments` find it cached
constexpr int64_t kFewestPeriods = 64;     // of a block: sums are few beside values

struct Blocks {
  Blocks(int64_t rows, int64_t row_size)
      : channels(row_size),
        values(rows * row_size),
        period((kShortestPeriod + channels - 1) / channels * channels),
        size(std::max(kFewestPeriods, kBlockValues / period) * period),
        count((values + size - 1) / size) {}

  int64_t size_of(int64_t block) const { return std::min(size, values - block * size); }
  // Calls each(channel, place among the sums, values there) for all sums of all blocks.
  template <class Each>
  void each_sum(const Each& add) const {
    for (int64_t b = 0, i = 0; b < count; ++b) {
      const int64_t whole = size_of(b) / period, rest = size_of(b) % period;
      for (int64_t first = 0; first < period; first += channels)
        for (int64_t c = 0; c < channels; ++c, ++i)
          add(c, i, double(whole + (first + c < rest)));
    }
  }
  // Calls each(block, first value, values).
  template <class Each>
  void each(const edgeqat_team& team, const Each& work) const {
    each_row(team, count, size, [&](int64_t b) { work(b, b * size, size_of(b)); });
  }

  int64_t channels, values, period, size, count;
};

// Two sums of every block and place of the period.
struct Partial {
  explicit Partial(const Blocks& blocks)
      : first(blocks.count * blocks.period), second(blocks.count * blocks.period) {}

  std::vector<float> first, second;
};

// What the kernels multiply with, a period of each.
struct Period {
  Period(const Blocks& blocks, const BatchNorm& norm, const float* means, const float* variance)
      : scale(blocks.period), shift(blocks.period), mean(blocks.period), common(blocks.period),
        along(blocks.period) {
    for (int64_t j = 0; j < blocks.period; ++j) {
      const int64_t c = j % blocks.channels;
      scale[j] = norm.gain[c] / std::sqrt(variance[c] + norm.epsilon);
      mean[j] = means[c];
      shift[j] = norm.bias[c] - mean[j] * scale[j];
    }
  }

  Affine affine(const BatchNorm& norm) const {
    return {scale.data(), shift.data(), mean.data(), common.data(), along.data(),
            norm.low,     norm.high,    int64_t(scale.size())};
  }

  std::vector<float> scale, shift, mean, common, along;
};

void find_moments(const edgeqat_team& team, const Isa& isa, const float* x, const Blocks& blocks,
                  float* mean, float* variance) {
  Partial found(blocks);
  blocks.each(team, [&](int64_t b, int64_t at, int64_t count) {
    isa.moments(x + at, count, blocks.period, &found.first[b * blocks.period],
                &found.second[b * blocks.period]);
  });
  const double pixels = double(blocks.values / blocks.channels);
  std::vector<double> sums(blocks.channels), squares(blocks.channels);
  blocks.each_sum([&](int64_t c, int64_t i, double n) { sums[c] += n * found.first[i]; });
  for (double& sum : sums) sum /= pixels;
  blocks.each_sum([&](int64_t c, int64_t i, double n) {
    const double apart = found.first[i] - sums[c];
    squares[c] += found.second[i] + n * apart * apart;
  });
  for (int64_t c = 0; c < blocks.channels; ++c) {
    mean[c] = float(sums[c]);
    variance[c] = float(squares[c] / pixels);
  }
}

}  // namespace

void batch_norm(const edgeqat_team& team, const float* x, int64_t rows, const BatchNorm& norm,
                float* mean, float* variance, float* out) {
  const Isa& isa = active_isa();
  const Blocks blocks(rows, norm.channels);
  find_moments(team, isa, x, blocks, mean, variance);
  const Period period(blocks, norm, mean, variance);
  const Affine affine = period.affine(norm);
  blocks.each(team, [&](int64_t, int64_t at, int64_t count) {
    isa.normalize(x + at, count, affine, out + at);
  });
}

void batch_norm_backward(const edgeqat_team& team, const float* x, const float* grad, int64_t rows,
                         const BatchNorm& norm, const float* mean, const float* variance,
                         float* grad_x, float* grad_gain, float* grad_bias) {
  const Isa& isa = active_isa();
  const Blocks blocks(rows, norm.channels);
  Period period(blocks, norm, mean, variance);
  const Affine affine = period.affine(norm);
  Partial found(blocks);
  blocks.each(team, [&](int64_t b, int64_t at, int64_t count) {
    isa.normalize_slopes(x + at, grad + at, count, affine, &found.first[b * blocks.period],
                         &found.second[b * blocks.period]);
  });
  std::vector<double> sums(norm.channels), products(norm.channels);
  blocks.each_sum([&](int64_t c, int64_t i, double) {
    sums[c] += found.first[i];
    products[c] += found.second[i];
  });
  for (int64_t j = 0; j < blocks.period; ++j) {
    const int64_t c = j % norm.channels;
    const double spread = double(variance[c]) + double(norm.epsilon);
    period.common[j] = float(sums[c] / double(rows));
    period.along[j] = float(products[c] / double(rows) / spread);
    grad_bias[c] = float(sums[c]);
    grad_gain[c] = float(products[c] / std::sqrt(spread));
  }
  blocks.each(team, [&](int64_t, int64_t at, int64_t count) {
    isa.normalize_backward(x + at, grad + at, count, affine, grad_x + at);
  });
}

}  // namespace edgeqat
