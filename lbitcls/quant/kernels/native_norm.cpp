// Batch normalization fused with its neighbors. One pass over memory for
//
//     y = clip(z * a + b [+ shortcut], 0, cap),   codes = clip(round(y / scale), low, high) - low
//
// and two for its gradients. Tensors are channels_last and dense: matrices of pixels by channels.
#include "native.h"

// Mean, variance, 1 / deviation, a and b (5 rows of `channels`), of values less the mean of a few of them.
extern "C" void statistics(const f32* z, i64 pixels, i64 channels, const f32* gamma, const f32* beta, double eps,
                           f32* out, int threads) {
  Matrix m(pixels, channels);
  std::vector<f32> near(channels);
  i64 few = std::min<i64>(pixels, 64);
  for (i64 c = 0; c < channels; c++) {
    double total = 0;
    for (i64 i = 0; i < few; i++) total += z[pixels / few * i * channels + c];
    near[c] = (f32)(total / few);
  }
  std::vector<f32> shifts = m.repeated(near.data());
  std::vector<double> sums(m.chunks * 2 * m.columns);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 chunk = 0; chunk < m.chunks; chunk++) {
    i64 columns = m.columns;
    double* total = sums.data() + chunk * 2 * columns;
    std::vector<f32> block(2 * columns);
    f32 *__restrict first = block.data(), *__restrict second = first + columns;
    const f32* __restrict shift = shifts.data();
    for (i64 r0 = m.start(chunk), end = m.start(chunk + 1); r0 < end; r0 += BLOCK) {
      std::fill(block.begin(), block.end(), 0.f);
      for (i64 r = r0; r < std::min(end, r0 + BLOCK); r++) {
        const f32* __restrict row = z + r * columns;
        for (i64 k = 0; k < columns; k++) {
          f32 d = row[k] - shift[k];
          first[k] += d;
          second[k] += d * d;
        }
      }
      for (i64 k = 0; k < 2 * columns; k++) total[k] += block[k];
    }
  }
  for (i64 c = 0; c < channels; c++) {
    double mean = m.folded(sums, 2 * m.columns, 0, c) / pixels;
    double variance = m.folded(sums, 2 * m.columns, m.columns, c) / pixels - mean * mean;
    variance = variance < 0 ? 0 : variance;
    mean += near[c];
    double inverse = 1 / std::sqrt(variance + eps), a = gamma[c] * inverse;
    double values[] = {mean, variance, inverse, a, beta[c] - mean * a};
    for (int i = 0; i < 5; i++) out[i * channels + c] = (f32)values[i];
  }
}

// Arguments are values and restricted pointers: what a byte is stored to could otherwise be any of them.
template <bool ADD, bool OUT, bool CODES, bool CLIP>
static bool activate_row(const f32* __restrict z, const f32* shortcut, f32* __restrict out, u8* __restrict codes,
                         const f32* __restrict a, const f32* __restrict b, const f32 cap, const Grid grid, i64 columns) {
  int undefined = 0;
#pragma GCC ivdep
  for (i64 k = 0; k < columns; k++) {
    f32 y = z[k] * a[k] + b[k];
    if (ADD) y += shortcut[k];
    if (CLIP) y = clipped(y, cap);
    if (OUT) out[k] = y;
    if (CODES) {
      undefined |= y != y;
      put(codes + k, steps_of(y / grid.scale, grid), grid.low);
    }
  }
  return undefined;
}

// Fill `out` (activation) and `codes`, each if given. Return 1 if codes were made of a NaN.
extern "C" int activate(const f32* z, const f32* shortcut, f32* out, u8* codes, const f32* a_, const f32* b_, int clips,
                        f32 cap, f32 scale, f32 low, f32 high, i64 pixels, i64 channels, int threads) {
  Matrix m(pixels, channels);
  std::vector<f32> a = m.repeated(a_), b = m.repeated(b_);
  std::vector<int> undefined(m.chunks);
  Grid grid{scale, low, high};
  auto run = [&](auto adds, auto writes, auto codes_too, auto clips) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 chunk = 0; chunk < m.chunks; chunk++)
      for (i64 r = m.start(chunk); r < m.start(chunk + 1); r++) {
        i64 o = r * m.columns;
        undefined[chunk] |= activate_row<adds, writes, codes_too, clips>(
            z + o, shortcut + o, out + o, codes + o, a.data(), b.data(), cap, grid, m.columns);
      }
  };
  pick(shortcut, [&](auto adds) { pick(out, [&](auto writes) { pick(codes, [&](auto codes_too) { pick(clips, [&](auto clips) {
    run(adds, writes, codes_too, clips);
  }); }); }); });
  return std::any_of(undefined.begin(), undefined.end(), [](int bad) { return bad; });
}

// Vectors by hand: a compiler does not keep a float sum in a register of several numbers, which changes its order.
typedef f32 Lanes __attribute__((vector_size(64)));
static const i64 WIDTH = sizeof(Lanes) / sizeof(f32);

template <class V> static inline V load(const f32* from) {
  V v;
  memcpy(&v, from, sizeof v);
  return v;
}
template <class V> static inline void store(f32* to, const V& v) { memcpy(to, &v, sizeof v); }
template <class V> static inline V all(f32 number) { return V{} + number; }
static inline f32 sum(f32 v) { return v; }
static inline f32 sum(const Lanes& v) {
  f32 total = 0;
  for (i64 i = 0; i < WIDTH; i++) total += v[i];
  return total;
}
// steps_of(v), because adding a number of this size rounds to integers; NaN becomes the smallest code.
template <class V> static inline V rounded_steps(V v, const Grid& grid) {
  const V low = all<V>(grid.low), high = all<V>(grid.high), whole = all<V>(12582912.f);
  v = v > low ? v : low;
  v = v < high ? v : high;
  return (v + whole) - whole;
}
static inline void put(f32* to, const Lanes& steps, f32) { memcpy(to, &steps, sizeof steps); }
static inline void put(u8* to, const Lanes& steps, f32 low) {
  for (i64 i = 0; i < WIDTH; i++) put(to + i, steps[i], low);
}
static inline void put(bf16* to, const Lanes& steps, f32 low) {
  for (i64 i = 0; i < WIDTH; i++) put(to + i, steps[i], low);
}

struct Layer { const f32 *z, *out, *grad, *grad_out; f32* target; const f32 *a, *b, *mean; f32 cap; Grid grid; };

template <class V> struct GridSums { V within{}, below{}, above{}; };

// The element at `o`, in column `k`. `target` may be `grad`. UNDER: values may be below the grid.
template <bool SAVED, bool CODES, bool OUT, bool CLIP, bool UNDER, class V, class T>
static inline void sum_element(const Layer& l, T* steps, i64 o, i64 k, f32* total, f32* products, GridSums<V>& sums) {
  const V zero{}, z = load<V>(l.z + o), cap = all<V>(l.cap);
  V y = SAVED ? load<V>(l.out + o) : z * load<V>(l.a + k) + load<V>(l.b + k), g{};
  if (CODES) {
    V inside = y, given = load<V>(l.grad + o);
    if (CLIP && !SAVED) {
      inside = inside < zero ? zero : inside;
      inside = inside > cap ? cap : inside;
    }
    V v = inside / all<V>(l.grid.scale), q = rounded_steps(v, l.grid);
    auto over = v > all<V>(l.grid.high);
    g = over ? zero : given;
    sums.above += over ? given : zero;
    if (UNDER) {
      auto under = v < all<V>(l.grid.low);
      g = under ? zero : g;
      sums.below += under ? given : zero;
    }
    sums.within += g * (q - v);
    put(steps + o, q, l.grid.low);
  }
  if (OUT) g += load<V>(l.grad_out + o);
  if (CLIP) g = (y > zero) & (y < cap) ? g : zero;
  if (CODES || CLIP) store(l.target + o, g);
  store(total + k, load<V>(total + k) + g);
  store(products + k, load<V>(products + k) + g * (z - load<V>(l.mean + k)));
}

// Rows r0 to r1. Adds to `total` and `products`, for each column, and to `grid_sums`.
template <bool SAVED, bool CODES, bool OUT, bool CLIP, bool UNDER, class T>
static void sum_rows(const Layer& l, T* steps, i64 r0, i64 r1, i64 columns, f32* total, f32* products, double* grid_sums) {
  GridSums<Lanes> sums;
  GridSums<f32> rest;
  for (i64 r = r0; r < r1; r++) {
    i64 k = 0, o = r * columns;
    for (; k + WIDTH <= columns; k += WIDTH)
      sum_element<SAVED, CODES, OUT, CLIP, UNDER>(l, steps, o + k, k, total, products, sums);
    for (; k < columns; k++) sum_element<SAVED, CODES, OUT, CLIP, UNDER>(l, steps, o + k, k, total, products, rest);
  }
  grid_sums[0] += sum(sums.within) + rest.within;
  grid_sums[1] += sum(sums.below) + rest.below;
  grid_sums[2] += sum(sums.above) + rest.above;
}

// First backward pass: gradients of gamma and beta, the two coefficients of the second pass (4 rows of `channels`), and
// the gradient of z * a + b, in `target` (which may be `grad`; unused if nothing was clipped or quantized).
//
// out: activation, read instead of computed from z; needed if there was a shortcut.
// grad: gradient of the quantized activation. Then the kernel also writes its `steps` (kind 0: float, 1: bfloat16,
//     2: uint8 codes) and the `grid_sums`: the gradient within the range times (round(v) - v), below it and above it.
// grad_out: gradient of the activation itself. At least one of the two gradients is given.
extern "C" void backward_sums(const f32* z, const f32* out, const f32* grad, const f32* grad_out, void* steps, int kind,
                              f32* target, const f32* stats, int clips, f32 cap, f32 scale, f32 low, f32 high,
                              i64 pixels, i64 channels, f32* rows, f32* grid_sums, int threads) {
  Matrix m(pixels, channels);
  std::vector<f32> mean = m.repeated(stats), a = m.repeated(stats + 3 * channels), b = m.repeated(stats + 4 * channels);
  i64 stride = 2 * m.columns + 3;
  std::vector<double> sums(m.chunks * stride);
  Layer layer{z, out, grad, grad_out, target, a.data(), b.data(), mean.data(), cap, Grid{scale, low, high}};
  auto run = [&](auto saved, auto codes, auto outs, auto clips, auto under, auto type) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 chunk = 0; chunk < m.chunks; chunk++) {
      i64 columns = m.columns, end = m.start(chunk + 1);
      double* total = sums.data() + chunk * stride;
      std::vector<f32> block(2 * columns);
      for (i64 r0 = m.start(chunk); r0 < end; r0 += BLOCK) {
        std::fill(block.begin(), block.end(), 0.f);
        sum_rows<saved, codes, outs, clips, under>(layer, (decltype(type)*)steps, r0, std::min(end, r0 + BLOCK), columns,
                                                   block.data(), block.data() + columns, total + 2 * columns);
        for (i64 k = 0; k < 2 * columns; k++) total[k] += block[k];
      }
    }
  };
  bool can_be_under = !clips || low < 0;
  pick(out, [&](auto saved) { pick(grad_out, [&](auto outs) { pick(clips, [&](auto clips) {
    // Without a grid there are no steps, of any type.
    if (!grad) run(saved, std::false_type(), outs, clips, std::false_type(), f32());
    else pick(can_be_under, [&](auto under) {
      if (kind == 0) run(saved, std::true_type(), outs, clips, under, f32());
      else if (kind == 1) run(saved, std::true_type(), outs, clips, under, bf16());
      else run(saved, std::true_type(), outs, clips, under, u8());
    });
  }); }); });
  for (i64 c = 0; c < channels; c++) {
    double s1 = m.folded(sums, stride, 0, c), s2 = m.folded(sums, stride, m.columns, c), inverse = stats[2 * channels + c];
    double values[] = {s2 * inverse, s1, s1 / pixels, s2 / pixels * inverse * inverse};
    for (int i = 0; i < 4; i++) rows[i * channels + c] = (f32)values[i];
  }
  for (i64 i = 0; i < 3; i++) {
    double total = 0;
    for (i64 chunk = 0; chunk < m.chunks; chunk++) total += sums[chunk * stride + 2 * m.columns + i];
    grid_sums[i] = (f32)total;
  }
}

// Second backward pass: gradient of z from that of z * a + b; `target` may be `grad`.
extern "C" void backward_input(const f32* z, const f32* grad, f32* target, const f32* stats, const f32* rows,
                               i64 pixels, i64 channels, int threads) {
  Matrix m(pixels, channels);
  std::vector<f32> means = m.repeated(stats), as = m.repeated(stats + 3 * channels),
                   firsts = m.repeated(rows + 2 * channels), seconds = m.repeated(rows + 3 * channels);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (i64 chunk = 0; chunk < m.chunks; chunk++) {
    const f32 *__restrict mean = means.data(), *__restrict a = as.data(), *__restrict first = firsts.data(),
              *__restrict second = seconds.data();
    for (i64 r = m.start(chunk); r < m.start(chunk + 1); r++) {
      i64 o = r * m.columns;
#pragma GCC ivdep
      for (i64 k = 0; k < m.columns; k++)
        target[o + k] = a[k] * (grad[o + k] - first[k] - (z[o + k] - mean[k]) * second[k]);
    }
  }
}
