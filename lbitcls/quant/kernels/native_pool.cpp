// Maximum, in windows, of a normalized activation, and its gradient.
#include "native.h"

struct Pooling { i64 images, height, width, channels, out_height, out_width, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w; };

static void take_larger(const f32* __restrict z, const f32* __restrict a, const f32* __restrict b, f32* __restrict best,
                        u8* __restrict places, bool clips, f32 cap, u8 place, i64 channels) {
#pragma GCC ivdep
  for (i64 c = 0; c < channels; c++) {
    f32 y = z[c] * a[c] + b[c];
    y = clips ? clipped(y, cap) : y;
    bool larger = (y > best[c]) | (y != y);  // NaN wins, as in PyTorch
    best[c] = larger ? y : best[c];
    places[c] = larger ? place : places[c];
  }
}

// Maximum of the activation over windows, and the place in its window, row by row, that each comes from.
extern "C" void max_pool(const f32* z, f32* out, u8* places, const f32* a, const f32* b, int clips, f32 cap,
                         const Pooling* pooling, int threads) {
  const Pooling p = *pooling;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 row = 0; row < p.images * p.out_height; row++) {
    i64 image = row / p.out_height, i = row % p.out_height;
    for (i64 j = 0; j < p.out_width; j++) {
      i64 o = (row * p.out_width + j) * p.channels;
      std::fill(out + o, out + o + p.channels, -INFINITY);
      std::fill(places + o, places + o + p.channels, (u8)0);
      for (i64 u = 0; u < p.kernel_h; u++)
        for (i64 v = 0; v < p.kernel_w; v++) {
          i64 h = i * p.stride_h - p.pad_h + u, w = j * p.stride_w - p.pad_w + v;
          if (h < 0 || h >= p.height || w < 0 || w >= p.width) continue;
          take_larger(z + ((image * p.height + h) * p.width + w) * p.channels, a, b, out + o, places + o, clips, cap,
                      (u8)(u * p.kernel_w + v), p.channels);
        }
    }
  }
}

static void add_taken(const f32* __restrict grad, const u8* __restrict places, f32* __restrict target, u8 place,
                      i64 channels) {
#pragma GCC ivdep
  for (i64 c = 0; c < channels; c++) target[c] += places[c] == place ? grad[c] : 0.f;
}

// Gradient of the activation from that of `max_pool`.
extern "C" void max_pool_gradient(const f32* grad, const u8* places, f32* target, const Pooling* pooling, int threads) {
  const Pooling p = *pooling;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 row = 0; row < p.images * p.height; row++) {
    i64 image = row / p.height, h = row % p.height;
    for (i64 w = 0; w < p.width; w++) {
      f32* to = target + (row * p.width + w) * p.channels;
      std::fill(to, to + p.channels, 0.f);
      for (i64 u = (h + p.pad_h) % p.stride_h; u < p.kernel_h && u <= h + p.pad_h; u += p.stride_h)
        for (i64 v = (w + p.pad_w) % p.stride_w; v < p.kernel_w && v <= w + p.pad_w; v += p.stride_w) {
          i64 i = (h + p.pad_h - u) / p.stride_h, j = (w + p.pad_w - v) / p.stride_w;
          if (i >= p.out_height || j >= p.out_width) continue;
          i64 o = ((image * p.out_height + i) * p.out_width + j) * p.channels;
          add_taken(grad + o, places + o, to, (u8)(u * p.kernel_w + v), p.channels);
        }
    }
  }
}
