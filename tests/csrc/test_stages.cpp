// Small random chains of stages: products of images, norms, activations and pools.
#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "checks.h"

namespace {

using namespace fastmeta;
using namespace fastmeta::test;

// ---- one random stage ---------------------------------------------------------------------------

// Does nothing yet to images of a shape.
Stage stage_of(i64 channels, i64 h, i64 w) {
  Stage s{};
  s.in_c = s.c = channels;
  s.in_h = s.h = s.out_h = h;
  s.in_w = s.w = s.out_w = w;
  s.weight = s.bias = s.gamma = s.beta = -1;
  for (auto* pair : {s.kernel, s.stride, s.window, s.pool_stride}) pair[0] = pair[1] = 1;
  s.groups = 1;
  return s;
}

Stage stage_after(const Stage& s) { return stage_of(s.c, s.out_h, s.out_w); }

// Along one axis.
struct Windows {
  i64 size, stride, padding;
  i64 count(i64 n) const { return (n + 2 * padding - size) / stride + 1; }
};

// In braces their draws have an order.
struct Grid {
  Windows y, x;
};

Windows any_kernel(Random& random, i64 n) {
  const i64 padding = random.below(3);
  const i64 size = 1 + random.below(std::min<i64>(4, n + 2 * padding));
  return {size, 1 + random.below(3), padding};
}
Windows whole_kernel(Random& random, i64 n) { return {n, 1 + random.below(3), 0}; }

Windows any_pool(Random& random, i64 n) {
  const i64 size = 1 + random.below(std::min<i64>(3, n));
  return {size, size + random.below(2), 0};
}
Windows only_pool(Random& random, i64 n) {
  const i64 size = 1 + random.below(n);
  return {size, std::max(size, n - size + 1) + random.below(2), 0};
}

void add_product(Case<double>& c, Random& random, Stage& s, i64 channels, Grid grid) {
  const auto& [y, x] = grid;
  s.product = true;
  s.c = channels;
  s.kernel[0] = y.size, s.stride[0] = y.stride, s.padding[0] = y.padding;
  s.kernel[1] = x.size, s.stride[1] = x.stride, s.padding[1] = x.padding;
  s.h = s.out_h = y.count(s.in_h);
  s.w = s.out_w = x.count(s.in_w);
  const i64 fan_in = s.in_c * y.size * x.size;
  s.weight = c.add_parameter(s.c * fan_in, 1 / std::sqrt(double(fan_in)));
  if (random.below(4)) s.bias = c.add_parameter(s.c);
}

void add_scale(Case<double>& c, Random& random, Stage& s) {
  s.product = true;
  s.scale = random.coin() ? ScaleKind::Elements : ScaleKind::Pixels;
  const i64 size = (s.scale == ScaleKind::Elements ? s.c : 1) * s.h * s.w;
  s.weight = c.add_parameter(size, 1.5);
  if (random.below(4)) s.bias = c.add_parameter(size);
}

void add_norm(Case<double>& c, Random& random, Stage& s, NormKind kind) {
  s.norm = kind;
  if (s.norm == NormKind::None) return;
  if (s.norm == NormKind::Group) s.groups = random.one_of({1, s.c, s.c % 4 ? 1 : 4});
  s.eps = random.coin() ? 0.1 : 0.01;
  if (random.coin()) s.gamma = c.add_parameter(s.c);
  if (random.coin()) s.beta = c.add_parameter(s.c);
}

void add_pool(Stage& s, PoolKind kind, Grid grid) {
  const auto& [y, x] = grid;
  s.pool = kind;
  s.window[0] = y.size, s.pool_stride[0] = y.stride;
  s.window[1] = x.size, s.pool_stride[1] = x.stride;
  s.out_h = y.count(s.h);
  s.out_w = x.count(s.w);
}

void add_activation(Stage& s, ActivationKind kind) {
  s.activates = true;
  s.activation = activation(kind, s.c);
}

// The last stage leaves one pixel.
Stage any_stage(Case<double>& c, Random& random, Stage s, ActivationKind kind, bool last) {
  const i64 channels = random.one_of({1, 3, 16, 17});
  const int product = random.below(last ? 4 : 7);
  if (product == 1)  // a linear layer
    add_product(c, random, s, channels,
                {whole_kernel(random, s.in_h), whole_kernel(random, s.in_w)});
  else if (product == 2)
    add_scale(c, random, s);
  else if (product)
    add_product(c, random, s, channels, {any_kernel(random, s.in_h), any_kernel(random, s.in_w)});
  add_norm(c, random, s, NormKind(random.below(3)));
  if (random.below(4)) add_activation(s, kind);
  const PoolKind pool = random.coin() ? PoolKind::Average : PoolKind::Max;
  if (last && s.h * s.w > 1)
    add_pool(s, pool, {only_pool(random, s.h), only_pool(random, s.w)});
  else if (random.coin())
    add_pool(s, pool, {any_pool(random, s.h), any_pool(random, s.w)});
  return s;
}

// The stage that most networks of images have. With the same pool its tail has kernels of its own.
constexpr Windows common_pool{2, 2, 0};
using MaybeActivation = std::optional<ActivationKind>;

Stage common_stage(Case<double>& c, Random& random, Stage s, i64 channels, NormKind norm,
                   MaybeActivation kind, Windows pool) {
  add_product(c, random, s, channels, {{3, 1, 1}, {3, 1, 1}});
  add_norm(c, random, s, norm);
  if (kind) add_activation(s, *kind);
  add_pool(s, PoolKind::Max, {pool, pool});
  return s;
}

// ---- networks -----------------------------------------------------------------------------------

void add_any(Case<double>& c, Random& random, i64 n, Stage next, ActivationKind kind) {
  for (; n > 0; --n) {
    c.stages.push_back(any_stage(c, random, next, kind, n == 1));
    next = stage_after(c.stages.back());
  }
}

Case<double> make_any(unsigned seed, ActivationKind kind, LossKind loss, i64 tasks) {
  return make_case(seed, loss, tasks, [&](Case<double>& c, Random& random) {
    const i64 channels = random.one_of({1, 3, 16, 17});
    const i64 h = 1 + random.below(8), w = 1 + random.below(8);
    add_any(c, random, 1 + random.below(4), stage_of(channels, h, w), kind);
  });
}

Case<double> make_common(unsigned seed, NormKind norm, MaybeActivation kind) {
  return make_case(seed, LossKind::CrossEntropy, 2, [&](Case<double>& c, Random& random) {
    c.steps = c.order = 2;
    const Stage input = stage_of(3, 4 + random.below(4), 4 + random.below(4));
    c.stages.push_back(common_stage(c, random, input, 17, norm, kind, common_pool));
    const Stage next = stage_after(c.stages.back());
    c.stages.push_back(common_stage(c, random, next, 5, norm, kind, common_pool));
  });
}

// So large that samples are worked on in more than one chunk, in float64 in more chunks than runs.
Case<double> make_large(unsigned seed, NormKind norm, Windows pool, i64 tasks) {
  return make_case(seed, LossKind::CrossEntropy, tasks, [&](Case<double>& c, Random& random) {
    c.support_n = 9, c.query_n = 2;
    c.steps = 1, c.order = 2;
    const Stage input = stage_of(1, 30, 31);
    c.stages.push_back(
        common_stage(c, random, input, 17, norm, ActivationKind::ReLU, pool));
    add_any(c, random, 1, stage_after(c.stages.back()), ActivationKind::Tanh);
  });
}

// ---- all of it ----------------------------------------------------------------------------------

void check_any(const Variant& variant) {
  unsigned seed = 1;
  for (int repeat = 0; repeat < 2; ++repeat)
    for (int kind = 0; kind <= int(ActivationKind::Softplus); ++kind)
      for (int loss = 0; loss <= int(LossKind::BinaryCrossEntropy); ++loss, ++seed) {
        const i64 tasks = std::vector<i64>{1, 2, 5, 7}[seed % 4];
        const auto c = make_any(seed, ActivationKind(kind), LossKind(loss), tasks);
        check_case(variant, c, std::string(variant.name) + ", seed " + std::to_string(seed));
      }
}

void check_common(const Variant& variant) {
  const MaybeActivation kinds[] = {{}, ActivationKind::ReLU, ActivationKind::LeakyReLU};
  unsigned seed = 1;
  for (NormKind norm : {NormKind::Batch, NormKind::Group})
    for (MaybeActivation kind : kinds) {
      const auto c = make_common(seed, norm, kind);
      check_case(variant, c, std::string(variant.name) + ", common, seed " + std::to_string(seed));
      ++seed;
    }
}

// A crew shares the samples of a task, and of the tasks that are more than the threads.
void check_large(const Variant& variant) {
  const auto one = make_large(1, NormKind::Batch, common_pool, 1);
  const auto three = make_large(2, NormKind::Group, {4, 5, 0}, 3);
  check_case(variant, one, std::string(variant.name) + ", one large task");
  check_case(variant, three, std::string(variant.name) + ", three large tasks");

  auto out = outputs_of(one, Wanted::Few);
  const int before = threads_started;
  forward<double>(*variant.f64, Call<double>(one, 4), nullptr, out);
  expect(threads_started > before, variant.name, "the threads did not share the only task");
}

}  // namespace

int main() {
  for (const Variant* v = variants(); v->name; ++v) {
    if (!v->runs_here()) continue;
    check_any(*v);
    check_common(*v);
    check_large(*v);
  }
  release_memory();
  if (!failures) std::printf("stages agree, %d threads started\n", threads_started.load());
  return failures != 0;
}
