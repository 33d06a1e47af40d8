// The passes over the stages for one task: forward, backward, and the R-pass.
//
// Each sweeps over chunks of samples. A chunk goes through the tail of the stage below, the product
// and the sums of the norm while it is in the cache; only the products' results z are kept whole. The
// crew shares the chunks; sums over chunks have an order that the crew's size does not change.
#pragma once

#include "head.h"
#include "stage_norms.h"

namespace fastmeta::FASTMETA_ISA {

template <class Team>
class StagePasses : StageNorms<Team> {
  using Base = StageNorms<Team>;
  using Base::add_to, Base::at, Base::constants, Base::crew_, Base::each_chunk, Base::g,
      Base::g_below, Base::goes_deeper, Base::join_gradients, Base::lowest_wanted_, Base::moved, Base::n_, Base::normed,
      Base::out_size, Base::plan_, Base::product, Base::put_input_of, Base::put_r_input_of, Base::r_,
      Base::rg, Base::rg_below, Base::rz, Base::side_, Base::spread_gradient, Base::room,
      Base::theta_, Base::v_, Base::values_, Base::with_tail, Base::work, Base::x_, Base::z;

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

  // ---- backward -------------------------------------------------------------------------------

  static bool inner(const GradientTarget<R>& target) {
    return target.finish == Finish::Step || target.finish == Finish::RateGrad;
  }
  bool wants_gradient(int l, const GradientTarget<R>& target) const {
    return !inner(target) || plan_.adapts(l);
  }

  // Where the gradient of a stage's parameters goes. The weight's may end where it is wanted; what
  // all others' become is up to apply().
  struct Into {
    R* sums = nullptr;  // [the stage's parameters]; nullptr: nobody wants them
    Target<R> weight{nullptr, 0};
  };

  // With g the gradient of the stage's output: that of its parameters goes to `target`, or with v the
  // derivative of that along v, and the plain one to `plain`. g and rg move on to its input.
  void stage_backward(int l, const R* v, const GradientTarget<R>* target, const GradientTarget<R>* plain,
                      bool deeper) {
    const StageProduct<Team> own = product(l);
    if (deeper && own.any()) {
      own.flip(at(plan_.flipped_at[0]), theta_ + plan_.weight_at[l]);
      if (v && plan_.weight_adapts(l)) own.flip(at(plan_.flipped_at[1]), v + plan_.weight_at[l]);
    }
    const GradientTarget<R>* const targets[2] = {target, plain};
    if (own.ends_at_once(n_))
      backward_at_once(l, v, targets, deeper);
    else
      backward_in_chunks(l, v, targets, deeper);
    if (target && normed(l)) {
      this->norm_gradient(l, at(plan_.total_at[0]), v != nullptr);
      if (plain) this->norm_gradient(l, at(plan_.total_at[1]), false);
    }
    if (plain) apply(l, *plain, at(plan_.total_at[1]));  // before lambda, which it reads, moves on
    if (target) apply(l, *target, at(plan_.total_at[0]));
    if (deeper) side_ = 1 - side_;
  }

  void backward_at_once(int l, const R* v, const GradientTarget<R>* const* targets, bool deeper) {
    const i64 size = plan_.begin_at[l + 1] - plan_.begin_at[l], weight = product(l).filter_size();
    Into into[2];
    for (int i = 0; i < 2; ++i) {
      if (!targets[i]) continue;
      into[i].sums = at(plan_.total_at[i]);
      std::memset(into[i].sums + weight, 0, sizeof(R) * size_t(size - weight));
      const Piece& piece = plan_.pieces[plan_.first_piece[l]];
      if (reaches(*targets[i], piece)) into[i].weight = target_of(*targets[i], piece);
    }
    chunk_backward(l, 0, 0, n_, v, into, deeper);
  }

  // Run 0 adds up in the totals. One run after another needs one buffer more; the sums are the same.
  void backward_in_chunks(int l, const R* v, const GradientTarget<R>* const* targets, bool deeper) {
    const StageProduct<Team> own = product(l);
    const i64 chunks = own.chunks(n_), runs = own.runs(n_);
    const i64 size = plan_.begin_at[l + 1] - plan_.begin_at[l];
    const bool alone = crew_.threads == 1;
    const auto sums = [&](i64 run, i64 i) {
      if (run == 0) return at(plan_.total_at[i]);
      return at(plan_.runs_at) + ((alone ? 0 : run - 1) * 2 + i) * size;
    };
    const auto add = [&](i64 run) {
      for (i64 i = 0; i < 2 && run; ++i)
        if (targets[i]) add_to(sums(0, i), sums(run, i), size);
    };
    crew_.each(runs, [&](i64 worker, i64 run) {
      Into into[2];
      for (i64 i = 0; i < 2; ++i) {
        if (!targets[i]) continue;
        into[i].sums = sums(run, i);
        const i64 stored = own.is_dense() ? own.filter_size() : 0;  // by the first chunk
        std::memset(into[i].sums + stored, 0, sizeof(R) * size_t(size - stored));
        into[i].weight = {into[i].sums, own.ld, own.is_dense() ? Finish::Store : Finish::Add};
      }
      for (i64 chunk = chunks * run / runs; chunk < chunks * (run + 1) / runs; ++chunk) {
        const i64 first = n_ * chunk / chunks, n = n_ * (chunk + 1) / chunks - first;
        chunk_backward(l, worker, first, n, v, into, deeper);
        for (Into& each : into) each.weight.finish = Finish::Add;
      }
      if (alone) add(run);
    });
    for (i64 run = 0; !alone && run < runs; ++run) add(run);
  }

  void chunk_backward(int l, i64 worker, i64 first, i64 n, const R* v, const Into* into, bool deeper) {
    const StageProduct<Team> own = product(l);
    const i64 offset = first * own.in_size();
    const Images<R> below = own.input_gradient_images(g_below(l) + offset);
    const Images<R> r_below = own.input_gradient_images(rg_below(l) + offset);
    if (!own.any() && !deeper) return;
    if (!own.any() && (!plan_.joins(l) || this->join(l).adds_alike())) {
      z_gradients(l, worker, first, n, v != nullptr, below, r_below);
      return spread_gradient(l, first, n, v != nullptr);
    }
    const Images<R> gz = own.bordered_gradient(work(worker, plan_.gz_at), n);
    const Images<R> rgz =
        v ? own.bordered_gradient(work(worker, plan_.rgz_at), n) : Images<R>{nullptr, 0, 0, 0};
    z_gradients(l, worker, first, n, v != nullptr, gz, rgz);
    if (!own.any()) return join_gradients(l, worker, first, n, v != nullptr, gz, rgz);
    if (into[0].sums) weight_gradients(l, worker, first, n, v != nullptr, gz, rgz, into);
    if (!deeper) return;
    R* const flipped[2] = {at(plan_.flipped_at[0]), at(plan_.flipped_at[1])};
    own.input_gradient(&gz, flipped, 1, n, below, room(worker));
    const Images<R> both[2] = {rgz, gz};
    if (v)
      own.input_gradient(both, flipped, plan_.weight_adapts(l) ? 2 : 1, n, r_below, room(worker));
    spread_gradient(l, first, n, v != nullptr);
  }

  void z_gradients(int l, i64 worker, i64 first, i64 n, bool r, const Images<R>& gz,
                   const Images<R>& rgz) {
    with_tail(l, worker, [&](auto own) {
      for (i64 i = 0; i < n; ++i) {
        const i64 sample = first + i;
        const Constants<R> c = constants(l, sample);
        const R* above = g(l) + sample * out_size(l);
        if (r)
          own.r_backward(z(l, sample), rz(l, sample), above, rg(l) + sample * out_size(l), c,
                         moved(gz, i), moved(rgz, i));
        else
          own.backward(z(l, sample), above, c, moved(gz, i));
      }
    });
  }

  void weight_gradients(int l, i64 worker, i64 first, i64 n, bool r, const Images<R>& gz,
                        const Images<R>& rgz, const Into* into) {
    const StageProduct<Team> own = product(l);
    const Images<R> x = own.bordered_input(work(worker, plan_.x_at), n);
    put_input_of(l, worker, first, n, x);
    const auto add = [&](const Outer<R>* sums, int count, const Into& to) {
      if (to.weight.c) own.weight_gradient(sums, count, n, to.weight, room(worker));
      if (plan_.bias_at[l] >= 0)
        own.add_bias_gradient(sums[0].g, n, to.sums + plan_.bias_at[l] - plan_.begin_at[l]);
    };
    const Outer<R> plain{x, gz};
    if (into[1].sums) add(&plain, 1, into[1]);
    if (!r) return add(&plain, 1, into[0]);
    Outer<R> sums[2] = {{x, rgz}};
    const Images<R> rx = own.bordered_input(work(worker, plan_.rx_at), n);
    const bool has_r = put_r_input_of(l, worker, first, n, rx);
    if (has_r) sums[1] = {rx, gz};
    add(sums, has_r ? 2 : 1, into[0]);
  }

  bool reaches(const GradientTarget<R>& target, const Piece& p) const {
    return !inner(target) || plan_.has_rate(p.parameter);
  }
  Target<R> target_of(const GradientTarget<R>& target, const Piece& p) const {
    Target<R> to{target.c + p.at, Team::stride(p.columns), target.finish};
    to.from = target.from ? target.from + p.at : nullptr;
    to.scale = target.scale;
    to.rate = target.rate ? target.rate + p.shared_at : nullptr;
    to.rate_m = plan_.rate_row(p.parameter, p.columns);
    return to;
  }

  void apply(int l, const GradientTarget<R>& target, const R* total) const {
    const int done = product(l).ends_at_once(n_) ? 1 : 0;  // the weight
    for (int i = plan_.first_piece[l] + done; i < plan_.first_piece[l + 1]; ++i) {
      const Piece& p = plan_.pieces[i];
      if (!reaches(target, p)) continue;
      const i64 ld = Team::stride(p.columns), n = p.taps * p.rows;
      const Target<R> to = target_of(target, p);
      const R* sums = total + p.at - plan_.begin_at[l];
      for (i64 m = 0; m < n; ++m)
        for (i64 v = 0; v < ld / W; ++v) {
          const Vec<R> one[1][1] = {{load(sums + m * ld + v * W)}};
          finish<Broadcast>(to, m, v, one);
        }
    }
  }

  const int last_;
  Head<Team> head_;
};

}  // namespace fastmeta::FASTMETA_ISA
