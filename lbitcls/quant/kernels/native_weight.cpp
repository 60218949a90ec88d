// Quantization of weights to signed integers, and its gradients.
#include "native.h"

// A weight has `rows` grids of `columns` values each, in memory order. A row is read in pieces, whose sums are added in
// order.
static const i64 PIECE = 16384;

struct Pieces {
  i64 columns, each, count;
  Pieces(i64 rows, i64 columns) : columns(columns), each(std::max<i64>((columns + PIECE - 1) / PIECE, 1)), count(rows * each) {}
  i64 row(i64 piece) const { return piece / each; }
  i64 start(i64 piece) const { return row(piece) * columns + piece % each * PIECE; }
  i64 size(i64 piece) const { return std::min(PIECE, columns - piece % each * PIECE); }
};

static bool quantize_piece(const f32* __restrict w, int8_t* __restrict integers, const Grid grid, i64 size) {
  int undefined = 0;
#pragma GCC ivdep
  for (i64 i = 0; i < size; i++) {
    undefined |= w[i] != w[i];
    integers[i] = (int8_t)(int)steps_of(w[i] / grid.scale, grid);
  }
  return undefined;
}

// Fill `integers`. Return 1 if one was made of a NaN.
extern "C" int quantize_weight(const f32* w, const f32* scales, int8_t* integers, f32 low, f32 high, i64 rows,
                               i64 columns, int threads) {
  Pieces p(rows, columns);
  std::vector<int> undefined(p.count);
#pragma omp parallel for num_threads(threads) schedule(static) if (p.count > 1)
  for (i64 i = 0; i < p.count; i++)
    undefined[i] = quantize_piece(w + p.start(i), integers + p.start(i), Grid{scales[p.row(i)], low, high}, p.size(i));
  return std::any_of(undefined.begin(), undefined.end(), [](int bad) { return bad; });
}

// Gradient of the weight, and sums of the gradient of the quantized one: within the range times (round(v) - v), below
// it and above it, each for BLOCK columns.
static void weight_piece(const f32* __restrict w, const f32* __restrict grad, f32* __restrict target, const Grid grid,
                         f32* __restrict within, f32* __restrict below, f32* __restrict above, i64 size) {
#pragma GCC ivdep
  for (i64 i = 0; i < size; i++) {
    f32 v = w[i] / grid.scale, q = steps_of(v, grid), given = grad[i];
    bool under = v < grid.low, over = v > grid.high;
    f32 g = under | over ? 0.f : given;
    within[i] += g * (q - v);
    below[i] += under ? given : 0.f;
    above[i] += over ? given : 0.f;
    target[i] = g;
  }
}

extern "C" void weight_gradients(const f32* w, const f32* grad, const f32* scales, f32* target, f32* sums, f32 low,
                                 f32 high, i64 rows, i64 columns, int threads) {
  Pieces p(rows, columns);
  std::vector<double> found(3 * p.count);
#pragma omp parallel for num_threads(threads) schedule(static) if (p.count > 1)
  for (i64 i = 0; i < p.count; i++) {
    f32 block[3 * BLOCK] = {};
    i64 start = p.start(i), size = p.size(i);
    for (i64 k = 0; k < size; k += BLOCK)
      weight_piece(w + start + k, grad + start + k, target + start + k, Grid{scales[p.row(i)], low, high}, block,
                   block + BLOCK, block + 2 * BLOCK, std::min(BLOCK, size - k));
    for (i64 s = 0; s < 3; s++) found[3 * i + s] = std::accumulate(block + s * BLOCK, block + (s + 1) * BLOCK, 0.0);
  }
  for (i64 row = 0; row < rows; row++)
    for (i64 s = 0; s < 3; s++) {
      double total = 0;
      for (i64 i = row * p.each; i < (row + 1) * p.each; i++) total += found[3 * i + s];
      sums[s * rows + row] = (f32)total;
    }
}
