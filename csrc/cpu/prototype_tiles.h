// The inner loops of prototypes. Lanes run along the features while these are summed, so that neither
// operand is transposed; the sums of W rows are then turned round together, a row a lane, so that
// what comes after (softmax) fills its vectors whatever the number of classes.
#pragma once

#include "simd.h"

namespace fastmeta::FASTMETA_ISA {

// Loaded once: as an operand in memory it would be loaded by every instruction that needs it.
template <class V>
FASTMETA_INLINE void keep_in_register(V& v) {
#if defined(__x86_64__)
#if FASTMETA_VECTOR_BYTES == 64
  asm("" : "+v"(v));
#else
  asm("" : "+x"(v));
#endif
#endif
}

// ---- sums over the features of pairs ------------------------------------------------------------

struct SquaredDifference {
  static constexpr bool has_a = false;
  template <class V>
  static FASTMETA_INLINE V add(V sum, V, V x, V y) {
    const V d = x - y;
    return sum + d * d;
  }
};
struct Multiplied {
  static constexpr bool has_a = false;
  template <class V>
  static FASTMETA_INLINE V add(V sum, V, V x, V y) { return sum + x * y; }
};
struct ProjectedDifference {
  static constexpr bool has_a = true;
  template <class V>
  static FASTMETA_INLINE V add(V sum, V a, V x, V y) { return sum + a * (x - y); }
};

// Longer sums are added up piece by piece, as in product.h: pieces of a tile's rows stay in the
// first-level cache.
template <class R>
constexpr i64 deepest_pair = 32 * lanes<R>;

// A tile of pairs takes rows of x and of y into registers, and leaves a vector a pair. Few columns get
// more rows, so that sums do not wait for one another. W rows make a group: a row a lane of the result.
constexpr int most_columns = 6;
template <class R, int columns>
constexpr int tile_rows = [] {
  constexpr int most = FASTMETA_VECTOR_BYTES == 64 ? 4 : 2;
  constexpr int rows = columns > 2 ? most : columns > 1 ? 2 * most : 4 * most;
  return rows < lanes<R> ? rows : lanes<R>;
}();

// out[j * W + i] = the sums of row i of x and column j, of features [begin, end), whole vectors.
template <class Op, int M, int N, class R>
FASTMETA_INLINE void pair_tile(const R* const* x, const R* y, i64 ld, const R* const* a, i64 begin,
                               i64 end, Vec<R>* out) {
  constexpr int W = lanes<R>;
  Vec<R> sum[M * N] = {};
  for (i64 d = begin; d < end; d += W) {
    Vec<R> row[M], factor[M];
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      row[i] = load_anywhere(x[i] + d);
      if constexpr (Op::has_a) factor[i] = load_anywhere(a[i] + d);
    }
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j) {
      Vec<R> column = load_anywhere(y + j * ld + d);
      keep_in_register(column);
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) {
        Vec<R> weight{};
        if constexpr (Op::has_a) weight = factor[i];
        sum[j * M + i] = Op::add(sum[j * M + i], weight, row[i], column);
      }
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < N; ++j)
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) out[j * W + i] = sum[j * M + i];
}

// Adds to sums[0 .. columns), at most N of them, those of a group's rows.
template <class Op, int N = most_columns, class R>
FASTMETA_INLINE void add_column_sums(const R* const* x, const R* y, i64 ld, i64 columns,
                                     const R* const* a, i64 begin, i64 end, Vec<R>* sums) {
  if constexpr (N > 1)
    if (columns < N) return add_column_sums<Op, N - 1>(x, y, ld, columns, a, begin, end, sums);
  constexpr int W = lanes<R>, M = tile_rows<R, N>;
  Vec<R> pairs[N * W];
  for (int i = 0; i < W; i += M)
    pair_tile<Op, M, N>(x + i, y, ld, Op::has_a ? a + i : nullptr, begin, end, pairs + i);
#pragma GCC unroll 16
  for (int j = 0; j < N; ++j) sums[j] += sums_of<R>(pairs + j * W);
}

// A share of the lines of [begin, end) of W rows, which are the next to be read. Rows are read in
// pieces: too short, each, for the machine to see where they go.
template <class R>
FASTMETA_INLINE void prefetch_rows(const R* x, i64 ld, i64 begin, i64 end, i64 share, i64 shares) {
  constexpr i64 line = 64 / i64(sizeof(R));
  for (i64 i = lanes<R> * share / shares; i < lanes<R> * (share + 1) / shares; ++i)
    for (i64 d = begin; d < end; d += line) __builtin_prefetch(x + i * ld + d, 0, 2);
}

// sums[n], lane r: the sum of row r of a group and column n. depth is whole vectors.
template <class Op, class R>
void group_sums(const R* const* x, const R* y, i64 ld, i64 columns, const R* const* a, i64 depth,
                Vec<R>* sums) {
  const i64 tiles = ceil_div(columns, most_columns);
  for (i64 n = 0; n < columns; ++n) sums[n] = Vec<R>{};
  for (i64 begin = 0; begin < depth; begin += deepest_pair<R>) {
    const i64 end = smaller(depth, begin + deepest_pair<R>);
    for (i64 i = 0; i < tiles; ++i) {
      const i64 n = columns * i / tiles, next = columns * (i + 1) / tiles;
      add_column_sums<Op>(x, y + n * ld, ld, next - n, a, begin, end, sums + n);
      if (depth > deepest_pair<R>) prefetch_rows(x[0] + lanes<R> * ld, ld, begin, end, i, tiles);
    }
  }
}

// Pointers to the rows of a group; what is past the last is the last again.
template <class R>
struct Group {
  const R* row[lanes<R>];

  Group(const R* x, i64 ld, i64 rows) {
    for (i64 i = 0; i < lanes<R>; ++i) row[i] = x + smaller(i, rows - 1) * ld;
  }
};

// Lane r of v[n] to out[r * columns + n]. May write lanes<R> elements past the last.
template <class R>
void store_group(const Vec<R>* v, i64 columns, R* out) {
  constexpr i64 W = lanes<R>;
  for (i64 n = 0; n < columns; n += W) {
    const i64 from = larger(0, smaller(n, columns - W));  // the last block may overlap another
    Vec<R> block[W];
    for (i64 i = 0; i < W; ++i) block[i] = from + i < columns ? v[from + i] : Vec<R>{};
    transpose_block<R>(block);
    for (i64 i = 0; i < W; ++i) store_anywhere(out + i * columns + from, block[i]);
  }
}

// One pair, the same bits as in a tile.
template <class Op, class R>
FASTMETA_INLINE R pair_sum(const R* x, const R* y, i64 depth) {
  constexpr int W = lanes<R>;
  R total = 0;
  for (i64 begin = 0; begin < depth; begin += deepest_pair<R>) {
    const i64 end = smaller(depth, begin + deepest_pair<R>);
    Vec<R> sum{};
    i64 d = begin;
    for (; d + W <= end; d += W)
      sum = Op::add(sum, Vec<R>{}, load_anywhere(x + d), load_anywhere(y + d));
    if (d < end) {
      Vec<R> x_end{}, y_end{};
      std::memcpy(&x_end, x + d, sizeof(R) * size_t(end - d));
      std::memcpy(&y_end, y + d, sizeof(R) * size_t(end - d));
      sum = Op::add(sum, Vec<R>{}, x_end, y_end);
    }
    total += horizontal_sum<R>(sum);
  }
  return total;
}

// ---- sums of weighted rows ----------------------------------------------------------------------

constexpr int most_rows = FASTMETA_VECTOR_BYTES == 64 ? 6 : 4;
constexpr int most_vectors = FASTMETA_VECTOR_BYTES == 64 ? 4 : 3;

// out[m] = scale * (sum over k of a(m, k) (b[k] - origin)), or that added to out[m].
template <class R>
struct Combination {
  const R* a;
  i64 a_m, a_k;
  const R* b;
  i64 b_k, depth;
  const R* origin;  // of `centred`
  R scale;
  R* out;
  i64 out_m;
  bool adds;
};

template <bool centred, int M, int V, class R>
void combine_tile(const Combination<R>& c, i64 m, i64 d) {
  constexpr int W = lanes<R>;
  Vec<R> sum[M][V] = {}, origin[V] = {};
  if constexpr (centred)
    for (int v = 0; v < V; ++v) origin[v] = load_anywhere(c.origin + d + v * W);
  const R *a = c.a + m * c.a_m, *b = c.b + d;
  // As far as the compiler knows, a store might change them.
  const i64 depth = c.depth, a_m = c.a_m, a_k = c.a_k, b_k = c.b_k, out_m = c.out_m;
  const Vec<R> scale = splat(c.scale);
  const bool adds = c.adds;
  R* out = c.out + m * out_m + d;
  for (i64 k = 0; k < depth; ++k, a += a_k, b += b_k) {
    Vec<R> row[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) row[v] = load_anywhere(b + v * W) - origin[v];
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      const Vec<R> factor = splat(a[i * a_m]);
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sum[i][v] += factor * row[v];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) sum[i][v] *= scale;
  if (adds) {
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i)
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sum[i][v] += load_anywhere(out + i * out_m + v * W);
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) store_anywhere(out + i * out_m + v * W, sum[i][v]);
}

template <bool centred, int V, int M = most_rows, class R>
void combine_rows(const Combination<R>& c, i64 rows, i64 d) {
  if constexpr (M > 0) {
    i64 m = 0;
    for (; m + M <= rows; m += M) combine_tile<centred, M, V>(c, m, d);
    if (m == rows) return;
    Combination<R> rest = c;
    rest.a += m * c.a_m, rest.out += m * c.out_m;
    combine_rows<centred, V, M - 1>(rest, rows - m, d);
  }
}

template <bool centred, int V = most_vectors, class R>
void combine_vectors(const Combination<R>& c, i64 rows, i64 begin, i64 end) {
  constexpr int W = lanes<R>;
  if constexpr (V > 0) {
    i64 d = begin;
    for (; d + V * W <= end; d += V * W) combine_rows<centred, V>(c, rows, d);
    combine_vectors<centred, V - 1>(c, rows, d, end);
  }
}

// `rows` rows of out; width is whole vectors.
template <class R>
void combine(const Combination<R>& c, i64 rows, i64 width) {
  if (c.origin)
    combine_vectors<true>(c, rows, 0, width);
  else
    combine_vectors<false>(c, rows, 0, width);
}

// ---- sums of weighted differences ---------------------------------------------------------------

// out[q] = sum over n of h(q, n) (x[q] - y[n]), V vectors of a row.
template <int V, class R>
FASTMETA_INLINE void pull_row(const R* x, const R* y, i64 y_n, i64 classes, const R* h, i64 h_n,
                              R* out) {
  constexpr int W = lanes<R>;
  Vec<R> own[V], sum[V] = {};
  for (int v = 0; v < V; ++v) own[v] = load_anywhere(x + v * W);
  for (i64 n = 0; n < classes; ++n) {
    const Vec<R> factor = splat(h[n * h_n]);
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) sum[v] += factor * (own[v] - load_anywhere(y + n * y_n + v * W));
  }
  for (int v = 0; v < V; ++v) store_anywhere(out + v * W, sum[v]);
}

}  // namespace fastmeta::FASTMETA_ISA
