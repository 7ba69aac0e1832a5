// The product of a matrix in tiles with the codes of one or many tokens, for any instruction set.
//
// Few tokens (decoding, and the queries of one token): tiles stream through registers once. Many
// (prefill): the codes of kTiles tile rows and one group are unpacked into a panel that stays in
// the first cache, and every block of kTokens tokens passes over it with kTiles * kTokens
// accumulators in registers.
//
// S is the instruction set: see isa_scalar.cc for what it has to offer. Internal linkage, as in
// vector.h.
#pragma once

#include <type_traits>
#include <utility>

#include "isa.h"
#include "scratch.h"
#include "tile.h"

namespace edgeqat {
namespace {

constexpr int64_t kPrefetch = 1536;  // bytes ahead of the tile being read
constexpr int64_t kSpan = 256;       // inputs of a float panel: it stays in the second cache

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Calls f with the constants 0 .. N - 1: accumulators indexed by constants can live in registers.
template <class F, std::size_t... I>
[[gnu::always_inline]] inline void repeat(const F& f, std::index_sequence<I...>) {
  (f(std::integral_constant<int, int(I)>()), ...);
}
#define EDGEQAT_REPEAT(index, count, ...) \
  repeat([&](auto index) __attribute__((always_inline)) __VA_ARGS__, \
         std::make_index_sequence<count>())

// Unsigned codes of inputs 4 * STEP .. 4 * STEP + 3 of a tile, doubled on the half-step grid.
template <class S, int BITS, int STEP>
inline typename S::Bytes codes_of(const uint8_t* tile) {
  if constexpr (BITS == 8) {
    return S::eight(S::load(tile));
  } else if constexpr (BITS == 4) {
    return S::template field<4 * STEP, 15>(S::load(tile));
  } else if constexpr (BITS == 2) {
    return S::template field<2 * STEP - 1, 6>(S::load(tile));
  } else if constexpr (BITS == 1) {
    return S::template field<STEP - 1, 2>(S::load(tile));
  } else if constexpr (BITS == 6) {
    return S::template fields<4 * (STEP % 2), 15, 2 * STEP - 4, 3 << 4>(
        S::load(tile + 64 * (STEP / 2)), S::load(tile + 128));
  } else {
    static_assert(BITS == 3);
    return S::template fields<2 * (STEP % 4), 3, STEP - 2, 1 << 2>(
        S::load(tile + 64 * (STEP / 4)), S::load(tile + 128));
  }
}

template <int BITS>
using Steps = std::make_index_sequence<tile_inputs(BITS) / 4>;

// What to add per input: nothing where 8-bit codes enter as signed ones.
template <class S, int BITS>
constexpr int32_t offset_of() {
  return BITS == 8 && S::kSigned ? 0 : code_offset(BITS);
}

// A doubled code stands for twice its level.
template <int BITS>
constexpr float kLevel = half_step(BITS) ? 0.5f : 1.0f;

// One tile and T tokens; CHAINS sums of each token take turns and do not wait for each other.
template <class S, int BITS, int T, int CHAINS, int FIRST>
[[gnu::always_inline]] inline void dot_tile(typename S::Ints (&sum)[T * CHAINS],
                                            const uint8_t* tile, const int8_t* x) {
  EDGEQAT_REPEAT(step, tile_inputs(BITS) / 4, {
    constexpr int kChain = (FIRST * int(tile_inputs(BITS)) / 4 + step) % CHAINS;
    const auto codes = codes_of<S, BITS, step>(tile);
    EDGEQAT_REPEAT(t, T, {
      auto& chain = sum[t * CHAINS + kChain];
      chain = S::template dot<BITS == 8>(chain, codes, S::four(x + 4 * (step * T + t)));
    });
  });
}

// T tokens of one block, T at most kFew: nothing but the tiles is read from memory, once.
template <class S, int BITS, int T>
void few_tokens(const Matrix& m, const Inputs& x, float* out, int64_t stride, int64_t first,
                int64_t last) {
  constexpr int64_t kInputs = tile_inputs(BITS), kBytes = tile_bytes(BITS);
  constexpr int kChains = T == 1 ? 4 : T <= 4 ? 2 : 1;
  for (int64_t r = first; r < last; ++r) {
    const uint8_t* tile = m.tiles + r * m.tile_row_bytes;
    typename S::Floats total[T];
    EDGEQAT_REPEAT(t, T, { total[t] = S::zero(); });
    for (int64_t g = 0, begin = 0; g < m.groups; ++g, begin += m.group_size) {
      const int64_t columns = least(m.group_size, m.columns - begin);
      int64_t count = (columns + kInputs - 1) / kInputs;
      const int8_t* codes = x.codes + begin * T;
      typename S::Ints sum[T * kChains];
      EDGEQAT_REPEAT(i, T * kChains, { sum[i] = S::splat(0); });
      for (; count >= 4; count -= 4, tile += 4 * kBytes, codes += 4 * kInputs * T) {
        for (int64_t line = 0; line < 4 * kBytes; line += 64) S::prefetch(tile + kPrefetch + line);
        EDGEQAT_REPEAT(i, 4, {
          dot_tile<S, BITS, T, kChains, i>(sum, tile + i * kBytes, codes + i * kInputs * T);
        });
      }
      for (; count > 0; --count, tile += kBytes, codes += kInputs * T)
        dot_tile<S, BITS, T, kChains, 0>(sum, tile, codes);
      const auto scale =
          m.scales ? S::half16(m.scales + (r * m.groups + g) * kRows) : S::splat(1.0f);
      EDGEQAT_REPEAT(t, T, {
        auto dots = S::splat(offset_of<S, BITS>() * x.sums[t * m.groups + g]);
        EDGEQAT_REPEAT(i, kChains, { dots = S::add(dots, sum[t * kChains + i]); });
        total[t] = S::fma(S::to_float(dots), scale, total[t]);
      });
    }
    EDGEQAT_REPEAT(t, T, {
      S::store_rows(out + t * stride + r * kRows,
                    S::multiply(total[t], S::splat(kLevel<BITS> * x.scale[t])),
                    m.rows - r * kRows);
    });
  }
}

// Codes of `count` tiles into the panel; tile rows alternate every 64 bytes.
template <class S, int BITS, std::size_t... STEP>
inline void unpack(const uint8_t* tile, int64_t count, uint8_t* panel, int64_t step_bytes,
                   std::index_sequence<STEP...>) {
  const int64_t next = count * tile_bytes(BITS);  // the group behind this one
  for (; count > 0; --count, tile += tile_bytes(BITS), panel += sizeof...(STEP) * step_bytes) {
    S::prefetch(tile + next);
    (S::store(panel + int64_t(STEP) * step_bytes, codes_of<S, BITS, int(STEP)>(tile)), ...);
  }
}

// Adds one group of P tile rows and T tokens whose sums begin at `starts`:
// totals [T][P * 16] += scale * int32 dot products.
template <class S, bool WIDE, int P, int T>
void block(const uint8_t* panel, const int8_t* x, int64_t steps, const int32_t* starts,
           int64_t stride, const typename S::Floats* scale, float* totals) {
  typename S::Ints dots[P * T];
  EDGEQAT_REPEAT(t, T, {
    const auto start = S::splat(starts[t * stride]);
    EDGEQAT_REPEAT(p, P, { dots[t * P + p] = start; });
  });
  for (int64_t k = 0; k < steps; ++k, panel += P * 64, x += 4 * T) {
    typename S::Bytes codes[P];
    EDGEQAT_REPEAT(p, P, { codes[p] = S::load(panel + p * 64); });
    EDGEQAT_REPEAT(t, T, {
      const auto four = S::four(x + 4 * t);
      EDGEQAT_REPEAT(p, P,
                     { dots[t * P + p] = S::template dot<WIDE>(dots[t * P + p], codes[p], four); });
    });
  }
  EDGEQAT_REPEAT(i, P * T, {
    float* total = totals + i * kRows;
    S::store(total, S::fma(S::to_float(dots[i]), scale[i % P], S::load(total)));
  });
}

// The same in float32 for fp16 matrices.
template <class S, int P, int T>
void float_block(const float* panel, const float* x, int64_t steps, float* totals) {
  typename S::Floats sum[P * T];
  EDGEQAT_REPEAT(i, P * T, { sum[i] = S::load(totals + i * kRows); });
  for (int64_t k = 0; k < steps; ++k, panel += P * kRows, x += T) {
    typename S::Floats values[P];
    EDGEQAT_REPEAT(p, P, { values[p] = S::load(panel + p * kRows); });
    EDGEQAT_REPEAT(t, T, {
      const auto one = S::splat(x[t]);
      EDGEQAT_REPEAT(p, P, { sum[t * P + p] = S::fma(values[p], one, sum[t * P + p]); });
    });
  }
  EDGEQAT_REPEAT(i, P * T, { S::store(totals + i * kRows, sum[i]); });
}

// Tables over the number of tokens left in a block.
template <class S, bool WIDE, int P, std::size_t... T>
auto block_of(int64_t tokens, std::index_sequence<T...>) {
  static constexpr decltype(&block<S, WIDE, P, 1>) kTable[] = {&block<S, WIDE, P, int(T) + 1>...};
  return kTable[tokens - 1];
}

template <class S, int BITS, std::size_t... T>
auto few_tokens_of(int64_t tokens, std::index_sequence<T...>) {
  static constexpr decltype(&few_tokens<S, BITS, 1>) kTable[] = {
      &few_tokens<S, BITS, int(T) + 1>...};
  return kTable[tokens - 1];
}

template <class S, int P, std::size_t... T>
auto float_block_of(int64_t tokens, std::index_sequence<T...>) {
  static constexpr decltype(&float_block<S, P, 1>) kTable[] = {&float_block<S, P, int(T) + 1>...};
  return kTable[tokens - 1];
}

template <class S, int P>
void write_totals(const Matrix& m, const Inputs& x, const float* totals, float* out,
                  int64_t stride, int64_t r, float level) {
  for (int64_t t = 0; t < x.tokens; ++t)
    for (int p = 0; p < P; ++p) {
      const auto total = S::load(totals + (t * P + p) * kRows);
      const auto scaled = x.scale ? S::multiply(total, S::splat(level * x.scale[t])) : total;
      S::store_rows(out + t * stride + (r + p) * kRows, scaled, m.rows - (r + p) * kRows);
    }
}

template <class S, int BITS, int P>
void many_tokens(const Matrix& m, const Inputs& x, float* out, int64_t stride, int64_t r) {
  constexpr int64_t kInputs = tile_inputs(BITS);
  using Counts = std::make_index_sequence<S::kTokens>;
  const int64_t widest = least(m.group_size, m.columns) + kInputPad;
  const int64_t panel_bytes = widest * P * kRows, totals_bytes = x.tokens * P * kRows * 4;
  const int64_t sums = x.tokens * m.groups;
  uint8_t* panel = scratch(panel_bytes + totals_bytes + sums * 4);
  float* totals = reinterpret_cast<float*>(panel + panel_bytes);
  int32_t* starts = reinterpret_cast<int32_t*>(panel + panel_bytes + totals_bytes);
  for (int64_t i = 0; i < sums; ++i) starts[i] = offset_of<S, BITS>() * x.sums[i];
  for (int64_t i = 0; i < x.tokens * P * kRows; ++i) totals[i] = 0;
  for (int64_t g = 0, begin = 0; g < m.groups; ++g, begin += m.group_size) {
    const int64_t columns = least(m.group_size, m.columns - begin);
    const int64_t count = (columns + kInputs - 1) / kInputs;
    typename S::Floats scale[P];
    for (int p = 0; p < P; ++p) {
      const uint8_t* tile = m.tiles + (r + p) * m.tile_row_bytes;
      unpack<S, BITS>(tile + begin / kInputs * tile_bytes(BITS), count, panel + p * 64, P * 64,
                      Steps<BITS>());
      scale[p] = m.scales ? S::half16(m.scales + ((r + p) * m.groups + g) * kRows) : S::splat(1.0f);
    }
    for (int64_t t = 0; t < x.tokens; t += S::kTokens) {
      const int64_t tokens = least(S::kTokens, x.tokens - t);
      block_of<S, BITS == 8, P>(tokens, Counts())(
          panel, x.codes + t * x.stride + begin * tokens, count * kInputs / 4,
          starts + t * m.groups + g, m.groups, scale, totals + t * P * kRows);
    }
  }
  write_totals<S, P>(m, x, totals, out, stride, r, kLevel<BITS>);
}

template <class S, int P>
void many_floats(const Matrix& m, const Inputs& x, float* out, int64_t stride, int64_t r) {
  using Counts = std::make_index_sequence<S::kTokens>;
  const int64_t panel_size = kSpan * P * kRows, totals_size = x.tokens * P * kRows;
  float* panel = reinterpret_cast<float*>(scratch((panel_size + totals_size) * 4));
  float* totals = panel + panel_size;
  for (int64_t i = 0; i < totals_size; ++i) totals[i] = 0;
  for (int64_t begin = 0; begin < m.columns; begin += kSpan) {
    const int64_t columns = least(kSpan, m.columns - begin);
    for (int p = 0; p < P; ++p) {
      const uint8_t* row = m.tiles + (r + p) * m.tile_row_bytes + begin * tile_bytes(kHalfBits);
      const uint16_t* half = reinterpret_cast<const uint16_t*>(row);
      for (int64_t k = 0; k < columns; ++k)
        S::store(panel + (k * P + p) * kRows, S::half16(half + k * kRows));
    }
    for (int64_t t = 0; t < x.tokens; t += S::kTokens) {
      const int64_t tokens = least(S::kTokens, x.tokens - t);
      float_block_of<S, P>(tokens, Counts())(panel, x.values + t * x.stride + begin * tokens,
                                             columns, totals + t * P * kRows);
    }
  }
  write_totals<S, P>(m, x, totals, out, stride, r, 1.0f);
}

// One token and R tile rows, each summed in the order of many_floats: a prompt and the same tokens
// one by one give the same numbers.
template <class S, int R>
void one_float(const Matrix& m, const Inputs& x, float* out, int64_t r) {
  const uint16_t* rows[R];
  typename S::Floats sum[R];
  for (int i = 0; i < R; ++i) {
    rows[i] = reinterpret_cast<const uint16_t*>(m.tiles + (r + i) * m.tile_row_bytes);
    sum[i] = S::zero();
  }
  for (int64_t k = 0; k < m.columns; ++k) {
    const auto value = S::splat(x.values[k]);
    if (k % 2 == 0)
      for (int i = 0; i < R; ++i)
        S::prefetch(reinterpret_cast<const uint8_t*>(rows[i] + k * kRows) + kPrefetch);
    for (int i = 0; i < R; ++i)
      sum[i] = S::fma(S::half16(rows[i] + k * kRows), value, sum[i]);
  }
  for (int i = 0; i < R; ++i) {
    const auto scaled = x.scale ? S::multiply(sum[i], S::splat(x.scale[0])) : sum[i];
    S::store_rows(out + (r + i) * kRows, scaled, m.rows - (r + i) * kRows);
  }
}

template <class S, int BITS>
void product_of(const Matrix& m, const Inputs& x, float* out, int64_t stride, int64_t first,
                int64_t last) {
  int64_t r = first;
  if constexpr (BITS == kHalfBits) {
    if (x.tokens == 1) {
      for (; r + 4 <= last; r += 4) one_float<S, 4>(m, x, out, r);
      for (; r < last; ++r) one_float<S, 1>(m, x, out, r);
      return;
    }
    for (; r + S::kTiles <= last; r += S::kTiles) many_floats<S, S::kTiles>(m, x, out, stride, r);
    for (; r < last; ++r) many_floats<S, 1>(m, x, out, stride, r);
  } else {
    if (x.tokens <= S::kFew)
      return few_tokens_of<S, BITS>(x.tokens, std::make_index_sequence<S::kFew>())(
          m, x, out, stride, first, last);
    for (; r + S::kTiles <= last; r += S::kTiles)
      many_tokens<S, BITS, S::kTiles>(m, x, out, stride, r);
    for (; r < last; ++r) many_tokens<S, BITS, 1>(m, x, out, stride, r);
  }
}

template <class S>
void product(const Matrix& m, const Inputs& x, float* out, int64_t stride, int64_t first,
             int64_t last) {
  if (x.tokens == 0) return;
  switch (m.bits) {
    case 1: return product_of<S, 1>(m, x, out, stride, first, last);
    case 2: return product_of<S, 2>(m, x, out, stride, first, last);
    case 3: return product_of<S, 3>(m, x, out, stride, first, last);
    case 4: return product_of<S, 4>(m, x, out, stride, first, last);
    case 6: return product_of<S, 6>(m, x, out, stride, first, last);
    case 8: return product_of<S, 8>(m, x, out, stride, first, last);
    default: return product_of<S, kHalfBits>(m, x, out, stride, first, last);
  }
}

}  // namespace
}  // namespace edgeqat
