// Small random chains of linear nodes and activations.
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "checks.h"

namespace {

using namespace fastmeta;
using namespace fastmeta::test;

Node linear(Case<double>& c, Random& random, i64 in, i64 out) {
  Node node{};
  node.kind = NodeKind::Linear;
  node.in = in, node.out = out;
  node.weight = c.add_parameter(in * out);
  node.bias = random.below(4) ? c.add_parameter(out) : -1;
  return node;
}

void add_chain(Case<double>& c, Random& random, ActivationKind kind) {
  const auto width = [&] { return random.one_of({1, 3, 17}); };
  const int layers = 1 + random.below(3);
  i64 in = width();
  if (!random.below(4)) c.nodes.push_back(activation(kind, in));
  for (int l = 0; l < layers; ++l) {
    const i64 out = width();
    c.nodes.push_back(linear(c, random, in, out));
    in = out;
    if (l + 1 < layers || random.coin()) c.nodes.push_back(activation(kind, in));
  }
}

Case<double> make_chain(unsigned seed, ActivationKind kind, LossKind loss, i64 tasks,
                        bool narrow) {
  return make_case(seed, loss, tasks, [&](Case<double>& c, Random& random) {
    if (narrow)
      c.nodes = {linear(c, random, 3, 3), activation(kind, 3), linear(c, random, 3, 1)};
    else
      add_chain(c, random, kind);
  });
}

template <class R>
void expect_no_number(const std::vector<R>& losses, const std::string& where) {
  for (R loss : losses)
    expect(std::isnan(loss), where, "a loss without a label is a number");
}

void check_labels_out_of_range(const Variant& variant) {
  for (i64 tasks : {1, 17}) {
    Case<double> c = make_chain(7, ActivationKind::Tanh, LossKind::CrossEntropy, tasks, false);
    size_t i = 0;
    for (auto* labels : {&c.support_labels, &c.query_labels})
      for (i64& label : *labels)
        label = std::vector<i64>{-1, c.outputs(), i64(1) << 40, INT64_MIN, INT64_MAX}[i++ % 5];
    const auto where = std::string(variant.name) + ", labels out of range";
    expect_no_number(forward_and_backward(*variant.f64, c, 1).loss, where);
    expect_no_number(forward_and_backward(*variant.f32, in_float(c), 1).loss, where);
  }
}

// Of a wide network the values of the samples are kept, but not those of a million tasks.
void check_kept(const Variant& variant) {
  const auto c = in_float(make_case(1, LossKind::MeanSquaredError, 1, [](auto& c, Random& random) {
    c.nodes = {linear(c, random, 64, 64), activation(ActivationKind::Tanh, 64),
               linear(c, random, 64, 64)};
    c.support_n = c.query_n = 20, c.steps = 1, c.order = 2;
  }));
  Call<float> call(c, 1);
  const auto record_of = [&](i64 tasks) {
    call.loop.tasks = tasks;
    return variant.f32->record_size(call.loop);
  };
  const i64 values = 2 * 20 * (64 + 64), million = 1 << 20;
  const i64 few = record_of(2) - record_of(1), many = record_of(million) / million;
  expect(few - many >= values, variant.name, "values are not kept, or those of too many tasks are");
}

// Shared parameters, one rate.
void share(Case<double>& c) {
  c.per_task.assign(c.n_parameters(), false);
  c.adapts.assign(c.n_parameters(), true);
  c.rate_per_element.assign(c.n_parameters(), false);
  c.rates.assign(c.n_parameters(), std::vector<double>(size_t(c.steps), 0.03));
  for (size_t p = 0; p < c.n_parameters(); ++p) c.parameters[p].resize(size_t(c.sizes[p]));
  for (i64 k = 0; k < c.steps; ++k) c.rates[0][size_t(k)] += 0.01 * double(k);
  for (auto& one : c.grad_fast) one.clear();
  c.one_rate = true;
}

// A wide first layer and few samples, as where its dual form pays.
Case<double> make_wide(unsigned seed, ActivationKind kind, LossKind loss) {
  const i64 tasks = std::vector<i64>{1, 5, 17}[seed % 3];
  Case<double> c = make_case(seed, loss, tasks, [&](Case<double>& c, Random& random) {
    const i64 in = random.one_of({33, 64, 300}), out = random.one_of({9, 17, 32});
    c.nodes = {linear(c, random, in, out)};
    for (int more = random.below(3); more; --more) {
      c.nodes.push_back(activation(kind, c.nodes.back().out));
      c.nodes.push_back(linear(c, random, c.nodes.back().out, random.one_of({1, 3, 17})));
    }
    c.steps = random.one_of({1, 3}), c.query_n = 1 + random.below(9);
    for (double& most : c.largest) most = 0.2;
  });
  share(c);
  return c;
}

// One step of second order, packs of tasks, and layers both wide and thin for the samples.
Case<double> make_deep(unsigned seed, ActivationKind kind, LossKind loss) {
  const i64 tasks = 16 * processors() + 1 + seed % 3;
  Case<double> c = make_case(seed, loss, tasks, [&](Case<double>& c, Random& random) {
    i64 in = random.one_of({1, 3, 12});
    if (!random.below(4)) c.nodes.push_back(activation(kind, in));
    for (int layers = 2 + random.below(2); layers; --layers) {
      const i64 out = random.one_of({1, 12, 21, 21});
      c.nodes.push_back(linear(c, random, in, out));
      if (layers > 1 || !random.below(3)) c.nodes.push_back(activation(kind, out));
      in = out;
    }
    c.steps = 1, c.order = 2, c.query_n = 1 + random.below(6);
    for (double& most : c.largest) most = 0.4;
  });
  share(c);
  return c;
}

double difference(const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> by(a);
  for (size_t i = 0; i < by.size(); ++i) by[i] -= b[i];
  return norm(by) / (norm(b) + 1e-30);
}

// The same numbers as those of the weights themselves, where nobody asks for weights.
template <class F>
void check_form(const Variant& variant, const std::string& team, unsigned seeds, F make) {
  unsigned chosen = 0;
  for (unsigned seed = 1; seed <= seeds; ++seed) {
    const auto where = std::string(variant.name) + ", " + team + ", seed " + std::to_string(seed);
    Case<double> c = make(seed, ActivationKind(seed % activation_kinds),
                          LossKind(seed % (int(LossKind::CrossEntropyAtPlaces) + 1)));
    auto plain = forward_and_backward(*variant.f64, c, 1);
    plain.fast.assign(plain.fast.size(), {});
    c.weights_stay = true;
    chosen += variant.f64->team(Call<double>(c, 1).loop) == team;
    const auto other = check_call(*variant.f64, c, where);
    const auto left = plain.all(), right = other.all();
    for (size_t i = 0; i < left.size(); ++i)
      expect(difference(*right[i], *left[i]) < 1e-11, where, "another number");
    const auto small = check_call(*variant.f32, in_float(c), where + ", float32");
    c = moved(c, Direction(c, 0), 1e-3);
    expect(near(small, other) || float32_is_near(variant, c), where, "float32 is far from float64");
  }
  expect(chosen >= seeds / 6, variant.name + (", " + team), "the form was hardly ever chosen");
}

void check_programs(const Variant& variant) {
  for (unsigned seed = 1; seed <= 16; ++seed) {
    const i64 tasks = std::vector<i64>{1, 5, 17}[seed % 3];
    const auto kind = ActivationKind(seed % activation_kinds);
    check_case(variant, make_chain(seed, kind, LossKind::Program, tasks, false),
               std::string(variant.name) + ", a program, seed " + std::to_string(seed));
  }
}

void check_variant(const Variant& variant) {
  std::set<std::string> teams;
  const i64 crowd = 16 * processors() + 1;  // enough for every pack, the last of them not full
  unsigned seed = 1;
  for (int repeat = 0; repeat < 6; ++repeat)
    for (int kind = 0; kind < activation_kinds; ++kind)
      for (int loss = 0; loss <= int(LossKind::BinaryCrossEntropy); ++loss, ++seed) {
        if (seed / 4 % every) continue;
        const i64 tasks = std::vector<i64>{1, 5, 17, crowd}[seed % 4];
        const auto c =
            make_chain(seed, ActivationKind(kind), LossKind(loss), tasks, tasks == crowd);
        check_case(variant, c, std::string(variant.name) + ", seed " + std::to_string(seed));
        teams.insert(std::string("float64 ") + variant.f64->team(Call<double>(c, 1).loop));
        teams.insert(std::string("float32 ") + variant.f32->team(Call<float>(in_float(c), 1).loop));
      }
  check_programs(variant);
  check_labels_out_of_range(variant);
  check_form(variant, "dual", 48, make_wide);
  check_form(variant, "low rank", 52, make_deep);
  check_kept(variant);
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
