// Runs a user's loss on W samples, one a lane: forward, and backward to the predictions. On dual numbers
// both are differentiated along a direction: of the gradient that is the R-operator.
#pragma once

#include "dual_number.h"
#include "simd_math.h"

namespace fastmeta::FASTMETA_ISA {

// ---- functions of either kind of number -----------------------------------------------------------

template <class R>
FASTMETA_INLINE Vec<R> square_roots(Vec<R> x) {
  for (int l = 0; l < lanes<R>; ++l) x[l] = std::sqrt(x[l]);
  return x;
}
template <class R>
FASTMETA_INLINE Vec<R> signs(Vec<R> x) {
  return select(x > 0, splat(R(1)), select(x < 0, splat(R(-1)), Vec<R>{}));
}

template <class Numbers>
struct Functions : Numbers {
  using Numbers::chain, Numbers::constant, Numbers::value;
  using N = typename Numbers::N;
  using R = typename Numbers::R;
  using V = Vec<R>;

  static N exp(N x) {
    const V e = FASTMETA_ISA::exp(value(x));
    return chain(x, e, e);
  }
  static N log(N x) { return chain(x, FASTMETA_ISA::log(value(x)), 1 / value(x)); }
  static N log1p(N x) { return chain(x, FASTMETA_ISA::log1p(value(x)), 1 / (1 + value(x))); }
  static N sqrt(N x) {
    const V root = square_roots<R>(value(x));
    return chain(x, root, R(0.5) / root);
  }
  static N tanh(N x) {
    const V t = FASTMETA_ISA::tanh(value(x));
    return chain(x, t, 1 - t * t);
  }
  static N sigmoid(N x) {
    const V s = FASTMETA_ISA::sigmoid(value(x));
    return chain(x, s, s * (1 - s));
  }
  // log(1 + exp(x))
  static N softplus(N x) {
    const V v = value(x);
    return chain(x, vmax(v, V{}) + FASTMETA_ISA::log1p(FASTMETA_ISA::exp(-absolute<R>(v))),
                 FASTMETA_ISA::sigmoid(v));
  }
  static N sine(N x) {
    V s, c;
    sincos(value(x), s, c);
    return chain(x, s, c);
  }
  static N cosine(N x) {
    V s, c;
    sincos(value(x), s, c);
    return chain(x, c, -s);
  }
  static N absolute_of(N x) { return chain(x, absolute<R>(value(x)), signs<R>(value(x))); }
  static N times(N x, V factor) { return x * constant(factor); }
};

// ---- the machine ----------------------------------------------------------------------------------

// rows and adjoints: as many numbers as the program has; the predictions and targets are there.
template <class Numbers>
class LossMachine {
  using F = Functions<Numbers>;
  using N = typename Numbers::N;
  using R = typename Numbers::R;
  using V = Vec<R>;
  using I = Mask<R>;

 public:
  LossMachine(const LossProgram& program, N* rows, N* adjoints)
      : program_(program), rows_(rows), adjoints_(adjoints) {}

  // The loss of each lane's sample.
  N forward() const {
    for (int i = 2; i < program_.n_rows; ++i) step_forward(i);
    return at(rows_, program_.n_rows - 1)[0];
  }

  // The adjoints of the predictions.
  const N* backward() const {
    for (i64 i = 0; i < program_.size; ++i) adjoints_[i] = F::constant(V{});
    at(adjoints_, program_.n_rows - 1)[0] = F::constant(splat(R(1)));
    for (int i = program_.n_rows - 1; i >= 2; --i)
      if (program_.rows[i].varies) step_backward(i);
    return adjoints_;
  }

 private:
  N* at(N* numbers, int row) const { return numbers + program_.rows[row].at; }
  bool varies(int row) const { return program_.rows[row].varies; }
  // Whether x is the larger one; NaN is larger than all.
  static I is_first(V x, V y) { return I(x > y) | I(x != x); }
  // Of equals the mean, whose derivative is that which a tie has.
  static N chosen(I first, N x, N y) {
    const V half = splat(R(0.5));
    const I equal = I(F::value(x) == F::value(y));
    return F::pick(equal, F::times(x, half) + F::times(y, half), F::pick(first, x, y));
  }
  // Of a row of one number, all columns are that.
  i64 step_of(int row) const { return program_.rows[row].width == 1 ? 0 : 1; }

  void step_forward(int i) const {
    const LossStep& s = program_.rows[i];
    N* to = at(rows_, i);
    const N *a = at(rows_, s.a), *b = at(rows_, s.b), *c = at(rows_, s.c);
    const i64 da = step_of(s.a), db = step_of(s.b), dc = step_of(s.c);
    const auto each = [&](auto f) {
      for (i64 j = 0; j < s.width; ++j) to[j] = f(a[j * da], b[j * db]);
    };
    const auto unary = [&](auto f) { each([&](N x, N) { return f(x); }); };
    const auto mask = [&](auto f) {
      each([&](N x, N y) {
        return F::constant(select(I(f(F::value(x), F::value(y))), splat(R(1)), V{}));
      });
    };
    switch (s.op) {
      case LossOp::Constant: return unary([&](N) { return F::constant(splat(R(s.x))); });
      case LossOp::Add: return each([](N x, N y) { return x + y; });
      case LossOp::Subtract: return each([](N x, N y) { return x - y; });
      case LossOp::Multiply: return each([](N x, N y) { return x * y; });
      case LossOp::Divide: return each([](N x, N y) { return x / y; });
      case LossOp::Larger:
        return each([](N x, N y) { return chosen(is_first(F::value(x), F::value(y)), x, y); });
      case LossOp::Smaller:
        return each([](N x, N y) { return chosen(is_first(-F::value(x), -F::value(y)), x, y); });
      case LossOp::Negative: return unary([](N x) { return -x; });
      case LossOp::Absolute: return unary([](N x) { return F::absolute_of(x); });
      case LossOp::Sign: return unary([](N x) { return F::constant(signs<R>(F::value(x))); });
      case LossOp::Exp: return unary([](N x) { return F::exp(x); });
      case LossOp::Log: return unary([](N x) { return F::log(x); });
      case LossOp::Log1p: return unary([](N x) { return F::log1p(x); });
      case LossOp::Sqrt: return unary([](N x) { return F::sqrt(x); });
      case LossOp::Sine: return unary([](N x) { return F::sine(x); });
      case LossOp::Cosine: return unary([](N x) { return F::cosine(x); });
      case LossOp::Tanh: return unary([](N x) { return F::tanh(x); });
      case LossOp::Sigmoid: return unary([](N x) { return F::sigmoid(x); });
      case LossOp::Softplus: return unary([](N x) { return F::softplus(x); });
      case LossOp::Clamp:
        return unary([&](N x) {
          const V v = F::value(x), low = splat(R(s.x)), high = splat(R(s.y));
          return F::pick(v < low, F::constant(low), F::pick(v > high, F::constant(high), x));
        });
      case LossOp::Greater: return mask([](V x, V y) { return x > y; });
      case LossOp::GreaterEqual: return mask([](V x, V y) { return x >= y; });
      case LossOp::Equal: return mask([](V x, V y) { return x == y; });
      case LossOp::Select:
        for (i64 j = 0; j < s.width; ++j)
          to[j] = F::pick(F::value(a[j * da]) != V{}, b[j * db], c[j * dc]);
        return;
      case LossOp::Stop: return unary([](N x) { return F::constant(F::value(x)); });
      case LossOp::Slice:
        for (i64 j = 0; j < s.width; ++j) to[j] = a[i64(s.x) + j];
        return;
      case LossOp::Sum: {
        N sum = a[0];
        for (i64 j = 1; j < width(s.a); ++j) sum = sum + a[j];
        to[0] = sum;
        return;
      }
      case LossOp::LogSumExp: to[0] = log_sum_exp(a, width(s.a)); return;
      case LossOp::Choose: {
        N chosen = F::constant(F::value(b[0]) - F::value(b[0]));  // 0, or NaN of a label that is NaN
        for (i64 j = 0; j < width(s.a); ++j)
          chosen = F::pick(F::value(b[0]) == splat(R(j)), a[j], chosen);
        to[0] = chosen;
        return;
      }
    }
  }

  i64 width(int row) const { return program_.rows[row].width; }

  static N log_sum_exp(const N* x, i64 n) {
    V most = F::value(x[0]);
    for (i64 j = 1; j < n; ++j) most = vmax(F::value(x[j]), most);
    N sum = F::constant(V{});
    for (i64 j = 0; j < n; ++j) sum = sum + F::exp(x[j] - F::constant(most));
    return F::constant(most) + F::log(sum);
  }

  // Adds to the adjoints of a, b and c, as far as they vary.
  void step_backward(int i) const {
    const LossStep& s = program_.rows[i];
    const N *out = at(rows_, i), *g = at(adjoints_, i);
    const N *a = at(rows_, s.a), *b = at(rows_, s.b);
    const i64 da = step_of(s.a), db = step_of(s.b);
    const auto add_to = [&](int row, auto f) {
      if (!varies(row)) return;
      N* to = at(adjoints_, row);
      const i64 d = step_of(row);
      for (i64 j = 0; j < s.width; ++j) to[j * d] = to[j * d] + f(j);
    };
    const auto of_a = [&](auto f) { add_to(s.a, f); };
    const auto of_b = [&](auto f) { add_to(s.b, f); };
    // Picked, not multiplied by 0: what comes may be infinite.
    const N zero = F::constant(V{});
    // Of the one that was taken; half of each if they are equal.
    const auto share = [&](i64 j, bool of_first) {
      const V x = F::value(a[j * da]), y = F::value(b[j * db]);
      const I taken = I((s.op == LossOp::Larger) == of_first ? x > y : y > x);
      return F::pick(taken, g[j], F::pick(I(x == y), F::times(g[j], splat(R(0.5))), zero));
    };
    switch (s.op) {
      case LossOp::Constant: case LossOp::Sign: case LossOp::Greater: case LossOp::GreaterEqual:
      case LossOp::Equal: case LossOp::Stop:
        return;
      case LossOp::Add:
        of_a([&](i64 j) { return g[j]; });
        return of_b([&](i64 j) { return g[j]; });
      case LossOp::Subtract:
        of_a([&](i64 j) { return g[j]; });
        return of_b([&](i64 j) { return -g[j]; });
      case LossOp::Multiply:
        of_a([&](i64 j) { return g[j] * b[j * db]; });
        return of_b([&](i64 j) { return g[j] * a[j * da]; });
      case LossOp::Divide:
        of_a([&](i64 j) { return g[j] / b[j * db]; });
        return of_b([&](i64 j) { return -(g[j] * out[j] / b[j * db]); });
      case LossOp::Larger: case LossOp::Smaller:
        of_a([&](i64 j) { return share(j, true); });
        return of_b([&](i64 j) { return share(j, false); });
      case LossOp::Negative: return of_a([&](i64 j) { return -g[j]; });
      case LossOp::Absolute:
        return of_a([&](i64 j) { return F::times(g[j], signs<R>(F::value(a[j * da]))); });
      case LossOp::Exp: return of_a([&](i64 j) { return g[j] * out[j]; });
      case LossOp::Log: return of_a([&](i64 j) { return g[j] / a[j * da]; });
      case LossOp::Log1p:
        return of_a([&](i64 j) { return g[j] / (F::constant(splat(R(1))) + a[j * da]); });
      case LossOp::Sqrt:
        return of_a([&](i64 j) { return F::times(g[j] / out[j], splat(R(0.5))); });
      case LossOp::Sine: return of_a([&](i64 j) { return g[j] * F::cosine(a[j * da]); });
      case LossOp::Cosine: return of_a([&](i64 j) { return -(g[j] * F::sine(a[j * da])); });
      case LossOp::Tanh:
        return of_a([&](i64 j) { return g[j] * (F::constant(splat(R(1))) - out[j] * out[j]); });
      case LossOp::Sigmoid:
        return of_a(
            [&](i64 j) { return g[j] * (out[j] * (F::constant(splat(R(1))) - out[j])); });
      case LossOp::Softplus: return of_a([&](i64 j) { return g[j] * F::sigmoid(a[j * da]); });
      case LossOp::Clamp:
        return of_a([&](i64 j) {
          const V v = F::value(a[j * da]);
          const I inside = I(v >= splat(R(s.x))) & I(v <= splat(R(s.y)));
          return F::pick(inside, g[j], zero);
        });
      case LossOp::Select:
        of_b([&](i64 j) { return F::pick(F::value(a[j * da]) != V{}, g[j], zero); });
        return add_to(s.c, [&](i64 j) { return F::pick(F::value(a[j * da]) != V{}, zero, g[j]); });
      case LossOp::Slice: {
        N* to = at(adjoints_, s.a) + i64(s.x);
        for (i64 j = 0; j < s.width; ++j) to[j] = to[j] + g[j];
        return;
      }
      case LossOp::Sum: return spread(s.a, [&](i64) { return g[0]; });
      case LossOp::LogSumExp: return spread(s.a, [&](i64 j) { return g[0] * F::exp(a[j] - out[0]); });
      case LossOp::Choose:
        return spread(s.a, [&](i64 j) {
          return F::pick(F::value(b[0]) == splat(R(j)), g[0], F::constant(V{}));
        });
    }
  }

  // To each number of a row, whose step is one number.
  template <class Each>
  void spread(int row, Each f) const {
    if (!varies(row)) return;
    N* to = at(adjoints_, row);
    for (i64 j = 0; j < width(row); ++j) to[j] = to[j] + f(j);
  }

  const LossProgram& program_;
  N *rows_, *adjoints_;
};

}  // namespace fastmeta::FASTMETA_ISA
