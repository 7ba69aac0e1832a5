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

// Codes of `count` tiles into a panel, and zeros up to the end of its last piece. SIGNED: levels.
// The tiles `ahead` bytes behind are prefetched.
template <int BITS, bool SIGNED, std::size_t... STEP>
inline void unpack_pieces(const uint8_t* tile, int64_t count, int64_t ahead, uint8_t* panel,
                          std::index_sequence<STEP...>) {
  constexpr int64_t kBytes = sizeof...(STEP) * 64;
  const auto put = [&](uint8_t* to, __m512i codes) {
    if (SIGNED) codes = _mm512_add_epi8(codes, _mm512_set1_epi8(int8_t(code_offset(BITS))));
    S::store(to, codes);
  };
  const int64_t past = count * kBytes % kPieceBytes;
  for (; count > 0; --count, tile += tile_bytes(BITS), panel += kBytes) {
    for (int64_t line = 0; line < tile_bytes(BITS); line += 64) S::prefetch(tile + ahead + line);
    (put(panel + int64_t(STEP) * 64, codes_of<S, BITS, int(STEP)>(tile)), ...);
  }
  if (past)
    for (int64_t i = past; i < kPieceBytes; i += 64, panel += 64)
      S::store(panel, _mm512_setzero_si512());
}

template <int BITS>
inline void write_row(const Matrix& m, const Inputs& x, const float* total, int64_t t, float* out,
                      int64_t stride, int64_t r) {
  S::store_rows(out + t * stride + r * kRows,
                S::multiply(S::load(total), S::splat(kLevel<BITS> * x.scale[t])),
                m.rows - r * kRows);
}

// Adds the sums [SLOTS][T][16] of SLOTS groups of a tile row to its totals [T][16]. START: of
// unsigned codes.
template <int T, int SLOTS, bool START>
void add_sums_of(const int32_t* dots, const int32_t* starts, const uint16_t* scales,
                 float* totals) {
  S::Floats scale[SLOTS];
  EDGEQAT_REPEAT(s, SLOTS,
                 { scale[s] = scales ? S::half16(scales + s * kRows) : S::splat(1.0f); });
  EDGEQAT_REPEAT(t, T, {
    auto total = S::load(totals + t * kRows);
    EDGEQAT_REPEAT(s, SLOTS, {
      constexpr int kRow = s * T + t;
      auto sums = _mm512_loadu_si512(dots + kRow * kRows);
      if constexpr (START) sums = S::add(sums, S::splat(starts[kRow]));
      total = S::fma(S::to_float(sums), scale[s], total);
    });
    S::store(totals + t * kRows, total);
  });
}

using AddSums = decltype(&add_sums_of<1, 1, true>);

template <bool START, std::size_t... T>
AddSums add_one_of(int64_t tokens, std::index_sequence<T...>) {
  static constexpr AddSums kTable[] = {&add_sums_of<int(T) + 1, 1, START>...};
  return kTable[tokens - 1];
}

template <std::size_t... T>
AddSums add_all_of(int64_t tokens, std::index_sequence<T...>) {
  static constexpr AddSums kTable[] = {&add_sums_of<int(T) + 1, kBlock / (int(T) + 1), true>...};
  return kTable[tokens - 1];
}

using Counts = std::make_index_sequence<kBlock>;

// Few tokens fill a tile register with several groups: the codes of group g are rows
// g % slots * T and behind, the others are zero, and the sums of `slots` groups are stored at once.
struct FewInputs {
  FewInputs(const Matrix& m, const Inputs& x, int offset)
      : tokens(x.tokens),
        slots(least(kBlock / x.tokens, m.groups)),
        group_pieces((least(m.group_size, m.columns) + kPiece - 1) / kPiece) {
    const int64_t bytes = m.groups * group_pieces * kPieceBytes;
    const int64_t sums = tokens * m.groups;
    memory = scratch(bytes + sums * 4 + kRest);
    int8_t* to = reinterpret_cast<int8_t*>(memory);
    std::memset(to, 0, size_t(bytes));
    starts = reinterpret_cast<int32_t*>(memory + bytes);
    for (int64_t g = 0; g < m.groups; ++g)
      for (int64_t t = 0; t < tokens; ++t) {
        starts[g * tokens + t] = offset * x.sums[t * m.groups + g];
        const int8_t* from = x.codes + t * x.stride + g * m.group_size;
        int8_t* row = to + g * group_pieces * kPieceBytes + (g % slots * tokens + t) * kPiece;
        const int64_t inputs = least(m.group_size, m.columns - g * m.group_size);
        for (int64_t k = 0; k < inputs; k += kPiece)
          std::memcpy(row + k * kRows, from + k, size_t(kPiece));
      }
    codes = to;
    rest = memory + (bytes + sums * 4 + 63) / 64 * 64;
  }

  static constexpr int64_t kMostRows = 4;  // tile rows at once
  static constexpr int64_t kRest = (3 * kMostRows * kBlock + 1) * 64 + 2 * kMostRows * kPieceBytes;

  int64_t tokens, slots, group_pieces;
  AddSums add_all = add_all_of(tokens, Counts()), add_one = add_one_of<true>(tokens, Counts());
  uint8_t *memory, *rest;
  const int8_t* codes;
  int32_t* starts;  // [G][T]
};

// P tile rows stream through the first cache once. While a piece is multiplied, the next one is
// unpacked, and the sums of the groups before are added up.
template <int BITS, int P>
class FewRows {
 public:
  FewRows(const Matrix& m, const FewInputs& x, int64_t r)
      : m_(m), x_(x), r_(r), size_(P * x.slots * x.tokens * kRows) {
    panels_ = x.rest;
    dots_ = reinterpret_cast<int32_t*>(panels_ + 2 * P * kPieceBytes);
    totals_ = reinterpret_cast<float*>(dots_ + 2 * size_);
    for (int64_t i = 0; i < P * x.tokens; ++i) S::store(totals_ + i * kRows, S::zero());
  }

  const float* run() {
    Step before;
    for (int64_t g = 0, begin = 0; g < m_.groups; ++g, begin += m_.group_size) {
      const int64_t end = begin + least(m_.group_size, m_.columns - begin);
      const int8_t* codes = x_.codes + g * x_.group_pieces * kPieceBytes;
      for (int64_t k = begin; k < end; k += kPiece, codes += kPieceBytes) {
        const Step step = step_of(k, least(kPiece, end - k), codes, g,
                                  k == begin && g % x_.slots == 0,
                                  k + kPiece >= end &&
                                      (g + 1 == m_.groups || (g + 1) % x_.slots == 0));
        pass(step, before);
        before = step;
      }
    }
    if (before.codes) pass({}, before);
    add_sums();
    return totals_;
  }

 private:
  static constexpr int64_t kInputs = tile_inputs(BITS), kTiles = kPiece / kInputs;

  struct Step {
    const int8_t* codes = nullptr;
    const uint8_t* tile = nullptr;  // of the first tile row
    uint8_t* panel = nullptr;       // null: the tiles are what is multiplied
    int64_t inputs = 0, ahead = 0, group = 0;
    bool first = false, last = false;  // of the groups that are stored at once
  };

  Step step_of(int64_t k, int64_t inputs, const int8_t* codes, int64_t g, bool first, bool last) {
    const int64_t offset = k / kInputs * tile_bytes(BITS);
    int64_t ahead = kPrefetch;  // behind the end of a row: the next rows
    if (offset + ahead >= m_.tile_row_bytes) ahead += (P - 1) * m_.tile_row_bytes;
    uint8_t* panel = nullptr;
    if (BITS != 8 || inputs != kPiece) {
      panel = panels_ + turn_ * P * kPieceBytes;
      turn_ ^= 1;
    }
    return {codes, m_.tiles + r_ * m_.tile_row_bytes + offset, panel, inputs, ahead, g, first,
            last};
  }

  // Unpacks a piece and multiplies the one before, row by row in turns.
  void pass(const Step& step, const Step& before) {
    finish_stores();
    if (before.codes) {
      if (before.first) {
        _tile_zero(0);
        if constexpr (P > 1) _tile_zero(1);
        if constexpr (P > 2) { _tile_zero(2); _tile_zero(3); }
      }
      _tile_loadd(4, before.codes, 64);
    }
    EDGEQAT_REPEAT(p, P, {
      if (step.codes) unpack(step, p);
      if (before.codes) multiply<p>(before);
    });
    if (before.last) store_sums(before);
  }

  void unpack(const Step& step, int64_t p) const {
    const uint8_t* tile = step.tile + p * m_.tile_row_bytes;
    uint8_t* panel = step.panel + p * kPieceBytes;
    if (!step.panel)
      for (int64_t line = 0; line < kPieceBytes; line += 64) S::prefetch(tile + step.ahead + line);
    else if (step.inputs == kPiece)
      unpack_pieces<BITS, false>(tile, kTiles, step.ahead, panel, Steps<BITS>());
    else
      unpack_pieces<BITS, false>(tile, (step.inputs + kInputs - 1) / kInputs, step.ahead, panel,
                                 Steps<BITS>());
  }

  template <int p>
  void multiply(const Step& step) const {
    const uint8_t* rows =
        step.panel ? step.panel + p * kPieceBytes : step.tile + p * m_.tile_row_bytes;
    if constexpr (p % 2 == 0) _tile_loadd(6, rows, 64);
    else _tile_loadd(7, rows, 64);
    if constexpr (p == 0) _tile_dpbsud(0, 4, 6);
    if constexpr (p == 1) _tile_dpbsud(1, 4, 7);
    if constexpr (p == 2) _tile_dpbsud(2, 4, 6);
    if constexpr (p == 3) _tile_dpbsud(3, 4, 7);
  }

  void store_sums(const Step& step) {
    add_sums();
    const int64_t next = size_ / P;
    pending_ = dots_ + (pending_ == dots_ ? size_ : 0);
    pending_groups_ = step.group % x_.slots + 1;
    pending_first_ = step.group + 1 - pending_groups_;
    _tile_stored(0, pending_, 64);
    if constexpr (P > 1) _tile_stored(1, pending_ + next, 64);
    if constexpr (P > 2) {
      _tile_stored(2, pending_ + 2 * next, 64);
      _tile_stored(3, pending_ + 3 * next, 64);
    }
  }

  void add_sums() {
    if (!pending_) return;
    const bool all = pending_groups_ == kBlock / x_.tokens;
    for (int p = 0; p < P; ++p) {
      const int32_t* dots = pending_ + p * (size_ / P);
      const int32_t* starts = x_.starts + pending_first_ * x_.tokens;
      const uint16_t* scales =
          m_.scales ? m_.scales + ((r_ + p) * m_.groups + pending_first_) * kRows : nullptr;
      float* totals = totals_ + p * x_.tokens * kRows;
      if (all) {
        x_.add_all(dots, starts, scales, totals);
        continue;
      }
      for (int64_t s = 0; s < pending_groups_; ++s, scales = scales ? scales + kRows : nullptr)
        x_.add_one(dots + s * x_.tokens * kRows, starts + s * x_.tokens, scales, totals);
    }
  }

  const Matrix& m_;
  const FewInputs& x_;
  int64_t r_, size_;
  uint8_t* panels_;
  int turn_ = 0;
  int32_t* dots_;
  float* totals_;
  const int32_t* pending_ = nullptr;
  int64_t pending_groups_ = 0, pending_first_ = 0;
};

template <int BITS, int P>
void few_rows(const Matrix& m, const Inputs& x, const FewInputs& few, float* out, int64_t stride,
              int64_t r) {
  const float* totals = FewRows<BITS, P>(m, few, r).run();
  for (int p = 0; p < P; ++p)
    for (int64_t t = 0; t < x.tokens; ++t, totals += kRows)
      write_row<BITS>(m, x, totals, t, out, stride, r + p);
}

template <int BITS>
void few_tokens_in_tiles(const Matrix& m, const Inputs& x, float* out, int64_t stride,
                         int64_t first, int64_t last) {
  const FewInputs few(m, x, code_offset(BITS));
  const TileConfig config(few.slots * few.tokens);
  finish_stores();
  _tile_loadconfig(&config);
  int64_t r = first;
  for (; r + 4 <= last; r += 4) few_rows<BITS, 4>(m, x, few, out, stride, r);
  for (; r + 2 <= last; r += 2) few_rows<BITS, 2>(m, x, few, out, stride, r);
  for (; r < last; ++r) few_rows<BITS, 1>(m, x, few, out, stride, r);
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
  int64_t turn = 0;
  const AddSums add_one = add_one_of<false>(blocks.tokens, Counts());
  const int32_t* pending = nullptr;  // sums that are to be added to `to`
  float* to = nullptr;
  const uint16_t* scales = nullptr;
  const auto add = [&] {
    if (!pending) return;
    for (int64_t i = 0; i < 2 * P; ++i) {
      const int64_t at = i * blocks.tokens * kRows;
      add_one(pending + at, nullptr, scales ? scales + i % P * m.groups * kRows : nullptr, to + at);
    }
  };
  for (int64_t g = 0, begin = 0; g < m.groups; ++g, begin += m.group_size) {
    const int64_t inputs = least(m.group_size, m.columns - begin);
    for (int p = 0; p < P; ++p)
      unpack_pieces<BITS, true>(
          m.tiles + (r + p) * m.tile_row_bytes + begin / kInputs * tile_bytes(BITS),
          (inputs + kInputs - 1) / kInputs, kPrefetch, panel + p * row_bytes, Steps<BITS>());
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
      add();
      int32_t* now = dots + turn % 2 * 2 * size;
      _tile_stored(0, now, 64);
      if constexpr (P > 1) _tile_stored(1, now + blocks.tokens * kRows, 64);
      _tile_stored(2, now + size, 64);
      if constexpr (P > 1) _tile_stored(3, now + size + blocks.tokens * kRows, 64);
      pending = now;
      to = totals + b * size;
      if (m.scales) scales = m.scales + (r * m.groups + g) * kRows;
    }
  }
  add();
  for (int64_t b = 0; b < blocks.count; ++b)
    for (int p = 0; p < P; ++p)
      for (int64_t t = 0; t < blocks.tokens; ++t)
        write_row<BITS>(m, x, totals + b * size + (p * blocks.tokens + t) * kRows,
                        blocks.first(b) + t, out, stride, r + p);
}

template <int BITS>
void many_tokens_in_tiles(const Matrix& m, const Inputs& x, float* out, int64_t stride,
                          int64_t first, int64_t last) {
  const Blocks blocks(x.tokens);
  const TileConfig config(blocks.tokens);
  finish_stores();
  _tile_loadconfig(&config);
  int64_t r = first;
  for (; r + 2 <= last; r += 2) many_rows<BITS, 2>(m, x, blocks, out, stride, r);
  for (; r < last; ++r) many_rows<BITS, 1>(m, x, blocks, out, stride, r);
}

template <int BITS>
void product_in_tiles(const Matrix& m, const Inputs& x, float* out, int64_t stride, int64_t first,
                      int64_t last) {
  if (x.tokens <= kBlock) few_tokens_in_tiles<BITS>(m, x, out, stride, first, last);
  else many_tokens_in_tiles<BITS>(m, x, out, stride, first, last);
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
