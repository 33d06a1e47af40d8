// Convolutions of 3 x 3 taps and stride 1 in Winograd's form F(2 x 2, 3 x 3): 2 x 2 outputs from 4 x 4 inputs
// with 16 multiplications and not 36 (Lavin and Gray 2016, arXiv:1509.09308). With d a tile of inputs, w the
// taps and g a tile of the outputs' gradient,
//
//   output          = A^T [sum over channels of (G w G^T) (B^T d B)] A
//   weight gradient = C^T [sum over tiles of (H g H^T) (B^T d B)] C
//
// where the products in between are number by number: the sums over them are 16 products of matrices.
#pragma once

#include "correlation.h"
#include "product_finish.h"

namespace fastmeta::FASTMETA_ISA {

// B, G, A, H and C: rows of four numbers, or of two or three.
struct OfInput {
  static constexpr int from = 4, to = 4;
  template <class V>
  static FASTMETA_INLINE void put(const V* d, V* t) {
    t[0] = d[0] - d[2], t[1] = d[1] + d[2], t[2] = d[2] - d[1], t[3] = d[1] - d[3];
  }
};
struct OfWeights {
  static constexpr int from = 3, to = 4;
  template <class V>
  static FASTMETA_INLINE void put(const V* w, V* t) {
    const V outer = (w[0] + w[2]) / 2, inner = w[1] / 2;
    t[0] = w[0], t[1] = outer + inner, t[2] = outer - inner, t[3] = w[2];
  }
};
struct OfGradient {
  static constexpr int from = 2, to = 4;
  template <class V>
  static FASTMETA_INLINE void put(const V* g, V* t) {
    t[0] = g[0], t[1] = (g[0] + g[1]) / 2, t[2] = (g[0] - g[1]) / 2, t[3] = g[1];
  }
};
struct ToOutput {
  static constexpr int from = 4, to = 2;
  template <class V>
  static FASTMETA_INLINE void put(const V* t, V* y) {
    y[0] = t[0] + t[1] + t[2], y[1] = t[1] - t[2] - t[3];
  }
};
struct ToWeights {
  static constexpr int from = 4, to = 3;
  template <class V>
  static FASTMETA_INLINE void put(const V* t, V* w) {
    const V both = t[1] + t[2];
    w[0] = t[0] + both, w[1] = t[1] - t[2], w[2] = both - t[3];
  }
};

// Squares: M x M of them.
template <class Form, class V>
FASTMETA_INLINE void transform(const V (&a)[Form::from][Form::from], V (&b)[Form::to][Form::to]) {
  V columns[Form::from][Form::to];  // turned
#pragma GCC unroll 4
  for (int j = 0; j < Form::from; ++j) {
    V column[Form::from];
#pragma GCC unroll 4
    for (int i = 0; i < Form::from; ++i) column[i] = a[i][j];
    Form::put(column, columns[j]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < Form::to; ++i) {
    V row[Form::from];
#pragma GCC unroll 4
    for (int j = 0; j < Form::from; ++j) row[j] = columns[j][i];
    Form::put(row, b[i]);
  }
}

constexpr i64 tile_numbers = 16;

// The tiles of all samples, in blocks that stay in the second-level cache with what they become.
struct TileGrid {
  i64 h, w, down, across, count;
  static constexpr i64 most = 64;  // of a block

  explicit TileGrid(const Sweep& s)
      : h(s.h), w(s.w), down(ceil_div(s.h, 2)), across(ceil_div(s.w, 2)), count(s.samples * down * across) {}

  // f(first tile, tiles)
  template <class F>
  void each_block(F f) const {
    const Cut blocks(count, most);
    for (i64 b = 0, first = 0; b < blocks.tiles; ++b) {
      const i64 n = blocks.size - (b >= blocks.large);
      f(first, n);
      first += n;
    }
  }
  // f(which of the block, sample, line, column of the first output, lines and columns of outputs there are)
  template <class F>
  FASTMETA_INLINE void each(i64 first, i64 n, F f) const {
    for (i64 i = 0; i < n; ++i) {
      const i64 t = first + i, y = t / across % down * 2, x = t % across * 2;
      f(i, t / (across * down), y, x, smaller(2, h - y), smaller(2, w - x));
    }
  }
};

// Numbers of a block's tiles, [16][tiles][ld]; planes are not a multiple of 4096 bytes apart.
template <class R>
struct TilePlanes {
  R* p;
  i64 ld, plane;

  static i64 size(i64 ld) { return TileGrid::most * ld + 64 / i64(sizeof(R)); }
  TilePlanes(R* at, i64 width) : p(at), ld(width), plane(size(width)) {}
  R* at(i64 number, i64 tile) const { return p + number * plane + tile * ld; }
};

// n x n pixels of one tile, of which the first `rows` x `columns` are there; the others are 0.
template <class Form, class R>
FASTMETA_INLINE void put_tile(const R* from, i64 row, i64 pixel, i64 rows, i64 columns,
                              const TilePlanes<R>& to, i64 tile) {
  constexpr int n = Form::from;
  const bool whole = rows == n && columns == n;
  for (i64 v = 0; v < to.ld; v += lanes<R>) {
    Vec<R> a[n][n], b[4][4];
    if (whole) {
#pragma GCC unroll 4
      for (int i = 0; i < n; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < n; ++j) a[i][j] = load(from + i * row + j * pixel + v);
    } else {
#pragma GCC unroll 4
      for (int i = 0; i < n; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < n; ++j)
          a[i][j] = i < rows && j < columns ? load(from + i * row + j * pixel + v) : Vec<R>{};
    }
    transform<Form>(a, b);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) store(to.at(4 * i + j, tile) + v, b[i][j]);
  }
}

template <class R>
void put_input_tiles(const Images<R>& in, const Sweep& s, const TileGrid& grid, i64 first, i64 n,
                     const TilePlanes<R>& to) {
  grid.each(first, n, [&](i64 i, i64 sample, i64 y, i64 x, i64 rows, i64 columns) {
    put_tile<OfInput>(in.at(sample, y + s.first[0], x + s.first[1]), in.row, in.pixel, rows + 2, columns + 2,
                      to, i);
  });
}
template <class R>
void put_gradient_tiles(const Images<R>& g, const TileGrid& grid, i64 first, i64 n, const TilePlanes<R>& to) {
  grid.each(first, n, [&](i64 i, i64 sample, i64 y, i64 x, i64 rows, i64 columns) {
    put_tile<OfGradient>(g.at(sample, y, x), g.row, g.pixel, rows, columns, to, i);
  });
}

// bias: [ld], or nullptr
template <class R>
void take_output_tiles(const TilePlanes<R>& from, const TileGrid& grid, i64 first, i64 n, const Images<R>& out,
                       const R* bias) {
  grid.each(first, n, [&](i64 tile, i64 sample, i64 y, i64 x, i64 rows, i64 columns) {
    R* const to = out.at(sample, y, x);
    for (i64 v = 0; v < from.ld; v += lanes<R>) {
      Vec<R> a[4][4], b[2][2];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) a[i][j] = load(from.at(4 * i + j, tile) + v);
      transform<ToOutput>(a, b);
      const Vec<R> own = bias ? load(bias + v) : Vec<R>{};
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i)
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j)
          if (i < rows && j < columns) store(to + i * out.row + j * out.pixel + v, b[i][j] + own);
    }
  });
}

// [9][size] as [16][size], which may begin 7 sizes before.
template <class R>
void put_weight_tiles(R* to, const R* from, i64 size) {
  for (i64 at = 0; at < size; at += lanes<R>) {
    Vec<R> a[3][3], b[4][4];
#pragma GCC unroll 4
    for (int i = 0; i < 3; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < 3; ++j) a[i][j] = load(from + (3 * i + j) * size + at);
    transform<OfWeights>(a, b);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) store(to + (4 * i + j) * size + at, b[i][j]);
  }
}

// Rows of a matrix [9 * depth][ld], of which `to` is told, from [16][depth][ld].
template <class R>
void take_weight_tiles(const R* from, i64 depth, i64 ld, const Target<R>& to) {
  for (i64 d = 0; d < depth; ++d)
    for (i64 v = 0; v < ld / lanes<R>; ++v) {
      Vec<R> a[4][4], b[3][3];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) a[i][j] = load(from + ((4 * i + j) * depth + d) * ld + v * lanes<R>);
      transform<ToWeights>(a, b);
      for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j) {
          const Vec<R> one[1][1] = {{b[i][j]}};
          finish<Broadcast>(to, (3 * i + j) * depth + d, v, one);
        }
    }
}

// What both functions below need; widest: the larger of a pixel of the input and of the output.
template <class R>
i64 tile_room(i64 widest, i64 depth, i64 ld) {
  return tile_numbers * (4 * TilePlanes<R>::size(widest) + depth * ld);
}

// One of the sixteen products of a block: of sums of at most `deepest_cached` terms, which lose less than long ones.
template <class R>
void multiply_tiles(const Term<R>* terms, int n, R* to, i64 ld, i64 tiles, i64 vectors) {
  const i64 depth = terms[0].depth, pieces = ceil_div(depth, deepest_cached);
  Target<R> target{to, ld};
  for (i64 piece = 0; piece < pieces; ++piece) {
    const i64 begin = depth * piece / pieces, end = depth * (piece + 1) / pieces;
    Term<R> some[2];
    for (int i = 0; i < n; ++i) {
      some[i] = terms[i];
      some[i].a += begin * terms[i].a_k;
      some[i].b += begin * terms[i].b_k;
      some[i].depth = end - begin;
    }
    product_at_once<Broadcast>(some, n, target, tiles, vectors);
    target.finish = Finish::Add;
  }
}

// As correlate(): filters are [16][depth][ld], and what is to be added to a pixel is a bias.
template <class R>
void correlate_in_tiles(const Correlated<R>* sums, int n, const Sweep& s, const Images<R>& out, const R* bias,
                        i64 vectors, R* room) {
  const TileGrid grid(s);
  const i64 ld = vectors * lanes<R>;
  grid.each_block([&](i64 first, i64 tiles) {
    Term<R> terms[2];
    R* at = room;
    for (int i = 0; i < n; ++i) {
      const TilePlanes<R> in(at, sums[i].in.pixel);
      at += tile_numbers * in.plane;
      put_input_tiles(sums[i].in, s, grid, first, tiles, in);
      terms[i] = {in.p, in.ld, 1, sums[i].filter.w, ld, lanes<R>, sums[i].filter.depth};
    }
    const TilePlanes<R> results(at, ld);
    for (i64 number = 0; number < tile_numbers; ++number) {
      multiply_tiles(terms, n, results.at(number, 0), ld, tiles, vectors);
      for (int i = 0; i < n; ++i) {
        terms[i].a += TilePlanes<R>::size(sums[i].in.pixel);
        terms[i].b += sums[i].filter.depth * ld;
      }
    }
    take_output_tiles(results, grid, first, tiles, out, bias);
  });
}

// As correlate_weights().
template <class R>
void correlate_weights_in_tiles(const Outer<R>* sums, int n, const Sweep& s, const Target<R>& to, i64 depth,
                                i64 vectors, R* room) {
  const TileGrid grid(s);
  const i64 ld = vectors * lanes<R>;
  R* const total = room;
  grid.each_block([&](i64 first, i64 tiles) {
    Term<R> terms[2];
    R* at = room + tile_numbers * depth * ld;
    for (int i = 0; i < n; ++i) {
      const TilePlanes<R> in(at, sums[i].in.pixel), g(at + tile_numbers * in.plane, ld);
      at = g.p + tile_numbers * g.plane;
      put_input_tiles(sums[i].in, s, grid, first, tiles, in);
      put_gradient_tiles(sums[i].g, grid, first, tiles, g);
      terms[i] = {in.p, 1, in.ld, g.p, ld, lanes<R>, tiles};
    }
    for (i64 number = 0; number < tile_numbers; ++number) {
      const Finish finish = first ? Finish::Add : Finish::Store;
      product<Broadcast>(terms, n, Target<R>{total + number * depth * ld, ld, finish}, depth, vectors);
      for (int i = 0; i < n; ++i) {
        terms[i].a += TilePlanes<R>::size(sums[i].in.pixel);
        terms[i].b += TilePlanes<R>::size(ld);
      }
    }
  });
  take_weight_tiles(total, depth, ld, to);
}

}  // namespace fastmeta::FASTMETA_ISA
