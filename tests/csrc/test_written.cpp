// Small random forwards that are arithmetic on rows.
#include <set>
#include <string>
#include <vector>

#include "checks.h"
#include "random_rows.h"

namespace {

using namespace fastmeta;
using namespace fastmeta::test;

Case<double> make_written(unsigned seed, LossKind loss, i64 tasks) {
  const auto kind = ActivationKind(seed % activation_kinds);
  return make_case(seed, loss, tasks, [&](Case<double>& c, Random& random) {
    const i64 inputs = random.one_of({1, 3, 17});
    Writer(c, random, kind, inputs).write();
    if (!random.below(4)) c.support_n = 40 + random.below(60);  // more than one record, or chunk
  });
}

// So many numbers a sample that they are gone through in several chunks.
Case<double> make_long(unsigned seed, i64 tasks) {
  return make_case(seed, LossKind::MeanSquaredError, tasks, [&](Case<double>& c, Random& random) {
    RowSteps steps;
    const int weight = c.add_parameter(40 * 40, 0.2), bias = c.add_parameter(40);
    for (int layer = 0; layer < 24; ++layer) {  // one layer, again and again
      steps.push_back({"linear", 2 * layer, weight, bias, double(seed % 2), 1, 40});
      steps.push_back({"tanh", 2 * layer + 1, 0, 0, 0, 0, 40});
    }
    c.written.give(40, true);
    c.written.add_steps(steps, c.sizes);
    c.written.share();
    c.written.finish();
    c.support_n = 11 + random.below(60), c.query_n = 23 + random.below(60), c.steps = 2;
  });
}

// Samples that are mostly zeros: words of a vocabulary, in each place one or none.
Case<double> make_words(unsigned seed, i64 tasks) {
  constexpr i64 vocabulary = 40, width = 9;
  const i64 places = 1 + seed % 3;
  auto c = make_case(seed, LossKind::MeanSquaredError, tasks, [&](Case<double>& c, Random& random) {
    const int table = c.add_parameter(vocabulary * width, 0.5);
    const int bias = random.coin() ? c.add_parameter(width) : -1;
    const int head = c.add_parameter(places * width * 4, 0.3);
    c.written.give(places * vocabulary, true);
    c.written.add_steps({{"linear", 0, table, bias, 1, double(places), places * width},
                         {"tanh", 1, 0, 0, 0, 0, places * width},
                         {"linear", 2, head, -1, 0, 1, 4}}, c.sizes);
    c.written.share();
    c.written.finish();
    if (random.coin()) c.support_n = 20 + random.below(60);
  });
  Random random(seed);
  for (std::vector<double>* x : {&c.support_x, &c.query_x})
    for (size_t begin = 0; begin < x->size(); begin += size_t(vocabulary)) {
      const size_t word = size_t(random.below(vocabulary + 1));  // the last one: none
      for (size_t j = 0; j < size_t(vocabulary); ++j)
        if (j != word) (*x)[begin + j] = 0;
    }
  return c;
}

void check_variant(const Variant& variant) {
  std::set<std::string> teams;
  const i64 crowd = 16 * processors() + 1;
  for (unsigned seed = 1; seed <= std::max(24 / every, 4); ++seed) {  // each number of tasks
    const i64 tasks = std::vector<i64>{1, 5, 17, crowd}[seed % 4];
    const auto c = make_written(seed, LossKind(seed % (int(LossKind::CrossEntropyAtPlaces) + 1)), tasks);
    check_case(variant, c, std::string(variant.name) + ", written, seed " + std::to_string(seed));
    teams.insert(variant.f64->team(Call<double>(c, 1).loop));
    teams.insert(variant.f32->team(Call<float>(in_float(c), 1).loop));
  }
  for (unsigned seed = 1; seed <= 2; ++seed)
    check_case(variant, make_long(seed, seed == 1 ? 1 : 17),
               std::string(variant.name) + ", long, seed " + std::to_string(seed));
  for (unsigned seed = 1; seed <= (every == 1 ? 6 : 3); ++seed)
    check_case(variant, make_words(seed, std::vector<i64>{1, 5, 17}[seed % 3]),
               std::string(variant.name) + ", words, seed " + std::to_string(seed));
#ifdef __SANITIZE_THREAD__
  const bool blends = false;  // runs the portable kernels, whose vectors have 128 bits
#else
  const bool blends = __builtin_cpu_supports("avx2");
#endif
  expect(teams.size() == (blends ? 3 : 2), variant.name, "a team was never chosen");
}

}  // namespace

int main() {
  for (const Variant* v = variants(); v->name; ++v)
    if (v->runs_here()) check_variant(*v);
  release_memory();
  if (!failures) std::printf("written forwards agree\n");
  return failures != 0;
}
