// Random forwards that are arithmetic on rows.
#pragma once

#include "checks.h"

namespace fastmeta::test {

// Steps that read what is there so far. Values stay small, and away from where a derivative jumps only by
// chance: of few samples that hardly ever comes to be.
class Writer {
 public:
  Writer(Case<double>& c, Random& random, ActivationKind kind, i64 inputs)
      : c_(c), random_(random), kind_(kind), inputs_(inputs) {
    widths_ = {inputs_};
    read_ = {false};
  }

  void write() {
    for (int more = 2 + random_.below(6); more; --more) add_some();
    finish();
    c_.written.give(inputs_, true);
    c_.written.add_steps(steps_, c_.sizes);
    c_.written.share();
    c_.written.finish();
  }

 private:
  int last() const { return int(widths_.size()) - 1; }
  i64 width(int row) const { return widths_[size_t(row)]; }
  int any() { return random_.below(2) ? last() : random_.below(last() + 1); }

  int put(const char* op, int a, int b, int c, double x, double y, i64 width) {
    steps_.push_back({op, a, b, c, x, y, width});
    widths_.push_back(width);
    read_.push_back(false);
    return last();
  }
  int of_one(const char* op, int a) { return read(a), put(op, a, 0, 0, 0, 0, width(a)); }
  int of_two(const char* op, int a, int b) {
    read(a), read(b);
    return put(op, a, b, 0, 0, 0, std::max(width(a), width(b)));
  }
  void read(int row) { read_[size_t(row)] = true; }
  int constant(double x) { return put("constant", 0, 0, 0, x, 0, 1); }

  struct Weight {
    int parameter;
    i64 in, out;
    bool as_it_is;
  };
  int linear(int a, i64 out) {
    read(a);
    const i64 parts = width(a) % 2 || random_.coin() ? 1 : 2;
    Weight weight{-1, width(a) / parts, out, random_.coin()};
    for (const Weight& known : weights_)  // turned, too
      if (random_.coin() && known.in == weight.in && known.out == weight.out)
        weight = known;
      else if (random_.coin() && known.out == weight.in && known.in == weight.out)
        weight = {known.parameter, known.out, known.in, !known.as_it_is};
    if (weight.parameter < 0) weight.parameter = c_.add_parameter(weight.in * out, 0.4);
    weights_.push_back(weight);
    const int bias = random_.below(3) ? c_.add_parameter(out) : -1;
    return put("linear", a, weight.parameter, bias, weight.as_it_is, double(parts), parts * out);
  }
  // A weight's numbers, too.
  int parameter(i64 width) {
    for (const Weight& known : weights_)
      if (random_.coin() && known.in * known.out == width)
        return put("parameter", 0, known.parameter, 0, 0, 0, width);
    return put("parameter", 0, c_.add_parameter(width), 0, 0, 0, width);
  }
  int activated(int a) {
    const Node node = activation(kind_, width(a));
    read(a);
    return put("activate", a, 0, int(kind_), node.a, node.b, width(a));
  }
  // Of a row's width, or one number.
  int partner(int a) {
    const int choice = random_.below(4);
    if (choice == 0) return parameter(random_.coin() ? width(a) : 1);
    if (choice == 1) {
      const int other = of_one("tanh", linear(any(), width(a)));
      if (width(other) == width(a)) return other;
    }
    for (int row = 0; choice == 2 && row <= last(); ++row)
      if (row != a && (width(row) == width(a) || width(row) == 1)) return row;
    return a;
  }

  i64 factor_of(i64 n) {
    i64 factor = 1 + random_.below(n);
    while (n % factor) --factor;
    return factor;
  }

  void add_some() {
    const int a = any();
    switch (random_.below(15)) {
      case 0: case 1: activated(linear(a, random_.one_of({1, 4, 17}))); return;
      case 2: of_two("multiply", of_one("sigmoid", a), partner(a)); return;
      case 3: of_two(random_.coin() ? "add" : "subtract", a, partner(a)); return;
      case 4: {
        const int below = of_two("greater", a, constant(0.1));
        const int other = of_two("multiply", a, partner(a));
        read(below), read(other), read(a);
        put("select", below, a, other, 0, 0, width(other));
        return;
      }
      case 5:
        read(a);
        put("slice", a, 0, 0, double(width(a) / 2), 0, width(a) - width(a) / 2);
        return;
      case 6: {
        const int b = any();
        read(a), read(b);
        put("join", a, b, 0, 0, 0, width(a) + width(b));
        return;
      }
      case 7: {  // x / sqrt(1 + the sum of squares)
        const int squares = of_two("multiply", a, a);
        read(squares);
        const int sum = of_two("add", put("sum", squares, 0, 0, 0, 0, 1), constant(1));
        of_two("divide", a, of_one("sqrt", sum));
        return;
      }
      case 9: {  // whatever there is, of numbers where it has derivatives
        const char* const of_any[] = {"negative", "sine", "cosine", "tanh", "sigmoid", "softplus",
                                      "absolute", "exp"};
        const char* const of_positive[] = {"log", "log1p", "sqrt"};
        if (random_.coin()) {
          const int bounded = of_one("tanh", a);
          read(bounded);
          of_two(random_.coin() ? "larger" : "smaller", put("clamp", bounded, 0, 0, -0.5, 0.6, width(a)),
                 partner(a));
        } else if (random_.coin()) {
          of_one(of_any[random_.below(8)], of_one("tanh", a));
        } else {
          const int positive = of_two("add", of_two("multiply", a, a), constant(1));
          of_one(of_positive[random_.below(3)], positive);
        }
        return;
      }
      case 10: {  // matrices of a row, and others
        const int b = of_one("tanh", linear(any(), random_.one_of({4, 8, 12})));
        const i64 count = random_.coin() ? 2 : 1, k = random_.one_of({1, 2});
        const int left = of_one("tanh", linear(a, count * random_.one_of({1, 3, 8}) * k));
        const i64 rows = width(left) / (count * k), columns = width(b) / (count * k);
        read(left), read(b);
        put("product", left, b, random_.coin(), double(count), double(rows), count * rows * columns);
        return;
      }
      case 11: {
        read(a);
        const i64 c = factor_of(width(a)), x = factor_of(width(a) / c), y = factor_of(width(a) / c / x);
        put("turn", a, 0, int(c), double(x), double(y), width(a));
        return;
      }
      case 12: {  // each part over its sum of squares, or less what it comes to
        const i64 parts = factor_of(width(a)), n = width(a) / parts;
        const bool of_squares = random_.coin();
        const int from = of_squares ? of_two("multiply", a, a) : a;
        read(from);
        int sum = put(of_squares ? "sum" : "log_sum_exp", from, 0, 0, 0, 0, parts);
        if (of_squares) sum = of_two("add", sum, constant(1));
        read(sum);
        of_two(of_squares ? "divide" : "subtract", a, put("repeat", sum, 0, 0, 1, 0, parts * n));
        return;
      }
      case 13: {  // rows times a matrix that all samples share
        const i64 parts = factor_of(width(a)), k = width(a) / parts, n = random_.one_of({1, 3, 17});
        const bool generated = random_.coin();
        const int matrix = of_one("tanh", generated ? linear(parameter(3), k * n) : parameter(k * n));
        read(a), read(matrix);
        put("product", a, matrix, random_.coin(), 1, double(parts), parts * n);
        return;
      }
      case 14: {  // as weight norm does, less the square of a weight's numbers
        if (weights_.empty()) return;
        const Weight& any = weights_[size_t(random_.below(int(weights_.size())))];
        const int numbers = parameter(any.in * any.out);
        read(numbers);
        of_two("add", a, put("sum", of_two("multiply", numbers, numbers), 0, 0, 0, 0, 1));
        return;
      }
      case 8: {  // log softmax
        read(a);
        of_two("subtract", a, put("log_sum_exp", a, 0, 0, 0, 0, 1));
        return;
      }
    }
  }

  // All that nobody has read, side by side, through a last product.
  void finish() {
    int all = -1;
    for (int row = 0, n = last(); row <= n; ++row) {
      if (read_[size_t(row)] || steps_.empty()) continue;
      read(row);
      if (all >= 0) read(all);
      all = all < 0 ? row : put("join", all, row, 0, 0, 0, width(all) + width(row));
    }
    linear(of_one("tanh", all < 0 ? last() : all), random_.one_of({1, 4, 17}));
  }

  Case<double>& c_;
  Random& random_;
  ActivationKind kind_;
  i64 inputs_;
  RowSteps steps_;
  std::vector<i64> widths_;
  std::vector<bool> read_;
  std::vector<Weight> weights_;
};

}  // namespace fastmeta::test
