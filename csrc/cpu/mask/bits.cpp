// Formula    bit i % 8 of byte i / 8 is element i of the mask in row-major order (lowest bit
// first).
//            mask_pack_bits, mask_unpack_bits; mask_count: how many bits, or bytes, are set;
//            mask_apply_: x[i] = 0 where bit i is 0.
// Mapping    pieces of the bytes.
// Arithmetic mask_apply_ clears bits by AND, so that a masked NaN becomes zero too.
// Contract   sparsekern/ops/mask/bits.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../../common/check.h"
#include "../output.h"
#include "words.h"

namespace sparsekern {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Tensor mask_pack_bits_cpu(Tensor mask) {
  SPARSEKERN_CHECK(mask.scalar_type() == ScalarType::Bool,
                   "Expected mask to have dtype torch.bool. Got another dtype.");
  const Tensor source = torch::stable::contiguous(mask);
  const int64_t numel = mask.numel();
  Tensor bits = torch::stable::empty({ceil_div(numel, 8)}, ScalarType::Byte);
  const uint8_t* flags = static_cast<const uint8_t*>(source.data_ptr());
  uint8_t* bytes = static_cast<uint8_t*>(bits.mutable_data_ptr());
  parallel_tasks(ceil_div(numel, kPiece), numel, [&](int64_t piece, int64_t) {
    uint64_t words[kPiece / 64];
    const int64_t begin = piece * kPiece, count = std::min(kPiece, numel - begin);
    float_mask_kernels().bits_of_bytes(flags + begin, count, words);
    std::memcpy(bytes + begin / 8, words, size_t(ceil_div(count, 8)));
  });
  return bits;
}

Tensor mask_count_cpu(Tensor mask) {
  const bool packed = mask.scalar_type() == ScalarType::Byte;
  SPARSEKERN_CHECK(packed || mask.scalar_type() == ScalarType::Bool,
                   "Expected mask to have dtype torch.bool or torch.uint8. Got another dtype.");
  const Tensor source = torch::stable::contiguous(mask);
  const uint8_t* bytes = static_cast<const uint8_t*>(source.data_ptr());
  const int64_t numel = mask.numel() * (packed ? 8 : 1);
  std::atomic<int64_t> sum{0};
  parallel_tasks(ceil_div(numel, kPiece), numel, [&](int64_t piece, int64_t) {
    uint64_t words[kPiece / 64];
    const int64_t begin = piece * kPiece, count = std::min(kPiece, numel - begin);
    if (packed) {
      words_of_bits(bytes + begin / 8, count, words);
    } else {
      float_mask_kernels().bits_of_bytes(bytes + begin, count, words);
    }
    sum += float_mask_kernels().count({words, 0, count});
  });
  Tensor result = torch::stable::empty({}, ScalarType::Long);
  *static_cast<int64_t*>(result.mutable_data_ptr()) = sum;
  return result;
}

Tensor mask_unpack_bits_cpu(Tensor bits, std::vector<int64_t> shape) {
  Tensor mask = empty_output(shape, ScalarType::Bool);
  const int64_t numel = mask.numel();
  SPARSEKERN_CHECK(bits.scalar_type() == ScalarType::Byte && bits.is_contiguous() &&
                       bits.numel() == ceil_div(numel, 8),
                   "Expected bits to be ", ceil_div(numel, 8), " contiguous bytes. Got ",
                   bits.numel(), " elements.");
  bytes_of_bits(static_cast<const uint8_t*>(bits.data_ptr()), numel,
                static_cast<uint8_t*>(mask.mutable_data_ptr()));
  return mask;
}

template <typename E>
void apply(const uint8_t* bytes, int64_t numel, void* data) {
  E* x = static_cast<E*>(data);
  parallel_range(ceil_div(numel, 8), [&](int64_t begin, int64_t end) {
    for (int64_t byte = begin; byte < end; ++byte) {
      const unsigned value = bytes[byte];
      if (value == 0xffu) continue;
      const int64_t count = std::min<int64_t>(8, numel - 8 * byte);
      for (int64_t i = 0; i < count; ++i) x[8 * byte + i] &= E(0) - E((value >> i) & 1u);
    }
  });
}

void mask_apply_cpu(Tensor x, Tensor bits) {
  SPARSEKERN_CHECK(bits.scalar_type() == ScalarType::Byte && bits.is_contiguous() &&
                       bits.numel() == ceil_div(x.numel(), 8),
                   "Expected bits to be ", ceil_div(x.numel(), 8), " contiguous bytes. Got ",
                   bits.numel(), " elements.");
  SPARSEKERN_CHECK(x.is_contiguous(), "Expected x to be contiguous. Got a tensor with gaps.");
  const uint8_t* bytes = static_cast<const uint8_t*>(bits.data_ptr());
  const size_t size = x.element_size();
  SPARSEKERN_CHECK(size == 2 || size == 4 || size == 8,
                   "Expected x to have elements of 2, 4 or 8 bytes. Got ", size, ".");
  const auto clear = size == 8 ? apply<uint64_t> : size == 4 ? apply<uint32_t> : apply<uint16_t>;
  clear(bytes, x.numel(), x.mutable_data_ptr());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparsekern, CPU, m) {
  m.impl("mask_pack_bits", TORCH_BOX(&mask_pack_bits_cpu));
  m.impl("mask_count", TORCH_BOX(&mask_count_cpu));
  m.impl("mask_unpack_bits", TORCH_BOX(&mask_unpack_bits_cpu));
  m.impl("mask_apply_", TORCH_BOX(&mask_apply_cpu));
}

}  // namespace sparsekern
