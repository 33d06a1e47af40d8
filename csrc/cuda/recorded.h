// A program as the host has it, and what is asked of one.
#pragma once

#include <cstddef>
#include <string>
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
  std::vector<RowStep> own_steps;  // of an own loss, and which of them vary
  std::vector<unsigned char> own_varies;
  std::vector<Part> parts;  // of the sums over tasks
  Run<R> run{};             // but for addresses, and runs
  int threads = 0;
  int together = 1;  // blocks that shall live on a processor at once
  i64 shared = 0;  // bytes
  i64 theta_size = 0, rate_steps = 0, steps = 0;
  void* code = nullptr;  // a kernel compiled for it (compiled.h)

  bool has_own_loss() const { return run.known.loss == LossKind::Program; }
  void keep(const RowProgram& loss) {
    own_steps.assign(loss.rows, loss.rows + loss.n_rows);
    own_varies.assign(loss.varies, loss.varies + loss.n_rows);
    run.own_loss = {nullptr, nullptr, loss.n_rows, loss.size, 0, loss.adds};
  }

  // What a kernel reads beside its arguments, to be copied to the device; then it is at `there`.
  std::string operations() const { return bytes(ops) + bytes(own_steps) + bytes(own_varies); }
  void put_operations(const char* there) {
    run.ops = reinterpret_cast<const Op*>(there);
    there += ops.size() * sizeof(Op);
    run.own_loss.rows = reinterpret_cast<const RowStep*>(there);
    there += own_steps.size() * sizeof(RowStep);
    run.own_loss.varies = reinterpret_cast<const unsigned char*>(there);
    ops = {}, own_steps = {}, own_varies = {};
  }

  i64 record_size() const { return run.tasks * steps * theta_size; }
  i64 sums_size() const { return run.runs * run.run_size; }

 private:
  template <class T>
  static std::string bytes(const std::vector<T>& list) {
    return {reinterpret_cast<const char*>(list.data()), list.size() * sizeof(T)};
  }
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
