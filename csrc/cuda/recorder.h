// Writes the program of a task: the recursion of network/inner_loop.h, run once on the host by a team
// that writes down what it is told to do. Addresses are places: see Spot.
#pragma once

#include <cstdint>
#include <vector>

#include "rows.h"
//
#include "../network/inner_loop.h"

namespace fastmeta::cuda {

// Where an address points to: shared memory, or a tensor that a slot names.
struct Spot {
  int slot;    // no_slot: shared memory
  i64 offset;  // in elements
};

constexpr int place_bits = 44;

template <class T>
T* address_of(int slot) {
  return reinterpret_cast<T*>(std::uintptr_t(slot + 2) << place_bits);
}
template <class T>
Spot spot_of(const T* p) {
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  return {int(address >> place_bits) - 2,
          i64(address & ((std::uintptr_t(1) << place_bits) - 1)) / i64(sizeof(T))};
}

// What is being recorded: the operations so far, and each tensor's stride from task to task.
struct Recording {
  std::vector<Op> ops;
  i64 task_stride[n_slots] = {};

  Op& add(Do code, i64 rows = 0, i64 columns = 0) {
    Op op{};
    op.code = code, op.meets = 1;
    op.rows = int(rows), op.columns = int(columns);
    op.activation = op.bias = op.bias_row = -1;
    op.slot = op.bias_slot = no_slot;
    ops.push_back(op);
    return ops.back();
  }
  void meet() {
    if (!ops.empty()) ops.back().meets = 1;
  }
  template <class T>
  Op& with_tensor(Op& op, const T* p, i64 stride) {
    const Spot place = spot_of(p);
    op.slot = place.slot, op.offset = place.offset;
    task_stride[place.slot] = stride;
    return op;
  }
};

inline thread_local Recording* recording = nullptr;

// In shared memory.
template <class R>
int at(const R* p) {
  return int(spot_of(p).offset);
}

template <class R>
struct Recorder : BlockLayout<R> {
  static constexpr bool shares = false, steps_by_one_rate = true, has_dual_form = false;
  static constexpr bool has_lanes_along_inputs = false, runs_programs = true, takes_places = false;

  // Room for one column more, see Op::pad; an odd number of quads, see run_product.cuh.
  static i64 stride(i64 columns) { return 4 * (ceil_div(columns + 1, 4) | 1); }
  static i64 shared_stride(i64 columns) { return stride(columns); }
  static i64 vectors(i64 columns) { return columns; }
  // A thread a sample, an odd number of elements apart: neighbours read from different banks.
  static i64 program_row(const RowProgram& program) { return 4 * program.size + 1; }
  static i64 program_scratch(const RowProgram& program, i64 rows) { return rows * program_row(program); }

  static void barrier() { recording->meet(); }

  static void zero(R* p, i64 n) {
    const Spot place = spot_of(p);
    if (place.slot == no_slot) {
      recording->add(Do::Zero, 1, n).to = int(place.offset);
    } else {
      recording->with_tensor(recording->add(Do::ZeroTensor), p, n).row_step = n;
    }
  }
  // theta_k comes from the record and goes there.
  static void copy(R* to, const R* from, i64 n) {
    if (spot_of(to).slot == record) {
      Op& op = recording->with_tensor(recording->add(Do::Keep, 1, n), to, 0);
      op.from = at(from);
    } else if (spot_of(from).slot == record) {
      Op& op = recording->with_tensor(recording->add(Do::Load, 1, n), from, 0);
      op.to = at(to);
    } else {
      Op& op = recording->add(Do::Copy, 1, n);
      op.to = at(to), op.from = at(from);
    }
  }
  static void add(R* sum, const R* more, i64 n) {
    Op& op = recording->add(Do::Add, 1, n);
    op.to = at(sum), op.from = at(more);
  }
  static void gather(R* to, const R* from, i64 task_stride, i64 row_step, i64 column_step, i64 rows,
                     i64 columns, Slice) {
    Op& op = recording->with_tensor(recording->add(Do::Gather, rows, columns), from, task_stride);
    op.to = at(to), op.to_row = int(stride(columns));
    op.row_step = row_step, op.column_step = column_step;
  }
  static void scatter(R* to, const R* from, i64 task_stride, i64 row_step, i64 column_step, i64 rows,
                      i64 columns, Slice) {
    Op& op = recording->with_tensor(recording->add(Do::Scatter, rows, columns), to, task_stride);
    op.from = at(from), op.from_row = int(stride(columns));
    op.row_step = row_step, op.column_step = column_step;
  }
  // Into the sums of the block.
  static void add_to_shared(R* sum, const R* from, i64 rows, i64 columns, Slice) {
    Op& op = recording->with_tensor(recording->add(Do::ScatterAdd, rows, columns), sum, 0);
    op.from = at(from), op.from_row = int(stride(columns));
    op.row_step = stride(columns), op.column_step = 1;
  }
  template <class Piece>
  static void times_rates(R* to, const R* from, const Piece& p, const Rate<R>& rate, i64 step) {
    if (!rate.data) return zero(to, p.rows * stride(p.columns));
    Op& op = recording->add(Do::TimesRates, p.rows, p.columns);
    recording->with_tensor(op, rate.data + step * rate.step_stride, 0);
    op.to = at(to), op.from = at(from), op.to_row = op.from_row = int(stride(p.columns));
    op.row_step = rate.n > 1 ? p.row_step : 0, op.column_step = rate.n > 1 ? p.column_step : 0;
  }
  static R per_task(const R*, i64, Slice) { return R(1); }  // ScaleCoefficients reads it
  static void put_per_task(R* values, Slice, R) {
    recording->with_tensor(recording->add(Do::PutLoss), values, 1);
  }
};

}  // namespace fastmeta::cuda
