// Where everything of a forward that was written as arithmetic on rows lies, for one team.
//
// A record has all rows of a sample, number by number a vector. In a pack its lanes are tasks, and each sample
// has one; alone they are samples of the task, W to a record; in a blend some samples of some tasks. Rows that
// samples share are in one record before the others, which has a task's numbers in all its lanes. Backward and
// R-pass go through the samples in chunks whose records stay in the cache; of more than one chunk they run the
// forward again.
#pragma once

#include "loss_room.h"
#include "parameters.h"
#include "row_team.h"

namespace fastmeta::FASTMETA_ISA {

constexpr int most_rows = 1 + most_row_steps;

// What a backward goes through: rows that lead to parameters that adapt, to any, or to the input as well.
enum class Reach { Adapted, Parameters, Input };

template <class Team_>
struct RowPlan : Parameters<Team_> {
  using Team = Team_;
  using Rows = RowTeam<Team>;
  using R = typename Team::Real;
  using Base = Parameters<Team>;
  using Base::loop, Base::has_rate, Base::theta_size;
  static constexpr bool has_dual_form = false, splits = true;

  static constexpr bool lanes_are_samples = Team::tasks == 1;
  static constexpr i64 samples_a_record = lanes_are_samples ? Team::W : samples_a_row<Team>;
  static constexpr i64 most_records = 16;  // of a chunk, alone: a term of a product each

  RowProgram program;
  i64 record_size, task_size;  // scalars
  i64 chunks, chunk;  // samples in the largest
  int lowest_adapted = 1;  // see RowPasses::backward
  short piece_of[most_rows], bias_piece_of[most_rows];  // of the steps that read parameters
  unsigned char reaches[3][most_rows] = {}, gathers[most_rows] = {};
  static constexpr i64 least_words = 32;
  i64 vocabulary = 0;  // inputs of the steps that look rows up, or 0

  i64 support_size = 0, query_size = 0;  // kept from forward to backward: all records, or nothing
  i64 x_at, values_at, slopes_at, adjoints_at, r_adjoints_at, turned_at[2], row_at, partial_at;
  i64 matrix_at[most_rows];  // alone, of products with a matrix that samples share: see lay_out_turned
  i64 output_at, r_output_at, g_at, rg_at, input_g_at, r_input_g_at;
  i64 y_at, program_at, coefficient_at, curvature_at;
  i64 theta_work_at[2], lambda_at, lambda_before_at, direction_at, support_gradient_at;
  struct {
    i64 begin, number, begin_of_number, record, seen;
  } sparse_at;  // see row_sparse.h
  i64 scratch_size = 0;
  static constexpr i64 worker_size = 0;

  // input_adapts: a sample is what parameters that adapt have made.
  explicit RowPlan(const InnerLoop<R>& l, bool keeps_records = false, bool input_adapts = false)
      : Base(l), program(l.network.written), record_size(program.size * Team::W),
        task_size(program.task_size * Team::W), input_adapts_(input_adapts) {
    cut();
    lay_out_parameters();
    find_reach();
    find_gathered();
    find_vocabulary();
    if (keeps_records && chunks == 1) keep();
    lay_out_scratch();
  }

  // For a forward and a backward that follow each other at once.
  static RowPlan keeping(const InnerLoop<R>& l) { return RowPlan(l, true); }

  const RowStep& step(int i) const { return program.rows[i]; }
  int last() const { return program.n_rows - 1; }
  i64 at(int row) const { return step(row).at * Team::W; }  // in a record
  bool is_of_task(int row) const { return step(row).of_task; }
  i64 width(int row) const { return step(row).width; }
  i64 outputs() const { return width(last()); }
  i64 sample_size() const { return width(0); }
  i64 input_size(const Samples<R>& s) const { return rows_of<Team>(s.n) * Rows::stride(width(0)); }
  static i64 records(i64 samples) { return ceil_div(samples, samples_a_record); }
  // Whether step i multiplies rows of each sample by a matrix that all share.
  bool multiplies_by_task(int i) const {
    const RowStep& s = step(i);
    return s.op == RowOp::Product && s.x == 1 && !is_of_task(s.a) && is_of_task(s.b);
  }
  // Of such a step: how often a sample is multiplied by a matrix [k][n], which is there as [rows][columns],
  // transposed or not.
  struct TaskProduct {
    i64 parts, k, n;
    bool turned;
    i64 rows() const { return turned ? n : k; }
    i64 columns() const { return turned ? k : n; }
    i64 row_step() const { return Rows::stride(columns()); }
    i64 k_step() const { return turned ? Rows::element : row_step(); }
    i64 n_step() const { return turned ? row_step() : Rows::element; }
  };
  TaskProduct task_product(int i) const {
    const i64 times = i64(step(i).y);
    return {times, width(step(i).a) / times, width(i) / times, step(i).c != 0};
  }
  // f(row) for the task's rows that the machine reads for each sample.
  template <class F>
  void each_gathered(F f) const {
    for (int row = 1; row <= last(); ++row)
      if (gathers[row]) f(row);
  }
  i64 matrix_size(int i) const { return task_product(i).rows() * Rows::stride(task_product(i).columns()); }
  template <class F>
  void each_task_product(F f) const {
    for (int i = 1; i <= last(); ++i)
      if (multiplies_by_task(i)) f(i);
  }
  // Whether step i takes all records of a chunk at once.
  bool takes_chunks(int i) const { return reads_parameters(i) || multiplies_by_task(i); }
  bool reads_parameters(int row) const {
    return step(row).op == RowOp::Linear || step(row).op == RowOp::Parameter;
  }
  // Of a Linear: how often it is applied, and to how many numbers.
  i64 parts(int i) const { return i64(step(i).y); }
  i64 in(int i) const { return width(step(i).a) / parts(i); }
  i64 out(int i) const { return width(i) / parts(i); }
  // Whether step i multiplies samples by a matrix [I, O], of which few rows are wanted if they are mostly zeros;
  // and how many of their numbers may be others in so many records.
  bool looks_up(int i) const {
    const RowStep& s = step(i);
    return s.op == RowOp::Linear && s.a == 0 && takes_as_it_is(i) && in(i) == vocabulary;
  }
  i64 most_numbers(i64 of_records) const { return vocabulary ? of_records * width(0) / 8 : 0; }
  // Of a Linear whose weight is [I, O], not [O, I].
  bool takes_as_it_is(int i) const { return step(i).x != 0; }
  // Samples of a chunk at most: values, slopes and both adjoints, and whole tiles of rows. Of 16 lanes on Zen 5
  // records of 2 MB were as fast as of 1 MB, and of 512 KB slower by a fifth: to run a forward again costs more.
  static i64 most_of_chunk(const RowProgram& program) {
    constexpr i64 cache = (i64(2) << 20) / 64 * FASTMETA_VECTOR_BYTES, tile = lanes_are_samples ? 1 : 5;
    constexpr i64 most = i64(64) << 20;  // of a tile, where records are far larger than any cache
    const i64 bytes = 4 * program.size * Team::W * i64(sizeof(R));
    const i64 fit = larger(larger(1, smaller(tile, most / bytes)), cache / bytes / tile * tile);
    return (lanes_are_samples ? smaller(fit, most_records) : fit) * samples_a_record;
  }
  // n samples in chunks of about the same size: where the i-th begins.
  i64 chunks_of(i64 n) const { return ceil_div(n, chunk); }
  i64 chunk_begin(i64 n, i64 i) const {
    const i64 even = round_up(ceil_div(n, chunks_of(n)), samples_a_record);
    return smaller(n, i * even);
  }

 private:
  bool input_adapts_;

  i64 most() const { return larger(loop.support.n, loop.query.n); }

  void cut() {
    chunks = ceil_div(most(), most_of_chunk(program));
    chunk = round_up(ceil_div(most(), chunks), samples_a_record);
  }

  // Matrices as PyTorch has them, also where their numbers are read as a row.
  void lay_out_parameters() {
    for (int i = 0; i <= last(); ++i) {
      const RowStep& s = step(i);
      if (s.op != RowOp::Linear) continue;
      const i64 rows = takes_as_it_is(i) ? in(i) : out(i);
      const i64 columns = takes_as_it_is(i) ? out(i) : in(i);
      piece_of[i] = find(s.b);
      if (piece_of[i] < 0) {
        piece_of[i] = this->n_pieces;
        this->add({s.b, 0, 0, 1, rows, columns, 0, columns, 1});
      }
      bias_piece_of[i] = s.c < 0 ? -1 : row(s.c, out(i));
    }
    for (int i = 0; i <= last(); ++i)
      if (step(i).op == RowOp::Parameter) piece_of[i] = row(step(i).b, step(i).width);
  }

  int find(int parameter) const {
    for (int i = 0; i < this->n_pieces; ++i)
      if (this->pieces[i].parameter == parameter) return i;
    return -1;
  }
  int row(int parameter, i64 columns) {
    const int known = find(parameter);
    if (known >= 0) return known;
    this->add_row(parameter, columns);
    return this->n_pieces - 1;
  }

  void find_reach() {
    for (int i = 0; i <= last(); ++i) {
      const RowStep& s = step(i);
      bool to[3] = {i == 0 && input_adapts_, reads_parameters(i), i == 0};
      if (reads_parameters(i))
        to[0] = has_rate(s.b) || (s.op == RowOp::Linear && has_rate(s.c));
      const int read[3] = {s.a, s.b, s.c};
      for (int operand = 0; operand < 3; ++operand)
        for (int r = 0; s.goes_to[operand] && r < 3; ++r)
          to[r] = to[r] || reaches[r][read[operand]];
      to[2] = to[2] || to[1];
      for (int r = 0; r < 3; ++r) reaches[r][i] = to[r] && program.varies[i];
    }
  }

  void find_gathered() {
    for (int i = 1; i <= last(); ++i) {
      const RowStep& s = step(i);
      const int read[3] = {s.a, s.b, s.c};
      for (int operand = 0; operand < 3 && !is_of_task(i) && !takes_chunks(i); ++operand)
        if (s.goes_to[operand] && is_of_task(read[operand])) gathers[read[operand]] = 1;
    }
  }

  void find_vocabulary() {
    for (int i = 1; i <= last() && !input_adapts_ && !vocabulary; ++i)
      if (step(i).op == RowOp::Linear && step(i).a == 0 && takes_as_it_is(i) && in(i) >= least_words)
        vocabulary = in(i);
  }

  void keep() {
    const i64 steps = loop.steps;
    support_size = loop.order == 2 && steps ? task_size + records(loop.support.n) * record_size : 0;
    query_size = task_size + records(loop.query.n) * record_size;
    constexpr i64 cache = i64(256) << 10;
    const i64 bytes = larger(1, support_size * i64(sizeof(R)));
    this->kept_steps = larger(1, smaller(steps, cache / bytes));
  }

  i64 take(i64 scalars) {
    const i64 at = scratch_size;
    scratch_size += round_up(scalars, 64 / i64(sizeof(R)));
    return at;
  }

  void lay_out_scratch() {
    const i64 n = rows_of<Team>(most()), O = n * Rows::stride(outputs()), I = n * Rows::stride(width(0));
    x_at = take(I);
    i64* const records_at[] = {&values_at, &slopes_at, &adjoints_at, &r_adjoints_at};
    for (i64* place : records_at) *place = take(task_size + records(chunk) * record_size);
    partial_at = take(lanes_are_samples ? 2 * task_size : 0);
    i64* const outputs_at[] = {&output_at, &r_output_at, &g_at, &rg_at, &curvature_at};
    for (i64* place : outputs_at) *place = take(O);
    input_g_at = take(I);
    r_input_g_at = take(I);
    y_at = take(n * Rows::stride(larger(outputs(), targets_of<Team>(loop.network, outputs()))));
    program_at = take(loss_scratch<Team>(loop.network, 1));
    coefficient_at = take(n * Team::W);
    if (lanes_are_samples) lay_out_turned();
    if (vocabulary) lay_out_sparse();
    for (i64& place : theta_work_at) place = take(theta_size);
    lambda_at = take(theta_size);
    lambda_before_at = loop.order == 2 ? take(theta_size) : lambda_at;  // which stays, in first order
    direction_at = take(theta_size);
    support_gradient_at = take(I);
  }

  // Each a whole number, and a byte for each row of the matrix.
  void lay_out_sparse() {
    const i64 most = most_numbers(records(chunk));
    sparse_at.begin = take(records(chunk) + 1);
    sparse_at.number = take(most), sparse_at.record = take(most);
    sparse_at.begin_of_number = take(width(0) + 2);
    sparse_at.seen = take(vocabulary);
  }

  // Alone: for gradients of weights and of rows.
  void lay_out_turned() {
    i64 widest = 0;
    for (int p = 0; p < this->n_pieces; ++p) widest = larger(widest, this->pieces[p].columns);
    each_task_product([&](int i) { widest = larger(widest, task_product(i).columns()); });
    for (i64& place : turned_at) place = take(chunk * Team::stride(widest));
    row_at = take(Team::stride(widest));
    // The task's matrix, its slope, and what they get, in layout of the team: a number only once.
    each_task_product([&](int i) { matrix_at[i] = take(4 * matrix_size(i)); });
  }
};

}  // namespace fastmeta::FASTMETA_ISA
