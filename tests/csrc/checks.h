// The kernels through their tables, in memory of exactly the size asked for, and what must hold:
//   no access outside it (AddressSanitizer) and no race (ThreadSanitizer);
//   every output is written, and finite; the same bits for any number of threads, and whatever else
//   is asked for;
//   float64: the loss is that of the predictions, and the meta-gradient is the derivative of the
//   forward pass; float32: all is near float64's.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/runtime.h"
#include "expect.h"
#include "gomp_threads.h"
#include "random_case.h"

namespace fastmeta::test {

// ThreadSanitizer is slow, and looks at what is the same for all activations and losses: one case in so
// many is enough for it.
#ifdef __SANITIZE_THREAD__
constexpr int every = 8;
#else
constexpr int every = 1;
#endif

// ---- one call -----------------------------------------------------------------------------------

template <class T>
T* data_or_null(std::vector<T>& v) {
  return v.empty() ? nullptr : v.data();
}
template <class T>
const T* data_or_null(const std::vector<T>& v) {
  return v.empty() ? nullptr : v.data();
}

template <class R>
struct Call {
  std::vector<Parameter<R>> parameters;
  std::vector<Rate<R>> rates;
  InnerLoop<R> loop{};

  Call(const Case<R>& c, int threads) {
    for (size_t p = 0; p < c.n_parameters(); ++p) {
      parameters.push_back({c.parameters[p].data(), c.per_task[p] ? c.sizes[p] : 0});
      const size_t r = c.one_rate ? 0 : p;
      const i64 n = c.rate_size(r);
      rates.push_back({c.adapts[p] ? c.rates[r].data() : nullptr, c.rate_per_step[r] ? n : 0, n});
    }
    loop.network = {data_or_null(c.nodes),  int(c.nodes.size()),   data_or_null(c.stages),
                    int(c.stages.size()),
                    c.written.empty() ? RowProgram{} : c.written.program(), int(c.n_parameters()), c.loss,
                    c.program.empty() ? RowProgram{} : c.program.program(c.adds), c.places};
    loop.network.places.weights = data_or_null(c.class_weights);
    loop.tasks = c.tasks, loop.steps = c.steps, loop.order = c.order, loop.threads = threads;
    loop.parameters = parameters.data();
    loop.rates = rates.data();
    loop.weights_stay = c.weights_stay;
    loop.support = {c.support_n, c.support_x.data(), data_or_null(c.support_y),
                    data_or_null(c.support_labels), data_or_null(c.support_weight)};
    if (c.query_n)
      loop.query = {c.query_n, c.query_x.data(), data_or_null(c.query_y),
                    data_or_null(c.query_labels), data_or_null(c.query_weight)};
  }
};

template <class R>
struct Outputs {
  std::vector<R> predictions, loss, support_x, query_x;
  std::vector<std::vector<R>> fast, parameters, rates;

  std::vector<const std::vector<R>*> all() const {
    std::vector<const std::vector<R>*> list{&predictions, &loss, &support_x, &query_x};
    for (const auto* group : {&fast, &parameters, &rates})
      for (const auto& one : *group) list.push_back(&one);
    return list;
  }
};

template <class R>
std::vector<R> poisoned(i64 n) {
  return std::vector<R>(size_t(n), R(NAN));
}

template <class R>
std::vector<R*> pointers(std::vector<std::vector<R>>& buffers) {
  std::vector<R*> out;
  for (auto& buffer : buffers) out.push_back(data_or_null(buffer));
  return out;
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// What backward is asked for: all gradients, or those of every other parameter alone.
enum class Wanted { All, Few };

template <class R>
Outputs<R> outputs_of(const Case<R>& c, Wanted wanted) {
  const i64 others = wanted == Wanted::All;
  Outputs<R> out;
  out.predictions = poisoned<R>(c.tasks * c.query_n * c.outputs());
  out.loss = poisoned<R>(c.query_n ? c.tasks : 0);
  out.support_x = poisoned<R>(others * c.tasks * c.support_n * c.inputs());
  out.query_x = poisoned<R>(others * c.tasks * c.query_n * c.inputs());
  for (size_t p = 0; p < c.n_parameters(); ++p) {
    out.fast.push_back(poisoned<R>(c.weights_stay ? 0 : c.sizes[p] * c.tasks));
    const i64 copies = c.per_task[p] ? c.tasks : 1;
    out.parameters.push_back(poisoned<R>(others || p % 2 ? c.sizes[p] * copies : 0));
    const bool rated = c.adapts[p] && !c.one_rate;
    out.rates.push_back(poisoned<R>(rated ? others * c.sizes[p] * c.rate_steps() : 0));
  }
  return out;
}

template <class R>
void forward(const Kernels<R>& kernels, const Call<R>& call, R* record, Outputs<R>& out,
             R* const* moments = nullptr) {
  release_memory();  // so that scratch is fresh, and of exact size too
  const auto fast = pointers(out.fast);
  kernels.forward(call.loop,
                  {record, data_or_null(out.predictions), data_or_null(out.loss), fast.data(), moments});
}

template <class R>
Outputs<R> forward_and_backward(const Kernels<R>& kernels, const Case<R>& c, int threads,
                                Wanted wanted = Wanted::All) {
  const Call<R> call(c, threads);
  Outputs<R> out = outputs_of(c, wanted);
  void* memory = nullptr;
  const size_t bytes = sizeof(R) * size_t(kernels.record_size(call.loop));
  if (posix_memalign(&memory, 64, bytes)) std::abort();
  const std::unique_ptr<void, Free> owner(memory);
  std::memset(memory, 255, bytes);
  R* record = static_cast<R*>(memory);
  forward(kernels, call, record, out);

  release_memory();
  std::vector<const R*> grad_fast;
  for (const auto& one : c.grad_fast) grad_fast.push_back(data_or_null(one));
  const auto parameters = pointers(out.parameters), rates = pointers(out.rates);
  kernels.backward(call.loop,
                   {record, c.query_n ? data_or_null(c.grad_loss) : nullptr,
                    data_or_null(c.grad_predictions), grad_fast.data()},
                   {parameters.data(), wanted == Wanted::All && !c.one_rate ? rates.data() : nullptr,
                    data_or_null(out.support_x), data_or_null(out.query_x)});
  return out;
}

// Both calls in one, which differentiates the sum of the losses times a factor.
template <class R>
Outputs<R> in_one_step(const Kernels<R>& kernels, const Case<R>& c, int threads, R factor = 1) {
  const Call<R> call(c, threads);
  Outputs<R> out = outputs_of(c, Wanted::All);
  release_memory();
  const auto parameters = pointers(out.parameters), rates = pointers(out.rates);
  kernels.step(call.loop, {nullptr, out.predictions.data(), out.loss.data(), nullptr, nullptr},
               {parameters.data(), c.one_rate ? nullptr : rates.data(), nullptr, nullptr}, factor);
  return out;
}

template <class R>
Case<R> of_losses_alone(Case<R> c) {
  c.grad_loss.assign(size_t(c.tasks), 1);
  c.grad_predictions.clear();
  for (auto& one : c.grad_fast) one.clear();
  return c;
}

// ---- what must hold -----------------------------------------------------------------------------

template <class R>
bool finite(const Outputs<R>& out) {
  for (const auto* buffer : out.all())
    for (R value : *buffer)
      if (!std::isfinite(value)) return false;
  return true;
}

template <class R>
bool same_bits(const std::vector<R>& a, const std::vector<R>& b) {
  return a.empty() || !std::memcmp(a.data(), b.data(), sizeof(R) * a.size());
}

// Of all that a has.
template <class R>
bool same_bits(const Outputs<R>& a, const Outputs<R>& b) {
  const auto left = a.all(), right = b.all();
  for (size_t i = 0; i < left.size(); ++i)
    if (!same_bits(*left[i], *right[i])) return false;
  return true;
}

inline double norm(const std::vector<double>& v) {
  double squares = 0;
  for (double value : v) squares += value * value;
  return std::sqrt(squares);
}

// What cancels to nothing is as exact as the largest of its terms.
inline bool near(const Outputs<float>& a, const Outputs<double>& b) {
  const auto left = a.all();
  const auto right = b.all();
  double largest = 1;
  for (const auto* one : right) largest = std::fmax(largest, norm(*one));
  for (size_t i = 0; i < left.size(); ++i) {
    std::vector<double> error(*right[i]);
    for (size_t j = 0; j < error.size(); ++j) error[j] -= (*left[i])[j];
    if (norm(error) > 1e-3 * norm(*right[i]) + 1e-5 * largest) return false;
  }
  return true;
}

// Of one sample, and what its labels weigh.
inline std::pair<double, double> plain_loss_at_places(const Case<double>& c, const double* y, const i64* labels) {
  LabelPlaces of = c.places;
  of.weights = data_or_null(c.class_weights);
  double value = 0, weight = 0;
  for (i64 p = 0; p < of.count; ++p) {
    const auto at = [&](i64 k) { return y[of.classes_last ? p * of.classes + k : k * of.count + p]; };
    if (labels[p] == of.ignored) continue;
    double partition = 0;
    for (i64 k = 0; k < of.classes; ++k) partition += std::exp(at(k) - at(labels[p]));
    value += of.weight(labels[p]) * std::log(partition) / double(of.count);
    weight += of.weight(labels[p]) / double(of.count);
  }
  return {value, weight};
}

// The loss once more, straight from the predictions.
inline double plain_loss(const Case<double>& c, const std::vector<double>& predictions,
                         size_t task) {
  const size_t n = size_t(c.query_n), width = size_t(c.outputs());
  double sum = 0, total = 0;
  for (size_t s = task * n; s < (task + 1) * n; ++s) {
    const double* y = &predictions[s * width];
    if (c.loss == LossKind::CrossEntropyAtPlaces) {
      const auto [loss, weight] = plain_loss_at_places(c, y, &c.query_labels[s * size_t(c.places.count)]);
      const double of_sample = c.query_weight.empty() ? 1 : c.query_weight[s];
      sum += of_sample * loss, total += of_sample * weight;
      continue;
    }
    double value = 0, partition = 0;
    const double top = *std::max_element(y, y + width);
    for (size_t o = 0; o < width; ++o) {
      partition += std::exp(y[o] - top);
      if (c.loss == LossKind::CrossEntropy) continue;
      const double t = c.query_y[s * width + o];
      value += c.loss == LossKind::BinaryCrossEntropy ? std::log1p(std::exp(y[o])) - y[o] * t
                                                      : (y[o] - t) * (y[o] - t);
    }
    value /= double(width);
    if (c.loss == LossKind::Program) value += (top + std::log(partition)) * std::tanh(y[width - 1]);
    if (c.loss == LossKind::CrossEntropy)
      value = top + std::log(partition) - y[size_t(c.query_labels[s])];
    const double weight = c.query_weight.empty() ? 1 : c.query_weight[s];
    sum += weight * value;
    total += weight;
  }
  return sum / total;
}

inline void check_loss(const Case<double>& c, const Outputs<double>& out,
                       const std::string& where) {
  for (size_t task = 0; task < out.loss.size(); ++task) {
    const double right = plain_loss(c, out.predictions, task);
    expect(std::fabs(out.loss[task] - right) < 1e-9 * std::fmax(1, std::fabs(right)), where,
           "the loss is not that of the predictions");
  }
}

// ---- the meta-gradient --------------------------------------------------------------------------

inline double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size() && i < b.size(); ++i) sum += a[i] * b[i];
  return sum;
}

inline Outputs<double> forward(const Kernels<double>& kernels, const Case<double>& c) {
  const Call<double> call(c, 1);
  Outputs<double> out = outputs_of(c, Wanted::Few);
  forward<double>(kernels, call, nullptr, out);
  return out;
}

// The scalar whose gradient backward gives.
inline double objective(const Kernels<double>& kernels, const Case<double>& c) {
  const Outputs<double> out = forward(kernels, c);
  double sum = dot(c.grad_loss, out.loss) + dot(c.grad_predictions, out.predictions);
  for (size_t p = 0; p < c.n_parameters(); ++p) sum += dot(c.grad_fast[p], out.fast[p]);
  return sum;
}

struct Direction {
  std::vector<std::vector<double>> parameters, rates;
  std::vector<double> support_x, query_x;

  Direction(const Case<double>& c, unsigned seed) {
    Random random(seed);
    const auto like = [&](const auto& v) { return random.reals<double>(i64(v.size()), -1, 1); };
    for (const auto& one : c.parameters) parameters.push_back(like(one));
    for (size_t p = 0; p < c.n_parameters(); ++p)
      if (c.constant[p]) parameters[p].assign(parameters[p].size(), 0);
    for (const auto& one : c.rates) rates.push_back(like(one));
    support_x = like(c.support_x);
    query_x = like(c.query_x);
  }
};

inline void move(std::vector<double>& x, const std::vector<double>& along, double step) {
  for (size_t i = 0; i < x.size(); ++i) x[i] += step * along[i];
}

inline Case<double> moved(Case<double> c, const Direction& d, double step) {
  for (size_t p = 0; p < c.n_parameters(); ++p) {
    move(c.parameters[p], d.parameters[p], step);
    move(c.rates[p], d.rates[p], step);
  }
  move(c.support_x, d.support_x, step);
  move(c.query_x, d.query_x, step);
  return c;
}

// First order takes the inner gradients for constants. So its derivative is that of a call without
// steps that starts at the fast weights.
inline Case<double> after_steps(Case<double> c, const Outputs<double>& out) {
  c.parameters = out.fast;
  c.per_task.assign(c.n_parameters(), true);
  c.steps = 0;
  return c;
}

// They move along with the parameters, and with the rates by a part of what each step moved them.
inline Direction after_steps(const Kernels<double>& kernels, Case<double> c, Direction d) {
  const i64 steps = c.steps;
  c.steps = 0;
  auto fast = forward(kernels, c).fast;
  for (size_t p = 0; p < c.n_parameters(); ++p) {
    const std::vector<double> shared = d.parameters[p];
    d.parameters[p].resize(fast[p].size());
    for (size_t i = 0; i < fast[p].size(); ++i) d.parameters[p][i] = shared[i % shared.size()];
  }
  while (c.steps < steps) {
    const i64 step = c.steps++;
    const auto next = forward(kernels, c).fast;
    for (size_t p = 0; p < c.n_parameters(); ++p)
      for (size_t i = 0; i < next[p].size(); ++i) {
        const size_t rate = c.rate_at(p, step, i64(i) % c.sizes[p]);
        d.parameters[p][i] += d.rates[p][rate] / c.rates[p][rate] * (next[p][i] - fast[p][i]);
      }
    fast = next;
  }
  return d;
}

struct Derivative {
  double sum = 0, squares = 0;
  void add(double gradient, double along) {
    sum += gradient * along;
    squares += gradient * gradient * along * along;
  }
  void add(const std::vector<double>& gradient, const std::vector<double>& along) {
    for (size_t i = 0; i < gradient.size(); ++i) add(gradient[i], along[i]);
  }
};

inline Derivative derivative(const Case<double>& c, const Outputs<double>& out,
                             const Direction& d) {
  Derivative all;
  for (size_t p = 0; p < c.n_parameters(); ++p) {
    all.add(out.parameters[p], d.parameters[p]);
    for (size_t i = 0; i < out.rates[p].size(); ++i)
      all.add(out.rates[p][i],
              d.rates[p][c.rate_at(p, i64(i) / c.sizes[p], i64(i) % c.sizes[p])]);
  }
  all.add(out.support_x, d.support_x);
  all.add(out.query_x, d.query_x);
  return all;
}

inline void check_gradient(const Kernels<double>& kernels, const Case<double>& c,
                           const Outputs<double>& out, const std::string& where) {
  for (unsigned seed = 0; seed < 2; ++seed) {
    const Direction d(c, seed);
    const Derivative expected = derivative(c, out, d);
    const Case<double> start = c.order == 2 ? c : after_steps(c, out);
    const Direction along = c.order == 2 ? d : after_steps(kernels, c, d);
    const auto agrees = [&](double h) {
      const double found = (objective(kernels, moved(start, along, h)) -
                            objective(kernels, moved(start, along, -h))) / (2 * h);
      const double size = std::fabs(found) + std::sqrt(expected.squares);
      return std::fabs(found - expected.sum) <= 1e-5 * size + 1e-8;
    };
    // A shorter step passes a kink of ReLU or a maximum that lies within the longer one.
    expect(agrees(1e-6) || agrees(1e-7) || agrees(1e-8), where,
           "the meta-gradient is not the derivative");
  }
}

// ---- all of it ----------------------------------------------------------------------------------

template <class R>
void check_one_step(const Kernels<R>& kernels, const Case<R>& c, const std::string& where) {
  Outputs<R> two = forward_and_backward(kernels, of_losses_alone(c), 1);
  for (auto* others : {&two.support_x, &two.query_x}) others->clear();
  two.fast.assign(two.fast.size(), {});
  for (int threads : {1, 3})
    expect(same_bits(two, in_one_step(kernels, c, threads)), where,
           "one step has other bits than two calls");
  const R third = R(1) / 3;
  for (auto* group : {&two.parameters, &two.rates})
    for (auto& gradient : *group)
      for (R& g : gradient) g *= third;
  expect(same_bits(two, in_one_step(kernels, c, 2, third)), where,
         "the gradients are not multiplied by the factor");
}

template <class R>
Outputs<R> check_call(const Kernels<R>& kernels, const Case<R>& c, const std::string& where) {
  const Outputs<R> out = forward_and_backward(kernels, c, 1);
  expect(finite(out), where, "an output is not finite, or was not written");
  for (int threads : {2, 3, 4})
    expect(same_bits(out, forward_and_backward(kernels, c, threads)), where,
           "the number of threads changes bits");
  expect(same_bits(forward_and_backward(kernels, c, 2, Wanted::Few), out), where,
         "what else is asked for changes bits");
  if (c.query_n) check_one_step(kernels, c, where);
  return out;
}

inline bool float32_is_near(const Variant& variant, const Case<double>& c) {
  return near(forward_and_backward(*variant.f32, in_float(c), 1),
              forward_and_backward(*variant.f64, c, 1));
}

inline void check_case(const Variant& variant, const Case<double>& c, const std::string& where) {
  const auto out = check_call(*variant.f64, c, where + ", float64");
  check_loss(c, out, where);
  check_gradient(*variant.f64, c, out, where);
  const auto small = check_call(*variant.f32, in_float(c), where + ", float32");
  // The two may be on different sides of a kink, but not here and at a point nearby.
  expect(near(small, out) || float32_is_near(variant, moved(c, Direction(c, 0), 1e-3)), where,
         "float32 is far from float64");
}

}  // namespace fastmeta::test
