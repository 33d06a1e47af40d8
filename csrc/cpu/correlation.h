// Convolutions as products, straight from images in channels-last layout: no im2col in memory.
//
//   correlate          out(s, y, x)  = sum over taps of in(s, y step + first + tap apart) filter[tap]
//   correlate_weights  filter[tap]  += sum over s, y, x of in(...)^T g(s, y, x)
//
// A tile's rows are neighbouring pixels of a line, its columns output channels, its depth the taps and
// input channels. Where an image is one pixel, the line runs over the samples.
#pragma once

#include "product.h"

namespace fastmeta::FASTMETA_ISA {

// p is pixel (0, 0) of the first sample; around the images there may be a border.
template <class R>
struct Images {
  R* p;
  i64 sample, row, pixel;  // strides in scalars

  R* at(i64 s, i64 y, i64 x) const { return p + s * sample + y * row + x * pixel; }
};

// [rows][columns][depth][ld]
template <class R>
struct Filter {
  const R* w;
  i64 rows, columns, depth, ld;
};

struct Sweep {
  i64 samples, h, w;       // of the output
  i64 step[2], first[2];   // input pixel of tap (0, 0) for output (y, x): y step[0] + first[0], ...
  i64 apart[2];            // input pixels from one tap to the next
};

struct Lines {
  bool over_samples;
  i64 samples, per_sample, length;

  explicit Lines(const Sweep& s)
      : over_samples(s.h == 1 && s.w == 1), samples(over_samples ? 1 : s.samples),
        per_sample(s.h), length(over_samples ? s.samples : s.w) {}
};

template <class R>
struct Correlated {
  Images<R> in;
  Filter<R> filter;
};

// One running sum of more terms loses more than PyTorch does.
constexpr i64 deepest_sum = 768;
// Weights of so many terms and one tile stay in the first-level cache.
constexpr i64 deepest_cached = 128;
// In wider weights those of a tile lie so far apart that the second-level cache gives them slowly.
constexpr i64 widest_streamed = 16;

// How lines are cut into tiles. Every tile reads the weights of its columns anew, and the second-level
// cache gives some 32 bytes a cycle, in which there are two multiply-adds: where tiles are too low for
// that, all lines meet weights that stay in the first-level cache. (AVX-512, GFLOP/s: lines of 7 pixels as
// 7 x 3 vectors 176, as 4 x 4 and 3 x 4 115; 3 x 4 vectors, 64 channels, 82 and 123; 4 x 4, 512 channels,
// 108 and 147.)
struct Tiling {
  i64 columns, deepest;

  Tiling(i64 line, i64 vectors) : columns(columns_for(line)) {
    const bool streamed = streams(Cut(vectors, columns).size, line) && vectors <= widest_streamed;
    deepest = streamed ? deepest_sum : deepest_cached;
  }

 private:
  static i64 tiles(i64 columns, i64 line) { return ceil_div(line, max_rows(int(columns))); }
  static bool streams(i64 columns, i64 line) {
    return tiles(columns, line) * FASTMETA_VECTOR_BYTES <= 16 * line;
  }
  // The most that stream; else those of the fewest tiles.
  static i64 columns_for(i64 line) {
    i64 best = max_columns;
    for (i64 columns = max_columns; columns > 1; --columns) {
      if (streams(columns, line)) return columns;
      if (tiles(columns, line) < tiles(best, line)) best = columns;
    }
    return best;
  }
};

// Terms that correlate() and correlate_weights() need room for: two sums, each twice.
inline i64 count_terms(i64 rows, i64 columns, i64 depth, i64 lines) {
  return 4 * rows * columns * (ceil_div(depth, deepest_cached) + 1) + 2 * lines;
}

// The taps of a row are neighbours in memory.
template <class R>
bool rows_are_whole(const Images<R>& in, const Filter<R>& f, const Sweep& s) {
  return in.pixel == f.depth && (s.apart[1] == 1 || f.columns == 1);
}

template <class R>
i64 put_terms(Term<R>* terms, const Correlated<R>& c, const Sweep& s, bool over_samples, i64 deepest) {
  const Filter<R>& f = c.filter;
  const bool whole = rows_are_whole(c.in, f, s);
  const i64 taps = whole ? 1 : f.columns, depth = whole ? f.columns * f.depth : f.depth;
  const i64 step = over_samples ? c.in.sample : s.step[1] * c.in.pixel;
  const i64 block = ceil_div(depth, ceil_div(depth, deepest));
  i64 n = 0;
  for (i64 r = 0; r < f.rows; ++r)
    for (i64 t = 0; t < taps; ++t)
      for (i64 k = 0; k < depth; k += block)
        terms[n++] = {c.in.at(0, s.first[0] + r * s.apart[0], s.first[1] + t * s.apart[1]) + k, step, 1,
                      f.w + ((r * f.columns + t) * f.depth + k) * f.ld, f.ld, lanes<R>,
                      smaller(block, depth - k)};
  return n;
}

// All lines of all samples, as Lines has them: out += terms moved along, or as target has it.
template <class R>
void correlate_lines(const Term<R>* terms, int n, Term<R>* moved, const Images<R>& in, const Images<R>& out,
                     const Sweep& s, Target<R> target, i64 first, i64 vectors) {
  const Lines lines(s);
  target.c_m = lines.over_samples ? out.sample : out.pixel;
  if (target.row) target.row += first;
  for (i64 sample = 0; sample < lines.samples; ++sample)
    for (i64 y = 0; y < lines.per_sample; ++y) {
      const i64 offset = sample * in.sample + y * s.step[0] * in.row;
      for (int i = 0; i < n; ++i) {
        moved[i] = terms[i];
        moved[i].a += offset;
        moved[i].b += first;
      }
      target.c = out.at(sample, y, 0) + first;
      product_at_once<Broadcast>(moved, n, target, lines.length, vectors);
    }
}

// The sum of `n` correlations of one geometry; finish is Store, Bias or Add. `terms` is scratch.
template <class R>
void correlate(const Correlated<R>* sums, int n, const Sweep& s, const Images<R>& out,
               Target<R> target, i64 vectors, Term<R>* terms) {
  const Lines lines(s);
  const Tiling tiling(lines.length, vectors);
  i64 count = 0;
  for (int i = 0; i < n; ++i)
    count += put_terms(terms + count, sums[i], s, lines.over_samples, tiling.deepest);
  const Cut columns(vectors, tiling.columns);
  for (i64 begin = 0; begin < count;) {
    i64 depth = 0, end = begin;
    for (; end < count && (end == begin || depth + terms[end].depth <= tiling.deepest); ++end)
      depth += terms[end].depth;
    for (i64 tile = 0, first = 0; tile < columns.tiles; ++tile) {
      const i64 width = columns.size - (tile >= columns.large);
      correlate_lines(terms + begin, int(end - begin), terms + count, sums[0].in, out, s, target,
                      first * lanes<R>, width);
      first += width;
    }
    target.finish = Finish::Add;
    begin = end;
  }
}

template <class R>
struct Outer {
  Images<R> in, g;
};

// What follows so many rows of a matrix.
template <class R>
Target<R> below(Target<R> target, i64 rows) {
  target.c += rows * target.c_m;
  if (target.from) target.from += rows * target.c_m;
  if (target.rate) target.rate += rows * target.rate_m;
  return target;
}

// The sum of `n` outer products of one geometry, a matrix [rows * columns * depth][vectors].
template <class R>
void correlate_weights(const Outer<R>* sums, int n, const Sweep& s, const Target<R>& to,
                       const Filter<R>& shape, i64 vectors, Term<R>* terms) {
  const Lines lines(s);
  const bool whole = rows_are_whole(sums[0].in, shape, s);
  const i64 taps = whole ? 1 : shape.columns;
  const i64 m = whole ? shape.columns * shape.depth : shape.depth;
  for (i64 r = 0; r < shape.rows; ++r)
    for (i64 t = 0; t < taps; ++t) {
      i64 count = 0;
      for (int i = 0; i < n; ++i) {
        const Images<R>&in = sums[i].in, &g = sums[i].g;
        const i64 in_step = lines.over_samples ? in.sample : s.step[1] * in.pixel;
        const i64 g_step = lines.over_samples ? g.sample : g.pixel;
        for (i64 sample = 0; sample < lines.samples; ++sample)
          for (i64 y = 0; y < lines.per_sample; ++y)
            terms[count++] = {in.at(sample, y * s.step[0] + s.first[0] + r * s.apart[0],
                                    s.first[1] + t * s.apart[1]),
                              1, in_step, g.at(sample, y, 0), g_step, lanes<R>, lines.length};
      }
      const i64 before = (r * shape.columns + t) * shape.depth;
      product_at_once<Broadcast>(terms, int(count), below(to, before), m, vectors);
    }
}

}  // namespace fastmeta::FASTMETA_ISA
