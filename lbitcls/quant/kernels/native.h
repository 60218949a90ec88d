// What the C++ kernels share. `native.py` builds them into one library and calls it through ctypes; there is no state, so
// that any thread may call.
//
// Sums are float over BLOCK rows and double beyond. Rows are split into chunks that depend on the shape alone, whose
// sums are added in order: results do not depend on the number of threads.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <type_traits>
#include <vector>

typedef float f32;
typedef int64_t i64;
typedef uint8_t u8;
struct bf16 { uint16_t bits; };

static const i64 BLOCK = 64, CHUNKS = 64, WIDE = 256;

// A matrix of few columns is read as one of many: several pixels to a row, per-channel vectors repeated.
struct Matrix {
  i64 pixels, channels, rows, columns, chunks;
  Matrix(i64 pixels, i64 channels) : pixels(pixels), channels(channels) {
    i64 times = 1;
    while (times * channels < WIDE && pixels % (2 * times) == 0) times *= 2;
    rows = pixels / times;
    columns = channels * times;
    chunks = std::min(CHUNKS, (rows + BLOCK - 1) / BLOCK);
  }
  i64 start(i64 chunk) const { return std::min(rows, (rows + BLOCK - 1) / BLOCK * chunk / chunks * BLOCK); }
  std::vector<f32> repeated(const f32* vector) const {
    std::vector<f32> out(columns);
    for (i64 k = 0; k < columns; k += channels) std::copy(vector, vector + channels, out.begin() + k);
    return out;
  }
  // Sum of `width` doubles of each chunk, at `offset` of its `stride`, for one channel.
  double folded(const std::vector<double>& sums, i64 stride, i64 offset, i64 channel) const {
    double total = 0;
    for (i64 chunk = 0; chunk < chunks; chunk++)
      for (i64 k = channel; k < columns; k += channels) total += sums[chunk * stride + offset + k];
    return total;
  }
};

struct Grid { f32 scale, low, high; };

// Comparisons that are false for NaN keep it.
static inline f32 clipped(f32 y, f32 cap) {
  y = y < 0.f ? 0.f : y;
  return y > cap ? cap : y;
}
static inline f32 steps_of(f32 v, const Grid& grid) {
  f32 q = std::rint(v);
  q = q > grid.low ? q : grid.low;  // NaN becomes the smallest code
  return q < grid.high ? q : grid.high;
}
static inline void put(f32* to, f32 steps, f32) { *to = steps; }
static inline void put(u8* to, f32 steps, f32 low) { *to = (u8)(int)(steps - low); }
static inline void put(bf16* to, f32 steps, f32) {  // exact: at most 8 bits
  uint32_t bits;
  memcpy(&bits, &steps, 4);
  to->bits = (uint16_t)(bits >> 16);
}

template <class F> static void pick(bool flag, F function) {
  if (flag) function(std::true_type());
  else function(std::false_type());
}
