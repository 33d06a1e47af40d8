// Where a block is, and what it moves between tensors and its shared memory.
#pragma once

#include "program.h"
#include "scalar.cuh"

namespace fastmeta::cuda {

// What the text of a program for its own shapes knows beforehand (print.h).
template <class R>
struct Compiled;

// Where a block is: its shared memory, its task, and what it was given.
template <class R>
struct Here {
  const Run<R>& run;
  R* shared;
  i64 task, block;

#ifdef FASTMETA_COMPILED
  FASTMETA_INLINE Known known() const { return Compiled<R>::known(); }
#else
  FASTMETA_INLINE const Known& known() const { return run.known; }
#endif
  FASTMETA_INLINE R* at(int place) const {
#ifdef __CUDA_ARCH__  // by its name, the compiler never loses sight of what memory it is
    extern __shared__ __align__(16) unsigned char memory[];
    return reinterpret_cast<R*>(memory) + place;
#else
    return shared + place;
#endif
  }
  FASTMETA_INLINE bool has(int slot) const { return run.tensors[slot].base; }
  // An element of a tensor, of the present task or, of sums, of the block.
  FASTMETA_INLINE R* tensor(int slot, i64 offset) const {
    const i64 first = slot == sums ? block * run.run_size : task * run.tensors[slot].task_stride;
    return run.tensors[slot].base + first + offset;
  }
};

// f(i) for i in [0, n)
template <class F>
FASTMETA_INLINE void each(int n, F f) {
#pragma unroll 1
  for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) f(i);
}

// f(row, column), neighbouring threads along the columns, or down a column.
template <class F>
FASTMETA_INLINE void each_element(int rows, int columns, bool down, F f) {
  const int side = down ? rows : columns;
  each(rows * columns, [&](int i) {
    const int far = int(unsigned(i) / unsigned(side)), near = i - far * side;
    f(down ? near : far, down ? far : near);
  });
}

template <class R>
FASTMETA_INLINE void gather(const Here<R>& here, const Op& op) {
  const R* from = here.has(op.slot) ? here.tensor(op.slot, op.offset) : nullptr;
  R* to = here.at(op.to);
  each_element(op.rows, op.columns, op.row_step < op.column_step, [&](int r, int c) {
    to[r * op.to_row + c] = from ? from[r * op.row_step + c * op.column_step] : R(0);
  });
}

template <class R>
FASTMETA_INLINE void gather_labels(const Here<R>& here, const Op& op) {
  const auto& labels = here.run.tensors[op.slot];
  const i64* from = reinterpret_cast<const i64*>(labels.base) + here.task * labels.task_stride +
                    op.offset;
  R* to = here.at(op.to);
  const int outputs = op.depth;  // beyond them no label means anything: NaN makes the loss so
  each(op.rows, [&](int s) {
    const i64 label = from[s];
    to[s] = 0 <= label && label < outputs ? R(label) : R(NAN);
  });
}

template <class R, class F>
FASTMETA_INLINE void scatter(const Here<R>& here, const Op& op, F put) {
  if (!here.has(op.slot)) return;
  R* to = here.tensor(op.slot, op.offset);
  const R* from = here.at(op.from);
  each_element(op.rows, op.columns, op.row_step < op.column_step, [&](int r, int c) {
    put(to[r * op.row_step + c * op.column_step], from[r * op.from_row + c]);
  });
}

template <class R>
FASTMETA_INLINE void scatter_subtract(const Here<R>& here, const Op& op) {
  const R rate = op.bias_slot == no_slot ? R(1) : *here.tensor(op.bias_slot, op.bias_offset);
  scatter(here, op, [&](R& to, R from) { to -= rate * from; });
}

// Whole quads, as theta lies.
template <class R>
FASTMETA_INLINE void move(R* to, const R* from, int n) {
  each(n / 4, [&](int i) { put_quad(to + 4 * i, quad(from + 4 * i)); });
}

template <class R>
FASTMETA_INLINE void times_rates(const Here<R>& here, const Op& op) {
  const R* rate = here.tensor(op.slot, op.offset);
  each_element(op.rows, op.columns, op.row_step < op.column_step, [&](int r, int c) {
    const R alpha = rate[r * op.row_step + c * op.column_step];
    here.at(op.to)[r * op.to_row + c] = alpha * here.at(op.from)[r * op.from_row + c];
  });
}

}  // namespace fastmeta::cuda
