// A convolution of many tasks by itself, and its two transposes.
//
// Chunks of samples go into channels-last scratch inside a border of zeros and come out of it again;
// nothing else is copied. Chunks and runs depend on shapes alone, so threads do not change the bits.
#include <cstdint>
#include <cstring>
#include <numeric>
#include <type_traits>
#include <utility>

#include "dispatch.h"
#include "runtime.h"

#include "crew.h"
#include "team.h"
//
#include "correlation_in_groups.h"
#include "correlation_in_tiles.h"
//
#include "../network/stage_product.h"
#include "stages.h"

namespace fastmeta::FASTMETA_ISA {

namespace {

using Real = FASTMETA_REAL;
using Team = Solo<Real>;
using Product = StageProduct<Team>;

struct Chunk {
  i64 task, first, n;
};

Chunk chunk_of(const Convolution<Real>& c, i64 chunks, i64 i) {
  const i64 task = i / chunks, chunk = i % chunks;
  const i64 first = c.samples * chunk / chunks;
  return {task, first, c.samples * (chunk + 1) / chunks - first};
}

// ---- between a tensor of any strides and channels last ------------------------------------------

// [channels] x [pixels of a row], in squares that fit the first-level cache.
void transpose_row(Real* to, i64 to_pixel, i64 to_channel, const Real* from, i64 from_pixel,
                   i64 from_channel, i64 pixels, i64 channels) {
  constexpr i64 side = 16;
  for (i64 c0 = 0; c0 < channels; c0 += side)
    for (i64 p0 = 0; p0 < pixels; p0 += side)
      for (i64 p = p0; p < smaller(p0 + side, pixels); ++p)
        for (i64 c = c0; c < smaller(c0 + side, channels); ++c)
          to[p * to_pixel + c * to_channel] = from[p * from_pixel + c * from_channel];
}

// Channels past the last one are zeros.
void gather(const Batch<Real>& from, const Chunk& chunk, i64 channels, i64 h, i64 w,
            const Images<Real>& to) {
  for (i64 i = 0; i < chunk.n; ++i)
    for (i64 y = 0; y < h; ++y) {
      const Real* row =
          from.data + chunk.task * from.task + (chunk.first + i) * from.sample + y * from.row;
      Real* out = to.at(i, y, 0);
      if (from.channel == 1) {
        for (i64 x = 0; x < w; ++x)
          std::memcpy(out + x * to.pixel, row + x * from.pixel, sizeof(Real) * size_t(channels));
      } else {
        transpose_row(out, to.pixel, 1, row, from.pixel, from.channel, w, channels);
      }
      for (i64 x = 0; x < w && channels < to.pixel; ++x)
        std::memset(out + x * to.pixel + channels, 0,
                    sizeof(Real) * size_t(to.pixel - channels));
    }
}

void scatter(const Batch<Real>& to, const Chunk& chunk, i64 channels, i64 h, i64 w,
             const Images<Real>& from) {
  for (i64 i = 0; i < chunk.n; ++i)
    for (i64 y = 0; y < h; ++y) {
      Real* row = to.data + chunk.task * to.task + (chunk.first + i) * to.sample + y * to.row;
      const Real* in = from.at(i, y, 0);
      if (to.channel == 1) {
        for (i64 x = 0; x < w; ++x)
          std::memcpy(row + x * to.pixel, in + x * from.pixel, sizeof(Real) * size_t(channels));
      } else {
        transpose_row(row, to.pixel, to.channel, in, from.pixel, 1, w, channels);
      }
    }
}

// Can the kernels write there directly, whole vectors a pixel?
bool direct(const Batch<Real>& b, i64 channels) {
  const auto aligned = [](i64 stride) { return stride % Team::W == 0; };
  return b.channel == 1 && channels % Team::W == 0 &&
         reinterpret_cast<std::uintptr_t>(b.data) % FASTMETA_VECTOR_BYTES == 0 &&
         aligned(b.task) && aligned(b.sample) && aligned(b.row) && aligned(b.pixel);
}

Images<Real> images_of(const Batch<Real>& b, const Chunk& chunk) {
  return {b.data + chunk.task * b.task + chunk.first * b.sample, b.sample, b.row, b.pixel};
}

// ---- the three forms ----------------------------------------------------------------------------

// [O, C, kh, kw] as [taps * C][ld]
void put_filter(const Product& p, Real* to, const Real* weight) {
  const i64 taps = p.taps(), C = p.s.in_c;
  if (p.ld > p.s.c) std::memset(to, 0, sizeof(Real) * size_t(p.filter_size()));
  for (i64 tap = 0; tap < taps; ++tap)
    transpose_row(to + tap * C * p.ld, p.ld, 1, weight + tap, taps, C * taps, C, p.s.c);
}

// Every task's weights as the kernels want them, or one that all tasks share.
class Filters {
 public:
  Filters(const Product& p, const Convolution<Real>& c, bool flipped)
      : size_(round_up(flipped || p.turns() ? p.flipped_size() : p.filter_size(), 64)),
        task_(c.weight_task ? size_ : 0),
        memory_(i64(sizeof(Real)) * size_ * (c.weight_task ? c.tasks : 1)) {
    const bool as_they_lie = !flipped && !p.turns();
    const i64 own = c.weight_task ? c.tasks : 1;
    const i64 plain = round_up(p.filter_size(), 64);
    const Memory scratch(i64(sizeof(Real)) * (as_they_lie ? 0 : plain * c.threads));
    parallel(own, c.threads, [&](i64 worker, i64 t) {
      const Real* weight = c.weight + t * c.weight_task;
      if (as_they_lie) return put_filter(p, at(t), weight);
      Real* filter = static_cast<Real*>(scratch.data()) + worker * plain;
      put_filter(p, filter, weight);
      if (flipped) p.flip(at(t), filter);
      else p.turn(at(t), filter);
    });
  }
  Real* at(i64 task) const { return static_cast<Real*>(memory_.data()) + task * task_; }

 private:
  i64 size_, task_;
  Memory memory_;
};

// The scratch of every worker: two sets of images, a row, and what products need.
class Scratch {
 public:
  Scratch(const Convolution<Real>& c, i64 a, i64 b, const Product& p, i64 chunk)
      : a_(round_up(a, 64)), b_(round_up(b, 64)), terms_(terms_of(p, chunk)),
        size_(a_ + b_ + terms_ + round_up(p.tile_room(), 64)),
        memory_(i64(sizeof(Real)) * size_ * c.threads) {}
  Real* a(i64 worker) const { return static_cast<Real*>(memory_.data()) + worker * size_; }
  Real* b(i64 worker) const { return a(worker) + a_; }
  Room<Real> room(i64 worker) const {
    return {reinterpret_cast<Term<Real>*>(b(worker) + b_), b(worker) + b_ + terms_};
  }

 private:
  static i64 terms_of(const Product& p, i64 chunk) {
    return round_up(p.count_terms(chunk) * i64(sizeof(Term<Real>)) / i64(sizeof(Real)), 64);
  }

  i64 a_, b_, terms_, size_;
  Memory memory_;
};

void forward(const Product& p, const Convolution<Real>& c) {
  const i64 chunks = p.chunks(c.samples), most = p.largest_chunk(c.samples);
  const Filters filters(p, c, false);
  const Scratch scratch(c, most * p.x_size(), most * p.z_size() + p.ld, p, most);
  const bool in_place = direct(c.y, p.s.c);
  parallel(c.tasks * chunks, c.threads, [&](i64 worker, i64 i) {
    const Chunk chunk = chunk_of(c, chunks, i);
    const Images<Real> x = p.bordered_input(scratch.a(worker), chunk.n);
    gather(c.x, chunk, p.s.in_c, p.s.in_h, p.s.in_w, x);
    Real* bias = nullptr;
    if (c.bias) {
      bias = scratch.b(worker) + most * p.z_size();
      std::memset(bias, 0, sizeof(Real) * size_t(p.ld));
      std::memcpy(bias, c.bias + chunk.task * c.bias_task, sizeof(Real) * size_t(p.s.c));
    }
    const Images<Real> out =
        in_place ? images_of(c.y, chunk) : p.output(scratch.b(worker));
    const Correlated<Real> sum{x, p.filter(filters.at(chunk.task))};
    p.forward(&sum, 1, chunk.n, out, bias, scratch.room(worker));
    if (!in_place) scatter(c.y, chunk, p.s.c, p.s.h, p.s.w, out);
  });
}

void input_gradient(const Product& p, const Convolution<Real>& c) {
  const i64 chunks = p.chunks(c.samples), most = p.largest_chunk(c.samples);
  const Filters filters(p, c, true);
  const Scratch scratch(c, most * p.gz_size(), most * p.in_size(), p, most);
  const bool in_place = direct(c.x, p.s.in_c);
  parallel(c.tasks * chunks, c.threads, [&](i64 worker, i64 i) {
    const Chunk chunk = chunk_of(c, chunks, i);
    const Images<Real> gz = p.bordered_gradient(scratch.a(worker), chunk.n);
    gather(c.y, chunk, p.s.c, p.s.h, p.s.w, gz);
    const Images<Real> out =
        in_place ? images_of(c.x, chunk) : p.input_gradient_images(scratch.b(worker));
    Real* flipped = filters.at(chunk.task);
    p.input_gradient(&gz, &flipped, 1, chunk.n, out, scratch.room(worker));
    if (!in_place) scatter(c.x, chunk, p.s.in_c, p.s.in_h, p.s.in_w, out);
  });
}

void weight_gradient(const Product& p, const Convolution<Real>& c) {
  const i64 chunks = p.chunks(c.samples), runs = p.runs(c.samples), most = p.largest_chunk(c.samples);
  const i64 size = p.filter_size(), taps = p.taps(), C = p.s.in_c;
  const Scratch scratch(c, most * p.x_size(), most * p.gz_size(), p, most);
  const Memory sums(i64(sizeof(Real)) * c.tasks * runs * size);
  const auto sum_of = [&](i64 task, i64 run) {
    return static_cast<Real*>(sums.data()) + (task * runs + run) * size;
  };
  parallel(c.tasks * runs, c.threads, [&](i64 worker, i64 i) {
    const i64 task = i / runs, run = i % runs;
    Real* to = sum_of(task, run);
    std::memset(to, 0, sizeof(Real) * size_t(size));
    for (i64 k = chunks * run / runs; k < chunks * (run + 1) / runs; ++k) {
      const Chunk chunk = chunk_of(c, chunks, task * chunks + k);
      const Images<Real> x = p.bordered_input(scratch.a(worker), chunk.n);
      const Images<Real> gz = p.output(scratch.b(worker));
      gather(c.x, chunk, C, p.s.in_h, p.s.in_w, x);
      gather(c.y, chunk, p.s.c, p.s.h, p.s.w, gz);
      const Outer<Real> sum{x, gz};
      p.add_weight_gradient(&sum, 1, chunk.n, to, scratch.room(worker));
    }
  });
  parallel(c.tasks, c.threads, [&](i64, i64 task) {
    Real* total = sum_of(task, 0);
    for (i64 run = 1; run < runs; ++run)
      for (i64 i = 0; i < size; i += Team::W)
        store(total + i, load(total + i) + load(sum_of(task, run) + i));
    Real* to = c.weight + task * c.weight_task;
    for (i64 tap = 0; tap < taps; ++tap)
      transpose_row(to + tap, taps, C * taps, total + tap * C * p.ld, p.ld, 1, C, p.s.c);
  });
}

}  // namespace

void convolve(const Convolution<Real>& c) {
  const bool narrow = c.shape.in_c < least_channels_in_tiles;  // more than what fills a vector up
  const Product p(c.shape, narrow, c.samples);
  switch (c.form) {
    case ConvolutionForm::Forward:
      return forward(p, c);
    case ConvolutionForm::InputGradient:
      return input_gradient(p, c);
    case ConvolutionForm::WeightGradient:
      return weight_gradient(p, c);
  }
}

}  // namespace fastmeta::FASTMETA_ISA
