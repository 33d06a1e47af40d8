// The inner loops of prototypes. Lanes run along the features, so that neither operand is transposed
// and five classes fill a vector as well as sixteen.
#pragma once

#include "simd.h"

namespace fastmeta::FASTMETA_ISA {

template <class R>
FASTMETA_INLINE Vec<R> load_anywhere(const R* p) {
  Vec<R> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class R>
FASTMETA_INLINE void store_anywhere(R* p, Vec<R> v) {
  std::memcpy(p, &v, sizeof v);
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

// A tile has as many pairs as a vector has lanes: its sums over lanes make one vector.
template <class R>
constexpr int pair_rows = lanes<R> >= 16 ? 4 : lanes<R> >= 4 ? 2 : 1;
template <class R>
constexpr int pair_columns = lanes<R> / pair_rows<R>;

// As `horizontal_sums` of simd.h, of vectors in registers.
template <class R, int count>
FASTMETA_INLINE Vec<R> sums_of(const Vec<R>* v) {
  if constexpr (count == 1) {
    return v[0];
  } else {
    constexpr int half = count / 2;
    return fold<R, half>(sums_of<R, half>(v), sums_of<R, half>(v + half));
  }
}

// The same sum of one vector, to the last bit.
template <class R>
FASTMETA_INLINE R sum_of(Vec<R> v) {
  R a[lanes<R>];
  store_anywhere(a, v);
  for (int width = 1; width < lanes<R>; width *= 2)
    for (int l = 0; l < lanes<R>; l += 2 * width) a[l] += a[l + width];
  return a[0];
}

// Longer sums are added up piece by piece, as in product.h.
template <class R>
constexpr i64 deepest_pair = 256 * lanes<R>;

// Lane r * pair_columns + c: the sum of row r of x and row c of y. depth is whole vectors.
template <class Op, class R>
FASTMETA_INLINE Vec<R> pair_tile(const R* const* x, const R* const* y, const R* const* a, i64 depth) {
  constexpr int M = pair_rows<R>, N = pair_columns<R>, W = lanes<R>;
  Vec<R> total{};
  for (i64 begin = 0; begin < depth; begin += deepest_pair<R>) {
    const i64 end = smaller(depth, begin + deepest_pair<R>);
    Vec<R> sum[M * N] = {};
    for (i64 d = begin; d < end; d += W) {
      Vec<R> column[N];
#pragma GCC unroll 16
      for (int j = 0; j < N; ++j) column[j] = load_anywhere(y[j] + d);
#pragma GCC unroll 16
      for (int i = 0; i < M; ++i) {
        const Vec<R> row = load_anywhere(x[i] + d);
        Vec<R> factor{};
        if constexpr (Op::has_a) factor = load_anywhere(a[i] + d);
#pragma GCC unroll 16
        for (int j = 0; j < N; ++j) sum[i * N + j] = Op::add(sum[i * N + j], factor, row, column[j]);
      }
    }
    total += sums_of<R, M * N>(sum);
  }
  return total;
}

// out [rows, columns] with rows `ld_out` apart; columns up to the next multiple of `pair_columns` are
// written with no meaning.
template <class Op, class R>
void pair_sums(const R* x, i64 ld_x, i64 rows, const R* y, i64 ld_y, i64 columns, const R* a, i64 ld_a,
               i64 depth, R* out, i64 ld_out) {
  constexpr int M = pair_rows<R>, N = pair_columns<R>;
  const R *x_rows[M], *y_rows[N], *a_rows[M];
  for (i64 n = 0; n < columns; n += N) {
    for (int j = 0; j < N; ++j) y_rows[j] = y + smaller(n + j, columns - 1) * ld_y;
    for (i64 q = 0; q < rows; q += M) {
      for (int i = 0; i < M; ++i) {
        const i64 row = smaller(q + i, rows - 1);
        x_rows[i] = x + row * ld_x;
        a_rows[i] = Op::has_a ? a + row * ld_a : nullptr;
      }
      const Vec<R> sums = pair_tile<Op>(x_rows, y_rows, a_rows, depth);
      R lane[lanes<R>];
      store_anywhere(lane, sums);
      for (i64 i = 0; i < smaller(M, rows - q); ++i)
        std::memcpy(out + (q + i) * ld_out + n, lane + i * N, sizeof(R) * N);
    }
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
    total += sum_of<R>(sum);
  }
  return total;
}

// ---- sums of weighted rows ----------------------------------------------------------------------

constexpr int most_rows = FASTMETA_VECTOR_BYTES == 64 ? 6 : 3;
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
  for (i64 k = 0; k < c.depth; ++k, a += c.a_k, b += c.b_k) {
    Vec<R> row[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) row[v] = load_anywhere(b + v * W) - origin[v];
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      const Vec<R> factor = splat(a[i * c.a_m]);
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sum[i][v] += factor * row[v];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      R* to = c.out + (m + i) * c.out_m + d + v * W;
      const Vec<R> value = c.scale * sum[i][v];
      store_anywhere(to, c.adds ? load_anywhere(to) + value : value);
    }
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
