// One random inner loop, whatever its network: the numbers that a call of the kernels is made of.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <random>
#include <vector>

#include "row_program.h"

namespace fastmeta::test {

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}
  int below(i64 n) { return int(engine_() % unsigned(n)); }
  bool coin() { return below(2); }
  double uniform() { return double(engine_()) / 4294967296.0; }
  i64 one_of(std::initializer_list<i64> values) {
    return values.begin()[below(i64(values.size()))];
  }
  template <class R>
  std::vector<R> reals(i64 n, double low, double high) {
    std::vector<R> values(static_cast<size_t>(n));
    for (R& value : values) value = R(low + (high - low) * uniform());
    return values;
  }

 private:
  std::mt19937 engine_;
};

// What does not depend on the real type.
struct Setting {
  std::vector<Node> nodes;  // or stages, or a forward as arithmetic on rows, or that above stages
  std::vector<Stage> stages;
  Rows written;
  LossKind loss;
  Rows program;  // where that is the loss
  bool adds = false;  // whether that is summed over samples
  LabelPlaces places{};  // where the loss has any
  std::vector<double> class_weights;
  i64 tasks, steps, support_n, query_n;
  int order;
  std::vector<i64> sizes;       // of the parameters
  std::vector<double> largest;  // of each parameter's elements
  std::vector<bool> constant;   // of each parameter: 1 to 2, and nobody asks for its gradient
  std::vector<bool> per_task, adapts, rate_per_step, rate_per_element;
  bool one_rate = false;      // the first parameter's is that of all
  bool weights_stay = false;  // as in InnerLoop
  std::vector<i64> support_labels, query_labels;

  int add_parameter(i64 size, double most = 0.6) {
    sizes.push_back(size);
    largest.push_back(most);
    constant.push_back(false);
    return int(sizes.size()) - 1;
  }
  int add_constant(i64 size) {
    const int p = add_parameter(size, 2);
    constant[size_t(p)] = true;
    return p;
  }
  size_t n_parameters() const { return sizes.size(); }
  i64 inputs() const {
    if (stages.empty()) return written.empty() ? nodes.front().in : written.width(0);
    const Stage& first = stages.front();
    return first.in_c * first.in_h * first.in_w;
  }
  i64 outputs() const {
    if (!written.empty()) return written.last_width();
    if (stages.empty()) return nodes.back().out;
    return stages.back().c * stages.back().out_h * stages.back().out_w;
  }
  i64 rate_steps() const {
    for (size_t p = 0; p < sizes.size(); ++p)
      if (adapts[p] && rate_per_step[p]) return steps > 1 ? steps : 1;
    return 1;
  }
  i64 rate_size(size_t p) const { return rate_per_element[p] ? sizes[p] : 1; }
  // Where the rates hold the one for an element of parameter p at a step.
  size_t rate_at(size_t p, i64 step, i64 element) const {
    const i64 n = rate_size(p);
    return size_t((rate_per_step[p] ? step * n : 0) + element % n);
  }
};

template <class R>
struct Case : Setting {
  std::vector<std::vector<R>> parameters, rates;
  std::vector<R> support_x, query_x, support_y, query_y, support_weight, query_weight;
  std::vector<R> grad_loss, grad_predictions;
  std::vector<std::vector<R>> grad_fast;
};

inline Node activation(ActivationKind kind, i64 width) {
  Node node{};
  node.kind = NodeKind::Activation;
  node.activation = kind;
  node.a = kind == ActivationKind::LeakyReLU ? 0.1 : kind == ActivationKind::Clamp ? -0.7 : 1.3;
  node.b = kind == ActivationKind::ELU ? 1.1 : kind == ActivationKind::Clamp ? 0.9
           : kind == ActivationKind::Affine ? -0.4 : 20;
  node.in = node.out = width;
  node.weight = node.bias = -1;
  return node;
}

inline void make_parameters(Case<double>& c, Random& random) {
  const int frozen = random.below(3);
  for (size_t p = 0; p < c.sizes.size(); ++p) {
    c.per_task.push_back(!random.below(3));
    c.adapts.push_back((frozen == 0 || random.coin()) && !c.constant[p]);
    c.rate_per_step.push_back(random.coin());
    c.rate_per_element.push_back(random.coin());
    const i64 copies = c.per_task[p] ? c.tasks : 1;
    const double least = c.constant[p] ? 1 : -c.largest[p];
    c.parameters.push_back(random.reals<double>(c.sizes[p] * copies, least, c.largest[p]));
    const i64 steps = c.rate_per_step[p] && c.steps > 1 ? c.steps : 1;
    c.rates.push_back(random.reals<double>(steps * c.rate_size(p), 0.02, 0.2));
    c.grad_fast.push_back(random.reals<double>(random.coin() ? c.sizes[p] * c.tasks : 0, -1, 1));
  }
  // As the bindings have it.
  bool any = false;
  for (bool adapts : c.adapts) any = any || adapts;
  if (!any) c.steps = 0;
}

inline void make_samples(Case<double>& c, Random& random, i64 n, std::vector<double>& x,
                         std::vector<double>& y, std::vector<i64>& labels,
                         std::vector<double>& weight) {
  x = random.reals<double>(c.tasks * n * c.inputs(), -2, 2);
  if (c.loss == LossKind::CrossEntropy) {
    labels.resize(size_t(c.tasks * n));
    for (i64& label : labels) label = random.below(c.outputs());
  } else if (c.loss == LossKind::CrossEntropyAtPlaces) {
    const i64 a_task = n * c.places.count;
    labels.resize(size_t(c.tasks * a_task));
    for (i64& label : labels) label = random.below(c.places.classes);
    for (i64 t = 0; t < c.tasks && n; ++t) labels[size_t(t * a_task)] = c.places.classes - 1;  // not ignored
    if (c.places.ignored >= 0 || !c.class_weights.empty()) return;
  } else {
    y = random.reals<double>(c.tasks * n * c.outputs(), 0, 1);
  }
  if (random.below(3)) return;
  weight = random.reals<double>(c.tasks * n, 0.1, 2);
  for (size_t i = 0; i < weight.size(); ++i)
    if (i % size_t(n) && random.coin()) weight[i] = 0;
}

// The mean squared error, and tanh of the last prediction times the logarithm of the sum of their
// exponentials.
inline Rows a_program(i64 outputs) {
  Rows rows;
  rows.give(outputs, true);
  rows.give(outputs, false);
  const double share = 1 / double(outputs), last = double(outputs) - 1;
  rows.add_steps({{"subtract", 0, 1, 0, 0, 0, outputs}, {"multiply", 2, 2, 0, 0, 0, outputs},
                  {"sum", 3, 0, 0, 0, 0, 1}, {"constant", 0, 0, 0, share, 0, 1},
                  {"multiply", 4, 5, 0, 0, 0, 1}, {"log_sum_exp", 0, 0, 0, 0, 0, 1},
                  {"slice", 0, 0, 0, last, 0, 1}, {"tanh", 8, 0, 0, 0, 0, 1},
                  {"multiply", 7, 9, 0, 0, 0, 1}, {"add", 6, 10, 0, 0, 0, 1}});
  rows.finish();
  return rows;
}

// Of a label at each of as many places as the outputs divide into, some with weights and labels to ignore.
inline void make_places(Case<double>& c, Random& random) {
  i64 classes = 1 + random.below(c.outputs());
  while (c.outputs() % classes) --classes;
  c.places = {classes, c.outputs() / classes, -100, random.coin(), nullptr};
  if (classes > 1 && random.coin()) c.places.ignored = 0;
  if (random.coin()) c.class_weights = random.reals<double>(classes, 0.5, 2);
}

// add_network(case, random) makes the nodes or stages and their parameters' sizes.
template <class F>
Case<double> make_case(unsigned seed, LossKind loss, i64 tasks, F add_network) {
  Random random(seed);
  Case<double> c;
  c.loss = loss;
  c.tasks = tasks;
  c.steps = random.one_of({0, 1, 3, 3});
  c.order = random.below(3) ? 2 : 1;
  c.support_n = 1 + random.below(5);
  c.query_n = random.below(8) ? 1 + random.below(5) : 0;
  add_network(c, random);
  if (loss == LossKind::Program) c.program = a_program(c.outputs());
  if (loss == LossKind::CrossEntropyAtPlaces) make_places(c, random);
  make_parameters(c, random);
  make_samples(c, random, c.support_n, c.support_x, c.support_y, c.support_labels,
               c.support_weight);
  make_samples(c, random, c.query_n, c.query_x, c.query_y, c.query_labels, c.query_weight);
  c.grad_loss = random.reals<double>(random.below(4) ? tasks : 0, 0.5, 1.5);
  const i64 predictions = c.query_n * c.tasks * c.outputs();
  c.grad_predictions = random.reals<double>(random.coin() ? predictions : 0, -1, 1);
  return c;
}

inline std::vector<float> in_float(const std::vector<double>& v) { return {v.begin(), v.end()}; }

inline std::vector<std::vector<float>> in_float(const std::vector<std::vector<double>>& v) {
  std::vector<std::vector<float>> out;
  for (const auto& one : v) out.push_back(in_float(one));
  return out;
}

inline Case<float> in_float(const Case<double>& c) {
  return {c,
          in_float(c.parameters),
          in_float(c.rates),
          in_float(c.support_x),
          in_float(c.query_x),
          in_float(c.support_y),
          in_float(c.query_y),
          in_float(c.support_weight),
          in_float(c.query_weight),
          in_float(c.grad_loss),
          in_float(c.grad_predictions),
          in_float(c.grad_fast)};
}

}  // namespace fastmeta::test
