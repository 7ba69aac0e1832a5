// One row per instruction set: the operations that are compiled several times, and their operands.
//
//     y[t][o] = scale_x[t] * sum_g scale_w[o][g] * (int32 dot product of the codes of group g)
//
// Everything the engine computes on codes is this one product: linear layers (rows are outputs),
// scores (rows are cached tokens, inputs are head dimensions) and the weighted sum of values (rows
// are head dimensions, inputs are cached tokens). isa_scalar.cc is the truth. Every other row
// equals it bit for bit: the 16 lanes are rows, and each lane adds in the same order.
//
// Legend: T tokens, O rows, I columns, G groups of a row.
#pragma once

#include <cstdint>

namespace edgeqat {

constexpr int64_t kRows = 16;        // rows of a tile
constexpr int64_t kInputPad = 32;    // inputs are zero-padded to a multiple of the widest tile
constexpr int kHalfBits = 16;        // "width" of matrices that hold fp16 values instead of codes

// Rows in tiles of 16, as docs/format.md lays them out; at kHalfBits [O/16][I][16] fp16 values.
struct Matrix {
  const uint8_t* tiles = nullptr;
  const uint16_t* scales = nullptr;  // fp16 [O/16][G][16]; null: every scale is 1
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t group_size = 0;            // a multiple of 32, or at least `columns`
  int64_t groups = 1;
  int64_t tile_row_bytes = 0;        // from one tile row to the next
  int bits = 0;

  int64_t tile_rows() const { return (rows + kRows - 1) / kRows; }
};

// Activations of T tokens, interleaved in blocks of Isa::block_tokens: a block of t tokens holds
// [I/4][t][4] codes (or [I][t] values), so that the kernels read it front to back. From
// Isa::rows_from tokens on, codes stay rows [t][I].
struct Inputs {
  const int8_t* codes = nullptr;     // rows: kInputPad more may be read behind them
  const float* values = nullptr;     // used instead of codes with matrices of kHalfBits
  const int32_t* sums = nullptr;     // [T][G] sums of the codes of a group: removes the offset
  const float* scale = nullptr;      // [T]
  int64_t tokens = 0;
  int64_t stride = 0;                // I with its padding: at least to a multiple of kInputPad
};

struct SlopeSums {
  float scale, beta;
};

// What batch norm multiplies with: channels in turn, `period` of each array.
struct Affine {
  const float *scale, *shift, *mean, *common, *along;
  float low, high;
  int64_t period;
};

struct Isa {
  const char* name;
  bool (*available)();
  int64_t block_tokens;
  int64_t rows_from;  // tokens from which on `product` takes rows of codes

  // out[t * stride + o] for the rows o of the tile rows [first, last).
  void (*product)(const Matrix&, const Inputs&, float* out, int64_t stride, int64_t first,
                  int64_t last);
  // Codes of one row and its scale: clamp(round_half_even(x * (top / m) - z), qmin, qmax).
  float (*quantize)(const float* x, int64_t count, int bits, float clip, int8_t* codes);
  // Keys and values of 2 to 4 bits, at most kWidestGroup: codes and their fp16 scale.
  uint16_t (*quantize_searched)(const float* x, int64_t count, int bits, int8_t* codes);
  // out = x / rms(x) * weight.
  void (*rms_norm)(const float* x, const float* weight, float epsilon, int64_t count, float* out);
  // x in place becomes exp(x * factor - maximum of x * factor); returns the sum.
  float (*softmax)(float* x, float factor, int64_t count);
  // x in place times the orthonormal Hadamard matrix of size `block` (a power of two that divides
  // count; less than 2 does nothing) in consecutive blocks, as edgeqat/quant/hadamard.py.
  void (*rotate)(float* x, int64_t count, int64_t block);
  // out = silu(gate) * up.
  void (*swiglu)(const float* gate, const float* up, int64_t count, float* out);
  // out = gelu(gate) * up, by the tanh approximation.
  void (*geglu)(const float* gate, const float* up, int64_t count, float* out);
  int32_t (*sum)(const int8_t* codes, int64_t count);
  // Words [T][words] to [words][T].
  void (*interleave)(const int32_t* rows, int64_t tokens, int64_t words, int32_t* to);
  // Weights of at most 15 bits as two bytes: p * fp16 scale = step * (128 * high + low).
  float (*split)(const float* p, const uint16_t* scale, int64_t count, int8_t* high, int8_t* low);

  // Training (fake_quant.h), rows of values. out = level((x - beta) / scale) * scale + beta.
  void (*lsq)(const float* x, int64_t count, float scale, float beta, int bits, float* out);
  // The scale of least squared error of a row; `importance` may be null.
  float (*mse_scale)(const float* x, const float* importance, int64_t count, int bits,
                     bool with_sign);
  // The gradient of x; returns those of scale and beta.
  SlopeSums (*lsq_backward)(const float* x, const float* grad, int64_t count, float scale,
                            float beta, int bits, float* grad_x);
  // What `quantize` and `quantize_searched` store, as values; `clipped` (or null) marks what lies
  // beyond the outermost levels.
  void (*fake_dynamic)(const float* x, int64_t count, int bits, float clip, bool half_scale,
                       float* out, uint8_t* clipped);
  void (*fake_searched)(const float* x, int64_t count, int bits, float* out, uint8_t* clipped);

  // Batch norm (normalize.h), values of channels in turn. Means and sums of squared distances from
  // them, `period` of each.
  void (*moments)(const float* x, int64_t count, int64_t period, float* means, float* squares);
  // out = clamp(x * scale + shift, low, high).
  void (*normalize)(const float* x, int64_t count, const Affine&, float* out);
  // Sums of g, the gradient before the clamp, and of g * (x - mean), `period` of each.
  void (*normalize_slopes)(const float* x, const float* grad, int64_t count, const Affine&,
                           float* sums, float* products);
  // grad_x = (g - common - (x - mean) * along) * scale.
  void (*normalize_backward)(const float* x, const float* grad, int64_t count, const Affine&,
                             float* grad_x);
};

extern const Isa kScalar, kAvx2, kAvx512Vnni, kAmx, kNeonDotprod, kNeonI8mm;

}  // namespace edgeqat
