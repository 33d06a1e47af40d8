// The passes over the stages for one task: forward, backward, and the R-pass.
//
// Each sweeps over chunks of samples. A chunk goes through the tail of the stage below, the product
// and the sums of the norm while it is in the cache; only the products' results z are kept whole. The
// crew shares the chunks; sums over chunks have an order that the crew's size does not change.
#pragma once

#include "head.h"
#include "stage_backward.h"

namespace fastmeta::FASTMETA_ISA {

template <class Team>
class StagePasses : StageBackward<Team> {
  using Base = StageBackward<Team>;
  using Base::at, Base::constants, Base::each_chunk, Base::g, Base::goes_deeper, Base::lowest_wanted_, Base::moved,
      Base::n_, Base::normed, Base::plan_, Base::product, Base::put_input_of, Base::put_r_input_of, Base::r_,
      Base::rg, Base::rz, Base::side_, Base::room, Base::stage_backward, Base::theta_, Base::v_, Base::values_,
      Base::wants_gradient, Base::with_tail, Base::work, Base::x_, Base::z;

 public:
  using R = typename Team::Real;
  using V = Vec<R>;
  using Plan = StagePlan<Team>;
  static constexpr i64 W = Team::W;
  static constexpr bool may_replace_direction = false;

  StagePasses(const Plan& plan, R* scratch, const Crew& crew)
      : Base(plan, scratch, crew), last_(plan.n_stages - 1),
        head_(plan.loop.network, plan.outputs(),
              {at(plan.y_at), at(plan.coefficient_at), at(plan.curvature_at), at(plan.program_at)}) {}

  void take(const Samples<R>& samples, Slice slice) {
    take_inputs(samples, slice);
    head_.take(samples, slice);
  }
  void take_inputs(const Samples<R>& samples, Slice slice) {
    n_ = samples.n;
    x_ = samples.x + slice.first * n_ * plan_.sample_size();
  }

  void scale_coefficients(V factor) { head_.scale_coefficients(factor); }

  // keep: where the values go for a later resume(), or nullptr.
  void forward(const R* theta, R* keep) {
    theta_ = theta;
    values_ = keep ? keep : at(plan_.values_at);
    for (int l = 0; l <= last_; ++l) {
      turn_weights(l, false);
      each_chunk(l, [&](i64 worker, i64 first, i64 n) { stage_forward(l, worker, first, n); });
      if (normed(l)) this->settle_moments(l);
    }
    put_output();
  }

  void resume(const R* kept, const R* theta) {
    theta_ = theta;
    values_ = const_cast<R*>(kept);
    put_output();
  }

  // [n][stride of outputs], images as PyTorch has them; and the derivative of that.
  const R* predictions() const { return at(plan_.output_at); }
  const R* r_predictions() const { return at(plan_.r_output_at); }
  V loss() const { return head_.loss(predictions()); }

  void loss_gradient() {
    side_ = 0;
    head_.gradient(predictions(), output_g());
    if (plan_.gives_images()) put_gradient(output_g());
  }
  void zero_gradient() {
    side_ = 0;
    head_.zero(output_g());
    if (plan_.gives_images()) put_gradient(output_g());
  }
  void add_gradient(const R* outside, Slice slice) {
    head_.add(output_g(), at(plan_.r_output_at), outside, slice);
    if (plan_.gives_images()) put_gradient(output_g());
  }
  // Of the predictions, laid out as they are; a backward begins with it, an R-pass with both.
  void put_gradient(const R* rows) {
    side_ = 0;
    put_images(g(last_), rows);
  }
  void put_r_gradient(const R* rows) { put_images(rg(last_), rows); }

  void backward(const R* theta, int lowest, const GradientTarget<R>& target, bool into_input) {
    theta_ = theta;
    r_ = false;
    if (!into_input) lowest = int(larger(lowest, plan_.lowest_learned));
    lowest_wanted_ = into_input ? -1 : lowest;
    for (int l = last_; l >= lowest; --l) {
      if (normed(l)) this->settle_gradients(l);
      stage_backward(l, nullptr, wants_gradient(l, target) ? &target : nullptr, nullptr, goes_deeper(l));
    }
  }

  // As Passes::r_pass.
  void r_pass(const R* theta, const R* v, int lowest, const GradientTarget<R>& target,
              const GradientTarget<R>* gradient, bool into_input) {
    r_forward(theta, v);
    R* const rows = plan_.gives_images() ? at(plan_.output_rg_at) : rg(last_);
    head_.r_gradient(predictions(), at(plan_.r_output_at), rows);
    if (plan_.gives_images()) put_r_gradient(rows);
    r_backward(v, lowest, target, gradient, into_input);
  }

  // The two halves of an R-pass.
  void r_forward(const R* theta, const R* v) {
    theta_ = theta;
    v_ = v;
    r_ = true;
    r_forward();
  }
  void r_backward(const R* v, int lowest, const GradientTarget<R>& target,
                  const GradientTarget<R>* gradient, bool into_input) {
    if (!into_input) lowest = int(larger(lowest, plan_.lowest_learned));
    lowest_wanted_ = into_input ? -1 : lowest;
    for (int l = last_; l >= lowest; --l) {
      if (normed(l)) this->settle_gradients(l);
      stage_backward(l, v, &target, plan_.adapts(l) ? gradient : nullptr, goes_deeper(l));
    }
  }

  // Of the latest forward; see ForwardOut.
  void put_moments(R* const* out, Slice slice) const {
    for (int l = 0; l <= last_; ++l) {
      const i64 C = plan_.stage(l).c;
      if (!out[l] || !plan_.batch(l)) continue;
      R* to = out[l] + slice.first * 2 * C;
      std::memcpy(to, values_ + plan_.constants_at[l], sizeof(R) * size_t(C));
      std::memcpy(to + C, at(plan_.batch_variance_at[l]), sizeof(R) * size_t(C));
    }
  }

  const R* input_gradient_of_loss() { return g(-1); }
  const R* r_input_gradient_of_loss() { return rg(-1); }

  // A gradient of the inputs, [n, H, W, C], into PyTorch's [T, n, C, H, W].
  void put_input(R* out, const R* gradient, Slice slice) const {
    const StageProduct<Team> first = product(0);
    const i64 C = first.s.in_c, pixels = first.s.in_h * first.s.in_w, ld = first.ld_gradient;
    out += slice.first * n_ * C * pixels;
    for (i64 s = 0; s < n_; ++s, out += C * pixels, gradient += pixels * ld)
      for (i64 c = 0; c < C; ++c)
        for (i64 p = 0; p < pixels; ++p) out[c * pixels + p] = gradient[p * ld + c];
  }

 private:
  // ---- forward --------------------------------------------------------------------------------

  // vector: theta_ or v_
  Correlated<R> weighted(int l, const Images<R>& images, const R* vector) const {
    const R* weight = product(l).turns() ? at(plan_.flipped_at[vector != theta_]) : vector + plan_.weight_at[l];
    return {images, product(l).filter(weight)};
  }
  // Of a transposed convolution, which multiplies as the gradient of a convolution does, and of one in tiles.
  void turn_weights(int l, bool of_direction) {
    const StageProduct<Team> own = product(l);
    if (!own.turns()) return;
    own.turn(at(plan_.flipped_at[0]), theta_ + plan_.weight_at[l]);
    if (of_direction) own.turn(at(plan_.flipped_at[1]), v_ + plan_.weight_at[l]);
  }
  const R* bias(int l, const R* vector) const {
    return plan_.bias_at[l] < 0 ? nullptr : vector + plan_.bias_at[l];
  }

  void stage_forward(int l, i64 worker, i64 first, i64 n) {
    const StageProduct<Team> own = product(l);
    const Images<R> out = own.output(z(l, first));
    if (!own.any()) {
      put_input_of(l, worker, first, n, out);
    } else {
      const Images<R> x = own.bordered_input(work(worker, plan_.x_at), n);
      put_input_of(l, worker, first, n, x);
      const Correlated<R> sum = weighted(l, x, theta_);
      own.forward(&sum, 1, n, out, bias(l, theta_), room(worker));
    }
    if (normed(l) && !plan_.running(l))
      for (i64 i = first; i < first + n; ++i) this->moments(l, i);
  }

  void put_output() {
    const Images<R> out = output_images(at(plan_.output_at), g(last_));
    with_tail(last_, 0, [&](auto own) {
      for (i64 i = 0; i < n_; ++i) own.forward(z(last_, i), constants(last_, i), moved(out, i));
    });
    if (plan_.gives_images()) take_images(at(plan_.output_at), out.p);
  }

  R* output_g() { return plan_.gives_images() ? at(plan_.output_g_at) : g(last_); }

  // Where the last stage puts what it makes: where predictions lie, or images beside them.
  Images<R> output_images(R* rows, R* images) const {
    const i64 ld = plan_.ld(last_), row = plan_.stage(last_).out_w * ld;
    return {plan_.gives_images() ? images : rows, plan_.out_size(last_), row, ld};
  }

  // Images [pixels][ld] into rows of numbers [channels][pixels], as PyTorch has them, and back.
  void take_images(R* rows, const R* images) const {
    const i64 width = plan_.outputs(), of_row = Team::stride(width);
    for (i64 i = 0; i < n_; ++i)
      std::memset(rows + i * of_row + width, 0, sizeof(R) * size_t(of_row - width));
    each_number([&](i64 row, i64 pixel, i64, i64) { rows[row] = images[pixel]; });
  }
  void put_images(R* images, const R* rows) const {
    const i64 ld = plan_.ld(last_);
    each_number([&](i64 row, i64 pixel, i64 c, i64 channels) {
      images[pixel] = rows[row];
      if (c + 1 == channels)
        for (i64 pad = 1; pad + c < ld; ++pad) images[pixel + pad] = 0;
    });
  }
  // f(number of a row, number of an image, channel, channels)
  template <class F>
  FASTMETA_INLINE void each_number(F f) const {
    const i64 C = plan_.stage(last_).c, pixels = plan_.out_pixels(last_), ld = plan_.ld(last_);
    const i64 of_row = Team::stride(plan_.outputs());
    for (i64 i = 0; i < n_; ++i)
      for (i64 p = 0; p < pixels; ++p)
        for (i64 c = 0; c < C; ++c)
          f(i * of_row + c * pixels + p, (i * pixels + p) * ld + c, c, C);
  }

  void r_forward() {
    for (int l = 0; l <= last_; ++l) {
      if (l < plan_.lowest_adapted) {
        std::memset(rz(l, 0), 0, sizeof(R) * size_t(n_ * plan_.z_size(l)));
        std::memset(at(plan_.rconstants_at[l]), 0,
                    sizeof(R) * size_t(plan_.sets(l, n_) * 2 * plan_.ld(l)));
        continue;
      }
      turn_weights(l, plan_.weight_adapts(l));
      each_chunk(l, [&](i64 worker, i64 first, i64 n) {
        stage_r_forward(l, worker, first, n);
        if (normed(l) && !plan_.running(l))
          for (i64 i = first; i < first + n; ++i) this->r_moments(l, i);
      });
      if (normed(l)) this->settle_r_moments(l);
    }
    const Images<R> out = output_images(at(plan_.r_output_at), rg(last_));
    with_tail(last_, 0, [&](auto own) {
      for (i64 i = 0; i < n_; ++i)
        own.r_forward(z(last_, i), rz(last_, i), constants(last_, i), moved(out, i));
    });
    if (plan_.gives_images()) take_images(at(plan_.r_output_at), out.p);
  }

  // Rz = Rx W + x V
  void stage_r_forward(int l, i64 worker, i64 first, i64 n) {
    const StageProduct<Team> own = product(l);
    const Images<R> out = own.output(rz(l, first));
    if (!own.any()) {
      if (!put_r_input_of(l, worker, first, n, out)) fill(out, n * plan_.z_pixels(l), nullptr);
      return;
    }
    Correlated<R> sums[2];
    int count = 0;
    const Images<R> rx = own.bordered_input(work(worker, plan_.rx_at), n);
    if (put_r_input_of(l, worker, first, n, rx)) sums[count++] = weighted(l, rx, theta_);
    if (plan_.weight_adapts(l)) {
      const Images<R> x = own.bordered_input(work(worker, plan_.x_at), n);
      put_input_of(l, worker, first, n, x);
      sums[count++] = weighted(l, x, v_);
    }
    if (count || own.has_whole_biases())
      own.forward(sums, count, n, out, bias(l, v_), room(worker));
    else
      fill(out, n * plan_.z_pixels(l), bias(l, v_));
  }

  // Every pixel with a row, or with zeros.
  void fill(const Images<R>& images, i64 pixels, const R* row) const {
    if (!row) row = at(plan_.zeros_at);
    for (i64 p = 0; p < pixels; ++p)
      std::memcpy(images.p + p * images.pixel, row, sizeof(R) * size_t(images.pixel));
  }

  const int last_;
  Head<Team> head_;
};

}  // namespace fastmeta::FASTMETA_ISA
