// The records of a chunk of samples, and what turns matrices [samples][columns] into rows of them and back.
#pragma once

#include "head.h"
#include "row_plan.h"

namespace fastmeta::FASTMETA_ISA {

template <class Team>
class RowRecords {
 protected:
  using R = typename Team::Real;
  using V = Vec<R>;
  using Plan = RowPlan<Team>;
  using Rows = RowTeam<Team>;
  static constexpr i64 W = Team::W;
  static constexpr bool lanes_are_samples = Plan::lanes_are_samples;

  RowRecords(const Plan& plan, R* scratch)
      : plan_(plan), scratch_(scratch), ld_(plan.record_size), values_(at(plan.values_at)) {}

  R* at(i64 offset) const { return scratch_ + offset; }

  // A row in the chunk's first record, the next one is ld_ further; or in that which samples share.
  R* values(int row) const { return row_in(values_, row); }
  R* slopes(int row) const { return row_in(at(plan_.slopes_at), row); }
  R* adjoints(int row) const { return row_in(at(plan_.adjoints_at), row); }
  R* r_adjoints(int row) const { return row_in(at(plan_.r_adjoints_at), row); }
  R* row_in(R* records, int row) const {
    return records + (plan_.is_of_task(row) ? 0 : plan_.task_size) + plan_.at(row);
  }

  i64 chunks() const { return plan_.chunks_of(n_); }
  template <class F>
  void each_chunk(F f) {
    for (i64 i = 0; i < chunks(); ++i) {
      first_ = plan_.chunk_begin(n_, i);
      samples_ = plan_.chunk_begin(n_, i + 1) - first_;
      records_ = Plan::records(samples_);
      f();
    }
  }
  // For the rows that samples share.
  template <class F>
  void once(F f) {
    first_ = 0, samples_ = records_ = 1;
    f();
  }
  // Samples of a record.
  i64 filled(i64 record) const {
    return lanes_are_samples ? smaller(W, samples_ - record * W) : 1;
  }

  // The chunk's first row in a matrix of all samples.
  i64 first_row() const { return first_ / samples_a_row<Team>; }
  i64 rows_of_chunk() const { return lanes_are_samples ? samples_ : records_; }

  // The chunk's samples of a matrix of all, into a row.
  void put_rows(R* row, const R* all, i64 width) const {
    const i64 ld = Rows::stride(width);
    const R* matrix = all + first_row() * ld;
    for (i64 r = 0; r < records_; ++r) {
      if constexpr (lanes_are_samples)
        turn_in(row + r * ld_, matrix + r * W * ld, ld, width, filled(r));
      else
        std::memcpy(row + r * ld_, matrix + r * ld, sizeof(R) * size_t(ld));
    }
  }
  void take_rows(R* all, const R* row, i64 width) const {
    const i64 ld = Rows::stride(width);
    R* matrix = all + first_row() * ld;
    for (i64 r = 0; r < records_; ++r) {
      if constexpr (lanes_are_samples)
        turn_out(matrix + r * W * ld, row + r * ld_, width, filled(r));
      else
        std::memcpy(matrix + r * ld, row + r * ld_, sizeof(R) * size_t(ld));
    }
  }
  void zero_rows(R* all, i64 width) const {
    const i64 ld = Rows::stride(width);
    Team::zero(all + first_row() * ld, rows_of_chunk() * ld);
  }

  // A row that all samples share, as parameters have it, or 0.
  void spread(R* row, const R* shared, i64 width) const {
    for (i64 r = 0; r < records_; ++r)
      for (i64 j = 0; j < width; ++j) {
        R* to = row + r * ld_ + j * W;
        if (!shared)
          store(to, V{});
        else if constexpr (lanes_are_samples)
          store(to, splat(shared[j]));
        else if constexpr (samples_a_row<Team> > 1)
          store(to, Spread::column(shared + j * Team::element));
        else
          store(to, load(shared + j * W));
      }
  }
  // The numbers of a parameter, row after row, or 0.
  void spread_piece(R* row, const R* theta, const Piece& p) const {
    for (i64 r = 0; r < p.rows; ++r)
      spread(row + r * p.columns * W, theta ? theta + p.at + r * Team::stride(p.columns) : nullptr, p.columns);
  }
  // The sum over the chunk's samples, in team layout.
  void sum_rows(R* sum, const R* row, i64 width) const {
    for (i64 j = 0; j < width; ++j) {
      V total{};
      for (i64 r = 0; r < records_; ++r) {
        const V v = load(row + r * ld_ + j * W);
        if constexpr (lanes_are_samples)
          total += select(iota<R>() < R(filled(r)), v, V{});
        else
          total += v;
      }
      if constexpr (lanes_are_samples)
        sum[j] = horizontal_sum<R>(total);
      else
        store(sum + j * W, total);
    }
    if constexpr (lanes_are_samples)
      for (i64 j = width; j < Team::stride(width); ++j) sum[j] = 0;
  }

  // [width][W] of one record into [filled][stride(width)], the columns that fill the last vector 0.
  static void turn_out(R* to, const R* from, i64 width, i64 filled) {
    const i64 ld = Team::stride(width);
    for (i64 c = 0; c < width; c += W) {
      V block[W];
      for (i64 i = 0; i < W; ++i) block[i] = c + i < width ? load(from + (c + i) * W) : V{};
      transpose_block<R>(block);
      for (i64 i = 0; i < filled; ++i) store(to + i * ld + c, block[i]);
    }
  }
  static void turn_in(R* to, const R* from, i64 ld, i64 width, i64 filled) {
    for (i64 c = 0; c < width; c += W) {
      V block[W];
      for (i64 i = 0; i < W; ++i) block[i] = i < filled ? load(from + i * ld + c) : V{};
      transpose_block<R>(block);
      for (i64 i = 0; i < smaller(W, width - c); ++i) store(to + (c + i) * W, block[i]);
    }
  }

  const Plan& plan_;
  R* scratch_;
  const i64 ld_;
  R* values_;
  i64 n_ = 0, first_ = 0, samples_ = 0, records_ = 0;
};

}  // namespace fastmeta::FASTMETA_ISA
