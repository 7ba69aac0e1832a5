// The C ABI: exceptions become a status and a line of text.

#include <algorithm>
#include <cstring>
#include <string>

#include "batch_norm.h"
#include "capi_engine.h"
#include "capi_status.h"
#include "error.h"
#include "read_loop.h"
#include "registry.h"
#include "team.h"
#include "tile.h"

namespace {

using namespace edgeqat;

template <class Make>
edgeqat_engine* opened(const Make& make, int threads, int64_t context) {
  edgeqat_engine* engine = nullptr;
  guarded([&] {
    if (threads < 0 || threads > 1024)
      throw Error("threads: " + std::to_string(threads) + " is not from 0 to 1024");
    engine = new edgeqat_engine{{make(), threads, context}};
  });
  return engine;
}

void check_bits(int bits) {
  if (bits < 1 || bits > 8 || !tile_inputs(bits))
    throw Error("bits: " + std::to_string(bits) + " is not one of 1, 2, 3, 4, 6, 8");
}

// Calls work(group, its scale, first value, values) for each group of each row.
template <class Work>
void each_group(const edgeqat_team& team, const float* scale, int64_t rows, int64_t columns,
                int64_t scale_rows, int64_t group_size, const Work& work) {
  const int64_t size = group_size ? group_size : std::max<int64_t>(columns, 1);
  const int64_t groups = (columns + size - 1) / size;
  each_row(team, rows, columns, [&](int64_t row) {
    const float* scales = scale + (scale_rows == 1 ? 0 : row * groups);
    for (int64_t g = 0; g < groups; ++g)
      work(row * groups + g, scales[g], row * columns + g * size,
           std::min(size, columns - g * size));
  });
}

void check_searched(int bits, int64_t columns) {
  if (bits < 2 || bits > 4 || columns > kWidestGroup)
    throw Error("bits: keys and values of 2 to 4 bits in groups of at most " +
                std::to_string(kWidestGroup) + " have searched scales");
}

void check_pixels(int64_t rows, int64_t channels) {
  if (rows < 1 || channels < 1) throw Error("batch norm: there are no pixels or no channels");
}

}  // namespace

const char* edgeqat_isa(int index, int* available) {
  if (index < 0 || index >= int(registry().size())) return nullptr;
  if (available) *available = registry()[index]->available();
  return registry()[index]->name;
}

const char* edgeqat_active_isa(void) {
  const char* name = nullptr;
  guarded([&] { name = active_isa().name; });
  return name;
}

int edgeqat_choose_isa(const char* name) {
  return guarded([&] { choose_isa(name); });
}

edgeqat_engine* edgeqat_open(const char* folder, int threads, int64_t context, int half) {
  return opened([&] { return Model::open(folder, half); }, threads, context);
}

edgeqat_engine* edgeqat_open_random(const char* shape, const char* scheme, int threads,
                                    int64_t context, int half) {
  return opened([&] { return Model::random(shape, scheme, half); }, threads, context);
}

void edgeqat_close(edgeqat_engine* engine) { delete engine; }

int edgeqat_get_info(const edgeqat_engine* engine, edgeqat_info* info) {
  const Engine& e = engine->engine;
  *info = {e.model().config.vocabulary, e.sequence().context(), e.sequence().position(),
           e.model().matrix_bytes(), e.threads(), e.isa().name, e.model().config.layers,
           e.model().config.hidden, e.model().embedding_bytes()};
  return EDGEQAT_OK;
}

int edgeqat_is_stop(const edgeqat_engine* engine, int32_t id) {
  const std::vector<int64_t>& stop = engine->engine.model().config.stop;
  return std::find(stop.begin(), stop.end(), id) != stop.end();
}

int edgeqat_forward(edgeqat_engine* engine, const int32_t* ids, int64_t count, float* logits,
                    int all) {
  return guarded([&] {
    Engine& e = engine->engine;
    e.forward({{&e.sequence(), ids, count, all ? count : std::min<int64_t>(count, 1)}}, logits);
  });
}

int edgeqat_trace(edgeqat_engine* engine, const int32_t* ids, int64_t count, float* logits,
                  float* outputs) {
  return guarded([&] {
    Engine& e = engine->engine;
    e.forward({{&e.sequence(), ids, count, count}}, logits, outputs);
  });
}

int edgeqat_rewind(edgeqat_engine* engine, int64_t position) {
  return guarded([&] { engine->engine.sequence().rewind(position); });
}

int edgeqat_reset(edgeqat_engine* engine) { return edgeqat_rewind(engine, 0); }

int edgeqat_cores(void) { return physical_cores(); }

int edgeqat_read_speed(int64_t bytes, int threads, double* bytes_per_second) {
  return guarded([&] { *bytes_per_second = read_speed(bytes, threads); });
}

int edgeqat_unpack(const uint8_t* tiles, int bits, int64_t rows, int64_t columns, int8_t* codes) {
  return guarded([&] {
    check_bits(bits);
    const int64_t row_bytes = tiles_of(columns, bits) * tile_bytes(bits);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t k = 0; k < columns; ++k)
        codes[row * columns + k] =
            int8_t(get_code(tiles + row / kRows * row_bytes, bits, row % kRows, k));
  });
}

int edgeqat_quantize(const char* isa, const float* x, int64_t rows, int64_t columns, int bits,
                     float clip, int8_t* codes, float* scale) {
  return guarded([&] {
    check_bits(bits);
    const Isa& row_of = isa_named(isa);
    for (int64_t row = 0; row < rows; ++row)
      scale[row] =
          row_of.quantize(x + row * columns, columns, bits, clip, codes + row * columns);
  });
}

int edgeqat_quantize_searched(const char* isa, const float* x, int64_t rows, int64_t columns,
                              int bits, int8_t* codes, uint16_t* scale) {
  return guarded([&] {
    check_searched(bits, columns);
    const Isa& row_of = isa_named(isa);
    for (int64_t row = 0; row < rows; ++row)
      scale[row] =
          row_of.quantize_searched(x + row * columns, columns, bits, codes + row * columns);
  });
}

int edgeqat_product(const char* isa, const uint8_t* tiles, const uint16_t* scales, int bits,
                    int64_t rows, int64_t columns, int64_t group_size, const int8_t* codes,
                    const float* code_scale, int64_t tokens, float* out) {
  return guarded([&] {
    check_bits(bits);
    const Isa& row_of = isa_named(isa);
    Matrix m;
    m.tiles = tiles;
    m.scales = scales;
    m.rows = rows;
    m.columns = columns;
    m.group_size = group_size && group_size < columns ? group_size : std::max<int64_t>(columns, 1);
    m.groups = std::max<int64_t>(1, (columns + m.group_size - 1) / m.group_size);
    m.tile_row_bytes = tiles_of(columns, bits) * tile_bytes(bits);
    m.bits = bits;
    InputBuffer buffer;
    const auto given = buffer.rows(tokens, columns);
    for (int64_t t = 0; t < tokens; ++t) {
      std::memset(given.codes + t * given.stride, 0, given.stride);
      std::memcpy(given.codes + t * given.stride, codes + t * columns, columns);
      given.scale[t] = code_scale[t];
    }
    const Inputs& x = buffer.interleave(row_of, tokens, {columns, m.group_size, m.groups, 0, 8});
    row_of.product(m, x, out, rows, 0, m.tile_rows());
  });
}

int edgeqat_lsq(edgeqat_team team, const float* x, const float* scale, float beta, int64_t rows,
                int64_t columns, int64_t scale_rows, int64_t group_size, int bits, float* out) {
  return guarded([&] {
    check_bits(bits);
    const Isa& isa = active_isa();
    each_group(team, scale, rows, columns, scale_rows, group_size,
               [&](int64_t, float step, int64_t at, int64_t count) {
                 isa.lsq(x + at, count, step, beta, bits, out + at);
               });
  });
}

int edgeqat_mse_scale(edgeqat_team team, const float* x, const float* importance, int64_t rows,
                      int64_t columns, int64_t group_size, int bits, int with_sign,
                      float* scale) {
  return guarded([&] {
    check_bits(bits);
    const Isa& isa = active_isa();
    const int64_t size = group_size ? group_size : std::max<int64_t>(columns, 1);
    const int64_t groups = (columns + size - 1) / size;
    each_row(team, rows, columns, [&](int64_t row) {
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t at = g * size, count = std::min(size, columns - at);
        scale[row * groups + g] =
            isa.mse_scale(x + row * columns + at, importance ? importance + at : nullptr, count,
                          bits, with_sign);
      }
    });
  });
}

int edgeqat_lsq_backward(edgeqat_team team, const float* x, const float* scale, float beta,
                         const float* grad, int64_t rows, int64_t columns, int64_t scale_rows,
                         int64_t group_size, int bits, float* grad_x, float* slopes) {
  return guarded([&] {
    check_bits(bits);
    const Isa& isa = active_isa();
    each_group(team, scale, rows, columns, scale_rows, group_size,
               [&](int64_t group, float step, int64_t at, int64_t count) {
                 const SlopeSums sums =
                     isa.lsq_backward(x + at, grad + at, count, step, beta, bits, grad_x + at);
                 slopes[2 * group] = sums.scale;
                 slopes[2 * group + 1] = sums.beta;
               });
  });
}

int edgeqat_fake_quantize(edgeqat_team team, const float* x, int64_t rows, int64_t columns,
                          int bits, int searched, float clip, int half_scale, float* out,
                          uint8_t* clipped) {
  return guarded([&] {
    if (searched) check_searched(bits, columns);
    else check_bits(bits);
    const Isa& isa = active_isa();
    each_row(team, rows, columns, [&](int64_t row) {
      const int64_t at = row * columns;
      uint8_t* marks = clipped ? clipped + at : nullptr;
      if (searched) isa.fake_searched(x + at, columns, bits, out + at, marks);
      else isa.fake_dynamic(x + at, columns, bits, clip, half_scale, out + at, marks);
    });
  });
}

int edgeqat_batch_norm(edgeqat_team team, const float* x, int64_t rows, int64_t channels,
                       const float* gain, const float* bias, float epsilon, float low, float high,
                       float* mean, float* variance, float* out) {
  return guarded([&] {
    check_pixels(rows, channels);
    batch_norm(team, x, rows, {channels, gain, bias, epsilon, low, high}, mean, variance, out);
  });
}

int edgeqat_batch_norm_backward(edgeqat_team team, const float* x, const float* grad, int64_t rows,
                                int64_t channels, const float* gain, const float* bias,
                                float epsilon, float low, float high, const float* mean,
                                const float* variance, float* grad_x, float* grad_gain,
                                float* grad_bias) {
  return guarded([&] {
    check_pixels(rows, channels);
    batch_norm_backward(team, x, grad, rows, {channels, gain, bias, epsilon, low, high}, mean,
                        variance, grad_x, grad_gain, grad_bias);
  });
}
