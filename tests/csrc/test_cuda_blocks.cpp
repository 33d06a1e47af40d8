// The CUDA block code on the host, one thread a CUDA thread, against the CPU's kernels: the same
// numbers to the last digits of float64, near them in float32, and the same bits for any number of
// threads; with all samples at once and part by part; by one block a task, and by a cluster.
#include "cuda_programs.h"
//

namespace {

using namespace fastmeta;
using namespace fastmeta::test;

template <class R>
cuda::Addresses<R> addresses(const std::vector<R*>& list) {
  cuda::Addresses<R> out{};
  out.given = true;
  for (size_t p = 0; p < list.size(); ++p) out.of[p] = list[p];
  return out;
}

template <class Team, class R>
Outputs<R> by(const Case<R>& c, How how, Wanted wanted) {
  const Call<R> call(c, 1);
  const bool rates = wanted == Wanted::All;
  const auto scratch_of = [](char* memory) { return reinterpret_cast<R*>(memory); };
  Outputs<R> out = outputs_of(c, wanted);
  const cuda::Plan<Team> forward(call.loop,
                                 cuda::forward_room<Team>(call.loop, how.shared, how.blocks));
  Scratch<R> record(i64(sizeof(R)) *
                    std::max(i64(1), c.tasks * c.steps * forward.theta_size * how.blocks));
  {
    const Memories<R> memory(how.blocks, cuda::shared_bytes(forward));
    const cuda::ForwardArguments<Team> a{forward, record.data(), data_or_null(out.predictions),
                                         data_or_null(out.loss), addresses(pointers(out.fast))};
    launch_on_host(2, memory.data(), memory.bytes(), how.threads,
                   [&](char* shared) { cuda::forward_block(a, scratch_of(shared)); });
  }
  const cuda::Plan<Team> backward(call.loop,
                            cuda::backward_room<Team>(call.loop, rates, how.shared, how.blocks));
  std::vector<const R*> grad_fast;
  for (const auto& one : c.grad_fast) grad_fast.push_back(data_or_null(one));
  cuda::BackwardArguments<Team> a{backward, record.data(),
                                  c.query_n ? data_or_null(c.grad_loss) : nullptr,
                                  data_or_null(c.grad_predictions), {}, {}, {},
                                  data_or_null(out.support_x), data_or_null(out.query_x), nullptr,
                                  std::min(how.runs, c.tasks), 0};
  a.grad_fast.given = true;
  for (size_t p = 0; p < grad_fast.size(); ++p) a.grad_fast.of[p] = grad_fast[p];
  a.parameters = addresses(pointers(out.parameters));
  if (rates) a.rates = addresses(pointers(out.rates));
  a.run_size = backward.theta_size * (1 + (rates ? backward.rate_steps : 0));
  const i64 all_sums = a.runs * how.blocks * a.run_size;
  const Scratch<R> sums(i64(sizeof(R)) * all_sums);
  a.sums = sums.data();
  {
    const Memories<R> memory(how.blocks, cuda::shared_bytes(backward));
    launch_on_host(unsigned(a.runs), memory.data(), memory.bytes(), how.threads,
                   [&](char* shared) { cuda::backward_block(a, scratch_of(shared)); });
  }
  constexpr int sum_threads = 2 * cuda::sum_columns;  // fewer than on a GPU, in the same way
  const Memories<R> memory(1, i64(sizeof(R)) * sum_threads);
  const i64 sum_blocks = (how.blocks * a.run_size + cuda::sum_columns - 1) / cuda::sum_columns;
  launch_on_host(unsigned(sum_blocks), memory.data(), memory.bytes(), sum_threads,
                 [&](char* shared) { cuda::sum_block(a, scratch_of(shared)); });
  return out;
}

template <class R>
Outputs<R> on_host(const Case<R>& c, How how, Wanted wanted = Wanted::All) {
  return how.blocks > 1 ? by<cuda::Cluster<R>>(c, how, wanted) : by_programs(c, how, wanted, [](auto& program, unsigned threads) { interpret(program, threads); });
}

void check_cluster(const Case<double>& c, const Outputs<double>& expected,
                   const std::string& where) {
  const int blocks = c.tasks % 2 ? 3 : 2;
  const How how{4, plenty, 2, blocks};
  const auto out = on_host(c, how);
  expect(agree(out, expected), where, "a cluster does not compute what the CPU does");
  expect(same_bits(out, on_host(c, {2, plenty, 2, blocks})), where,
         "the number of threads changes a cluster's bits");
  expect(same_bits(on_host(c, how, Wanted::Few), out), where,
         "what else is asked for changes a cluster's bits");
  expect(agree(on_host(c, {2, tight(c, blocks), 3, blocks}), expected), where,
         "part by part a cluster gives other numbers");
  expect(agree(by<cuda::Cluster<double>>(c, {4}, Wanted::All), expected), where,
         "a cluster of one block does not compute what the CPU does");
}

void check_one_rate(const Case<double>& given, const std::string& where) {
  const Case<double> c = with_one_rate(given);
  const auto expected = forward_and_backward(*find_variant(nullptr)->f64, c, 1);
  const auto out = on_host(c, {8, plenty, 2, 1, true});
  expect(agree(out, expected), where, "with one rate a block does not compute what the CPU does");
  expect(same_bits(on_host(c, {4, plenty, 2, 1, true}, Wanted::Few), out), where,
         "with one rate, what else is asked for changes bits");
  expect(agree(on_host(c, {4, tight(c), 3, 1, true}), expected), where,
         "with one rate, part by part gives other numbers");
}

void check(const Case<double>& c, const std::string& where) {
  check_one_rate(c, where);
  const Variant& cpu = *find_variant(nullptr);
  const auto expected = forward_and_backward(*cpu.f64, c, 1);
  const auto out = on_host(c, {8});
  expect(agree(out, expected), where, "a block does not compute what the CPU does");
  expect(same_bits(out, on_host(c, {4})), where, "the number of threads changes bits");
  expect(same_bits(on_host(c, {8}, Wanted::Few), out), where,
         "what else is asked for changes bits");
  expect(agree(on_host(c, {8, tight(c), 3}), expected), where, "part by part gives other numbers");
  const auto nearby = moved(c, Direction(c, 0), 1e-3);
  for (const How how : {How{8}, How{4, plenty, 2, 2}}) {
    if (how.blocks > 1 && c.loss == LossKind::Program) break;
    expect(near(on_host(in_float(c), how), expected) ||
               near(on_host(in_float(nearby), how), forward_and_backward(*cpu.f64, nearby, 1)),
           where, "float32 is far from float64");
  }
  if (c.loss != LossKind::Program) check_cluster(c, expected, where);
}

// Losses of the user's own of every step that there is: of two outputs and two targets a number.
RowSteps every_step() {
  return {{"subtract", 0, 1, 0, 0, 0, 2},        {"absolute", 2, 0, 0, 0, 0, 2},
          {"constant", 0, 0, 0, 0.4, 0, 1},      {"greater", 3, 4, 0, 0, 0, 2},
          {"multiply", 2, 2, 0, 0, 0, 2},        {"select", 5, 3, 6, 0, 0, 2},
          {"clamp", 7, 0, 0, 0.05, 1.5, 2},      {"larger", 8, 0, 0, 0, 0, 2},
          {"smaller", 9, 3, 0, 0, 0, 2},         {"exp", 0, 0, 0, 0, 0, 2},
          {"log1p", 11, 0, 0, 0, 0, 2},          {"log", 11, 0, 0, 0, 0, 2},
          {"sqrt", 11, 0, 0, 0, 0, 2},           {"divide", 12, 14, 0, 0, 0, 2},
          {"sine", 0, 0, 0, 0, 0, 2},            {"cosine", 0, 0, 0, 0, 0, 2},
          {"tanh", 16, 0, 0, 0, 0, 2},           {"sigmoid", 17, 0, 0, 0, 0, 2},
          {"softplus", 0, 0, 0, 0, 0, 2},        {"negative", 20, 0, 0, 0, 0, 2},
          {"join", 18, 21, 0, 0, 0, 4},          {"turn", 22, 0, 1, 2, 2, 4},
          {"repeat", 19, 0, 0, 1, 0, 4},         {"product", 23, 24, 0, 1, 2, 4},
          {"product", 25, 22, 1, 1, 2, 4},       {"slice", 26, 0, 0, 1, 0, 2},
          {"stop", 27, 0, 0, 0, 0, 2},           {"multiply", 27, 28, 0, 0, 0, 2},
          {"sign", 0, 0, 0, 0, 0, 2},            {"greater_equal", 0, 1, 0, 0, 0, 2},
          {"equal", 30, 31, 0, 0, 0, 2},         {"add", 29, 32, 0, 0, 0, 2},
          {"activate", 33, 0, int(ActivationKind::SiLU), 0, 0, 2},
          {"add", 34, 15, 0, 0, 0, 2},           {"add", 35, 13, 0, 0, 0, 2},
          {"add", 36, 10, 0, 0, 0, 2},           {"log_sum_exp", 37, 0, 0, 0, 0, 1},
          {"sum", 37, 0, 0, 0, 0, 1},            {"multiply", 38, 39, 0, 0, 0, 1},
          {"constant", 0, 0, 0, 0.1, 0, 1},      {"multiply", 40, 41, 0, 0, 0, 1}};
}

Rows own_loss(i64 outputs, i64 targets, const RowSteps& steps) {
  Rows rows;
  rows.give(outputs, true);
  rows.give(targets, false);
  rows.add_steps(steps);
  rows.finish();
  return rows;
}

Case<double> of_two_outputs(unsigned seed, LossKind loss) {
  return make_case(seed, loss, 3, [&](Case<double>& c, Random& random) {
    c.nodes = {linear(c, random, 3, 9), activation(ActivationKind::Tanh, 9), linear(c, random, 9, 2)};
    c.order = 2, c.steps = 3;
  });
}

// Cross-entropy, once more; labels are numbers there.
Case<double> of_labels(unsigned seed) {
  Case<double> c = of_two_outputs(seed, LossKind::CrossEntropy);
  c.loss = LossKind::Program;
  c.program = own_loss(2, 1, {{"log_sum_exp", 0, 0, 0, 0, 0, 1}, {"choose", 0, 1, 0, 0, 0, 1},
                              {"subtract", 2, 3, 0, 0, 0, 1}});
  return c;
}

void check_own_losses() {
  for (unsigned seed = 0; seed < 4; ++seed) {
    Case<double> c = of_two_outputs(seed, LossKind::Program);
    c.program = own_loss(2, 2, every_step());
    c.adds = seed % 2;
    check(c, "cuda block, a loss of every step, seed " + std::to_string(seed));
  }
  check(of_labels(5), "cuda block, a loss of labels");
  Case<double> c = of_labels(6);
  c.program = own_loss(2, 1, {{"sum", 0, 0, 0, 0, 0, 1}});  // reads no label
  c.support_labels[0] = 2;
  c.query_labels.assign(c.query_labels.size(), -1);
  const auto loss = on_host(c, {4}).loss;
  for (double one : loss) expect(std::isnan(one), "own loss", "a loss without a label is a number");
}

// More features than one running sum takes, and a batch that comes in uneven parts.
Case<double> make_wide(unsigned seed) {
  return make_case(seed, LossKind::CrossEntropy, 2, [](Case<double>& c, Random& random) {
    c.nodes = {linear(c, random, 530, 6)};
    c.support_n = 7, c.query_n = 5, c.steps = 2, c.order = 2;
  });
}

// More samples than one running sum takes.
Case<double> make_long(unsigned seed) {
  return make_case(seed, LossKind::MeanSquaredError, 2, [](Case<double>& c, Random& random) {
    c.nodes = {linear(c, random, 3, 12), activation(ActivationKind::ReLU, 12),
               linear(c, random, 12, 2)};
    c.support_n = 300, c.query_n = 5, c.steps = 2, c.order = 2;
  });
}

void check_labels_out_of_range() {
  Case<double> c = make_chain(7, ActivationKind::Tanh, LossKind::CrossEntropy, 3);
  size_t i = 0;
  for (auto* labels : {&c.support_labels, &c.query_labels})
    for (i64& label : *labels)
      label = std::vector<i64>{-1, c.outputs(), i64(1) << 40, INT64_MIN, INT64_MAX}[i++ % 5];
  for (int blocks : {1, 2})
    for (double loss : on_host(c, {4, plenty, 2, blocks}).loss)
      expect(std::isnan(loss), "labels out of range", "a loss without a label is a number");
}

// ---- how many blocks share a task -----------------------------------------------------------------

constexpr i64 h100_shared = 232448, h100_processors = 132;

Case<float> make_layers(i64 tasks, i64 samples, std::vector<i64> widths) {
  return in_float(make_case(1, LossKind::MeanSquaredError, tasks, [&](Case<double>& c, Random&) {
    for (size_t l = 1; l < widths.size(); ++l) {
      Node node{};
      node.kind = NodeKind::Linear;
      node.in = widths[l - 1], node.out = widths[l];
      node.weight = c.add_parameter(node.in * node.out), node.bias = c.add_parameter(node.out);
      c.nodes.push_back(node);
      if (l + 1 < widths.size()) c.nodes.push_back(activation(ActivationKind::Tanh, node.out));
    }
    c.support_n = c.query_n = samples, c.steps = 1, c.order = 2;
  }));
}

int blocks_on_h100(const Case<float>& c, i64 largest_cluster = 8, bool for_speed = false) {
  const auto at_once = [=](int blocks) {
    return blocks <= largest_cluster ? h100_processors / blocks : 0;
  };
  return cuda::blocks_of_task(Call<float>(c, 1).loop, h100_shared, at_once, for_speed);
}

// for_speed: where few tasks are shared among more blocks than hold them.
void check_blocks(const std::string& what, const Case<float>& c, int with, int without,
                  int for_speed) {
  expect(blocks_on_h100(c) == with, what, "another number of blocks than expected");
  expect(blocks_on_h100(c, 8, true) == for_speed, what, "for speed: another number than expected");
  expect(blocks_on_h100(c, 0) == without, what, "without clusters: another number than expected");
}

// The least cluster that holds the parameters and enough rows, or parts of equal size, which are then
// more than half of those.
void check_least(const std::string& what, const Case<float>& c) {
  const Call<float> call(c, 1);
  const int blocks = blocks_on_h100(c);
  const auto rows = [&](int n) {
    return cuda::backward_room<cuda::Cluster<float>>(call.loop, true, h100_shared, n).rows;
  };
  expect(blocks > 1 && rows(blocks) > cuda::enough_rows / 2, what, "too few rows fit");
  expect(rows(blocks - 1) < cuda::enough_rows, what, "fewer blocks would do");
}

void check_choice() {
  check_blocks("sinusoid, 25 tasks", make_layers(25, 10, {1, 40, 40, 1}), 1, 1, 1);
  check_blocks("sinusoid, 1 task", make_layers(1, 10, {1, 40, 40, 1}), 1, 1, 1);
  check_blocks("rl, 40 tasks", make_layers(40, 200, {20, 64, 64, 6}), 1, 1, 3);
  check_blocks("rl, 60 tasks", make_layers(60, 200, {20, 64, 64, 6}), 1, 1, 2);
  check_blocks("rl, 133 tasks", make_layers(133, 200, {20, 64, 64, 6}), 1, 1, 1);
  check_blocks("per-user", make_layers(256, 20, {256, 64, 64, 1}), 2, 0, 2);
  check_blocks("60k", make_layers(256, 25, {200, 200, 100, 5}), 8, 0, 8);
  // As the engine asks before it knows of samples: what holds one row holds any number of them.
  for (const auto& widths : std::vector<std::vector<i64>>{{256, 64, 64, 3}, {200, 200, 100, 5}})
    expect(blocks_on_h100(make_layers(1, 1, widths)) > 1, "one sample", "nothing holds it");
  check_blocks("a million", make_layers(1, 5, {1000, 1000, 10}), 0, 0, 0);
  for (const auto& widths : std::vector<std::vector<i64>>{
           {256, 64, 64, 1}, {200, 200, 100, 5}, {784, 64, 64, 10}, {100, 100, 100, 100, 100}})
    check_least(std::to_string(widths[0]) + " features", make_layers(256, 25, widths));
}

}  // namespace

int main() {
  check_choice();
  unsigned seed = 1;
  for (int kind = 0; kind < activation_kinds; ++kind)
    for (int loss = 0; loss <= int(LossKind::Program); ++loss, ++seed)
      if (seed % (2 * every) == 0)  // a system's thread for each of a block takes long
        check(make_chain(seed, ActivationKind(kind), LossKind(loss), 1 + seed % 3),
              "cuda block, seed " + std::to_string(seed));
  check(make_wide(100), "cuda block, 530 features");
  const Case<double> many = make_long(101);
  expect(agree(on_host(many, {16}), forward_and_backward(*find_variant(nullptr)->f64, many, 1)),
         "cuda block, 300 samples", "a block does not compute what the CPU does");
  check_labels_out_of_range();
  check_own_losses();
  release_memory();
  if (!failures) std::printf("blocks agree\n");
  return failures != 0;
}
