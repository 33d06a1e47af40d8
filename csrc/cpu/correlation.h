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

// One running sum of more terms loses more than PyTorch does. Shorter ones, for which the weights would
// stay in the first-level cache, were slower: 96 terms at 64 channels, 104 and 92 GFLOP/s for images of
// 14 and 7 pixels instead of 107 and 98.
constexpr i64 deepest_sum = 768;

// Terms that correlate() and correlate_weights() need room for: two sums, each twice.
inline i64 count_terms(i64 rows, i64 columns, i64 depth, i64 lines) {
  return 4 * rows * columns * (ceil_div(depth, deepest_sum) + 1) + 2 * lines;
}

// The taps of a row are neighbours in memory.
template <class R>
bool rows_are_whole(const Images<R>& in, const Filter<R>& f, const Sweep& s) {
  return in.pixel == f.depth && (s.apart[1] == 1 || f.columns == 1);
}

template <class R>
i64 put_terms(Term<R>* terms, const Correlated<R>& c, const Sweep& s, bool over_samples) {
  const Filter<R>& f = c.filter;
  const bool whole = rows_are_whole(c.in, f, s);
  const i64 taps = whole ? 1 : f.columns, depth = whole ? f.columns * f.depth : f.depth;
  const i64 step = over_samples ? c.in.sample : s.step[1] * c.in.pixel;
  const i64 block = ceil_div(depth, ceil_div(depth, deepest_sum));
  i64 n = 0;
  for (i64 r = 0; r < f.rows; ++r)
    for (i64 t = 0; t < taps; ++t)
      for (i64 k = 0; k < depth; k += block)
        terms[n++] = {c.in.at(0, s.first[0] + r * s.apart[0], s.first[1] + t * s.apart[1]) + k, step, 1,
                      f.w + ((r * f.columns + t) * f.depth + k) * f.ld, f.ld, lanes<R>,
                      smaller(block, depth - k)};
  return n;
}

// The sum of `n` correlations of one geometry; finish is Store, Bias or Add. `terms` is scratch.
template <class R>
void correlate(const Correlated<R>* sums, int n, const Sweep& s, const Images<R>& out,
               Target<R> target, i64 vectors, Term<R>* terms) {
  const Lines lines(s);
  i64 count = 0;
  for (int i = 0; i < n; ++i)
    count += put_terms(terms + count, sums[i], s, lines.over_samples);
  Term<R>* moved = terms + count;
  target.c_m = lines.over_samples ? out.sample : out.pixel;
  const Images<R>& in = sums[0].in;
  for (i64 begin = 0; begin < count;) {
    i64 depth = 0, end = begin;
    for (; end < count && (end == begin || depth + terms[end].depth <= deepest_sum); ++end)
      depth += terms[end].depth;
    for (i64 sample = 0; sample < lines.samples; ++sample)
      for (i64 y = 0; y < lines.per_sample; ++y) {
        const i64 offset = sample * in.sample + y * s.step[0] * in.row;
        for (i64 i = begin; i < end; ++i) {
          moved[i - begin] = terms[i];
          moved[i - begin].a += offset;
        }
        target.c = out.at(sample, y, 0);
        product_at_once<Broadcast>(moved, int(end - begin), target, lines.length, vectors);
      }
    target.finish = Finish::Add;
    begin = end;
  }
}

template <class R>
struct Outer {
  Images<R> in, g;
};

// to[rows][columns][depth][ld] += the sum of `n` outer products of one geometry.
template <class R>
void correlate_weights(const Outer<R>* sums, int n, const Sweep& s, R* to, const Filter<R>& shape,
                       i64 vectors, Term<R>* terms) {
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
      const Target<R> target{to + (r * shape.columns + t) * shape.depth * shape.ld, shape.ld,
                             Finish::Add};
      product_at_once<Broadcast>(terms, int(count), target, m, vectors);
    }
}

}  // namespace fastmeta::FASTMETA_ISA
