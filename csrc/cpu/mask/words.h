// Masks as bytes (torch.bool) and as 64-bit words in scratch memory.
#pragma once
#include <cstring>

#include "../../common/ceil_div.h"
#include "../isa/mask_kernels.h"
#include "../parallel.h"

namespace sparsekern {

constexpr int64_t kPiece = int64_t(1) << 16;  // elements of one task, a multiple of 64

// Eight bools from eight bits: byte i of entry b is bit i of b.
struct ByteTable {
  uint64_t eight[256];
  constexpr ByteTable() : eight() {
    for (int b = 0; b < 256; ++b)
      for (int i = 0; i < 8; ++i) eight[b] |= uint64_t((b >> i) & 1) << (8 * i);
  }
};
inline constexpr ByteTable kByteTable{};

inline void words_of_bytes(const uint8_t* bytes, int64_t numel, uint64_t* words) {
  parallel_tasks(ceil_div(numel, kPiece), numel, [&](int64_t piece, int64_t) {
    const int64_t begin = piece * kPiece;
    float_mask_kernels().bits_of_bytes(bytes + begin, std::min(kPiece, numel - begin),
                                       words + begin / 64);
  });
}

// `bits`: packed as bytes, lowest bit first, which on a little-endian machine are words already.
inline void bytes_of_bits(const uint8_t* bits, int64_t numel, uint8_t* bytes) {
  parallel_tasks(ceil_div(numel, kPiece), numel, [&](int64_t piece, int64_t) {
    const int64_t begin = piece * kPiece, end = std::min(numel, begin + kPiece);
    int64_t i = begin;
    for (; i + 8 <= end; i += 8) std::memcpy(bytes + i, &kByteTable.eight[bits[i / 8]], 8);
    for (; i < end; ++i) bytes[i] = (bits[i / 8] >> (i % 8)) & 1u;
  });
}

// The words of packed bits; bits behind the last element are cleared.
inline void words_of_bits(const uint8_t* bits, int64_t numel, uint64_t* words) {
  if (numel == 0) return;
  words[(numel - 1) / 64] = 0;
  std::memcpy(words, bits, size_t(ceil_div(numel, 8)));
  if (numel % 64 != 0) words[numel / 64] &= (uint64_t(1) << (numel % 64)) - 1;
}

}  // namespace sparsekern
