// The CUDA block code on the host, one thread a CUDA thread, against the CPU's kernels: the same
// numbers to the last digits of float64, near them in float32, and the same bits for any number of
// threads; with all samples at once and part by part; by one block a task, and by a cluster.
#include "cuda_on_host.h"
//
#include "cuda/record.h"
#include "cuda/room.h"
#include "cuda/run.cuh"
//
#include <algorithm>
#include <string>

#include "checks.h"

namespace {

using namespace fastmeta;
using namespace fastmeta::test;

constexpr i64 plenty = i64(1) << 30;

// Shared memory of exactly the size asked for, all NaN.
template <class R>
class Scratch {
 public:
  explicit Scratch(i64 bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, size_t(bytes))) std::abort();
    owner_.reset(memory);
    std::memset(memory, 255, size_t(bytes));
  }
  R* data() const { return static_cast<R*>(owner_.get()); }

 private:
  std::unique_ptr<void, Free> owner_;
};

template <class R>
cuda::Addresses<R> addresses(const std::vector<R*>& list) {
  cuda::Addresses<R> out{};
  out.given = true;
  for (size_t p = 0; p < list.size(); ++p) out.of[p] = list[p];
  return out;
}

// The shared memory of every block of a cluster.
template <class R>
class Memories {
 public:
  Memories(int blocks, i64 bytes) : bytes_(size_t(bytes)) {
    for (int b = 0; b < blocks; ++b) owners_.push_back(std::make_unique<Scratch<R>>(bytes));
  }
  std::vector<char*> data() const {
    std::vector<char*> out;
    for (const auto& one : owners_) out.push_back(reinterpret_cast<char*>(one->data()));
    return out;
  }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_;
  std::vector<std::unique_ptr<Scratch<R>>> owners_;
};

struct How {
  unsigned threads;
  i64 shared = plenty, runs = 2;
  int blocks = 1;
  bool one_rate = false;
};

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

// ---- a block by its programs ----------------------------------------------------------------------

template <class R>
void bind(cuda::Run<R>& run, int slot, const R* p) {
  run.tensors[slot].base = const_cast<R*>(p);
}

template <class R>
void bind_inputs(cuda::Run<R>& run, const InnerLoop<R>& loop, R* record) {
  for (int p = 0; p < loop.network.n_parameters; ++p) {
    bind(run, cuda::first_parameter + p, loop.parameters[p].data);
    bind(run, cuda::first_rate + p, loop.rates[p].data);
  }
  int slot = cuda::support_x;
  for (const Samples<R>* samples : {&loop.support, &loop.query}) {
    bind(run, slot, samples->x), bind(run, slot + 1, samples->y);
    bind(run, slot + 2, reinterpret_cast<const R*>(samples->labels));
    bind(run, slot + 3, samples->weight);
    slot += 4;
  }
  bind(run, cuda::record, record);
}

// Runs a program on blocks that know of no other thread number than `how` says.
template <class R>
void carry_out(cuda::Program<R>& program, const How& how, i64 runs) {
  cuda::Run<R> run = program.run;
  run.ops = program.ops.data();
  run.runs = runs;
  const Memories<R> memory(1, program.shared);
  launch_on_host(unsigned(runs), memory.data(), memory.bytes(), how.threads, [&](char* shared) {
    cuda::run_block(run, reinterpret_cast<R*>(shared));
  });
}

template <class R>
Outputs<R> by_programs(const Case<R>& c, How how, Wanted wanted) {
  const Call<R> call(c, 1);
  const bool rates = wanted == Wanted::All;
  Outputs<R> out = outputs_of(c, wanted);
  cuda::Wanted asked{};
  asked.fast = true, asked.rates = rates;
  asked.support_x = !out.support_x.empty(), asked.query_x = !out.query_x.empty();
  asked.grad_loss = c.query_n && !c.grad_loss.empty();
  asked.grad_predictions = !c.grad_predictions.empty();
  asked.grad_fast = true, asked.one_rate = how.one_rate;
  const i64 runs = std::min(how.runs, c.tasks);
  cuda::Recordist<R> recordist(call.loop, asked, how.shared, 132);
  auto forward = recordist.forward(), backward = recordist.backward();
  Scratch<R> record(i64(sizeof(R)) * std::max(i64(1), c.tasks * c.steps * forward.theta_size));
  bind_inputs(forward.run, call.loop, record.data());
  bind(forward.run, cuda::predictions, data_or_null(out.predictions));
  bind(forward.run, cuda::loss, data_or_null(out.loss));
  const auto fast = pointers(out.fast), parameters = pointers(out.parameters);
  const auto of_rates = pointers(out.rates);
  for (size_t p = 0; p < fast.size(); ++p) bind(forward.run, cuda::first_fast + int(p), fast[p]);
  carry_out(forward, how, runs);
  bind_inputs(backward.run, call.loop, record.data());
  bind(backward.run, cuda::grad_loss, data_or_null(c.grad_loss));
  bind(backward.run, cuda::grad_predictions, data_or_null(c.grad_predictions));
  bind(backward.run, cuda::out_support_x, data_or_null(out.support_x));
  bind(backward.run, cuda::out_query_x, data_or_null(out.query_x));
  for (size_t p = 0; p < c.n_parameters(); ++p) {
    bind(backward.run, cuda::first_grad_fast + int(p), data_or_null(c.grad_fast[p]));
    bind(backward.run, cuda::first_out + int(p), p < parameters.size() ? parameters[p] : nullptr);
  }
  const i64 run_size = backward.run.run_size;
  const Scratch<R> partial(i64(sizeof(R)) * runs * run_size);
  bind(backward.run, cuda::sums, partial.data());
  carry_out(backward, how, runs);
  cuda::SumOver<R> sum = cuda::sum_over(backward, partial.data(), runs);
  for (size_t n = 0; n < backward.parts.size(); ++n) {
    const size_t p = size_t(backward.parts[n].rates_slot - cuda::first_rate);
    if (backward.parts[n].slot != cuda::no_slot && p < parameters.size()) sum.out[n] = parameters[p];
    if (rates && p < of_rates.size()) sum.rates[n] = of_rates[p];
  }
  constexpr int sum_threads = 2 * cuda::sum_columns;  // fewer than on a GPU, in the same way
  const Memories<R> memory(1, i64(sizeof(R)) * sum_threads);
  const i64 layers = run_size / backward.theta_size;
  for (i64 layer = 0; layer < layers; ++layer)
    launch_on_host(unsigned((backward.theta_size + cuda::sum_columns - 1) / cuda::sum_columns),
                   memory.data(), memory.bytes(), sum_threads, [&](char* shared) {
                     blockIdx.y = unsigned(layer);
                     cuda::sum_block(sum, reinterpret_cast<R*>(shared));
                   });
  return out;
}

template <class R>
Outputs<R> on_host(const Case<R>& c, How how, Wanted wanted = Wanted::All) {
  return how.blocks > 1 ? by<cuda::Cluster<R>>(c, how, wanted) : by_programs(c, how, wanted);
}

bool agree(const Outputs<double>& a, const Outputs<double>& b) {
  const auto left = a.all(), right = b.all();
  double largest = 1;
  for (const auto* one : right) largest = std::fmax(largest, norm(*one));
  for (size_t i = 0; i < left.size(); ++i)
    for (size_t j = 0; j < left[i]->size(); ++j)
      if (!(std::fabs((*left[i])[j] - (*right[i])[j]) <= 1e-11 * largest)) return false;
  return true;
}

Node linear(Case<double>& c, Random& random, i64 in, i64 out) {
  Node node{};
  node.kind = NodeKind::Linear;
  node.in = in, node.out = out;
  node.weight = c.add_parameter(in * out);
  node.bias = random.below(4) ? c.add_parameter(out) : -1;
  return node;
}

Case<double> make_chain(unsigned seed, ActivationKind kind, LossKind loss, i64 tasks) {
  return make_case(seed, loss, tasks, [&](Case<double>& c, Random& random) {
    const int layers = 1 + random.below(3);
    i64 in = random.one_of({1, 3, 5, 17});
    if (!random.below(4)) c.nodes.push_back(activation(kind, in));
    for (int l = 0; l < layers; ++l) {
      const i64 out = random.one_of({1, 3, 8, 17});
      c.nodes.push_back(linear(c, random, in, out));
      in = out;
      if (l + 1 < layers || random.coin()) c.nodes.push_back(activation(kind, in));
      if (!random.below(5)) c.nodes.push_back(activation(kind, in));
    }
  });
}

// The least shared memory that these samples fit into, so that they come a row at a time.
template <class R>
i64 tight(const Case<R>& c, int blocks = 1) {
  const Call<R> call(c, 1);
  return blocks > 1 ? cuda::least_bytes<cuda::Cluster<R>>(call.loop, blocks)
                    : cuda::least_bytes<cuda::Recorder<R>>(call.loop) + cuda::beside_scratch;
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

// The same number is the rate of all parameters, at every step.
Case<double> with_one_rate(Case<double> c) {
  for (size_t p = 0; p < c.n_parameters(); ++p) {
    c.adapts[p] = true, c.rate_per_step[p] = c.rate_per_element[p] = false;
    c.rates[p] = {0.07};
  }
  return c;
}

void check_one_rate(const Case<double>& given, const std::string& where) {
  const Case<double> c = with_one_rate(given);
  const auto expected = forward_and_backward(*find_variant("portable")->f64, c, 1);
  const auto out = on_host(c, {8, plenty, 2, 1, true});
  expect(agree(out, expected), where, "with one rate a block does not compute what the CPU does");
  expect(same_bits(on_host(c, {4, plenty, 2, 1, true}, Wanted::Few), out), where,
         "with one rate, what else is asked for changes bits");
  expect(agree(on_host(c, {4, tight(c), 3, 1, true}), expected), where,
         "with one rate, part by part gives other numbers");
}

void check(const Case<double>& c, const std::string& where) {
  check_one_rate(c, where);
  const Variant& cpu = *find_variant("portable");
  const auto expected = forward_and_backward(*cpu.f64, c, 1);
  const auto out = on_host(c, {8});
  expect(agree(out, expected), where, "a block does not compute what the CPU does");
  expect(same_bits(out, on_host(c, {4})), where, "the number of threads changes bits");
  expect(same_bits(on_host(c, {8}, Wanted::Few), out), where,
         "what else is asked for changes bits");
  expect(agree(on_host(c, {8, tight(c), 3}), expected), where, "part by part gives other numbers");
  const auto nearby = moved(c, Direction(c, 0), 1e-3);
  for (const How how : {How{8}, How{4, plenty, 2, 2}})
    expect(near(on_host(in_float(c), how), expected) ||
               near(on_host(in_float(nearby), how), forward_and_backward(*cpu.f64, nearby, 1)),
           where, "float32 is far from float64");
  check_cluster(c, expected, where);
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

// ThreadSanitizer looks at barriers, which are the same for all activations and losses, and is slow.
#ifdef __SANITIZE_THREAD__
constexpr int every = 4;
#else
constexpr int every = 1;
#endif

}  // namespace

int main() {
  check_choice();
  unsigned seed = 1;
  for (int kind = 0; kind < activation_kinds; ++kind)
    for (int loss = 0; loss <= int(LossKind::BinaryCrossEntropy); ++loss, ++seed)
      if (seed % every == 0)
        check(make_chain(seed, ActivationKind(kind), LossKind(loss), 1 + seed % 3),
              "cuda block, seed " + std::to_string(seed));
  check(make_wide(100), "cuda block, 530 features");
  const Case<double> many = make_long(101);
  expect(agree(on_host(many, {16}), forward_and_backward(*find_variant("portable")->f64, many, 1)),
         "cuda block, 300 samples", "a block does not compute what the CPU does");
  check_labels_out_of_range();
  release_memory();
  if (!failures) std::printf("blocks agree\n");
  return failures != 0;
}
