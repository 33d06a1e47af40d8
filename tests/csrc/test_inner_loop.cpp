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

void check_labels_out_of_range(const Variant& variant) {
  for (i64 tasks : {1, 17}) {
    Case<double> c = make_chain(7, ActivationKind::Tanh, LossKind::CrossEntropy, tasks, false);
    size_t i = 0;
    for (auto* labels : {&c.support_labels, &c.query_labels})
      for (i64& label : *labels)
        label = std::vector<i64>{-1, c.outputs(), i64(1) << 40, INT64_MIN, INT64_MAX}[i++ % 5];
    const auto where = std::string(variant.name) + ", labels out of range";
    expect(finite(forward_and_backward(*variant.f64, c, 1)), where, "not finite");
    expect(finite(forward_and_backward(*variant.f32, in_float(c), 1)), where, "not finite");
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

void check_variant(const Variant& variant) {
  std::set<std::string> teams;
  const i64 crowd = 16 * processors() + 1;  // enough for every pack, the last of them not full
  unsigned seed = 1;
  for (int repeat = 0; repeat < 6; ++repeat)
    for (int kind = 0; kind <= int(ActivationKind::Softplus); ++kind)
      for (int loss = 0; loss <= int(LossKind::BinaryCrossEntropy); ++loss, ++seed) {
        const i64 tasks = std::vector<i64>{1, 5, 17, crowd}[seed % 4];
        const auto c =
            make_chain(seed, ActivationKind(kind), LossKind(loss), tasks, tasks == crowd);
        check_case(variant, c, std::string(variant.name) + ", seed " + std::to_string(seed));
        teams.insert(std::string("float64 ") + variant.f64->team(Call<double>(c, 1).loop));
        teams.insert(std::string("float32 ") + variant.f32->team(Call<float>(in_float(c), 1).loop));
      }
  check_labels_out_of_range(variant);
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
