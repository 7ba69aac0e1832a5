// Every available row of the registry gives the bits of the scalar row, and that one the integers
// of the definition (tile.h), at sizes that fill no tile.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "edgeqat.h"
#include "expect.h"
#include "inputs.h"
#include "registry.h"
#include "tile.h"

namespace edgeqat {
namespace {

constexpr int kWidths[] = {1, 2, 3, 4, 6, 8, kHalfBits};
constexpr int64_t kColumns[] = {0, 1, 15, 17, 172, 300};
constexpr int64_t kRowCounts[] = {0, 1, 16, 17, 50};
constexpr int64_t kTokens[] = {0, 1, 2, 3, 4, 5, 11, 12, 13, 25, 31, 33, 64};
constexpr int64_t kLengths[] = {1, 15, 16, 17, 172, 2048};

struct Case {
  int bits;
  int64_t rows, columns, tokens, group;
  std::vector<uint8_t> tiles;
  std::vector<uint16_t> scales;
  std::vector<int8_t> codes;  // [tokens][columns]
  std::vector<float> values, scale;

  std::string name() const {
    return std::to_string(bits) + " bits, " + std::to_string(rows) + " rows, " +
           std::to_string(columns) + " columns, groups of " + std::to_string(group) + ", " +
           std::to_string(tokens) + " tokens";
  }

  Matrix matrix() const {
    Matrix m;
    m.tiles = tiles.data();
    m.scales = bits == kHalfBits || scales.empty() ? nullptr : scales.data();
    m.rows = rows;
    m.columns = columns;
    m.group_size = group;
    m.groups = std::max<int64_t>(1, (columns + group - 1) / group);
    m.tile_row_bytes = tiles_of(columns, bits) * tile_bytes(bits);
    m.bits = bits;
    return m;
  }
};

Case make(Random& random, int bits, int64_t rows, int64_t columns, int64_t tokens, int64_t group) {
  Case made{bits, rows, columns, tokens, group, {}, {}, {}, {}, {}};
  const Matrix m = made.matrix();
  made.tiles.resize(m.tile_rows() * m.tile_row_bytes + 1);
  if (bits == kHalfBits) {
    uint16_t* half = reinterpret_cast<uint16_t*>(made.tiles.data());
    for (int64_t i = 0; i < m.tile_rows() * columns * kRows; ++i) half[i] = to_half(random.value());
  } else {  // padding holds code 0, the last row the largest code, the first one the least
    for (int64_t row = 0; row < m.tile_rows() * kRows; ++row)
      for (int64_t k = 0; k < tiles_of(columns, bits) * tile_inputs(bits); ++k) {
        int code = int(random.below(int64_t(1) << bits)) - (1 << (bits - 1));
        if (row == 0) code = -(1 << (bits - 1));
        if (row == rows - 1) code = (1 << (bits - 1)) - 1;
        if (row >= rows || k >= columns) code = 0;
        set_code(made.tiles.data() + row / kRows * m.tile_row_bytes, bits, row % kRows, k, code);
      }
  }
  if (group < columns)
    for (int64_t i = 0; i < m.tile_rows() * m.groups * kRows; ++i)
      made.scales.push_back(to_half(0.01f * random.value()));
  for (int64_t i = 0; i < tokens * columns; ++i) {
    int code = int(random.below(256)) - 128;
    if (i < columns) code = -128;
    if (i >= (tokens - 1) * columns && i % 2) code = 127;
    if (tokens > 3 && i / std::max<int64_t>(columns, 1) == 2) code = 0;
    made.codes.push_back(int8_t(code));
    made.values.push_back(random.value());
  }
  for (int64_t t = 0; t < tokens; ++t) made.scale.push_back(0.5f + 0.4f * random.value());
  return made;
}

std::vector<float> run(const Isa& isa, const Case& given) {
  const Matrix m = given.matrix();
  InputBuffer buffer;
  std::vector<float> out(given.tokens * given.rows + 1, 77.0f);
  const InputSpec spec = {given.columns, m.group_size, m.groups, 0, 8};
  const Inputs* x;
  if (given.bits == kHalfBits) {
    x = &buffer.floats(isa, nullptr, given.values.data(), given.tokens, given.columns,
                       given.columns);
  } else {
    const auto rows = buffer.rows(given.tokens, given.columns);
    for (int64_t t = 0; t < given.tokens; ++t) {
      std::memset(rows.codes + t * rows.stride, 0, rows.stride);
      std::copy_n(given.codes.data() + t * given.columns, given.columns,
                  rows.codes + t * rows.stride);
      rows.scale[t] = given.scale[t];
    }
    x = &buffer.interleave(isa, given.tokens, spec);
  }
  isa.product(m, *x, out.data(), given.rows, 0, m.tile_rows());
  return out;
}

// The integers of the definition, where there is one group and no scale.
bool exact(const Case& given, const std::vector<float>& found) {
  const Matrix m = given.matrix();
  for (int64_t t = 0; t < given.tokens; ++t)
    for (int64_t row = 0; row < given.rows; ++row) {
      int64_t sum = 0;
      for (int64_t k = 0; k < given.columns; ++k) {
        const int code = get_code(given.tiles.data() + row / kRows * m.tile_row_bytes, given.bits,
                                  row % kRows, k);
        sum += (half_step(given.bits) ? 2 * code + 1 : code) * given.codes[t * given.columns + k];
      }
      const float level = half_step(given.bits) ? 0.5f : 1.0f;
      if (found[t * given.rows + row] != float(sum) * (level * given.scale[t])) return false;
    }
  return true;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void check_products(Expect& expect, Random& random) {
  for (int bits : kWidths)
    for (int64_t columns : kColumns)
      for (int64_t rows : kRowCounts)
        for (int64_t tokens : kTokens)
          for (int64_t group : {std::max<int64_t>(columns, 1), int64_t(32), int64_t(128)}) {
            if (group > columns && group > 1 && group != columns) continue;
            const Case given = make(random, bits, rows, columns, tokens, group);
            const std::vector<float> truth = run(kScalar, given);
            expect.that(truth.back() == 77.0f, "scalar wrote behind the end: " + given.name());
            if (bits != kHalfBits && given.scales.empty())
              expect.that(exact(given, truth), "scalar is not exact: " + given.name());
            for (const Isa* isa : registry())
              if (isa->available())
                expect.that(same(run(*isa, given), truth),
                            std::string(isa->name) + " differs: " + given.name());
          }
}

std::vector<float> wild(Random& random, int64_t count, int kind) {
  std::vector<float> values(count);
  for (int64_t i = 0; i < count; ++i) {
    values[i] = random.value() * std::pow(10.0f, float(kind - 2));
    if (kind == 0) values[i] = 0;
    if (kind == 1) values[i] = float(i % 255) - 127.0f;  // ties and both ends
  }
  return values;
}

void check_elementwise(Expect& expect, Random& random) {
  for (const Isa* isa : registry()) {
    if (!isa->available()) continue;
    for (int64_t count : kLengths)
      for (int kind = 0; kind < 6; ++kind) {
        const std::string name = std::string(isa->name) + ", " + std::to_string(count) +
                                 " values, kind " + std::to_string(kind) + ": ";
        const auto x = wild(random, count, kind), y = wild(random, count, kind);
        for (int bits : {2, 3, 4, 6, 8}) {
          std::vector<int8_t> codes(count), truth(count);
          const float clip = activation_clip(bits);
          const float scale = isa->quantize(x.data(), count, bits, clip, codes.data());
          expect.that(kScalar.quantize(x.data(), count, bits, clip, truth.data()) == scale &&
                          codes == truth,
                      name + "quantize to " + std::to_string(bits) + " bits differs");
        }
        for (int bits : {2, 3, 4}) {
          if (count > kWidestGroup) break;
          std::vector<int8_t> codes(count), truth(count);
          const uint16_t scale = isa->quantize_searched(x.data(), count, bits, codes.data());
          expect.that(
              kScalar.quantize_searched(x.data(), count, bits, truth.data()) == scale &&
                  codes == truth,
              name + "searched quantization to " + std::to_string(bits) + " bits differs");
        }
        std::vector<float> out(count), truth(count);
        isa->rms_norm(x.data(), y.data(), 1e-5f, count, out.data());
        kScalar.rms_norm(x.data(), y.data(), 1e-5f, count, truth.data());
        expect.that(same(out, truth), name + "rms_norm differs");
        isa->swiglu(x.data(), y.data(), count, out.data());
        kScalar.swiglu(x.data(), y.data(), count, truth.data());
        expect.that(same(out, truth), name + "swiglu differs");
        isa->geglu(x.data(), y.data(), count, out.data());
        kScalar.geglu(x.data(), y.data(), count, truth.data());
        expect.that(same(out, truth), name + "geglu differs");
        out = truth = x;
        const float sum = isa->softmax(out.data(), 0.125f, count);
        expect.that(kScalar.softmax(truth.data(), 0.125f, count) == sum && same(out, truth),
                    name + "softmax differs");
        if (count % kRows) continue;
        std::vector<uint16_t> halves(count);
        for (auto& half : halves) half = to_half(0.01f * random.value());
        std::vector<int8_t> high(count), low(count), high_truth(count), low_truth(count);
        const float step =
            isa->split(out.data(), halves.data(), count, high.data(), low.data());
        const float step_truth = kScalar.split(out.data(), halves.data(), count,
                                               high_truth.data(), low_truth.data());
        expect.that(step == step_truth && high == high_truth && low == low_truth,
                    name + "split differs");
      }
  }
}

// The quantizers of training: the same on every row, and the values of what `quantize` stores.
void check_fake_quant(Expect& expect, Random& random) {
  for (const Isa* isa : registry()) {
    if (!isa->available()) continue;
    for (int64_t count : kLengths)
      for (int kind = 0; kind < 6; ++kind)
        for (int bits : {1, 2, 3, 4, 6, 8}) {
          const std::string name = std::string(isa->name) + ", " + std::to_string(count) +
                                   " values, kind " + std::to_string(kind) + ", " +
                                   std::to_string(bits) + " bits: ";
          const auto x = wild(random, count, kind), grad = wild(random, count, 5);
          std::vector<float> out(count), truth(count);
          std::vector<uint8_t> clipped(count), marks(count);
          isa->lsq(x.data(), count, 0.125f, -0.3f, bits, out.data());
          kScalar.lsq(x.data(), count, 0.125f, -0.3f, bits, truth.data());
          expect.that(same(out, truth), name + "lsq differs");
          for (const float* importance : {static_cast<const float*>(nullptr), x.data()})
            for (bool with_sign : {false, true})
              expect.that(isa->mse_scale(grad.data(), importance, count, bits, with_sign) ==
                              kScalar.mse_scale(grad.data(), importance, count, bits, with_sign),
                          name + "mse_scale differs");
          const SlopeSums sums =
              isa->lsq_backward(x.data(), grad.data(), count, 0.125f, -0.3f, bits, out.data());
          const SlopeSums expected = kScalar.lsq_backward(x.data(), grad.data(), count, 0.125f,
                                                          -0.3f, bits, truth.data());
          expect.that(sums.scale == expected.scale && sums.beta == expected.beta &&
                          same(out, truth),
                      name + "lsq_backward differs");
          isa->fake_dynamic(x.data(), count, bits, 0.5f, true, out.data(), nullptr);
          kScalar.fake_dynamic(x.data(), count, bits, 0.5f, true, truth.data(), nullptr);
          expect.that(same(out, truth), name + "fake_dynamic with a fp16 scale differs");
          isa->fake_dynamic(x.data(), count, bits, 0.5f, false, out.data(), clipped.data());
          kScalar.fake_dynamic(x.data(), count, bits, 0.5f, false, truth.data(), marks.data());
          expect.that(same(out, truth) && clipped == marks, name + "fake_dynamic differs");
          std::vector<int8_t> codes(count);
          const float scale = isa->quantize(x.data(), count, bits, 0.5f, codes.data());
          const float offset = half_step(bits) ? 0.5f : 0.0f;
          for (int64_t i = 0; i < count; ++i) truth[i] = (float(codes[i]) + offset) * scale;
          expect.that(same(out, truth), name + "fake_dynamic is not what quantize stores");
          if (bits < 2 || bits > 4 || count > kWidestGroup) continue;
          isa->fake_searched(x.data(), count, bits, out.data(), clipped.data());
          kScalar.fake_searched(x.data(), count, bits, truth.data(), marks.data());
          expect.that(same(out, truth) && clipped == marks, name + "fake_searched differs");
        }
  }
}

// Batch norm of training: the same on every row, at periods of one and several pixels.
void check_normalize(Expect& expect, Random& random) {
  for (const Isa* isa : registry()) {
    if (!isa->available()) continue;
    for (int64_t count : kLengths)
      for (int64_t period : {1, 66, 200}) {
        const auto x = wild(random, count, 5), grad = wild(random, count, 5);
        std::vector<std::vector<float>> given;
        for (int i = 0; i < 5; ++i) given.push_back(wild(random, period, 5));
        const Affine affine = {given[0].data(), given[1].data(), given[2].data(), given[3].data(),
                               given[4].data(), -0.3f,           0.4f,            period};
        const auto all = [&](const Isa& row) {
          std::vector<std::vector<float>> found;
          for (int i = 0; i < 4; ++i) found.emplace_back(period);
          for (int i = 0; i < 2; ++i) found.emplace_back(count);
          row.moments(x.data(), count, period, found[0].data(), found[1].data());
          row.normalize_slopes(x.data(), grad.data(), count, affine, found[2].data(),
                               found[3].data());
          row.normalize(x.data(), count, affine, found[4].data());
          row.normalize_backward(x.data(), grad.data(), count, affine, found[5].data());
          return found;
        };
        const auto found = all(*isa), truth = all(kScalar);
        const std::string name = std::string(isa->name) + ", " + std::to_string(count) +
                                 " values, period " + std::to_string(period) + ": ";
        for (size_t i = 0; i < found.size(); ++i)
          expect.that(same(found[i], truth[i]), name + "batch norm differs");
      }
  }
}

bool near(const std::vector<float>& found, const std::vector<double>& expected) {
  double most = 1e-3;
  for (double value : expected) most = std::max(most, std::fabs(value));
  for (size_t i = 0; i < expected.size(); ++i)
    if (!(std::fabs(found[i] - expected[i]) < 1e-4 * most)) return false;
  return true;
}

// The whole norm, of blocks and parts of them, against the definition in double.
void check_batch_norm(Expect& expect, Random& random, int64_t rows, int64_t channels) {
  const float epsilon = 1e-5f, low = -0.4f, high = 0.7f;
  const auto x = wild(random, rows * channels, 2), grad = wild(random, rows * channels, 2);
  const auto gain = wild(random, channels, 2), bias = wild(random, channels, 2);
  std::vector<float> mean(channels), variance(channels), grad_gain(channels), grad_bias(channels);
  std::vector<float> out(rows * channels), grad_x(rows * channels);
  const edgeqat_team team = {nullptr, 1};
  const int status =
      edgeqat_batch_norm(team, x.data(), rows, channels, gain.data(), bias.data(), epsilon, low,
                         high, mean.data(), variance.data(), out.data()) +
      edgeqat_batch_norm_backward(team, x.data(), grad.data(), rows, channels, gain.data(),
                                  bias.data(), epsilon, low, high, mean.data(), variance.data(),
                                  grad_x.data(), grad_gain.data(), grad_bias.data());
  std::vector<double> means(channels), squares(channels), sums(channels), products(channels);
  std::vector<double> values(rows * channels), slopes(rows * channels), grads(rows * channels);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = c; i < rows * channels; i += channels) means[c] += x[i] / double(rows);
    for (int64_t i = c; i < rows * channels; i += channels)
      squares[c] += (x[i] - means[c]) * (x[i] - means[c]) / double(rows);
    const double factor = 1 / std::sqrt(squares[c] + epsilon);
    for (int64_t i = c; i < rows * channels; i += channels) {
      const double y = (x[i] - means[c]) * factor * gain[c] + bias[c];
      values[i] = std::min(std::max(y, double(low)), double(high));
      slopes[i] = out[i] > low && out[i] < high ? grad[i] : 0.0f;
      sums[c] += slopes[i];
      products[c] += slopes[i] * (x[i] - means[c]) * factor;
    }
    for (int64_t i = c; i < rows * channels; i += channels)
      grads[i] = (slopes[i] - sums[c] / double(rows) -
                  (x[i] - means[c]) * factor * products[c] / double(rows)) *
                 factor * gain[c];
  }
  expect.that(status == 0 && near(mean, means) && near(variance, squares) && near(out, values) &&
                  near(grad_x, grads) && near(grad_gain, products) && near(grad_bias, sums),
              "batch norm of " + std::to_string(rows) + " rows, " + std::to_string(channels) +
                  " channels is not the definition's");
}

void check_batch_norms(Expect& expect, Random& random) {
  for (int64_t rows : {2, 64, 700, 6000})
    for (int64_t channels : {1, 3, 66, 200}) check_batch_norm(expect, random, rows, channels);
  const edgeqat_team team = {nullptr, 1};
  for (int64_t rows : {0, 5})
    expect.that(edgeqat_batch_norm(team, nullptr, rows, 5 - rows, nullptr, nullptr, 0, 0, 0,
                                   nullptr, nullptr, nullptr) != 0,
                "batch norm takes nothing");
}

void check_halves(Expect& expect) {
  for (int bits = 0; bits < 65536; ++bits) {
    const bool number = (bits & 0x7c00) != 0x7c00;
    if (number) expect.that(to_half(from_half(uint16_t(bits))) == bits, "fp16 does not survive");
  }
}

void check_rotation(Expect& expect, Random& random) {
  for (int64_t block : {0, 1, 2, 8, 16, 32, 64, 128}) {
    const std::vector<float> x = wild(random, 256, 3);
    std::vector<float> y = x;
    kScalar.rotate(y.data(), 256, block);
    for (const Isa* isa : registry()) {
      std::vector<float> z = x;
      if (isa->available()) isa->rotate(z.data(), 256, block);
      expect.that(!isa->available() || same(y, z), std::string(isa->name) + ": rotate differs");
    }
    double before = 0, after = 0, apart = 0;
    for (int i = 0; i < 256; ++i) before += double(x[i]) * x[i], after += double(y[i]) * y[i];
    kScalar.rotate(y.data(), 256, block);
    for (int i = 0; i < 256; ++i) apart = std::max(apart, std::fabs(double(x[i]) - y[i]));
    expect.that(std::fabs(after / before - 1) < 1e-6, "a rotation changes lengths");
    expect.that(apart < 1e-4, "a rotation does not undo itself");
  }
}

}  // namespace

void check_rows(Expect& expect) {
  Random random;
  check_products(expect, random);
  check_elementwise(expect, random);
  check_fake_quant(expect, random);
  check_normalize(expect, random);
  check_batch_norms(expect, random);
  check_halves(expect);
  check_rotation(expect, random);
}

}  // namespace edgeqat
