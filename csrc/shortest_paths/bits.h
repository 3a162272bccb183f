// 32 bits become 32 bytes.

#pragma once

#include <cstdint>
#include <cstring>

namespace collamo::cpu {
namespace {

typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef uint32_t Lanes __attribute__((vector_size(16)));

// One byte for each of 32 columns, in the order in which bits are tested: byte 4i + c stands for
// column 8c + i, the bytes with i < 4 in `low`.
struct Columns {
  Bytes low, high;
};

// The 32 bits of `bits`, four times over → 32 bytes, 255 where the bit is set.
Columns spread(Lanes bits) {
  const Bytes bytes = reinterpret_cast<Bytes>(bits);  // byte 4i + c is byte c of the bits
  const Bytes low{1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4, 8, 8, 8, 8};
  const Bytes high = low << 4;
  return {(bytes & low) == low, (bytes & high) == high};
}

#ifdef __clang__
#define COLLAMO_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else  // gcc has the other name from version 12 on
#define COLLAMO_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Bytes{__VA_ARGS__})
#endif

// Interleaving the halves three times takes byte 4i + c to byte 8c + i.
void write_columns(const Columns& columns, uint8_t* to) {
  Bytes a = columns.low, b = columns.high;
  for (int round = 0; round < 3; ++round) {
    const Bytes first =
        COLLAMO_SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    b = COLLAMO_SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    a = first;
  }
  std::memcpy(to, &a, 16);
  std::memcpy(to + 16, &b, 16);
}

#undef COLLAMO_SHUFFLE

}  // namespace
}  // namespace collamo::cpu
