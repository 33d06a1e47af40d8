// A program as the host has it, and what is asked of one.
#pragma once

#include <cstddef>
#include <vector>

#include "program.h"

namespace fastmeta::cuda {

// What a call wants beside the loss and the parameters' gradients.
struct Wanted {
  bool fast, rates, support_x, query_x, grad_loss, grad_predictions, grad_fast;
  bool one_rate;  // the rates of all parameters are the same number
};

template <class R>
struct Program {
  std::vector<Op> ops;
  std::vector<Part> parts;  // of the sums over tasks
  Run<R> run{};             // but for the addresses of tensors, and runs
  int threads = 0;
  int together = 1;  // blocks that shall live on a processor at once
  i64 shared = 0;  // bytes
  i64 theta_size = 0, rate_steps = 0, steps = 0;
  void* code = nullptr;  // a kernel compiled for it (compiled.h)

  i64 record_size() const { return run.tasks * steps * theta_size; }
  i64 sums_size() const { return run.runs * run.run_size; }
};

// For the sums over the runs of a program, but for where they go.
template <class R>
SumOver<R> sum_over(const Program<R>& program, const R* partial, i64 runs) {
  SumOver<R> sum{partial, runs, program.run.run_size, program.theta_size,
                 int(program.parts.size()), {}, {}, {}};
  for (std::size_t n = 0; n < program.parts.size(); ++n) sum.parts[n] = program.parts[n];
  return sum;
}

}  // namespace fastmeta::cuda
