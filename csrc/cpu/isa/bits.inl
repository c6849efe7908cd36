// Formula    bracket: which scores are above, which within low..high; bits_of_bytes: bool to bits;
//            columns: the set bits of a row as ascending columns.
// Mapping    64 elements make one word; vectors are compared, words are walked by their set bits.
// Tile       one word; the tail of scores is read through masked loads.
// Arithmetic comparisons only; NaN is neither above nor within, zeros of both signs are equal.
// Alignment  none required.
// Contract   MaskKernels in mask_kernels.h.
#pragma once

static SPARSEKERN_INLINE int first_bit(uint64_t word) { return __builtin_ctzll(word); }

template <typename V>
struct Bits {
  using T = typename V::Element;
  using Reg = typename V::Reg;
  static constexpr int kAhead = 1024;  // elements

  static BracketCounts bracket(const T* scores, const uint64_t* among, int64_t count, T low, T high,
                               uint64_t* above, uint64_t* within, const BracketList<T>& list) {
    const Reg least = V::broadcast(low), most = V::broadcast(high);
    BracketCounts counts{0, 0};
    for (int64_t begin = 0; begin < count; begin += 64) {
      const int64_t word = begin / 64;
      const T* x = scores + begin;
      uint64_t high_bits = 0, low_bits = 0;
      if (count - begin >= 64) {
        // PERF: keeps memory busy across the mispredicted branches below.
        for (int i = 0; i < 64; i += int(64 / sizeof(T))) SPARSEKERN_PREFETCH(x + i + kAhead);
        SPARSEKERN_UNROLL(8)
        for (int i = 0; i < 64; i += V::kWidth) {
          const Reg r = V::load(x + i);
          high_bits |= V::above(r, most) << i;
          low_bits |= V::at_least(r, least) << i;
        }
      } else {
        const int left = int(count - begin);
        for (int i = 0; i < left; i += V::kWidth) {
          const Reg r = V::load(x + i, V::lanes(0, left - i));
          high_bits |= V::above(r, most) << i;
          low_bits |= V::at_least(r, least) << i;
        }
        const uint64_t inside = (uint64_t(1) << left) - 1;
        high_bits &= inside;
        low_bits &= inside;
      }
      const uint64_t allowed = among == nullptr ? ~uint64_t(0) : among[word];
      const uint64_t between = low_bits & ~high_bits & allowed;
      above[word] = high_bits & allowed;
      within[word] = between;
      counts.above += __builtin_popcountll(high_bits & allowed);
      if (counts.within + 64 <= list.room) {
        int64_t next = counts.within;
        for (uint64_t left = between; left != 0; left &= left - 1, ++next) {
          const int bit = first_bit(left);
          list.scores[next] = x[bit];
          list.at[next] = uint16_t(begin + bit);
        }
      }
      counts.within += __builtin_popcountll(between);
    }
    return counts;
  }

  static void bits_of_bytes(const uint8_t* bytes, int64_t count, uint64_t* words) {
    int64_t i = 0;
    for (; i + 64 <= count; i += 64) words[i / 64] = V::nonzero_bytes(bytes + i);
    if (i == count) return;
    uint64_t last = 0;
    for (int64_t j = i; j < count; ++j) last |= uint64_t(bytes[j] != 0) << (j - i);
    words[i / 64] = last;
  }

  static int64_t count(const RowBits& row) {
    int64_t sum = 0;
    for_each_word(row, [&](int64_t, uint64_t word) { sum += __builtin_popcountll(word); });
    return sum;
  }

  static void columns(const RowBits& row, int64_t panel, int32_t* before, int32_t* col,
                      int32_t* starts) {
    const int64_t shift = row.first % 64;
    int32_t* next = col;
    for_each_word(row, [&](int64_t i, uint64_t word) {
      before[i] = int32_t(next - col);
      const int32_t base = int32_t(64 * i - shift);
      write_columns(word, base, next);
      next += __builtin_popcountll(word);
    });
    for (int64_t p = 0, column = 0; column < row.cols; ++p, column += panel) {
      const int64_t bit = shift + column;
      const uint64_t below = (uint64_t(1) << (bit % 64)) - 1;
      const uint64_t word = masked_word(row, bit / 64);
      starts[p] = before[bit / 64] + int32_t(__builtin_popcountll(word & below));
    }
  }

  // Quarters change places, then the quarters of each quarter, down to single bits.
  static void transpose(uint64_t* block) {
    swap_quarters<32>(block, 0x00000000ffffffffu);
    swap_quarters<16>(block, 0x0000ffff0000ffffu);
    swap_quarters<8>(block, 0x00ff00ff00ff00ffu);
    swap_quarters<4>(block, 0x0f0f0f0f0f0f0f0fu);
    swap_quarters<2>(block, 0x3333333333333333u);
    swap_quarters<1>(block, 0x5555555555555555u);
  }

 private:
  // base + i for every set bit i, and up to kSpareColumns more that mean nothing.
  static SPARSEKERN_INLINE void write_columns(uint64_t word, int32_t base, int32_t* target) {
    int left = __builtin_popcountll(word);
    if constexpr (V::kCompresses) {
      if (left > 8) {
        SPARSEKERN_UNROLL(4)
        for (int i = 0; i < 64; i += 16) {
          const uint32_t bits = uint32_t(word >> i) & 0xffffu;
          V::compress(bits, base + i, target);
          target += __builtin_popcount(bits);
        }
        return;
      }
    }
    // PERF: always four; a branch for each entry, or for an empty word, costs more than it saves.
    do {
      SPARSEKERN_UNROLL(4)
      for (int i = 0; i < 4; ++i) {
        *target++ = base + first_bit(word | uint64_t(1) << 63);
        word &= word - 1;
      }
    } while ((left -= 4) > 0);
  }

  template <int kSize>
  static SPARSEKERN_INLINE void swap_quarters(uint64_t* block, uint64_t low) {
    for (int begin = 0; begin < 64; begin += 2 * kSize) {
      for (int i = begin; i < begin + kSize; ++i) {
        const uint64_t differ = ((block[i] >> kSize) ^ block[i + kSize]) & low;
        block[i] ^= differ << kSize;
        block[i + kSize] ^= differ;
      }
    }
  }

  // Word i of those that a row touches, without the bits of its neighbours.
  static SPARSEKERN_INLINE uint64_t masked_word(const RowBits& row, int64_t i) {
    const int64_t shift = row.first % 64, end = shift + row.cols;
    uint64_t word = row.words[row.first / 64 + i];
    if (i == 0) word &= ~uint64_t(0) << shift;
    if (end < 64 * (i + 1)) word &= (uint64_t(1) << (end - 64 * i)) - 1;
    return word;
  }

  template <typename Callback>
  static SPARSEKERN_INLINE void for_each_word(const RowBits& row, const Callback& visit) {
    const int64_t words = (row.first % 64 + row.cols + 63) / 64;
    for (int64_t i = 0; i < words; ++i) visit(i, masked_word(row, i));
  }
};
