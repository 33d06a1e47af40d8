// Products of samples that are mostly zeros, words of a vocabulary, with a matrix [I, O]: rows of it that are
// looked up, and gradients that come to those rows alone.
//
// A number of a record counts where any lane has one that is not 0.
#pragma once

#include "row_products.h"

namespace fastmeta::FASTMETA_ISA {

template <class Team>
class RowSparse : protected RowProducts<Team> {
 protected:
  using Base = RowProducts<Team>;
  using typename Base::Factor, typename Base::GradientTo, typename Base::Pair, typename Base::Plan,
      typename Base::R, typename Base::RowLane, typename Base::WeightLane;
  using Base::at, Base::filled, Base::input_step, Base::lanes_are_samples, Base::ld_, Base::output_step,
      Base::plan_, Base::put_part, Base::records_, Base::turn_out, Base::values, Base::weight_at, Base::W;
  using Base::Base;

  // To be called where the samples of a chunk are in place.
  void find_numbers() {
    is_sparse_ = false;
    const i64 most = plan_.most_numbers(records_);
    if (!most) return;
    i64 n = 0;
    for (i64 r = 0; r < records_; ++r) {
      const R* row = values(0) + r * ld_;
      begin()[r] = int(n);
      for (i64 j = 0; j < plan_.width(0); ++j)
        if (is_there(row + j * W)) {
          if (n == most) return;
          number()[n++] = int(j);
        }
    }
    begin()[records_] = int(n);
    sort_by_number(n);
    is_sparse_ = true;
  }
  void forget_numbers() { is_sparse_ = false; }
  bool looks_up(int i) const { return is_sparse_ && plan_.looks_up(i); }

  // As multiply_forward, of factors whose rows are the samples.
  void look_up(int i, R* to, const Factor* factors, int n, const R* bias) const {
    const i64 in = plan_.in(i), out = plan_.out(i);
    for (i64 r = 0; r < records_; ++r) {
      const int *own = number() + begin()[r], *end = number() + begin()[r + 1];
      for (i64 part = 0; part < plan_.parts(i); ++part) {
        const int* next = own;
        while (next < end && *next < (part + 1) * in) ++next;
        look_up_part(i, to + r * ld_ + part * out * W, factors, n, bias, r, part * in, own, next);
        own = next;
      }
    }
  }

  // As put_weight_gradient, of one pair whose first is the samples.
  void put_looked_up(int i, const R* g, const GradientTo& to, bool* seen) {
    const int piece = plan_.piece_of[i];
    unsigned char* row_seen = reinterpret_cast<unsigned char*>(at(plan_.sparse_at.seen));
    std::memset(row_seen, seen[piece], size_t(plan_.in(i)));
    for (i64 part = 0; part < plan_.parts(i); ++part) put_part_of_rows(i, part, g, to, row_seen);
    for (i64 v = 0, end; v < plan_.in(i); v = end) {  // which no sample has
      for (end = v + 1; end < plan_.in(i) && row_seen[end] == row_seen[v]; ++end) {}
      if (!row_seen[v]) put_part(piece, v, end - v, nullptr, 0, to, false);
    }
    seen[piece] = true;
  }

 private:
  static constexpr int most_terms = 64;

  // Numbers of each record, as they come; and records of each number.
  int* begin() const { return reinterpret_cast<int*>(at(plan_.sparse_at.begin)); }
  int* number() const { return reinterpret_cast<int*>(at(plan_.sparse_at.number)); }
  int* begin_of_number() const { return reinterpret_cast<int*>(at(plan_.sparse_at.begin_of_number)); }
  int* record() const { return reinterpret_cast<int*>(at(plan_.sparse_at.record)); }

  static bool is_there(const R* lanes) {
    const auto zero = load(lanes) == V{};
    for (i64 l = 0; l < W; ++l)
      if (!zero[l]) return true;
    return false;
  }
  using V = Vec<R>;

  void sort_by_number(i64 n) {
    int* first = begin_of_number();
    std::memset(first, 0, sizeof(int) * size_t(plan_.width(0) + 2));
    for (i64 k = 0; k < n; ++k) ++first[number()[k] + 2];
    for (i64 j = 2; j < plan_.width(0) + 2; ++j) first[j] += first[j - 1];
    for (i64 r = 0; r < records_; ++r)
      for (int k = begin()[r]; k < begin()[r + 1]; ++k) record()[first[number()[k] + 1]++] = int(r);
  }

  void look_up_part(int i, R* to, const Factor* factors, int n, const R* bias, i64 r, i64 first, const int* own,
                    const int* end) const {
    const i64 begin = weight_at(i), k_step = input_step(i), n_step = output_step(i);
    Target<R> target{to, lanes_are_samples ? W : ld_, bias ? Finish::Bias : Finish::Store};
    target.row = bias;
    if constexpr (lanes_are_samples) {
      target.finish = Finish::Store, target.row = nullptr;
      target.continues = bias != nullptr;
      for (i64 j = 0; bias && j < plan_.out(i); ++j) store(to + j * W, splat(bias[j]));
    }
    do {
      Term<R> terms[most_terms];
      int count = 0;
      for (; own < end && count + n <= most_terms; ++own)
        for (int t = 0; t < n; ++t) {
          const R *x = factors[t].x + r * ld_ + *own * W, *row = factors[t].theta + begin + (*own - first) * k_step;
          if constexpr (lanes_are_samples) terms[count++] = {row, n_step, k_step, x, W, W, 1};
          else terms[count++] = {x, ld_, W, row, k_step, n_step, 1};
        }
      if constexpr (lanes_are_samples) product<Apart>(terms, count, target, plan_.out(i), 1);
      else product<WeightLane>(terms, count, target, 1, plan_.out(i));
      if constexpr (lanes_are_samples) target.continues = true;
      else target.finish = Finish::Add;
    } while (own < end);
  }

  void put_part_of_rows(int i, i64 part, const R* g, const GradientTo& to, unsigned char* row_seen) {
    const i64 in = plan_.in(i), out = plan_.out(i), ld = Team::stride(out);
    const R* adjoint = g + part * out * W;
    if constexpr (lanes_are_samples)
      for (i64 r = 0; r < records_; ++r)
        turn_out(at(plan_.turned_at[0]) + r * W * ld, adjoint + r * ld_, out, filled(r));
    for (i64 v = 0; v < in; ++v) {
      const i64 j = part * in + v;
      for (int k = begin_of_number()[j]; k < begin_of_number()[j + 1];) {
        Term<R> terms[most_terms];
        int count = 0;
        for (; k < begin_of_number()[j + 1] && count < most_terms; ++k) {
          const i64 r = record()[k];
          const R* x = values(0) + r * ld_ + j * W;
          if constexpr (lanes_are_samples)
            terms[count++] = {x, W, 1, at(plan_.turned_at[0]) + r * W * ld, ld, W, filled(r)};
          else
            terms[count++] = {x, W, ld_, adjoint + r * ld_, ld_, W, 1};
        }
        put_part(plan_.piece_of[i], v, 1, terms, count, to, row_seen[v]);
        row_seen[v] = 1;
      }
    }
  }

  bool is_sparse_ = false;
};

}  // namespace fastmeta::FASTMETA_ISA
