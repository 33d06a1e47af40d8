// Programs on the host: a case's forward and gradient by blocks that carry out whatever is recorded.
#pragma once

#include "cuda_on_host.h"
//
#include "cuda/record.h"
#include "cuda/room.h"
#include "cuda/run.cuh"
//
#include <algorithm>
#include <string>

#include "checks.h"

namespace fastmeta::test {

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

// What a launch gets, with a copy of the operations where nothing lies behind.
template <class R>
std::pair<cuda::Run<R>, std::unique_ptr<Scratch<char>>> on_host(cuda::Program<R> program) {
  const std::string bytes = program.operations();
  auto copy = std::make_unique<Scratch<char>>(i64(bytes.size()));
  std::memcpy(copy->data(), bytes.data(), bytes.size());
  program.put_operations(copy->data());
  return {program.run, std::move(copy)};
}

// Runs a program on blocks that know of no other thread number than this.
template <class R>
void interpret(const cuda::Program<R>& program, unsigned threads) {
  const auto [run, operations] = on_host(program);
  const Memories<R> memory(1, program.shared);
  launch_on_host(unsigned(run.runs), memory.data(), memory.bytes(), threads, [&](char* shared) {
    if (program.has_own_loss())
      cuda::run_block<true>(run, reinterpret_cast<R*>(shared));
    else
      cuda::run_block<false>(run, reinterpret_cast<R*>(shared));
  });
}

// carry_out(program, threads): a launch of program.run.runs blocks.
template <class R, class F>
Outputs<R> by_programs(const Case<R>& c, How how, Wanted wanted, F carry_out) {
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
  forward.run.runs = backward.run.runs = runs;
  carry_out(forward, how.threads);
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
  carry_out(backward, how.threads);
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

inline bool agree(const Outputs<double>& a, const Outputs<double>& b) {
  const auto left = a.all(), right = b.all();
  double largest = 1;
  for (const auto* one : right) largest = std::fmax(largest, norm(*one));
  for (size_t i = 0; i < left.size(); ++i)
    for (size_t j = 0; j < left[i]->size(); ++j)
      if (!(std::fabs((*left[i])[j] - (*right[i])[j]) <= 1e-11 * largest)) return false;
  return true;
}

inline Node linear(Case<double>& c, Random& random, i64 in, i64 out) {
  Node node{};
  node.kind = NodeKind::Linear;
  node.in = in, node.out = out;
  node.weight = c.add_parameter(in * out);
  node.bias = random.below(4) ? c.add_parameter(out) : -1;
  return node;
}

inline Case<double> make_chain(unsigned seed, ActivationKind kind, LossKind loss, i64 tasks) {
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

// The same number is the rate of all parameters, at every step.
inline Case<double> with_one_rate(Case<double> c) {
  for (size_t p = 0; p < c.n_parameters(); ++p) {
    c.adapts[p] = true, c.rate_per_step[p] = c.rate_per_element[p] = false;
    c.rates[p] = {0.07};
  }
  return c;
}

}  // namespace fastmeta::test
