// AMX: one instruction multiplies the codes of 16 tokens by those of 16 rows, 64 inputs at once.
//
// A tile register holds 64 inputs of up to 16 tokens, as they lie in the rows of Inputs, or of 16
// rows: 16 steps of codes, one behind the other, as they are unpacked and made signed. Few tokens
// and fp16 matrices are left to AVX-512.
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

constexpr int64_t kPiece = 64;  // inputs of a tile register
constexpr int64_t kPieceBytes = kPiece * kRows;
constexpr int64_t kBlock = 16;  // most tokens of a tile register
constexpr int64_t kMany = 32;   // tokens from which on tile registers are faster

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
    count = 2 * ((all + 2 * kBlock - 1) / (2 * kBlock));
    tokens = (all + count - 1) / count;
  }
  int64_t first(int64_t b) const { return least(b * tokens, total - tokens); }

  int64_t total, count, tokens;
};

// Signed codes of `count` tiles into a panel, and zeros up to the end of its last piece.
template <int BITS, std::size_t... STEP>
inline void unpack_pieces(const uint8_t* tile, int64_t count, uint8_t* panel,
                          std::index_sequence<STEP...>) {
  constexpr int64_t kBytes = sizeof...(STEP) * 64;
  const auto offset = _mm512_set1_epi8(int8_t(code_offset(BITS)));
  const int64_t past = count * kBytes % kPieceBytes;
  for (; count > 0; --count, tile += tile_bytes(BITS), panel += kBytes) {
    for (int64_t line = 0; line < tile_bytes(BITS); line += 64)
      S::prefetch(tile + kPrefetch + line);
    (S::store(panel + int64_t(STEP) * 64,
              _mm512_add_epi8(codes_of<S, BITS, int(STEP)>(tile), offset)),
     ...);
  }
  if (past)
    for (int64_t i = past; i < kPieceBytes; i += 64, panel += 64)
      S::store(panel, _mm512_setzero_si512());
}

// Adds sums [T][16] of a group of a tile row to its totals.
template <int T>
void add_sums_of(const int32_t* sums, const uint16_t* scales, float* totals) {
  const auto scale = scales ? S::half16(scales) : S::splat(1.0f);
  EDGEQAT_REPEAT(t, T, {
    float* total = totals + t * kRows;
    const auto sum = S::to_float(_mm512_loadu_si512(sums + t * kRows));
    S::store(total, S::fma(sum, scale, S::load(total)));
  });
}

using AddSums = decltype(&add_sums_of<1>);

template <std::size_t... T>
AddSums add_sums_for(int64_t tokens, std::index_sequence<T...>) {
  static constexpr AddSums kTable[] = {&add_sums_of<int(T) + 1>...};
  return kTable[tokens - 1];
}

// P tile rows: each pair of blocks of tokens passes over their panels, one a group. Sums are stored
// just before their register is used again. They are added to the totals while the pair's group
// behind the next one is multiplied, as tile registers and vectors do not wait for each other.
template <int BITS, int P>
class ManyRows {
 public:
  ManyRows(const Matrix& m, const Inputs& x, const Blocks& blocks, int64_t r)
      : m_(m), x_(x), blocks_(blocks), r_(r), size_(P * blocks.tokens * kRows) {
    row_bytes_ = (inputs_of(0) + kPiece - 1) / kPiece * kPieceBytes;
    const int64_t panel_bytes = m.groups * P * row_bytes_;
    panel_ = scratch(panel_bytes + (blocks.count + 4) * size_ * 4);
    sums_ = reinterpret_cast<int32_t*>(panel_ + panel_bytes);
    totals_ = reinterpret_cast<float*>(sums_ + 4 * size_);
    for (int64_t i = 0; i < blocks.count * size_; i += kRows) S::store(totals_ + i, S::zero());
  }

  // Totals [blocks][P][tokens][16].
  const float* run() {
    for (int64_t g = 0, begin = 0; g < m_.groups; ++g, begin += m_.group_size)
      for (int p = 0; p < P; ++p)
        unpack_pieces<BITS>(
            m_.tiles + (r_ + p) * m_.tile_row_bytes + begin / kInputs * tile_bytes(BITS),
            (inputs_of(begin) + kInputs - 1) / kInputs, panel_ + (g * P + p) * row_bytes_,
            Steps<BITS>());
    finish_stores();
    for (int64_t b = 0; b < blocks_.count; b += 2) {
      const int8_t* codes = x_.codes + blocks_.first(b) * x_.stride;
      const int8_t* next = x_.codes + blocks_.first(b + 1) * x_.stride;
      const uint8_t* rows = panel_;
      for (int64_t g = 0, begin = 0; g < m_.groups; ++g, begin += m_.group_size) {
        multiply(codes + begin, next + begin, rows, inputs_of(begin));
        rows += P * row_bytes_;
        scales_[turn_ % 2] = m_.scales ? m_.scales + (r_ * m_.groups + g) * kRows : nullptr;
        to_[turn_ % 2] = totals_ + b * size_;
        ++turn_;
      }
    }
    // what is still in registers and behind it
    EDGEQAT_REPEAT(i, 4, { this->template store<i>(); });
    for (int last = 0; last < 2; ++last, ++turn_)
      EDGEQAT_REPEAT(i, 4, { this->template add<i>(); });
    return totals_;
  }

 private:
  static constexpr int64_t kInputs = tile_inputs(BITS);

  int64_t inputs_of(int64_t begin) const { return least(m_.group_size, m_.columns - begin); }

  // Two blocks of tokens and one group.
  void multiply(const int8_t* codes, const int8_t* next, const uint8_t* rows,
                int64_t inputs) const {
    const uint8_t* more = rows + row_bytes_;
    _tile_loadd(4, codes, x_.stride);
    _tile_loadd(6, rows, 64);
    store<0>();
    _tile_zero(0);
    _tile_dpbssd(0, 4, 6);
    add<0>();
    if constexpr (P > 1) {
      _tile_loadd(7, more, 64);
      store<1>();
      _tile_zero(1);
      _tile_dpbssd(1, 4, 7);
      add<1>();
    }
    _tile_loadd(5, next, x_.stride);
    store<2>();
    _tile_zero(2);
    _tile_dpbssd(2, 5, 6);
    add<2>();
    if constexpr (P > 1) {
      store<3>();
      _tile_zero(3);
      _tile_dpbssd(3, 5, 7);
      add<3>();
    }
    for (int64_t k = kPiece; k < inputs; k += kPiece) {
      rows += kPieceBytes;
      more += kPieceBytes;
      _tile_loadd(4, codes + k, x_.stride);
      _tile_loadd(6, rows, 64);
      _tile_dpbssd(0, 4, 6);
      if constexpr (P > 1) {
        _tile_loadd(7, more, 64);
        _tile_dpbssd(1, 4, 7);
      }
      _tile_loadd(5, next + k, x_.stride);
      _tile_dpbssd(2, 5, 6);
      if constexpr (P > 1) _tile_dpbssd(3, 5, 7);
    }
  }

  // Register i holds block i / 2 of a pair and tile row i % 2.
  template <int i>
  int64_t offset(int64_t turn) const {
    return (turn % 2 * 2 + i / 2) * size_ + i % 2 * blocks_.tokens * kRows;
  }

  // The sums of the turn before.
  template <int i>
  void store() const {
    if (i % 2 >= P || turn_ < 1) return;
    int32_t* to = sums_ + offset<i>(turn_ - 1);
    if constexpr (i == 0) _tile_stored(0, to, 64);
    if constexpr (i == 1) _tile_stored(1, to, 64);
    if constexpr (i == 2) _tile_stored(2, to, 64);
    if constexpr (i == 3) _tile_stored(3, to, 64);
  }

  // The sums of two turns before.
  template <int i>
  void add() const {
    if (i % 2 >= P || turn_ < 2) return;
    const uint16_t* scales = scales_[turn_ % 2];
    add_(sums_ + offset<i>(turn_), scales ? scales + i % 2 * m_.groups * kRows : nullptr,
         to_[turn_ % 2] + offset<i>(0));
  }

  const Matrix& m_;
  const Inputs& x_;
  const Blocks& blocks_;
  int64_t r_, size_, row_bytes_, turn_ = 0;
  uint8_t* panel_;
  int32_t* sums_;
  float* totals_;
  const uint16_t* scales_[2] = {};
  float* to_[2] = {};
  AddSums add_ = add_sums_for(blocks_.tokens, std::make_index_sequence<kBlock>());
};

template <int BITS, int P>
void many_rows(const Matrix& m, const Inputs& x, const Blocks& blocks, float* out, int64_t stride,
               int64_t r) {
  const float* totals = ManyRows<BITS, P>(m, x, blocks, r).run();
  for (int64_t b = 0; b < blocks.count; ++b)
    for (int p = 0; p < P; ++p)
      for (int64_t i = 0; i < blocks.tokens; ++i, totals += kRows) {
        const int64_t t = blocks.first(b) + i;
        S::store_rows(out + t * stride + (r + p) * kRows,
                      S::multiply(S::load(totals), S::splat(kLevel<BITS> * x.scale[t])),
                      m.rows - (r + p) * kRows);
      }
}

template <int BITS>
void product_in_tiles(const Matrix& m, const Inputs& x, float* out, int64_t stride, int64_t first,
                      int64_t last) {
  const Blocks blocks(x.tokens);
  const TileConfig config(blocks.tokens);
  finish_stores();
  _tile_loadconfig(&config);
  int64_t r = first;
  for (; r + 2 <= last; r += 2) many_rows<BITS, 2>(m, x, blocks, out, stride, r);
  for (; r < last; ++r) many_rows<BITS, 1>(m, x, blocks, out, stride, r);
  _tile_release();
}

void amx_product(const Matrix& m, const Inputs& x, float* out, int64_t stride, int64_t first,
                 int64_t last) {
  if (x.tokens < kMany || m.bits == kHalfBits)
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
  row.rows_from = kMany;
  return row;
}

}  // namespace

const Isa kAmx = amx_row();

}  // namespace edgeqat
