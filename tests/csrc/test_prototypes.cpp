// The kernels of prototypes through their tables, in memory of exactly the size asked for:
//   no access outside it (AddressSanitizer) and no race (ThreadSanitizer), whatever the labels;
//   every output is written, and finite; the same bits for any number of threads;
//   half precision is read as it is, and its gradients are those of float, rounded;
//   the logits are minus the distances to the means, and the gradient is the derivative of the loss;
//   the nearest of a bank are those of all distances, sorted.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/prototypes.h"
#include "cpu/runtime.h"
#include "expect.h"
#include "gomp_threads.h"

namespace {

using namespace fastmeta;
using test::expect, test::failures;

std::uint64_t state = 1;
double uniform() {
  state = state * 6364136223846793005ull + 1442695040888963407ull;
  return double(state >> 11) / double(1ull << 53);
}
template <class R>
std::vector<R> draw(i64 n) {
  std::vector<R> v(static_cast<size_t>(n));
  for (R& x : v) x = R(2 * uniform() - 1);
  return v;
}
template <class R>
std::vector<R> poisoned(i64 n) {
  return std::vector<R>(size_t(n), R(NAN));
}

struct Sizes {
  i64 T, S, Q, N, D;
};

template <class R>
const PrototypeKernels<R>& table(const Variant& v) {
  if constexpr (std::is_same_v<R, float>)
    return *v.f32->prototypes;
  else
    return *v.f64->prototypes;
}

// ---- the loss -----------------------------------------------------------------------------------

template <class R>
struct Case {
  Sizes n;
  std::vector<R> support, query, support_weight, query_weight, temperature, grad;
  std::vector<i64> support_y, query_y;

  Case(const Sizes& n, bool weighted) : n(n) {
    support = draw<R>(n.T * n.S * n.D), query = draw<R>(n.T * n.Q * n.D);
    temperature = poisoned<R>(n.T), grad = draw<R>(n.T);
    for (R& x : temperature) x = R(1 + uniform());
    for (i64 i = 0; i < n.T * n.S; ++i)
      support_y.push_back(i % n.S < n.N ? i % n.S : i64(uniform() * double(n.N)));
    for (i64 i = 0; i < n.T * n.Q; ++i) query_y.push_back(i64(uniform() * double(n.N)));
    if (!weighted) return;
    for (i64 i = 0; i < n.T * n.S; ++i) support_weight.push_back(R(0.5 + uniform()));
    for (i64 i = 0; i < n.T * n.Q; ++i) query_weight.push_back(R(i % n.Q ? 0.0 : 1.0));
    // Padding may hold anything.
    for (i64 i = 0; i < n.T * n.Q; ++i)
      if (query_weight[size_t(i)] == 0) {
        query_y[size_t(i)] = i64(1) << 40;
        for (i64 d = 0; d < n.D; ++d) query[size_t(i * n.D + d)] = R(NAN);
      }
  }

  PrototypeLoss<R> loss(Metric metric, int threads) const {
    return of(metric, threads, support.data(), query.data(), Storage::Whole);
  }
  PrototypeLoss<R> of(Metric metric, int threads, const void* support_x, const void* query_x,
                      Storage storage) const {
    const auto or_null = [](const auto& v) { return v.empty() ? nullptr : v.data(); };
    return {n.T, n.S, n.Q, n.N, n.D, metric, threads, support_x, storage, support_y.data(),
            or_null(support_weight), query_x, storage, query_y.data(), or_null(query_weight), 0,
            temperature.data(), 1};
  }
};

template <class R>
struct Outputs {
  std::vector<R> loss, accuracy, logits, support, query, temperature;

  explicit Outputs(const Sizes& n)
      : loss(poisoned<R>(n.T)), accuracy(poisoned<R>(n.T)), logits(poisoned<R>(n.T * n.Q * n.N)),
        support(poisoned<R>(n.T * n.S * n.D)), query(poisoned<R>(n.T * n.Q * n.D)),
        temperature(poisoned<R>(n.T)) {}
  bool operator==(const Outputs& o) const {
    return loss == o.loss && accuracy == o.accuracy && support == o.support && query == o.query &&
           temperature == o.temperature;
  }
  bool finite() const {
    for (const auto* v : {&loss, &accuracy, &support, &query, &temperature})
      for (const R x : *v)
        if (!std::isfinite(x)) return false;
    return true;
  }
};

template <class R>
bool run(const PrototypeKernels<R>& k, const PrototypeLoss<R>& p, const Case<R>& c,
         Outputs<R>& out, void* support_grad = nullptr, void* query_grad = nullptr,
         bool at_once = false) {
  std::vector<R> record = poisoned<R>(k.record_size(p) + 64);
  void* start = record.data();
  size_t space = record.size() * sizeof(R);
  R* aligned = static_cast<R*>(std::align(64, size_t(k.record_size(p)) * sizeof(R), start, space));
  PrototypeGradients<R> gradients{c.grad.data(), 1, support_grad ? support_grad : out.support.data(),
                                  query_grad ? query_grad : out.query.data(), nullptr};
  if (!k.loss(p, {out.loss.data(), out.logits.data(), out.accuracy.data()}, aligned, true,
              at_once ? &gradients : nullptr))
    return false;
  if (at_once) gradients.support = gradients.query = nullptr;
  gradients.temperature = out.temperature.data();
  k.loss_backward(p, aligned, gradients);
  return true;
}

template <class R>
double weighted_loss(const PrototypeKernels<R>& k, const Case<R>& c, Metric metric) {
  Outputs<R> out(c.n);
  run(k, c.loss(metric, 1), c, out);
  double sum = 0;
  for (size_t t = 0; t < out.loss.size(); ++t) sum += double(c.grad[t]) * double(out.loss[t]);
  return sum;
}

// The derivative along a random direction, in float64.
void check_gradient(const PrototypeKernels<double>& k, const Case<double>& c, Metric metric,
                    const Outputs<double>& out, const std::string& where) {
  const double h = 1e-6;
  Case<double> above = c, below = c;
  double slope = 0;
  const auto move = [&](const std::vector<double>& grad, auto Case<double>::*member) {
    for (size_t i = 0; i < grad.size(); ++i) {
      const double v = 2 * uniform() - 1;
      (above.*member)[i] += h * v, (below.*member)[i] -= h * v;
      slope += grad[i] * v;
    }
  };
  move(out.support, &Case<double>::support), move(out.query, &Case<double>::query);
  move(out.temperature, &Case<double>::temperature);
  const double right =
      (weighted_loss(k, above, metric) - weighted_loss(k, below, metric)) / (2 * h);
  expect(std::fabs(slope - right) < 1e-7 * (1 + std::fabs(right)), where, "wrong gradient");
}

template <class R>
void check_loss(const PrototypeKernels<R>& k, const Sizes& n, bool weighted, const std::string& at) {
  const Case<R> c(n, weighted);
  for (int metric = 0; metric < 4; ++metric) {
    const std::string where = at + ", metric " + std::to_string(metric);
    Outputs<R> one(n), many(n);
    expect(run(k, c.loss(Metric(metric), 1), c, one), where, "refused");
    expect(one.finite(), where, "not finite");
    run(k, c.loss(Metric(metric), 4), c, many);
    expect(one == many, where, "threads change the bits");
    Outputs<R> at_once(n);
    run(k, c.loss(Metric(metric), 4), c, at_once, nullptr, nullptr, true);
    expect(one == at_once, where, "gradients at once are others");
    if constexpr (std::is_same_v<R, double>)
      check_gradient(k, c, Metric(metric), one, where);
  }
  Outputs<R> out(n);
  Case<R> wrong = c;
  wrong.support_y[0] = -1;
  expect(!run(k, wrong.loss(Metric::Dot, 2), wrong, out), at, "took a label below 0");
  wrong = c;
  wrong.query_y[0] = n.N;
  expect(!run(k, wrong.loss(Metric::Dot, 2), wrong, out), at, "took a label of N");
  for (const double temperature : {0.0, -1.0, double(INFINITY), double(NAN)}) {
    wrong = c;
    wrong.temperature.back() = R(temperature);
    expect(!run(k, wrong.loss(Metric::Dot, 2), wrong, out), at, "took a temperature");
  }
  wrong = c;
  for (i64& y : wrong.support_y) y = 0;
  expect(n.N == 1 || !run(k, wrong.loss(Metric::Dot, 2), wrong, out), at, "took an empty class");
}

// ---- half precision -----------------------------------------------------------------------------

using Halves = std::vector<std::uint16_t>;

// Features whose low halves are 0 are the same numbers in both.
Halves upper_halves(std::vector<float>& x) {
  Halves halves;
  for (float& v : x) {
    std::uint32_t bits;
    std::memcpy(&bits, &v, sizeof bits);
    halves.push_back(std::uint16_t(bits >> 16));
    bits &= 0xffff0000;
    std::memcpy(&v, &bits, sizeof v);
  }
  return halves;
}

bool rounded(const std::vector<float>& x, const Halves& halves) {
  for (size_t i = 0; i < x.size(); ++i) {
    const std::uint32_t bits = std::uint32_t(halves[i]) << 16;
    float v;
    std::memcpy(&v, &bits, sizeof v);
    if (!(std::fabs(v - x[i]) <= std::fabs(x[i]) * 0x1p-8f)) return false;
  }
  return true;
}

void check_halves(const PrototypeKernels<float>& k, const Sizes& n, bool weighted,
                  const std::string& where) {
  Case<float> c(n, weighted);
  const Halves support = upper_halves(c.support), query = upper_halves(c.query);
  for (int metric = 0; metric < 4; ++metric) {
    Outputs<float> whole(n), half(n);
    Halves for_support(support.size(), 0x7fc0), for_query(query.size(), 0x7fc0);
    run(k, c.loss(Metric(metric), 1), c, whole);
    run(k, c.of(Metric(metric), 3, support.data(), query.data(), Storage::BFloat16), c, half,
        for_support.data(), for_query.data());
    expect(half.loss == whole.loss && half.accuracy == whole.accuracy, where, "halves: loss");
    expect(rounded(whole.support, for_support) && rounded(whole.query, for_query), where,
           "halves: gradient");
  }
  std::vector<float> values(size_t(n.T * n.Q)), other = values;
  std::vector<i64> indices(values.size()), others = indices;
  Case<float> plain(n, false);
  const Halves x = upper_halves(plain.query), y = upper_halves(plain.support);
  const auto metric = Metric::SquaredEuclidean;
  k.nearest({n.T, n.Q, n.S, n.D, 1, metric, 3, x.data(), Storage::BFloat16, y.data(),
             Storage::BFloat16, values.data(), indices.data()});
  k.nearest({n.T, n.Q, n.S, n.D, 1, metric, 1, plain.query.data(), Storage::Whole,
             plain.support.data(), Storage::Whole, other.data(), others.data()});
  expect(values == other && indices == others, where, "halves: nearest");
}

// ---- means, pairs, nearest ----------------------------------------------------------------------

template <class R>
void check_pairs(const PrototypeKernels<R>& k, const Sizes& n, const std::string& where) {
  const auto x = draw<R>(n.T * n.Q * n.D), y = draw<R>(n.T * n.N * n.D);
  const auto a = draw<R>(n.T * n.Q * n.D), h = draw<R>(n.T * n.Q * n.N);
  auto squared = poisoned<R>(n.T * n.Q * n.N), project = squared;
  auto pull = poisoned<R>(n.T * n.Q * n.D);
  Pairs<R> p{PairSum::Squared, n.T, n.Q, n.N, n.D, 3, x.data(), n.Q * n.D, y.data(), n.N * n.D,
             nullptr, 0, nullptr, 0, 0, 0, squared.data()};
  k.pairs(p);
  p.sum = PairSum::Project, p.a = a.data(), p.a_task = n.Q * n.D, p.out = project.data();
  k.pairs(p);
  p.sum = PairSum::Pull, p.h = h.data(), p.h_task = n.Q * n.N, p.h_query = n.N, p.h_class = 1;
  p.out = pull.data();
  k.pairs(p);
  long double worst = 0;
  for (i64 t = 0; t < n.T; ++t)
    for (i64 q = 0; q < n.Q; ++q) {
      std::vector<long double> pulled(size_t(n.D), 0);
      for (i64 j = 0; j < n.N; ++j) {
        long double square = 0, along = 0;
        for (i64 d = 0; d < n.D; ++d) {
          const i64 at = (t * n.Q + q) * n.D + d;
          const long double difference = (long double)x[size_t(at)] - (long double)y[size_t((t * n.N + j) * n.D + d)];
          square += difference * difference, along += a[size_t(at)] * difference;
          pulled[size_t(d)] += h[size_t((t * n.Q + q) * n.N + j)] * difference;
        }
        const size_t pair = size_t((t * n.Q + q) * n.N + j);
        worst = std::max({worst, std::fabs(square - squared[pair]),
                          std::fabs(along - project[pair])});
      }
      for (i64 d = 0; d < n.D; ++d)
        worst = std::max(worst, std::fabs(pulled[size_t(d)] -
                                          pull[size_t((t * n.Q + q) * n.D + d)]));
    }
  // Terms are 4 at most, so that sums are 4 D or 4 N, and lose that many roundings of them.
  const double terms = double(std::max(n.D, n.N));
  expect(worst <= double(std::numeric_limits<R>::epsilon()) * (terms + 4) * 4 * terms, where,
         "wrong sums over pairs");
}

template <class R>
void check_nearest(const PrototypeKernels<R>& k, const Sizes& n, i64 wanted, const std::string& at) {
  const auto x = draw<R>(n.T * n.Q * n.D);
  auto y = draw<R>(n.T * n.N * n.D);
  for (i64 d = 0; d < n.D && n.N > 1; ++d) y[size_t(d)] = y[size_t((n.N - 1) * n.D + d)];  // a tie
  auto squared = poisoned<R>(n.T * n.Q * n.N);
  k.pairs({PairSum::Squared, n.T, n.Q, n.N, n.D, 2, x.data(), n.Q * n.D, y.data(), n.N * n.D,
           nullptr, 0, nullptr, 0, 0, 0, squared.data()});
  for (const int threads : {1, 4}) {
    auto values = poisoned<R>(n.T * n.Q * wanted);
    std::vector<i64> indices(values.size(), -1);
    k.nearest({n.T, n.Q, n.N, n.D, wanted, Metric::SquaredEuclidean, threads, x.data(),
               Storage::Whole, y.data(), Storage::Whole, values.data(), indices.data()});
    bool right = true;
    for (i64 i = 0; i < n.T * n.Q; ++i) {
      const R* own = squared.data() + i * n.N;
      std::vector<i64> order(size_t(n.N), 0);
      for (i64 j = 0; j < n.N; ++j) order[size_t(j)] = j;
      std::stable_sort(order.begin(), order.end(), [&](i64 a, i64 b) { return own[a] < own[b]; });
      for (i64 j = 0; j < wanted; ++j)
        right &= indices[size_t(i * wanted + j)] == order[size_t(j)] &&
                 values[size_t(i * wanted + j)] == own[order[size_t(j)]];
    }
    expect(right, at, "not the nearest");
  }
}

template <class R>
void check(const Variant& variant, const char* real) {
  const auto& k = table<R>(variant);
  for (const Sizes& n : {Sizes{1, 1, 1, 1, 1}, Sizes{2, 7, 5, 3, 4}, Sizes{3, 9, 70, 5, 17},
                         Sizes{1, 40, 33, 37, 64}, Sizes{65, 3, 3, 2, 5}, Sizes{1, 4, 9, 2, 1100}}) {
    const std::string where = std::string(variant.name) + " " + real + " T=" + std::to_string(n.T) +
                              " N=" + std::to_string(n.N) + " D=" + std::to_string(n.D);
    for (const bool weighted : {false, true}) {
      check_loss<R>(k, n, weighted, where);
      if constexpr (std::is_same_v<R, float>) check_halves(k, n, weighted, where);
    }
    check_pairs<R>(k, n, where);
    for (const i64 wanted : {i64(1), n.N}) check_nearest<R>(k, n, wanted, where);
  }
  check_nearest<R>(k, {1, 1, 66, 9000, 3}, 10, std::string(variant.name) + " a bank");
}

}  // namespace

int main() {
  for (const Variant* v = variants(); v->name; ++v) {
    if (!v->runs_here()) continue;
    check<float>(*v, "float"), check<double>(*v, "double");
  }
  if (threads_started == 0) expect(false, "all", "no thread was started");
  std::printf("%s\n", failures ? "FAILED" : "passed");
  return failures != 0;
}
