// AMX: one instruction multiplies the codes of 16 tokens by those of 16 rows, 64 inputs at once.
//
// A tile register holds 64 inputs of up to 16 tokens (as they lie in the rows of Inputs) or of 16
// rows: 16 steps of codes, one behind the other, just as they are unpacked. All that is left is
// unpacking, and adding up the groups. One token and fp16 matrices are left to AVX-512.
//
// Tile registers: 0 to 3 hold sums, 4 and 5 tokens, 6 and 7 rows. They are named by literals.
// GCC's tile loads do not say that they read memory: `finish_stores` comes before them.

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "avx512.h"

namespace edgeqat {
namespace {

using S = Avx512Vnni;

constexpr int64_t kPiece = 64;                  // inputs of a tile register
constexpr int64_t kPieceBytes = kPiece * kRows;
constexpr int64_t kBlock = 16;                  // most tokens of a tile register
constexpr int64_t kChunk = 2;                   // pieces unpacked at once for few tokens

inline void finish_stores() { __asm__ volatile("" ::: "memory"); }

struct alignas(64) TileConfig {
  explicit TileConfig(int64_t tokens) {
    for (int i = 0; i < 8; ++i) {
      row_bytes[i] = 64;
      rows[i] = uint8_t(i < 6 ? tokens : 16);
    }
  }
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tokens in blocks of one size; where that does not come out even, the last ones overlap and
// compute some tokens twice.
struct Blocks {
  explicit Blocks(int64_t all) : total(all) {
    count = all <= kBlock ? 1 : 2 * ((all + 2 * kBlock - 1) / (2 * kBlock));
    tokens = (all + count - 1) / count;
  }
  int64_t first(int64_t b) const { return least(b * tokens, total - tokens); }

  int64_t total, count, tokens;
};

// Codes of `count` tiles into a panel, and zeros up to the end of its last piece. SIGNED: levels.
template <int BITS, bool SIGNED, std::size_t... STEP>
inline void unpack_pieces(const uint8_t* tile, int64_t count, uint8_t* panel,
                          std::index_sequence<STEP...>) {
  constexpr int64_t kBytes = sizeof...(STEP) * 64;
  const auto put = [&](uint8_t* to, __m512i codes) {
    if (SIGNED) codes = _mm512_add_epi8(codes, _mm512_set1_epi8(int8_t(code_offset(BITS))));
    S::store(to, codes);
  };
  const int64_t past = count * kBytes % kPieceBytes;
  for (; count > 0; --count, tile += tile_bytes(BITS), panel += kBytes) {
    for (int64_t line = 0; line < tile_bytes(BITS); line += 64)
      S::prefetch(tile + kPrefetch + line);
    (put(panel + int64_t(STEP) * 64, codes_of<S, BITS, int(STEP)>(tile)), ...);
  }
  if (past)
    for (int64_t i = past; i < kPieceBytes; i += 64, panel += 64)
      S::store(panel, _mm512_setzero_si512());
}

// Sums [T][16] of P tile rows of one group that are to be added to totals [T][16].
template <int P>
struct Pending {
  const int32_t* dots = nullptr;
  float* totals = nullptr;
  const int32_t* starts = nullptr;  // null: the codes were signed
  const uint16_t* scales = nullptr;  // of the first tile row

  void add(int64_t tokens, int64_t groups) const {
    for (int p = 0; p < P; ++p) {
      const auto scale = scales ? S::half16(scales + p * groups * kRows) : S::splat(1.0f);
      for (int64_t t = 0; t < tokens; ++t) {
        const int64_t at = (p * tokens + t) * kRows;
        auto sums = _mm512_loadu_si512(dots + at);
        if (starts) sums = S::add(sums, S::splat(starts[t * groups]));
        S::store(totals + at, S::fma(S::to_float(sums), scale, S::load(totals + at)));
      }
    }
  }
};

template <int BITS, int P>
void write(const Matrix& m, const Inputs& x, const float* totals, int64_t first, int64_t tokens,
           float* out, int64_t stride, int64_t r) {
  for (int p = 0; p < P; ++p)
    for (int64_t t = 0; t < tokens; ++t)
      S::store_rows(out + (first + t) * stride + (r + p) * kRows,
                    S::multiply(S::load(totals + (p * tokens + t) * kRows),
                                S::splat(kLevel<BITS> * x.scale[first + t])),
                    m.rows - (r + p) * kRows);
}

// One block of tokens and P tile rows, which stream through the first cache once.
template <int BITS, int P>
void few_rows(const Matrix& m, const Inputs& x, float* out, int64_t stride, int64_t r,
              const int32_t* starts, uint8_t* memory) {
  constexpr int64_t kInputs = tile_inputs(BITS);
  const int64_t tokens = x.tokens, size = P * tokens * kRows;
  uint8_t* panel = memory;
  int32_t* dots = reinterpret_cast<int32_t*>(panel + P * kChunk * kPieceBytes);
  float* totals = reinterpret_cast<float*>(dots + 2 * size);
  for (int64_t i = 0; i < size; i += kRows) S::store(totals + i, S::zero());
  Pending<P> pending;
  for (int64_t g = 0, begin = 0; g < m.groups; ++g, begin += m.group_size) {
    const int64_t end = begin + least(m.group_size, m.columns - begin);
    _tile_zero(0);
    if constexpr (P > 1) _tile_zero(1);
    if constexpr (P > 2) { _tile_zero(2); _tile_zero(3); }
    for (int64_t k = begin; k < end; k += kChunk * kPiece) {
      const int64_t inputs = least(kChunk * kPiece, end - k);
      for (int p = 0; p < P; ++p)
        unpack_pieces<BITS, false>(
            m.tiles + (r + p) * m.tile_row_bytes + k / kInputs * tile_bytes(BITS),
            (inputs + kInputs - 1) / kInputs, panel + p * kChunk * kPieceBytes, Steps<BITS>());
      finish_stores();
      for (int64_t i = 0; i * kPiece < inputs; ++i) {
        const uint8_t* rows = panel + i * kPieceBytes;
        _tile_loadd(4, x.codes + k + i * kPiece, x.stride);
        _tile_loadd(6, rows, 64);
        _tile_dpbsud(0, 4, 6);
        if constexpr (P > 1) {
          _tile_loadd(7, rows + kChunk * kPieceBytes, 64);
          _tile_dpbsud(1, 4, 7);
        }
        if constexpr (P > 2) {
          _tile_loadd(6, rows + 2 * kChunk * kPieceBytes, 64);
          _tile_dpbsud(2, 4, 6);
          _tile_loadd(7, rows + 3 * kChunk * kPieceBytes, 64);
          _tile_dpbsud(3, 4, 7);
        }
      }
    }
    int32_t* now = dots + g % 2 * size;
    _tile_stored(0, now, 64);
    if constexpr (P > 1) _tile_stored(1, now + tokens * kRows, 64);
    if constexpr (P > 2) {
      _tile_stored(2, now + 2 * tokens * kRows, 64);
      _tile_stored(3, now + 3 * tokens * kRows, 64);
    }
    if (g > 0) pending.add(tokens, m.groups);
    pending = {now, totals, starts + g,
               m.scales ? m.scales + (r * m.groups + g) * kRows : nullptr};
  }
  if (m.groups > 0) pending.add(tokens, m.groups);
  write<BITS, P>(m, x, totals, 0, tokens, out, stride, r);
}

template <int BITS>
void few(const Matrix& m, const Inputs& x, float* out, int64_t stride, int64_t first,
         int64_t last) {
  const int64_t sums = x.tokens * m.groups;
  uint8_t* memory =
      scratch(4 * kChunk * kPieceBytes + 3 * 4 * x.tokens * kRows * 4 + sums * 4);
  int32_t* starts =
      reinterpret_cast<int32_t*>(memory + 4 * kChunk * kPieceBytes + 3 * 4 * x.tokens * kRows * 4);
  for (int64_t i = 0; i < sums; ++i) starts[i] = code_offset(BITS) * x.sums[i];
  int64_t r = first;
  for (; r + 4 <= last; r += 4) few_rows<BITS, 4>(m, x, out, stride, r, starts, memory);
  for (; r + 2 <= last; r += 2) few_rows<BITS, 2>(m, x, out, stride, r, starts, memory);
  for (; r < last; ++r) few_rows<BITS, 1>(m, x, out, stride, r, starts, memory);
}

// Pairs of blocks pass over the panel of P tile rows and one group.
template <int BITS, int P>
void many_rows(const Matrix& m, const Inputs& x, const Blocks& blocks, float* out, int64_t stride,
               int64_t r) {
  constexpr int64_t kInputs = tile_inputs(BITS);
  const int64_t widest = least(m.group_size, m.columns) + kPiece - 1;
  const int64_t row_bytes = widest / kPiece * kPieceBytes;
  const int64_t size = P * blocks.tokens * kRows;
  uint8_t* panel = scratch(P * row_bytes + (blocks.count + 4) * size * 4);
  int32_t* dots = reinterpret_cast<int32_t*>(panel + P * row_bytes);
  float* totals = reinterpret_cast<float*>(dots + 4 * size);
  for (int64_t i = 0; i < blocks.count * size; i += kRows) S::store(totals + i, S::zero());
  Pending<P> pending;
  int64_t turn = 0;
  const auto add = [&] {
    if (!pending.dots) return;
    pending.add(blocks.tokens, m.groups);
    pending.dots += size;
    pending.totals += size;
    pending.add(blocks.tokens, m.groups);
  };
  for (int64_t g = 0, begin = 0; g < m.groups; ++g, begin += m.group_size) {
    const int64_t inputs = least(m.group_size, m.columns - begin);
    for (int p = 0; p < P; ++p)
      unpack_pieces<BITS, true>(
          m.tiles + (r + p) * m.tile_row_bytes + begin / kInputs * tile_bytes(BITS),
          (inputs + kInputs - 1) / kInputs, panel + p * row_bytes, Steps<BITS>());
    finish_stores();
    for (int64_t b = 0; b < blocks.count; b += 2, ++turn) {
      const int8_t* codes = x.codes + blocks.first(b) * x.stride + begin;
      const int8_t* next = x.codes + blocks.first(b + 1) * x.stride + begin;
      const uint8_t* rows = panel;
      _tile_zero(0);
      _tile_zero(2);
      if constexpr (P > 1) { _tile_zero(1); _tile_zero(3); }
      for (int64_t k = 0; k < inputs; k += kPiece, rows += kPieceBytes) {
        _tile_loadd(6, rows, 64);
        _tile_loadd(4, codes + k, x.stride);
        _tile_dpbssd(0, 4, 6);
        if constexpr (P > 1) {
          _tile_loadd(7, rows + row_bytes, 64);
          _tile_dpbssd(1, 4, 7);
        }
        _tile_loadd(5, next + k, x.stride);
        _tile_dpbssd(2, 5, 6);
        if constexpr (P > 1) _tile_dpbssd(3, 5, 7);
      }
      int32_t* now = dots + turn % 2 * 2 * size;
      _tile_stored(0, now, 64);
      if constexpr (P > 1) _tile_stored(1, now + blocks.tokens * kRows, 64);
      _tile_stored(2, now + size, 64);
      if constexpr (P > 1) _tile_stored(3, now + size + blocks.tokens * kRows, 64);
      add();
      pending = {now, totals + b * size, nullptr,
                 m.scales ? m.scales + (r * m.groups + g) * kRows : nullptr};
    }
  }
  add();
  for (int64_t b = 0; b < blocks.count; ++b)
    write<BITS, P>(m, x, totals + b * size, blocks.first(b), blocks.tokens, out, stride, r);
}

template <int BITS>
void product_in_tiles(const Matrix& m, const Inputs& x, float* out, int64_t stride, int64_t first,
                      int64_t last) {
  const Blocks blocks(x.tokens);
  const TileConfig config(blocks.tokens);
  finish_stores();
  _tile_loadconfig(&config);
  if (blocks.count == 1) {
    few<BITS>(m, x, out, stride, first, last);
  } else {
    int64_t r = first;
    for (; r + 2 <= last; r += 2) many_rows<BITS, 2>(m, x, blocks, out, stride, r);
    for (; r < last; ++r) many_rows<BITS, 1>(m, x, blocks, out, stride, r);
  }
  _tile_release();
}

void amx_product(const Matrix& m, const Inputs& x, float* out, int64_t stride, int64_t first,
                 int64_t last) {
  if (x.tokens < 2 || m.bits == kHalfBits)
    return kAvx512Vnni.product(m, x, out, stride, first, last);
  switch (m.bits) {
    case 1: return product_in_tiles<1>(m, x, out, stride, first, last);
    case 2: return product_in_tiles<2>(m, x, out, stride, first, last);
    case 3: return product_in_tiles<3>(m, x, out, stride, first, last);
    case 4: return product_in_tiles<4>(m, x, out, stride, first, last);
    case 6: return product_in_tiles<6>(m, x, out, stride, first, last);
    default: return product_in_tiles<8>(m, x, out, stride, first, last);
  }
}

void keep_rows(const int32_t* rows, int64_t tokens, int64_t words, int32_t* to) {
  std::memcpy(to, rows, size_t(tokens * words) * sizeof *to);
}

// Linux hands out the tile registers to processes that ask for them.
bool has_amx() {
  static const bool granted = [] {
    constexpr unsigned kTiles = 1u << 24, kInt8 = 1u << 25;
    constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
    unsigned a, b, c, d;
    return has_vnni() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kTiles) && (d & kInt8) &&
           syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  }();
  return granted;
}

constexpr Isa amx_row() {
  Isa row = row_of<Avx512Vnni>("amx", &has_amx);
  row.product = &amx_product;
  row.interleave = &keep_rows;
  return row;
}

}  // namespace

const Isa kAmx = amx_row();

}  // namespace edgeqat
