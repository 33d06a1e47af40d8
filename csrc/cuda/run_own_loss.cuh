// A loss of the user's own: its program on rows, a sample a thread.
#pragma once

#include "run_loss.cuh"
//
#include "../network/product.h"
//
#include "../network/row_steps.h"

namespace fastmeta::cuda {

template <class R>
FASTMETA_CODE void multiply_rows(const Term<R>* terms, int n_terms, const Target<R>& to, i64 m, i64 n) {
  for (i64 i = 0; i < m; ++i)
    for (i64 j = 0; j < n; ++j) {
      R sum = 0;
      for (int t = 0; t < n_terms; ++t) {
        const Term<R>& of = terms[t];
        for (i64 k = 0; k < of.depth; ++k)
          sum += of.a[i * of.a_m + k * of.a_k] * of.b[k * of.b_k + j * of.b_n];
      }
      R& c = to.c[i * to.c_m + j];
      c = to.finish == Finish::Add ? c + sum : sum;
    }
}

// Where a sample's rows lie, then their adjoints, and of dual numbers the slopes of both: `own_planes`.
template <class R>
FASTMETA_INLINE void point_to(typename PlainNumbers<R>::Row& rows, R* base, i64 size, int plane) {
  rows = {base + plane * size};
}
template <class R>
FASTMETA_INLINE void point_to(typename DualNumbers<R>::Row& rows, R* base, i64 size, int plane) {
  rows = {base + plane * size, base + (2 + plane) * size};
}

template <class Numbers>
class OwnLoss {
 public:
  using R = typename Numbers::R;
  using Row = typename Numbers::Row;

  FASTMETA_INLINE OwnLoss(const RowProgram& program, R* base) : program_(program) {
    point_to<R>(rows_, base, program.size, 0);
    point_to<R>(adjoints_, base, program.size, 1);
  }
  FASTMETA_INLINE Row rows() const { return rows_; }

  // Of the predictions and targets that are in the rows.
  FASTMETA_INLINE R value() const {
    const auto steps = this->steps();
#pragma unroll 1
    for (int i = 2; i < program_.n_rows; ++i) steps.forward(i);
    return Numbers::value(rows_[program_.rows[program_.n_rows - 1].at]);
  }
  // What value() comes to for the predictions.
  FASTMETA_INLINE Row gradient() const {
    const auto steps = this->steps();
    const int last = program_.n_rows - 1;
    adjoints_at(program_.rows[last].at).put(0, Numbers::constant(R(1)));
#pragma unroll 1
    for (int i = last; i >= 2; --i)
      if (program_.varies[i]) steps.backward(i);
    for (i64 j = 0; !program_.varies[0] && j < program_.rows[0].width; ++j)
      adjoints_at(j).put(0, Numbers::constant(R(0)));
    return adjoints_;
  }

 private:
  FASTMETA_INLINE Row adjoints_at(i64 j) const { return adjoints_ + j; }
  FASTMETA_INLINE RowSteps<Numbers> steps() const {
    return {program_, program_.varies, rows_, adjoints_, rows_, adjoints_};
  }

  const RowProgram program_;
  Row rows_, adjoints_;
};

// The functions that the machine is in, once each; what they get are numbers and addresses.
template <class R>
FASTMETA_APART R own_value(RowProgram program, R* base) {
  return OwnLoss<PlainNumbers<R>>(program, base).value();
}
template <class R>
FASTMETA_APART void own_gradient(RowProgram program, R* base) {
  const OwnLoss<PlainNumbers<R>> loss(program, base);
  loss.value(), loss.gradient();
}
template <class R>
FASTMETA_APART void own_r_gradient(RowProgram program, R* base) {
  const OwnLoss<DualNumbers<R>> loss(program, base);
  loss.value(), loss.gradient();
}

// The rows of a sample, with its predictions and targets in them.
template <class R>
FASTMETA_INLINE R* own_rows(const Here<R>& here, const Sample<R>& of, int s) {
  const RowProgram& program = here.run.own_loss;
  R* rows = here.at(here.known().own_at + s * here.known().own_row);
  const int outputs = int(program.rows[0].width), targets = int(program.rows[1].width);
  for (int j = 0; j < outputs; ++j) rows[j] = of.prediction[j];
  for (int j = 0; j < targets; ++j) rows[outputs + j] = of.target[j];
  return rows;
}

// A sample without weight may have come to anything; a label that is NaN leaves nothing a number.
template <class R>
FASTMETA_INLINE R weighed(const Sample<R>& of, const Op& op, R x) {
  const R unknown = op.terms ? *of.target - *of.target : R(0);
  return of.coefficient + unknown != R(0) ? (of.coefficient + unknown) * x : R(0);
}

template <class R>
FASTMETA_INLINE void add_own_losses(const Here<R>& here, const Op& op) {
  add_up(here, op, [&](int s) {
    const Sample<R> of = sample(here, op, s);
    return weighed(of, op, own_value(here.run.own_loss, own_rows(here, of, s)));
  });
}

template <class R>
FASTMETA_INLINE void own_loss_gradient(const Here<R>& here, const Op& op) {
  each(op.rows, [&](int s) {
    const Sample<R> of = sample(here, op, s);
    R* rows = own_rows(here, of, s);
    own_gradient(here.run.own_loss, rows);
    const R* adjoints = rows + here.run.own_loss.size;
    R* g = here.at(op.to) + s * op.to_row;
    for (int c = 0; c < op.columns; ++c) g[c] = weighed(of, op, adjoints[c]);
  });
}

template <class R>
FASTMETA_INLINE void own_loss_r_gradient(const Here<R>& here, const Op& op) {
  each(op.rows, [&](int s) {
    const Sample<R> of = sample(here, op, s);
    const RowProgram& program = here.run.own_loss;
    R* rows = own_rows(here, of, s);
    R* slopes = rows + 2 * program.size;
    const R* ry = here.at(op.value) + s * op.to_row;
    for (int c = 0; c < op.columns; ++c) slopes[c] = ry[c];
    for (i64 j = 0; j < program.rows[1].width; ++j) slopes[op.columns + j] = 0;
    own_r_gradient(program, rows);
    const R* slopes_of_adjoints = rows + 3 * program.size;
    R* rg = here.at(op.to) + s * op.to_row;
    for (int c = 0; c < op.columns; ++c) rg[c] = weighed(of, op, slopes_of_adjoints[c]);
  });
}

}  // namespace fastmeta::cuda
