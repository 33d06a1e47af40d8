// The kernels through their tables, on small random chains in memory of exactly the size asked for:
//   no access outside it (AddressSanitizer) and no race (ThreadSanitizer);
//   every output is written, and finite; the same bits for any number of threads;
//   float64: the loss is that of the predictions, and the meta-gradient is the derivative of the
//   forward pass; float32: all is near float64's.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/runtime.h"
#include "gomp_threads.h"

// Fresh memory is all ones, a NaN: what is read before it is written does not stay hidden.
extern "C" __attribute__((visibility("default"))) const char* __asan_default_options() {
  return "max_malloc_fill_size=1073741824:malloc_fill_byte=255";
}

namespace {

using namespace fastmeta;

int failures = 0;

void expect(bool condition, const std::string& where, const char* what) {
  if (condition) return;
  std::printf("FAILED: %s: %s\n", where.c_str(), what);
  ++failures;
}

// ---- one random inner loop ----------------------------------------------------------------------

template <class R>
struct Case {
  std::vector<Node> nodes;
  LossKind loss;
  i64 tasks, steps, support_n, query_n;
  int order;
  std::vector<i64> sizes;  // of the parameters
  std::vector<bool> per_task, adapts, rate_per_step, rate_per_element;
  std::vector<std::vector<R>> parameters, rates;
  std::vector<R> support_x, query_x, support_y, query_y, support_weight, query_weight;
  std::vector<i64> support_labels, query_labels;
  std::vector<R> grad_loss, grad_predictions;
  std::vector<std::vector<R>> grad_fast;

  size_t n_parameters() const { return sizes.size(); }
  i64 inputs() const { return nodes.front().in; }
  i64 outputs() const { return nodes.back().out; }
  i64 rate_steps() const {
    for (size_t p = 0; p < sizes.size(); ++p)
      if (adapts[p] && rate_per_step[p]) return steps > 1 ? steps : 1;
    return 1;
  }
};

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}
  int below(int n) { return int(engine_() % unsigned(n)); }
  bool coin() { return below(2); }
  double uniform() { return double(engine_()) / 4294967296.0; }
  template <class R>
  std::vector<R> reals(i64 n, double low, double high) {
    std::vector<R> values(static_cast<size_t>(n));
    for (R& value : values) value = R(low + (high - low) * uniform());
    return values;
  }
  i64 width() { return std::vector<i64>{1, 3, 17}[size_t(below(3))]; }

 private:
  std::mt19937 engine_;
};

Node linear(Case<double>& c, Random& random, i64 in, i64 out) {
  Node node{};
  node.kind = NodeKind::Linear;
  node.in = in, node.out = out;
  node.weight = int(c.sizes.size());
  c.sizes.push_back(in * out);
  node.bias = -1;
  if (random.below(4)) {
    node.bias = int(c.sizes.size());
    c.sizes.push_back(out);
  }
  return node;
}

Node activation(ActivationKind kind, i64 width) {
  Node node{};
  node.kind = NodeKind::Activation;
  node.activation = kind;
  node.a = kind == ActivationKind::LeakyReLU ? 0.1 : 1.3;
  node.b = 20;
  node.in = node.out = width;
  node.weight = node.bias = -1;
  return node;
}

void make_chain(Case<double>& c, Random& random, ActivationKind kind) {
  const int layers = 1 + random.below(3);
  i64 width = random.width();
  if (!random.below(4)) c.nodes.push_back(activation(kind, width));
  for (int l = 0; l < layers; ++l) {
    const i64 next = random.width();
    c.nodes.push_back(linear(c, random, width, next));
    width = next;
    if (l + 1 < layers || random.coin()) c.nodes.push_back(activation(kind, width));
  }
}

void make_parameters(Case<double>& c, Random& random) {
  const int frozen = random.below(3);
  for (size_t p = 0; p < c.sizes.size(); ++p) {
    c.per_task.push_back(!random.below(3));
    c.adapts.push_back(frozen == 0 || random.coin());
    c.rate_per_step.push_back(random.coin());
    c.rate_per_element.push_back(random.coin());
    const i64 copies = c.per_task[p] ? c.tasks : 1;
    c.parameters.push_back(random.reals<double>(c.sizes[p] * copies, -0.6, 0.6));
    const i64 steps = c.rate_per_step[p] && c.steps > 1 ? c.steps : 1;
    const i64 elements = c.rate_per_element[p] ? c.sizes[p] : 1;
    c.rates.push_back(random.reals<double>(steps * elements, 0.02, 0.2));
    c.grad_fast.push_back(random.reals<double>(random.coin() ? c.sizes[p] * c.tasks : 0, -1, 1));
  }
  // As the bindings have it.
  bool any = false;
  for (bool adapts : c.adapts) any = any || adapts;
  if (!any) c.steps = 0;
}

void make_samples(Case<double>& c, Random& random, i64 n, std::vector<double>& x,
                  std::vector<double>& y, std::vector<i64>& labels, std::vector<double>& weight) {
  x = random.reals<double>(c.tasks * n * c.inputs(), -2, 2);
  if (c.loss == LossKind::CrossEntropy) {
    labels.resize(size_t(c.tasks * n));
    for (i64& label : labels) label = random.below(int(c.outputs()));
  } else {
    y = random.reals<double>(c.tasks * n * c.outputs(), 0, 1);
  }
  if (random.below(3)) return;
  weight = random.reals<double>(c.tasks * n, 0.1, 2);
  for (size_t i = 0; i < weight.size(); ++i)
    if (i % size_t(n) && random.coin()) weight[i] = 0;
}

Case<double> make_case(unsigned seed, ActivationKind kind, LossKind loss, i64 tasks, bool narrow) {
  Random random(seed);
  Case<double> c;
  c.loss = loss;
  c.tasks = tasks;
  c.steps = std::vector<i64>{0, 1, 3, 3}[size_t(random.below(4))];
  c.order = random.below(3) ? 2 : 1;
  c.support_n = 1 + random.below(5);
  c.query_n = random.below(8) ? 1 + random.below(5) : 0;
  if (narrow) {
    c.nodes = {linear(c, random, 3, 3), activation(kind, 3), linear(c, random, 3, 1)};
  } else {
    make_chain(c, random, kind);
  }
  make_parameters(c, random);
  make_samples(c, random, c.support_n, c.support_x, c.support_y, c.support_labels,
               c.support_weight);
  make_samples(c, random, c.query_n, c.query_x, c.query_y, c.query_labels, c.query_weight);
  c.grad_loss = random.reals<double>(random.below(4) ? tasks : 0, 0.5, 1.5);
  const i64 predictions = c.query_n * c.tasks * c.outputs();
  c.grad_predictions = random.reals<double>(random.coin() ? predictions : 0, -1, 1);
  return c;
}

std::vector<float> in_float(const std::vector<double>& v) { return {v.begin(), v.end()}; }

std::vector<std::vector<float>> in_float(const std::vector<std::vector<double>>& v) {
  std::vector<std::vector<float>> out;
  for (const auto& one : v) out.push_back(in_float(one));
  return out;
}

Case<float> in_float(const Case<double>& c) {
  return {c.nodes,     c.loss,     c.tasks,         c.steps,
          c.support_n, c.query_n,  c.order,         c.sizes,
          c.per_task,  c.adapts,   c.rate_per_step, c.rate_per_element,
          in_float(c.parameters),  in_float(c.rates),
          in_float(c.support_x),   in_float(c.query_x),
          in_float(c.support_y),   in_float(c.query_y),
          in_float(c.support_weight), in_float(c.query_weight),
          c.support_labels,        c.query_labels,
          in_float(c.grad_loss),   in_float(c.grad_predictions),
          in_float(c.grad_fast)};
}

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
      const i64 n = c.rate_per_element[p] ? c.sizes[p] : 1;
      rates.push_back({c.adapts[p] ? c.rates[p].data() : nullptr, c.rate_per_step[p] ? n : 0, n});
    }
    loop.network = {c.nodes.data(), int(c.nodes.size()), nullptr, 0, int(c.n_parameters()), c.loss};
    loop.tasks = c.tasks, loop.steps = c.steps, loop.order = c.order, loop.threads = threads;
    loop.parameters = parameters.data();
    loop.rates = rates.data();
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

template <class R>
Outputs<R> outputs_of(const Case<R>& c) {
  Outputs<R> out;
  out.predictions = poisoned<R>(c.tasks * c.query_n * c.outputs());
  out.loss = poisoned<R>(c.query_n ? c.tasks : 0);
  out.support_x = poisoned<R>(c.tasks * c.support_n * c.inputs());
  out.query_x = poisoned<R>(c.tasks * c.query_n * c.inputs());
  for (size_t p = 0; p < c.n_parameters(); ++p) {
    out.fast.push_back(poisoned<R>(c.sizes[p] * c.tasks));
    out.parameters.push_back(poisoned<R>(c.sizes[p] * (c.per_task[p] ? c.tasks : 1)));
    out.rates.push_back(poisoned<R>(c.adapts[p] ? c.sizes[p] * c.rate_steps() : 0));
  }
  return out;
}

template <class R>
void forward(const Kernels<R>& kernels, const Call<R>& call, R* record, Outputs<R>& out) {
  release_memory();  // so that scratch is fresh, and of exact size too
  const auto fast = pointers(out.fast);
  kernels.forward(call.loop,
                  {record, data_or_null(out.predictions), data_or_null(out.loss), fast.data()});
}

template <class R>
Outputs<R> forward_and_backward(const Kernels<R>& kernels, const Case<R>& c, int threads) {
  const Call<R> call(c, threads);
  Outputs<R> out = outputs_of(c);
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
                   {parameters.data(), rates.data(), data_or_null(out.support_x),
                    data_or_null(out.query_x)});
  return out;
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
bool same_bits(const Outputs<R>& a, const Outputs<R>& b) {
  const auto left = a.all(), right = b.all();
  for (size_t i = 0; i < left.size(); ++i)
    if (!left[i]->empty() &&
        std::memcmp(left[i]->data(), right[i]->data(), sizeof(R) * left[i]->size()))
      return false;
  return true;
}

bool near(const Outputs<float>& a, const Outputs<double>& b) {
  const auto left = a.all();
  const auto right = b.all();
  for (size_t i = 0; i < left.size(); ++i) {
    double error = 0, size = 0;
    for (size_t j = 0; j < left[i]->size(); ++j) {
      error += std::pow((*left[i])[j] - (*right[i])[j], 2);
      size += std::pow((*right[i])[j], 2);
    }
    if (std::sqrt(error) > 1e-3 * std::sqrt(size) + 1e-5) return false;
  }
  return true;
}

// The loss once more, straight from the predictions.
double plain_loss(const Case<double>& c, const std::vector<double>& predictions, size_t task) {
  const size_t n = size_t(c.query_n), width = size_t(c.outputs());
  double sum = 0, total = 0;
  for (size_t s = task * n; s < (task + 1) * n; ++s) {
    const double* y = &predictions[s * width];
    double value = 0, partition = 0;
    for (size_t o = 0; o < width; ++o) {
      partition += std::exp(y[o]);
      if (c.loss == LossKind::CrossEntropy) continue;
      const double t = c.query_y[s * width + o];
      value += c.loss == LossKind::MeanSquaredError ? (y[o] - t) * (y[o] - t)
                                                    : std::log1p(std::exp(y[o])) - y[o] * t;
    }
    value /= double(width);
    if (c.loss == LossKind::CrossEntropy)
      value = std::log(partition) - y[size_t(c.query_labels[s])];
    const double weight = c.query_weight.empty() ? 1 : c.query_weight[s];
    sum += weight * value;
    total += weight;
  }
  return sum / total;
}

void check_loss(const Case<double>& c, const Outputs<double>& out, const std::string& where) {
  for (size_t task = 0; task < out.loss.size(); ++task)
    expect(std::fabs(out.loss[task] - plain_loss(c, out.predictions, task)) < 1e-9, where,
           "the loss is not that of the predictions");
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size() && i < b.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// The scalar whose gradient backward gives.
double objective(const Kernels<double>& kernels, const Case<double>& c) {
  const Call<double> call(c, 1);
  Outputs<double> out = outputs_of(c);
  forward<double>(kernels, call, nullptr, out);
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
    for (const auto& one : c.rates) rates.push_back(like(one));
    support_x = like(c.support_x);
    query_x = like(c.query_x);
  }
};

void move(std::vector<double>& x, const std::vector<double>& along, double step) {
  for (size_t i = 0; i < x.size(); ++i) x[i] += step * along[i];
}

Case<double> moved(Case<double> c, const Direction& d, double step) {
  for (size_t p = 0; p < c.n_parameters(); ++p) {
    move(c.parameters[p], d.parameters[p], step);
    move(c.rates[p], d.rates[p], step);
  }
  move(c.support_x, d.support_x, step);
  move(c.query_x, d.query_x, step);
  return c;
}

// First order takes the inner gradients for constants. So its derivative in the parameters is that
// of a call without steps that starts at the fast weights, moved along with the parameters.
Case<double> moved_first_order(Case<double> c, const Outputs<double>& at, const Direction& d,
                               double step) {
  for (size_t p = 0; p < c.n_parameters(); ++p) {
    c.parameters[p] = at.fast[p];
    for (size_t i = 0; i < c.parameters[p].size(); ++i)
      c.parameters[p][i] += step * d.parameters[p][i % d.parameters[p].size()];
    c.per_task[p] = true;
  }
  c.steps = 0;
  move(c.query_x, d.query_x, step);
  return c;
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

void add_rates(Derivative& derivative, const Case<double>& c, const Outputs<double>& out,
               const Direction& d) {
  for (size_t p = 0; p < c.n_parameters(); ++p) {
    const i64 n = c.rate_per_element[p] ? c.sizes[p] : 1;
    for (size_t i = 0; i < out.rates[p].size(); ++i) {
      const i64 step = i64(i) / c.sizes[p], element = i64(i) % c.sizes[p];
      derivative.add(out.rates[p][i],
                     d.rates[p][size_t((c.rate_per_step[p] ? step * n : 0) + element % n)]);
    }
  }
}

void check_gradient(const Kernels<double>& kernels, const Case<double>& c,
                    const Outputs<double>& out, const std::string& where) {
  constexpr double h = 1e-6;
  for (unsigned seed = 0; seed < 2; ++seed) {
    const Direction d(c, seed);
    Derivative expected;
    for (size_t p = 0; p < c.n_parameters(); ++p) expected.add(out.parameters[p], d.parameters[p]);
    expected.add(out.query_x, d.query_x);
    const auto at = [&](double step) {
      return objective(kernels,
                       c.order == 2 ? moved(c, d, step) : moved_first_order(c, out, d, step));
    };
    if (c.order == 2) {
      add_rates(expected, c, out, d);
      expected.add(out.support_x, d.support_x);
    }
    const double found = (at(h) - at(-h)) / (2 * h);
    const double size = std::fabs(found) + std::sqrt(expected.squares);
    expect(std::fabs(found - expected.sum) <= 1e-5 * size + 1e-8, where,
           "the meta-gradient is not the derivative");
  }
}

template <class R>
Outputs<R> check_call(const Kernels<R>& kernels, const Case<R>& c, const std::string& where) {
  const Outputs<R> out = forward_and_backward(kernels, c, 1);
  expect(finite(out), where, "an output is not finite, or was not written");
  for (int threads : {2, 4})
    expect(same_bits(out, forward_and_backward(kernels, c, threads)), where,
           "the number of threads changes bits");
  return out;
}

void check_labels_out_of_range(const Variant& variant) {
  for (i64 tasks : {1, 17}) {
    Case<double> c =
        make_case(7, ActivationKind::Tanh, LossKind::CrossEntropy, tasks, false);
    size_t i = 0;
    for (auto* labels : {&c.support_labels, &c.query_labels})
      for (i64& label : *labels)
        label = std::vector<i64>{-1, c.outputs(), i64(1) << 40, INT64_MIN, INT64_MAX}[i++ % 5];
    const auto where = std::string(variant.name) + ", labels out of range";
    expect(finite(forward_and_backward(*variant.f64, c, 1)), where, "not finite");
    expect(finite(forward_and_backward(*variant.f32, in_float(c), 1)), where, "not finite");
  }
}

void check_variant(const Variant& variant) {
  std::set<std::string> teams;
  const i64 crowd = 16 * processors() + 1;  // enough for every pack, the last of them not full
  unsigned seed = 1;
  for (int repeat = 0; repeat < 6; ++repeat)
    for (int kind = 0; kind <= int(ActivationKind::Softplus); ++kind)
      for (int loss = 0; loss <= int(LossKind::BinaryCrossEntropy); ++loss, ++seed) {
        const i64 tasks = std::vector<i64>{1, 5, 17, crowd}[seed % 4];
        const auto c = make_case(seed, ActivationKind(kind), LossKind(loss), tasks, tasks == crowd);
        const auto name = std::string(variant.name) + ", seed " + std::to_string(seed);
        const auto out = check_call(*variant.f64, c, name + ", float64");
        check_loss(c, out, name);
        check_gradient(*variant.f64, c, out, name);
        const auto small = check_call(*variant.f32, in_float(c), name + ", float32");
        expect(near(small, out), name, "float32 is far from float64");
        teams.insert(std::string("float64 ") + variant.f64->team(Call<double>(c, 1).loop));
        teams.insert(std::string("float32 ") + variant.f32->team(Call<float>(in_float(c), 1).loop));
      }
  check_labels_out_of_range(variant);
  expect(teams.size() == 4, variant.name, "a team was never chosen");
}

}  // namespace

int main() {
  for (const Variant* v = variants(); v->name; ++v)
    if (v->runs_here()) check_variant(*v);
  expect(threads_started > 0, thread_runtime(), "no thread was started");
  release_memory();
  if (!failures) std::printf("inner loops agree, %d threads started\n", threads_started.load());
  return failures != 0;
}
