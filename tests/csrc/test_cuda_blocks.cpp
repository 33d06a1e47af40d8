// The CUDA block code on the host, one thread a CUDA thread, against the CPU's kernels: the same
// numbers to the last digits of float64, near them in float32, and the same bits for any number of
// threads; with all samples at once and part by part.
#include "cuda_on_host.h"
//
#include "cuda/room.h"
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

template <class R>
Outputs<R> on_host(const Case<R>& c, unsigned threads, i64 shared, i64 runs,
                   Wanted wanted = Wanted::All) {
  const Call<R> call(c, 1);
  const bool rates = wanted == Wanted::All;
  Outputs<R> out = outputs_of(c, wanted);
  const cuda::BlockPlan<R> forward(call.loop, cuda::forward_room(call.loop, shared));
  Scratch<R> record(i64(sizeof(R)) * std::max(i64(1), c.tasks * c.steps * forward.theta_size));
  {
    const Scratch<R> scratch(cuda::shared_bytes(forward));
    const cuda::ForwardArguments<R> a{forward, record.data(), data_or_null(out.predictions),
                                      data_or_null(out.loss), addresses(pointers(out.fast))};
    launch_on_host(2, threads, [&](unsigned) { cuda::forward_block(a, scratch.data()); });
  }
  const cuda::BlockPlan<R> backward(call.loop, cuda::backward_room(call.loop, rates, shared));
  std::vector<const R*> grad_fast;
  for (const auto& one : c.grad_fast) grad_fast.push_back(data_or_null(one));
  cuda::BackwardArguments<R> a{backward, record.data(),
                               c.query_n ? data_or_null(c.grad_loss) : nullptr,
                               data_or_null(c.grad_predictions), {}, {}, {},
                               data_or_null(out.support_x), data_or_null(out.query_x), nullptr,
                               std::min(runs, c.tasks), 0};
  a.grad_fast.given = true;
  for (size_t p = 0; p < grad_fast.size(); ++p) a.grad_fast.of[p] = grad_fast[p];
  a.parameters = addresses(pointers(out.parameters));
  if (rates) a.rates = addresses(pointers(out.rates));
  a.run_size = backward.theta_size * (1 + (rates ? backward.rate_steps : 0));
  const Scratch<R> sums(i64(sizeof(R)) * a.runs * a.run_size);
  a.sums = sums.data();
  {
    const Scratch<R> scratch(cuda::shared_bytes(backward));
    launch_on_host(unsigned(a.runs), threads,
                   [&](unsigned) { cuda::backward_block(a, scratch.data()); });
  }
  constexpr int sum_threads = 2 * cuda::sum_columns;  // fewer than on a GPU, in the same way
  const Scratch<R> scratch(i64(sizeof(R)) * sum_threads);
  const i64 blocks = (a.run_size + cuda::sum_columns - 1) / cuda::sum_columns;
  launch_on_host(unsigned(blocks), sum_threads,
                 [&](unsigned) { cuda::sum_block(a, scratch.data()); });
  return out;
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
    }
  });
}

// The least shared memory that these samples fit into, so that they come a row at a time.
template <class R>
i64 tight(const Case<R>& c) {
  return cuda::least_bytes(Call<R>(c, 1).loop);
}

void check(const Case<double>& c, const std::string& where) {
  const Variant& cpu = *find_variant("portable");
  const auto expected = forward_and_backward(*cpu.f64, c, 1);
  const auto out = on_host(c, 8, plenty, 2);
  expect(agree(out, expected), where, "a block does not compute what the CPU does");
  expect(same_bits(out, on_host(c, 4, plenty, 2)), where, "the number of threads changes bits");
  expect(same_bits(on_host(c, 8, plenty, 2, Wanted::Few), out), where,
         "what else is asked for changes bits");
  expect(agree(on_host(c, 8, tight(c), 3), expected), where, "part by part gives other numbers");
  const auto small = in_float(c);
  expect(near(on_host(small, 8, plenty, 2), expected) ||
             near(on_host(in_float(moved(c, Direction(c, 0), 1e-3)), 8, plenty, 2),
                  forward_and_backward(*cpu.f64, moved(c, Direction(c, 0), 1e-3), 1)),
         where, "float32 is far from float64");
}

// More features than one running sum takes, and a batch that comes in uneven parts.
Case<double> make_wide(unsigned seed) {
  return make_case(seed, LossKind::CrossEntropy, 2, [](Case<double>& c, Random& random) {
    c.nodes = {linear(c, random, 530, 6)};
    c.support_n = 7, c.query_n = 5, c.steps = 2, c.order = 2;
  });
}

void check_labels_out_of_range() {
  Case<double> c = make_chain(7, ActivationKind::Tanh, LossKind::CrossEntropy, 3);
  size_t i = 0;
  for (auto* labels : {&c.support_labels, &c.query_labels})
    for (i64& label : *labels)
      label = std::vector<i64>{-1, c.outputs(), i64(1) << 40, INT64_MIN, INT64_MAX}[i++ % 5];
  expect(finite(on_host(c, 4, plenty, 2)), "labels out of range", "not finite");
}

}  // namespace

int main() {
  unsigned seed = 1;
  for (int kind = 0; kind <= int(ActivationKind::Softplus); ++kind)
    for (int loss = 0; loss <= int(LossKind::BinaryCrossEntropy); ++loss, ++seed)
      check(make_chain(seed, ActivationKind(kind), LossKind(loss), 1 + seed % 3),
            "cuda block, seed " + std::to_string(seed));
  check(make_wide(100), "cuda block, 530 features");
  check_labels_out_of_range();
  release_memory();
  if (!failures) std::printf("blocks agree\n");
  return failures != 0;
}
