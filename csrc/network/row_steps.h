// The steps of a program on rows, of either kind of number: forward, and backward to what is given. On dual
// numbers both are differentiated along a direction: of the gradient that is the R-operator.
#pragma once

#include "activation.h"
#include "numbers.h"

namespace fastmeta::FASTMETA_ISA {

// ---- functions of either kind of number -----------------------------------------------------------

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

  FASTMETA_CODE static N exp(N x) {
    const V e = FASTMETA_ISA::exp(value(x));
    return chain(x, e, e);
  }
  FASTMETA_CODE static N log(N x) { return chain(x, FASTMETA_ISA::log(value(x)), 1 / value(x)); }
  FASTMETA_CODE static N sigmoid(N x) {
    const V s = FASTMETA_ISA::sigmoid(value(x));
    return chain(x, s, s * (1 - s));
  }
  // log(1 + exp(x))
  FASTMETA_CODE static V softplus(V x) {
    return vmax(x, V{}) + FASTMETA_ISA::log1p(FASTMETA_ISA::exp(-absolute<R>(x)));
  }
  FASTMETA_CODE static N sine(N x) {
    V s, c;
    sincos(value(x), s, c);
    return chain(x, s, c);
  }
  FASTMETA_CODE static N cosine(N x) {
    V s, c;
    sincos(value(x), s, c);
    return chain(x, c, -s);
  }
  FASTMETA_CODE static N absolute_of(N x) { return chain(x, absolute<R>(value(x)), signs<R>(value(x))); }
  FASTMETA_CODE static N times(N x, V factor) { return x * constant(factor); }
};

// ---- the steps ------------------------------------------------------------------------------------

template <class Numbers>
class RowSteps {
  using F = Functions<Numbers>;
  using N = typename Numbers::N;
  using R = typename Numbers::R;
  using V = Vec<R>;
  using I = Mask<R>;

 public:
  using Row = typename Numbers::Row;

  // wanted: which rows a backward goes through, of those that vary; task_..: the rows of the task.
  FASTMETA_CODE RowSteps(const RowProgram& program, const unsigned char* wanted, Row rows,
                         Row adjoints, Row task_rows, Row task_adjoints)
      : program_(program), wanted_(wanted), rows_{rows, task_rows},
        adjoints_{adjoints, task_adjoints} {}

  FASTMETA_APART void forward(int i) const {
    const RowStep& s = program_.rows[i];
    const Row to = at(rows_, i);
    const Row a = at(rows_, s.a), b = at(rows_, s.b);
    const i64 da = step_of(s.a), db = step_of(s.b);
    const auto each = [&](auto f) {
      FASTMETA_ROLLED
      for (i64 j = 0; j < s.width; ++j) to.put(j, f(a[j * da], b[j * db]));
    };
    const auto unary = [&](auto f) {
      FASTMETA_ROLLED
      for (i64 j = 0; j < s.width; ++j) to.put(j, f(a[j * da]));
    };
    // y = f(x), where first(x, y) is the derivative.
    const auto chained = [&](auto f, auto first, auto chain) {
      FASTMETA_ROLLED
      for (i64 j = 0; j < s.width; ++j) {
        const N x = a[j * da];
        V y;
        if constexpr (F::values_are_there)
          y = F::value(to[j]);
        else
          y = f(F::value(x));
        to.put(j, chain(x, y, first(F::value(x), y)));
      }
    };
    const auto function = [&](auto f, auto first) {
      chained(f, first, [](N x, V y, V slope) { return F::chain(x, y, slope); });
    };
    const auto with_edge = [&](auto f, auto first) {
      chained(f, first, [](N x, V y, V slope) { return F::chain_from_edge(x, y, slope); });
    };
    const auto mask = [&](auto f) {
      each([&](N x, N y) {
        return F::constant(select(I(f(F::value(x), F::value(y))), splat(R(1)), V{}));
      });
    };
    switch (s.op) {
      case RowOp::Constant:
        for (i64 j = 0; j < s.width; ++j) to.put(j, F::constant(splat(R(s.x))));
        return;
      case RowOp::Add: return each([](N x, N y) { return x + y; });
      case RowOp::Subtract: return each([](N x, N y) { return x - y; });
      case RowOp::Multiply: return each([](N x, N y) { return x * y; });
      case RowOp::Divide:
        if constexpr (F::values_are_there) {
          for (i64 j = 0; j < s.width; ++j) {
            const N x = a[j * da], y = b[j * db];
            const V ratio = F::value(to[j]);
            to.put(j, {ratio, (x.slope - ratio * y.slope) / y.value});
          }
          return;
        }
        return each([](N x, N y) { return x / y; });
      case RowOp::Larger:
        return each([](N x, N y) { return chosen(is_first(F::value(x), F::value(y)), x, y); });
      case RowOp::Smaller:
        return each([](N x, N y) { return chosen(is_first(-F::value(x), -F::value(y)), x, y); });
      case RowOp::Negative: return unary([](N x) { return -x; });
      case RowOp::Absolute: return unary([](N x) { return F::absolute_of(x); });
      case RowOp::Sign: return unary([](N x) { return F::constant(signs<R>(F::value(x))); });
      case RowOp::Exp: return function([](V x) { return exp(x); }, [](V, V y) { return y; });
      case RowOp::Log: return with_edge([](V x) { return log(x); }, [](V x, V) { return 1 / x; });
      case RowOp::Log1p: return function([](V x) { return log1p(x); }, [](V x, V) { return 1 / (1 + x); });
      case RowOp::Sqrt:
        return with_edge([](V x) { return square_roots<R>(x); }, [](V, V y) { return R(0.5) / y; });
      case RowOp::Sine: return unary([](N x) { return F::sine(x); });
      case RowOp::Cosine: return unary([](N x) { return F::cosine(x); });
      case RowOp::Tanh: return function([](V x) { return tanh(x); }, [](V, V y) { return 1 - y * y; });
      case RowOp::Sigmoid: return function([](V x) { return sigmoid(x); }, [](V, V y) { return y * (1 - y); });
      case RowOp::Softplus:
        return function([](V x) { return F::softplus(x); }, [](V x, V) { return sigmoid(x); });
      case RowOp::Activate:
        return with_activation<R>(activation(s), [&](auto f) {
          unary([&](N x) {
            V s1{}, s2{};
            const V y = f.apply(F::value(x), s1, s2);
            return F::chain(x, y, f.first(y, s1));
          });
        });
      case RowOp::Clamp:
        return unary([&](N x) {
          const V v = F::value(x), low = splat(R(s.x)), high = splat(R(s.y));
          return F::pick(v < low, F::constant(low), F::pick(v > high, F::constant(high), x));
        });
      case RowOp::Greater: return mask([](V x, V y) { return x > y; });
      case RowOp::GreaterEqual: return mask([](V x, V y) { return x >= y; });
      case RowOp::Equal: return mask([](V x, V y) { return x == y; });
      case RowOp::Select: {
        const Row c = at(rows_, s.c);
        const i64 dc = step_of(s.c);
        for (i64 j = 0; j < s.width; ++j)
          to.put(j, F::pick(F::value(a[j * da]) != V{}, b[j * db], c[j * dc]));
        return;
      }
      case RowOp::Stop: return unary([](N x) { return F::constant(F::value(x)); });
      case RowOp::Slice: return copy(to, a + i64(s.x), s.width);
      case RowOp::Join:
        copy(to, a, width(s.a));
        return copy(to + width(s.a), b, width(s.b));
      case RowOp::Sum: {
        const i64 n = width(s.a) / s.width;
        for (i64 j = 0; j < s.width; ++j) to.put(j, sum_of(n, [&](i64 k) { return a[j * n + k]; }));
        return;
      }
      case RowOp::LogSumExp: {
        const i64 n = width(s.a) / s.width;
        for (i64 j = 0; j < s.width; ++j) {
          if constexpr (F::values_are_there)
            to.put(j, sum_of(n, [&](i64 k) {
              const N x = a[j * n + k];
              return N{V{}, exp(x.value - F::value(to[j])) * x.slope};
            }));
          else
            to.put(j, log_sum_exp(a + j * n, n));
        }
        return;
      }
      case RowOp::Turn: return each_turned(s, [&](i64 j, i64 from) { to.put(j, a[from]); });
      case RowOp::Repeat: return each_repeated(s, [&](i64 j, i64 from) { to.put(j, a[from]); });
      case RowOp::Product: {
        const Matrices of(*this, s);
        for (i64 p = 0; p < of.count; ++p)
          F::multiply({a + p * of.m * of.k, of.k, 1}, of.right(b, p), of.k, to + p * of.m * of.n, of.m,
                      of.n, false);
        return;
      }
      case RowOp::Choose: {
        const V label = F::value(b[0]);
        N chosen = F::constant(label - label);  // 0, or NaN of a label that is NaN
        for (i64 j = 0; j < width(s.a); ++j) chosen = F::pick(label == splat(R(j)), a[j], chosen);
        return to.put(0, chosen);
      }
      case RowOp::Linear: case RowOp::Parameter: return;
    }
  }

  // Adds what the adjoint of row i says to those of a, b and c, as far as they are wanted.
  FASTMETA_APART void backward(int i) const {
    const RowStep& s = program_.rows[i];
    const Row out = at(rows_, i), g = at(adjoints_, i);
    const Row a = at(rows_, s.a), b = at(rows_, s.b);
    const i64 da = step_of(s.a), db = step_of(s.b);
    const auto of_a = [&](auto f) { add(s.a, is_first_to(s, 0), s.width, f); };
    const auto of_b = [&](auto f) { add(s.b, is_first_to(s, 1), s.width, f); };
    const N one = F::constant(splat(R(1)));
    // Picked, not multiplied by 0: what comes may be infinite.
    const N zero = F::constant(V{});
    // Of the one that was taken; half of each if they are equal.
    const auto share = [&](i64 j, bool of_first) {
      const V x = F::value(a[j * da]), y = F::value(b[j * db]);
      const I taken = I((s.op == RowOp::Larger) == of_first ? x > y : y > x);
      return F::pick(taken, g[j], F::pick(I(x == y), F::times(g[j], splat(R(0.5))), zero));
    };
    switch (s.op) {
      case RowOp::Constant: case RowOp::Sign: case RowOp::Greater: case RowOp::GreaterEqual:
      case RowOp::Equal: case RowOp::Stop: case RowOp::Linear: case RowOp::Parameter:
        return;
      case RowOp::Add:
        of_a([&](i64 j) { return g[j]; });
        return of_b([&](i64 j) { return g[j]; });
      case RowOp::Subtract:
        of_a([&](i64 j) { return g[j]; });
        return of_b([&](i64 j) { return -g[j]; });
      case RowOp::Multiply:
        of_a([&](i64 j) { return g[j] * b[j * db]; });
        return of_b([&](i64 j) { return g[j] * a[j * da]; });
      case RowOp::Divide:
        of_a([&](i64 j) { return g[j] / b[j * db]; });
        return of_b([&](i64 j) { return -(g[j] * out[j] / b[j * db]); });
      case RowOp::Larger: case RowOp::Smaller:
        of_a([&](i64 j) { return share(j, true); });
        return of_b([&](i64 j) { return share(j, false); });
      case RowOp::Negative: return of_a([&](i64 j) { return -g[j]; });
      case RowOp::Absolute:
        return of_a([&](i64 j) { return F::times(g[j], signs<R>(F::value(a[j * da]))); });
      case RowOp::Exp: return of_a([&](i64 j) { return g[j] * out[j]; });
      case RowOp::Log: return of_a([&](i64 j) { return g[j] / a[j * da]; });
      case RowOp::Log1p: return of_a([&](i64 j) { return g[j] / (one + a[j * da]); });
      case RowOp::Sqrt:
        return of_a([&](i64 j) { return F::times(g[j] / out[j], splat(R(0.5))); });
      case RowOp::Sine: return of_a([&](i64 j) { return g[j] * F::cosine(a[j * da]); });
      case RowOp::Cosine: return of_a([&](i64 j) { return -(g[j] * F::sine(a[j * da])); });
      case RowOp::Tanh: return of_a([&](i64 j) { return g[j] * (one - out[j] * out[j]); });
      case RowOp::Sigmoid: return of_a([&](i64 j) { return g[j] * (out[j] * (one - out[j])); });
      case RowOp::Softplus: return of_a([&](i64 j) { return g[j] * F::sigmoid(a[j * da]); });
      case RowOp::Activate:
        return with_activation<R>(activation(s), [&](auto f) {
          of_a([&](i64 j) {
            V s1{}, s2{};
            const N x = a[j * da];
            const V y = f.apply(F::value(x), s1, s2);
            return g[j] * F::chain(x, f.first(y, s1), f.second(y, s1, s2));
          });
        });
      case RowOp::Clamp:
        return of_a([&](i64 j) {
          const V v = F::value(a[j * da]);
          const I inside = I(v >= splat(R(s.x))) & I(v <= splat(R(s.y)));
          return F::pick(inside, g[j], zero);
        });
      case RowOp::Select:
        of_b([&](i64 j) { return F::pick(F::value(a[j * da]) != V{}, g[j], zero); });
        return add(s.c, is_first_to(s, 2), s.width,
                   [&](i64 j) { return F::pick(F::value(a[j * da]) != V{}, zero, g[j]); });
      case RowOp::Slice: return put_slice(s, g);
      case RowOp::Join:
        add(s.a, is_first_to(s, 0), width(s.a), [&](i64 j) { return g[j]; });
        return add(s.b, is_first_to(s, 1), width(s.b), [&](i64 j) { return g[width(s.a) + j]; });
      case RowOp::Sum: {
        const i64 n = width(s.a) / s.width;
        return add(s.a, is_first_to(s, 0), width(s.a), [&](i64 j) { return g[j / n]; });
      }
      case RowOp::LogSumExp: {
        const i64 n = width(s.a) / s.width;
        return add(s.a, is_first_to(s, 0), width(s.a),
                   [&](i64 j) { return g[j / n] * F::exp(a[j] - out[j / n]); });
      }
      case RowOp::Turn: return put_back(s, g, [&](auto f) { each_turned(s, f); });
      case RowOp::Repeat: return put_back(s, g, [&](auto f) { each_repeated(s, f); });
      case RowOp::Product: return multiply_back(s, g);
      case RowOp::Choose:
        return add(s.a, is_first_to(s, 0), width(s.a), [&](i64 j) {
          return F::pick(F::value(b[0]) == splat(R(j)), g[0], zero);
        });
    }
  }

 private:
  struct Records {
    Row own, of_task;
  };
  FASTMETA_CODE Row at(const Records& numbers, int row) const {
    return (program_.rows[row].of_task ? numbers.of_task : numbers.own) + program_.rows[row].at;
  }
  // Whether a step brings an adjoint to its operand before any other.
  FASTMETA_CODE bool is_first_to(const RowStep& s, int operand) const {
    const int rows[3] = {s.a, s.b, s.c};
    return s.first[operand] && !program_.rows[rows[operand]].adds_up;
  }
  FASTMETA_CODE i64 width(int row) const { return program_.rows[row].width; }
  // Of a row of one number, all columns are that.
  FASTMETA_CODE i64 step_of(int row) const { return width(row) == 1 ? 0 : 1; }
  FASTMETA_CODE static Node activation(const RowStep& s) {
    return {NodeKind::Activation, ActivationKind(s.c), s.x, s.y, 0, 0, -1, -1};
  }
  FASTMETA_CODE static void copy(Row to, Row from, i64 n) {
    for (i64 j = 0; j < n; ++j) to.put(j, from[j]);
  }

  // Whether x is the larger one; NaN is larger than all.
  FASTMETA_CODE static I is_first(V x, V y) { return I(x > y) | I(x != x); }
  // Of equals the mean, whose derivative is that which a tie has.
  FASTMETA_CODE static N chosen(I first, N x, N y) {
    const V half = splat(R(0.5));
    const I equal = I(F::value(x) == F::value(y));
    return F::pick(equal, F::times(x, half) + F::times(y, half), F::pick(first, x, y));
  }
  FASTMETA_CODE static N log_sum_exp(Row x, i64 n) {
    V most = F::value(x[0]);
    for (i64 j = 1; j < n; ++j) most = vmax(F::value(x[j]), most);
    const N sum = sum_of(n, [&](i64 j) { return F::exp(x[j] - F::constant(most)); });
    return F::constant(most) + F::log(sum);
  }

  // Of f(j) for j < n, in blocks, and whole ones in four sums that do not wait for each other.
  template <class Each>
  FASTMETA_CODE static N sum_of(i64 n, Each f) {
    N total = F::constant(V{});
    FASTMETA_ROLLED
    for (i64 begin = 0; begin < n; begin += 32) {
      N part = f(begin);
      if (n - begin >= 32) {
        N others[3] = {f(begin + 1), f(begin + 2), f(begin + 3)};
        FASTMETA_ROLLED
        for (i64 j = begin + 4; j < begin + 32; j += 4) {
          part = part + f(j);
          for (int i = 0; i < 3; ++i) others[i] = others[i] + f(j + 1 + i);
        }
        part = (part + others[0]) + (others[1] + others[2]);
      } else {
        FASTMETA_ROLLED
        for (i64 j = begin + 1; j < n; ++j) part = part + f(j);
      }
      total = total + part;
    }
    return total;
  }

  // f(j) for j < n to the adjoint of a row, all of it to the one number of a row that has no more.
  template <class Each>
  FASTMETA_CODE void add(int row, bool first, i64 n, Each f) const {
    if (!wanted_[row]) return;
    const Row to = at(adjoints_, row);
    if (width(row) != n) {
      const N sum = sum_of(n, f);
      to.put(0, first ? sum : to[0] + sum);
    } else if (first) {
      FASTMETA_ROLLED
      for (i64 j = 0; j < n; ++j) to.put(j, f(j));
    } else {
      FASTMETA_ROLLED
      for (i64 j = 0; j < n; ++j) to.put(j, to[j] + f(j));
    }
  }
  FASTMETA_CODE void put_slice(const RowStep& s, Row g) const {
    if (!wanted_[s.a]) return;
    const Row to = at(adjoints_, s.a);
    const i64 zeros = is_first_to(s, 0) ? width(s.a) : 0;
    for (i64 j = 0; j < zeros; ++j) to.put(j, F::constant(V{}));
    const Row part = to + i64(s.x);
    for (i64 j = 0; j < s.width; ++j) part.put(j, part[j] + g[j]);
  }

  // f(number, the number of a that it is)
  template <class Each>
  FASTMETA_CODE void each_turned(const RowStep& s, Each f) const {
    const i64 x = i64(s.x), y = i64(s.y), c = s.c;
    for (i64 j = 0, all = 0; all < s.width; all += x * y * c)
      for (i64 row = 0; row < y; ++row)
        for (i64 column = 0; column < x; ++column)
          for (i64 i = 0; i < c; ++i, ++j) f(j, all + (column * y + row) * c + i);
  }
  template <class Each>
  FASTMETA_CODE void each_repeated(const RowStep& s, Each f) const {
    const i64 x = i64(s.x), n = s.width / width(s.a);
    for (i64 j = 0, from = 0; j < s.width; from += x)
      for (i64 copy = 0; copy < n; ++copy)
        for (i64 i = 0; i < x; ++i, ++j) f(j, from + i);
  }
  // The adjoint of what was moved goes where it came from.
  template <class Walk>
  FASTMETA_CODE void put_back(const RowStep& s, Row g, Walk walk) const {
    if (!wanted_[s.a]) return;
    const Row to = at(adjoints_, s.a);
    const i64 zeros = is_first_to(s, 0) ? width(s.a) : 0;
    for (i64 j = 0; j < zeros; ++j) to.put(j, F::constant(V{}));
    walk([&](i64 j, i64 from) { to.put(from, to[from] + g[j]); });
  }

  // [count][m][k] times [count][k][n], or [count][n][k] transposed
  struct Matrices {
    i64 count, m, k, n;
    bool turned;
    FASTMETA_CODE Matrices(const RowSteps& steps, const RowStep& s)
        : count(i64(s.x)), m(i64(s.y)), k(steps.width(s.a) / (count * m)), n(s.width / (count * m)),
          turned(s.c) {}
    FASTMETA_CODE Operand<Row> right(Row b, i64 p) const {
      return turned ? Operand<Row>{b + p * k * n, 1, k} : Operand<Row>{b + p * k * n, n, 1};
    }
    FASTMETA_CODE Operand<Row> right_transposed(Row b, i64 p) const {
      const auto [row, down, across] = right(b, p);
      return {row, across, down};
    }
  };
  FASTMETA_CODE void multiply_back(const RowStep& s, Row g) const {
    const Matrices of(*this, s);
    const Row a = at(rows_, s.a), b = at(rows_, s.b);
    const Row for_a = at(adjoints_, s.a), for_b = at(adjoints_, s.b);
    for (i64 p = 0; p < of.count; ++p) {
      const Row g_p = g + p * of.m * of.n, a_p = a + p * of.m * of.k, for_b_p = for_b + p * of.k * of.n;
      if (wanted_[s.a])
        F::multiply({g_p, of.n, 1}, of.right_transposed(b, p), of.n, for_a + p * of.m * of.k, of.m, of.k,
                    !is_first_to(s, 0));
      if (!wanted_[s.b]) continue;
      if (of.turned)
        F::multiply({g_p, 1, of.n}, {a_p, of.k, 1}, of.m, for_b_p, of.n, of.k, !is_first_to(s, 1));
      else
        F::multiply({a_p, 1, of.k}, {g_p, of.n, 1}, of.m, for_b_p, of.k, of.n, !is_first_to(s, 1));
    }
  }

  const RowProgram& program_;
  const unsigned char* wanted_;
  Records rows_, adjoints_;
};

}  // namespace fastmeta::FASTMETA_ISA
