// Small random chains of stages: products of images, norms, activations and pools.
#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "checks.h"
#include "random_rows.h"

namespace {

using namespace fastmeta;
using namespace fastmeta::test;

// ---- one random stage ---------------------------------------------------------------------------

// Does nothing yet to images of a shape.
Stage stage_of(i64 channels, i64 h, i64 w) {
  Stage s{};
  s.other = no_stage;
  s.in_c = s.c = channels;
  s.in_h = s.h = s.out_h = h;
  s.in_w = s.w = s.out_w = w;
  s.weight = s.bias = s.gamma = s.beta = s.mean = s.variance = -1;
  for (auto* pair : {s.kernel, s.stride, s.dilation, s.window, s.pool_stride}) pair[0] = pair[1] = 1;
  s.groups = 1;
  return s;
}

Stage stage_after(const Stage& s) { return stage_of(s.c, s.out_h, s.out_w); }

// After the latest stage, or first of all.
void append(Case<double>& c, Stage s) {
  s.input = int(c.stages.size()) - 1;
  c.stages.push_back(s);
}

// After stage m, with what that one gives or, m < 0, with the network's input.
Stage stage_reading(const Case<double>& c, int m) {
  const Stage& first = c.stages.front();
  Stage s = m < 0 ? stage_of(first.in_c, first.in_h, first.in_w) : stage_after(c.stages[size_t(m)]);
  s.input = m;
  return s;
}

// Along one axis.
struct Windows {
  i64 size, stride, before, behind, dilation = 1;
  i64 count(i64 n) const {
    return (n + before + behind - (size - 1) * dilation - 1) / stride + 1;
  }
};

// In braces their draws have an order.
struct Grid {
  Windows y, x;
};

Windows any_kernel(Random& random, i64 n) {
  const i64 before = random.below(3), behind = random.below(4) ? before : random.below(3);
  const i64 most = n + before + behind, size = 1 + random.below(std::min<i64>(4, most));
  const i64 dilation = size > 1 ? 1 + random.below(std::min<i64>(3, (most - 1) / (size - 1))) : 1;
  return {size, 1 + random.below(3), before, behind, random.coin() ? dilation : 1};
}
Windows whole_kernel(Random& random, i64 n) { return {n, 1 + random.below(3), 0, 0}; }

Windows any_pool(Random& random, i64 n) {
  const i64 size = 1 + random.below(std::min<i64>(3, n));
  if (random.coin()) return {size, size + random.below(2), 0, 0};
  const i64 border = random.below(size / 2 + 1), stride = 1 + random.below(3);
  if (random.below(3)) return {size, stride, border, border};
  const i64 left_out = random.below(n - size + 1);  // on both sides together
  return {size, stride, -(left_out / 2), -(left_out - left_out / 2)};
}
Windows only_pool(Random& random, i64 n) {
  const i64 size = 1 + random.below(n);
  return {size, std::max(size, n - size + 1) + random.below(2), 0, 0};
}

void put_kernel(Stage& s, int axis, const Windows& w) {
  s.kernel[axis] = w.size, s.stride[axis] = w.stride, s.dilation[axis] = w.dilation;
  s.before[axis] = w.before, s.behind[axis] = w.behind;
}

void add_parameters(Case<double>& c, Random& random, Stage& s, i64 fan_in) {
  s.weight = c.add_parameter(s.c * fan_in, 1 / std::sqrt(double(fan_in)));
  if (random.below(4)) s.bias = c.add_parameter(s.c);
}

void put_product(Stage& s, ProductKind kind, i64 channels, Grid grid) {
  s.product = kind;
  s.c = channels;
  put_kernel(s, 0, grid.y), put_kernel(s, 1, grid.x);
  s.h = s.out_h = grid.y.count(s.in_h);
  s.w = s.out_w = grid.x.count(s.in_w);
}

void add_product(Case<double>& c, Random& random, Stage& s, i64 channels, Grid grid) {
  put_product(s, ProductKind::Dense, channels, grid);
  add_parameters(c, random, s, s.in_c * grid.y.size * grid.x.size);
}

// Of 1, 2, 4, 8 or 16 channels where they divide those that there are.
i64 any_group(Random& random, i64 channels) {
  const i64 size = random.one_of({1, 2, 4, 8, 16});
  return channels % size ? 1 : size;
}

void add_grouped(Case<double>& c, Random& random, Stage& s, Grid grid) {
  const i64 size = any_group(random, s.in_c), groups = s.in_c / size;
  const i64 given = random.one_of({size, 2 * size, std::max<i64>(1, size / 2)});
  put_product(s, ProductKind::Grouped, groups * given, grid);
  s.product_groups = groups;
  add_parameters(c, random, s, size * grid.y.size * grid.x.size);
}

void add_scale(Case<double>& c, Random& random, Stage& s) {
  s.product = random.coin() ? ProductKind::Elements : ProductKind::Pixels;
  const i64 size = (s.product == ProductKind::Elements ? s.c : 1) * s.h * s.w;
  s.weight = c.add_parameter(size, 1.5);
  if (random.below(4)) s.bias = c.add_parameter(size);
}

void add_norm(Case<double>& c, Random& random, Stage& s, NormKind kind) {
  s.norm = kind;
  if (s.norm == NormKind::None) return;
  if (s.norm == NormKind::Running) s.mean = c.add_constant(s.c), s.variance = c.add_constant(s.c);
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
  s.pool_before[0] = y.before, s.pool_before[1] = x.before;
  s.pool_behind[0] = y.behind, s.pool_behind[1] = x.behind;
  s.out_h = y.count(s.h);
  s.out_w = x.count(s.w);
}

void add_activation(Stage& s, ActivationKind kind) {
  s.activates = true;
  s.activation = activation(kind, s.c);
}

// Of a convolution of what it makes; not where that is too large, or nothing.
bool add_transposed(Case<double>& c, Random& random, Stage& s, i64 channels) {
  const i64 in[2] = {s.in_h, s.in_w};
  i64 out[2];
  Windows of[2];
  for (int axis = 0; axis < 2; ++axis) {
    of[axis] = {1 + random.below(4), 1 + random.below(3), random.below(3), 0, 1 + random.below(2)};
    of[axis].behind = of[axis].before;
    const Windows& w = of[axis];
    out[axis] = (in[axis] - 1) * w.stride + (w.size - 1) * w.dilation + 1 - w.before - w.behind +
                random.below(int(w.stride));
    if (out[axis] < 1 || out[axis] > 12) return false;
  }
  s.product = ProductKind::Transposed;
  s.c = channels;
  if (random.coin() && s.c == s.in_c) s.product_groups = s.c / any_group(random, s.c);
  put_kernel(s, 0, of[0]), put_kernel(s, 1, of[1]);
  s.h = s.out_h = out[0], s.w = s.out_w = out[1];
  add_parameters(c, random, s, s.in_c / std::max<i64>(1, s.product_groups) * of[0].size * of[1].size);
  return true;
}

// What a linear layer gives, as an image.
bool add_spread(Case<double>& c, Random& random, Stage& s, i64 channels) {
  if (s.in_h * s.in_w > 1) return false;
  s.product = ProductKind::Spread;
  s.c = channels;
  s.h = s.out_h = 1 + random.below(5), s.w = s.out_w = 1 + random.below(5);
  put_kernel(s, 0, {s.h, random.coin() ? s.h : 1, 0, 0});
  put_kernel(s, 1, {s.w, random.coin() ? s.w : 1, 0, 0});
  const i64 elements = s.c * s.h * s.w;
  s.weight = c.add_parameter(elements * s.in_c, 1 / std::sqrt(double(s.in_c)));
  if (random.below(4)) s.bias = c.add_parameter(elements);
  return true;
}

// The last stage leaves one pixel, most often.
Stage any_stage(Case<double>& c, Random& random, Stage s, ActivationKind kind, bool last) {
  const i64 channels = random.one_of({1, 3, 16, 17});
  const int product = random.below(last ? 5 : 9);
  if (!last && product == 8) {
    s.join = JoinKind::Pick;
    s.other_c = random.below(s.in_c);
    s.c = 1 + random.below(s.in_c - s.other_c);
  } else if (!last && product == 7) {
    s.join = JoinKind::Repeat;
    s.h = s.out_h = s.in_h * (1 + random.below(2));
    s.w = s.out_w = s.in_w * (1 + random.below(3));
  } else if (!last && product >= 5 && add_spread(c, random, s, channels)) {
  } else if (!last && product == 6 && add_transposed(c, random, s, channels)) {
  } else  if (product == 1)  // a linear layer
    add_product(c, random, s, channels,
                {whole_kernel(random, s.in_h), whole_kernel(random, s.in_w)});
  else if (product == 2)
    add_scale(c, random, s);
  else if (product == 3)
    add_grouped(c, random, s, {any_kernel(random, s.in_h), any_kernel(random, s.in_w)});
  else if (product)
    add_product(c, random, s, channels, {any_kernel(random, s.in_h), any_kernel(random, s.in_w)});
  add_norm(c, random, s, NormKind(random.below(4)));
  if (random.below(4)) add_activation(s, kind);
  const PoolKind pool = random.coin() ? PoolKind::Average : PoolKind::Max;
  if (last && s.h * s.w > 1 && random.below(4))
    add_pool(s, pool, {only_pool(random, s.h), only_pool(random, s.w)});
  else if (random.coin())
    add_pool(s, pool, {any_pool(random, s.h), any_pool(random, s.w)});
  return s;
}

// The stage that most networks of images have. With the same pool its tail has kernels of its own.
constexpr Windows common_pool{2, 2, 0, 0};
using MaybeActivation = std::optional<ActivationKind>;

Stage common_stage(Case<double>& c, Random& random, Stage s, i64 channels, NormKind norm,
                   MaybeActivation kind, Windows pool) {
  add_product(c, random, s, channels, {{3, 1, 1, 1}, {3, 1, 1, 1}});
  add_norm(c, random, s, norm);
  if (kind) add_activation(s, *kind);
  add_pool(s, PoolKind::Max, {pool, pool});
  return s;
}

// ---- networks -----------------------------------------------------------------------------------

void add_any(Case<double>& c, Random& random, i64 n, Stage next, ActivationKind kind) {
  for (; n > 0; --n) {
    append(c, any_stage(c, random, next, kind, n == 1));
    next = stage_after(c.stages.back());
  }
}

Case<double> make_any(unsigned seed, ActivationKind kind, LossKind loss, i64 tasks) {
  return make_case(seed, loss, tasks, [&](Case<double>& c, Random& random) {
    const i64 channels = random.one_of({1, 3, 16, 17, 32});
    const i64 h = 1 + random.below(8), w = 1 + random.below(8);
    add_any(c, random, 1 + random.below(4), stage_of(channels, h, w), kind);
  });
}

Case<double> make_common(unsigned seed, NormKind norm, MaybeActivation kind) {
  return make_case(seed, LossKind::CrossEntropy, 2, [&](Case<double>& c, Random& random) {
    c.steps = c.order = 2;
    const Stage input = stage_of(3, 4 + random.below(4), 4 + random.below(4));
    append(c, common_stage(c, random, input, 17, norm, kind, common_pool));
    const Stage next = stage_after(c.stages.back());
    append(c, common_stage(c, random, next, 5, norm, kind, common_pool));
  });
}

// So large that samples are worked on in more than one chunk, in float64 in more chunks than runs.
Case<double> make_large(unsigned seed, NormKind norm, Windows pool, i64 tasks) {
  return make_case(seed, LossKind::CrossEntropy, tasks, [&](Case<double>& c, Random& random) {
    c.support_n = 9, c.query_n = 2;
    c.steps = 1, c.order = 2;
    const Stage input = stage_of(1, 30, 31);
    append(c, common_stage(c, random, input, 17, norm, ActivationKind::ReLU, pool));
    add_any(c, random, 1, stage_after(c.stages.back()), ActivationKind::Tanh);
  });
}

// Of channels enough for tiles (cpu/correlation_in_tiles.h), and of pixels in some: in the support, in the
// query, or in both.
Case<double> make_in_tiles(unsigned seed, i64 tasks) {
  return make_case(seed, LossKind::CrossEntropy, tasks, [&](Case<double>& c, Random& random) {
    c.support_n = 1 + random.below(7), c.query_n = 1 + random.below(7);
    const auto border = [&] { return Windows{3, 1, random.below(3), random.below(3)}; };
    const i64 side = 4 + random.below(5);
    Stage s = stage_of(random.one_of({32, 48}), side, side + random.below(2));
    for (i64 channels : {random.one_of({33, 40}), i64(32)}) {
      add_product(c, random, s, channels, {border(), border()});
      add_norm(c, random, s, NormKind(random.below(4)));
      add_activation(s, ActivationKind::Tanh);
      append(c, s);
      s = stage_after(c.stages.back());
    }
    add_any(c, random, 1, s, ActivationKind::Tanh);
  });
}

// ---- residuals ----------------------------------------------------------------------------------

// Keeps the size, so that it can be added to its input.
int append_level(Case<double>& c, Random& random, int m, i64 channels) {
  Stage s = stage_reading(c, m);
  const i64 size = 2 * random.below(2) + 1;
  const Windows same{size, 1, size / 2, size / 2};
  add_product(c, random, s, channels, {same, same});
  add_norm(c, random, s, NormKind(random.below(4)));
  if (random.coin()) add_activation(s, ActivationKind::Tanh);
  c.stages.push_back(s);
  return int(c.stages.size()) - 1;
}

void join(Stage& s, const Stage& given, int m, JoinKind kind) {
  s.join = kind, s.other = m;
  s.other_c = given.in_c, s.other_h = given.in_h, s.other_w = given.in_w;
  if (kind == JoinKind::Channels) s.c = s.in_c + s.other_c;
}

// One number for all channels, rows or columns of what stage m gives, or for all of them.
int append_share(Case<double>& c, Random& random, int m) {
  Stage s = stage_reading(c, m);
  if (random.coin()) add_product(c, random, s, 1, {{1, 1, 0, 0}, {1, 1, 0, 0}});
  if (random.coin()) add_activation(s, ActivationKind::Sigmoid);
  const Windows one{1, 1, 0, 0}, rows{s.h, s.h, 0, 0}, columns{s.w, s.w, 0, 0};
  add_pool(s, random.coin() ? PoolKind::Average : PoolKind::Max,
           {random.coin() ? one : rows, random.coin() ? one : columns});
  c.stages.push_back(s);
  return int(c.stages.size()) - 1;
}

// f(x) and g(x), joined: of f one or two products, of g none or one; then any activation and pool.
void append_block(Case<double>& c, Random& random, int x, ActivationKind kind) {
  const bool shortcut = random.coin();
  const i64 channels = shortcut ? random.one_of({1, 3, 17}) : stage_reading(c, x).in_c;
  int side = shortcut && random.coin() ? append_level(c, random, x, channels) : x;
  int main = append_level(c, random, x, channels);
  if (random.coin()) main = append_level(c, random, main, channels);
  if (shortcut && side == x) side = append_level(c, random, x, channels);
  const JoinKind how = JoinKind(1 + random.below(3));
  const bool turned = random.coin();
  if (turned) std::swap(main, side);
  if (how != JoinKind::Channels && random.coin()) side = append_share(c, random, side);
  Stage joined = stage_reading(c, main);
  join(joined, stage_reading(c, side), side, how);
  if (random.below(4)) add_activation(joined, kind);
  if (random.coin())
    add_pool(joined, random.coin() ? PoolKind::Average : PoolKind::Max,
             {any_pool(random, joined.h), any_pool(random, joined.w)});
  c.stages.push_back(joined);
}

// Blocks after a stage; the network's input may have two readers as well.
Case<double> make_residual(unsigned seed, ActivationKind kind, LossKind loss, i64 tasks) {
  return make_case(seed, loss, tasks, [&](Case<double>& c, Random& random) {
    Stage first = stage_of(random.one_of({1, 3, 17}), 1 + random.below(8), 1 + random.below(8));
    const int start = random.below(3);
    if (start == 0) add_scale(c, random, first);
    if (start == 1) add_product(c, random, first, 3, {{3, 1, 1, 1}, {3, 1, 1, 1}});
    append(c, first);
    if (start == 1 || random.coin()) {
      const int other = start == 1 ? append_level(c, random, -1, 3) : -random.below(2);
      Stage sum = stage_reading(c, 0);
      join(sum, stage_reading(c, other), other, JoinKind(1 + random.below(3)));
      c.stages.push_back(sum);
    }
    for (i64 blocks = 1 + random.below(3); blocks > 0; --blocks)
      append_block(c, random, int(c.stages.size()) - 1, kind);
    add_any(c, random, 1, stage_after(c.stages.back()), kind);
  });
}

// ---- rows above stages --------------------------------------------------------------------------

// In some the stages have no parameters that adapt, in some of them nothing is kept.
Case<double> make_headed(unsigned seed, LossKind loss, i64 tasks) {
  const auto kind = ActivationKind(seed % unsigned(activation_kinds));
  return make_case(seed, loss, tasks, [&](Case<double>& c, Random& random) {
    const i64 h = 1 + random.below(5), w = 1 + random.below(5);
    add_any(c, random, 1 + random.below(3), stage_of(random.one_of({1, 3, 17}), h, w), kind);
    if (random.coin()) append_block(c, random, int(c.stages.size()) - 1, kind);
    const Stage& last = c.stages.back();
    Writer(c, random, kind, last.c * last.out_h * last.out_w).write();
    if (!random.below(4)) c.support_n = 20 + random.below(30);  // more than one record, or chunk
  });
}

// ---- all of it ----------------------------------------------------------------------------------

void check_any(const Variant& variant) {
  unsigned seed = 1;
  for (int repeat = 0; repeat < 2; ++repeat)
    for (int kind = 0; kind < activation_kinds; ++kind)
      for (int loss = 0; loss <= int(LossKind::BinaryCrossEntropy); ++loss, ++seed) {
        if (seed / 4 % every) continue;
        const i64 tasks = std::vector<i64>{1, 2, 5, 7}[seed % 4];
        const auto c = make_any(seed, ActivationKind(kind), LossKind(loss), tasks);
        check_case(variant, c, std::string(variant.name) + ", seed " + std::to_string(seed));
      }
}

void check_residual(const Variant& variant) {
  for (unsigned seed = 1; seed <= 24 / every; ++seed) {
    const auto kind = ActivationKind(seed % unsigned(activation_kinds));
    const auto loss = LossKind(seed % (int(LossKind::CrossEntropyAtPlaces) + 1));
    const auto c = make_residual(seed, kind, loss, 1 + seed % 3);
    check_case(variant, c, std::string(variant.name) + ", residual, seed " + std::to_string(seed));
  }
}

void check_in_tiles(const Variant& variant) {
  for (unsigned seed = 1; seed <= 8 / every; ++seed) {
    const auto c = make_in_tiles(seed, 1 + seed % 2);
    check_case(variant, c, std::string(variant.name) + ", in tiles, seed " + std::to_string(seed));
  }
}

void check_headed(const Variant& variant) {
  for (unsigned seed = 1; seed <= 32 / every; ++seed) {
    const auto c = make_headed(seed, LossKind(seed % (int(LossKind::CrossEntropyAtPlaces) + 1)), 1 + seed % 3);
    check_case(variant, c, std::string(variant.name) + ", headed, seed " + std::to_string(seed));
    const std::string team = variant.f64->team(Call<double>(c, 1).loop);
    expect(team == "stages below rows of samples", variant.name, "other kernels run it");
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

// By the statistics that a batch norm had, a running one makes the same of its batch.
void check_moments(const Variant& variant) {
  auto batch = make_common(3, NormKind::Batch, ActivationKind::ReLU);
  batch.steps = 0, batch.tasks = 1;
  expect(batch.query_n > 0, variant.name, "no batch to norm");
  std::vector<std::vector<double>> moments;
  for (const Stage& s : batch.stages) moments.push_back(poisoned<double>(2 * s.c));
  const auto places = pointers(moments);
  auto out = outputs_of(batch, Wanted::Few);
  forward<double>(*variant.f64, Call<double>(batch, 2), nullptr, out, places.data());

  auto running = batch;
  for (size_t l = 0; l < running.stages.size(); ++l) {
    Stage& s = running.stages[l];
    s.norm = NormKind::Running;
    s.mean = running.add_constant(s.c), s.variance = running.add_constant(s.c);
    const auto middle = moments[l].begin() + s.c;
    running.parameters.push_back({moments[l].begin(), middle});
    running.parameters.push_back({middle, moments[l].end()});
    for (int i = 0; i < 2; ++i) {
      running.per_task.push_back(false), running.adapts.push_back(false);
      running.rates.push_back({0.1}), running.grad_fast.push_back({});
      running.rate_per_step.push_back(false), running.rate_per_element.push_back(false);
    }
  }
  const auto same = forward(*variant.f64, running).predictions;
  double error = 0;
  for (size_t i = 0; i < same.size(); ++i)
    error = std::fmax(error, std::fabs(same[i] - out.predictions[i]));
  expect(!same.empty() && error < 1e-12, variant.name, "the moments of a batch norm are not its own");
}

// A crew shares the samples of a task, and of the tasks that are more than the threads.
void check_large(const Variant& variant) {
  const auto one = make_large(1, NormKind::Batch, common_pool, 1);
  const auto three = make_large(2, NormKind::Group, {4, 5, 0, 0}, 3);
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
    check_residual(*v);
    check_in_tiles(*v);
    check_headed(*v);
    check_common(*v);
    check_moments(*v);
    check_large(*v);
  }
  release_memory();
  if (!failures) std::printf("stages agree, %d threads started\n", threads_started.load());
  return failures != 0;
}
