// Row programs as Python hands them over: checked, so that the machine stays inside its rows, and with what
// a backward wants to know.
#pragma once

#include <array>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "network/spec.h"

namespace fastmeta {

inline void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(what);
}

using RowSteps = std::vector<std::tuple<std::string, int, int, int, double, double, i64>>;

class Rows {
 public:
  // A row that is given, and whether it changes.
  void give(i64 width, bool changes) {
    add({RowOp::Stop, 0, 0, 0, 0, 0, width, 0, {}, {}, false, false}, changes);
    ++given_;
  }

  // steps: (op, a, b, c, x, y, width). A network has parameters, of so many numbers each.
  void add_steps(const RowSteps& steps, const std::vector<i64>& parameters = {}) {
    shapes_.resize(parameters.size());
    require(!steps.empty() && int(steps.size()) <= most_row_steps,
            "a program has 1 to 4096 steps");
    for (const auto& [name, a, b, c, x, y, width] : steps) {
      RowStep step{op_of(name), a, b, c, x, y, width, 0, {}, {}, false, false};
      if (!reads_parameters(step.op)) {  // rows that nobody reads are there all the same
        if (operands(step.op) < 2) step.b = 0;
        if (operands(step.op) < 1) step.a = 0;
      }
      check(step, parameters);
      add(step, changes(step));
    }
  }

  // Of a network, before it is finished: what depends on no sample is computed once a task. The last row
  // is a sample's.
  void share() {
    for (size_t i = given_; i < rows_.size(); ++i) rows_[i].of_task = has_no_sample(rows_[i]);
    if (!rows_.back().of_task) return;
    for (RowStep& step : rows_) step.of_task = false;
  }

  // Once all steps are there.
  void finish() {
    for (RowStep& step : rows_) {
      i64& size = step.of_task ? task_size_ : size_;
      step.at = size;
      size += step.width;
    }
    std::vector<unsigned char> matters(rows_.size()), reached(rows_.size());
    matters.back() = 1;
    for (size_t i = rows_.size(); i-- > 0;) {
      RowStep& step = rows_[i];
      const bool goes_on = i >= given_ && matters[i] && varies_[i] && differentiates(step.op);
      varies_[i] = varies_[i] && matters[i];
      for (int operand = 0; goes_on && operand < operands(step.op); ++operand) {
        if (step.op == RowOp::Choose && operand == 1) continue;
        if (step.op == RowOp::Select && operand == 0) continue;
        const size_t row = size_t(operand == 0 ? step.a : operand == 1 ? step.b : step.c);
        matters[row] = 1;
        step.goes_to[operand] = true;
        step.first[operand] = !reached[row];
        reached[row] = 1;
        rows_[row].adds_up |= rows_[row].of_task && !step.of_task;
      }
    }
  }

  RowProgram program(bool adds = false) const {
    return {rows_.data(), varies_.data(), int(rows_.size()), size_, task_size_, adds};
  }
  bool empty() const { return rows_.empty(); }
  i64 width(int row) const { return rows_[size_t(row)].width; }
  i64 last_width() const { return rows_.back().width; }

  static RowOp op_of(const std::string& name) {
    static const char* const names[row_ops] = {
        "constant", "add", "subtract", "multiply", "divide", "larger", "smaller", "negative",
        "absolute", "sign", "exp", "log", "log1p", "sqrt", "sine", "cosine", "tanh", "sigmoid",
        "softplus", "activate", "clamp", "greater", "greater_equal", "equal", "select", "stop",
        "slice", "join", "sum", "log_sum_exp", "choose", "turn", "repeat", "product", "linear",
        "parameter"};
    for (int op = 0; op < row_ops; ++op)
      if (name == names[op]) return RowOp(op);
    throw std::invalid_argument("unknown step of a program: " + name);
  }

 private:
  void add(const RowStep& step, bool varies) {
    rows_.push_back(step);
    varies_.push_back(varies);
  }
  bool has_no_sample(const RowStep& s) const {
    const int read[3] = {s.a, s.b, s.c}, n = operands(s.op);
    for (int operand = 0; operand < n; ++operand)
      if (!rows_[size_t(read[operand])].of_task) return false;
    return true;
  }
  bool known(int row) const { return row >= 0 && row < int(rows_.size()); }
  bool varies(int row) const { return varies_[size_t(row)]; }

  static bool reads_parameters(RowOp op) { return op == RowOp::Linear || op == RowOp::Parameter; }
  // How many of a, b and c are rows.
  static int operands(RowOp op) {
    switch (op) {
      case RowOp::Constant: case RowOp::Parameter:
        return 0;
      case RowOp::Add: case RowOp::Subtract: case RowOp::Multiply: case RowOp::Divide:
      case RowOp::Larger: case RowOp::Smaller: case RowOp::Greater: case RowOp::GreaterEqual:
      case RowOp::Equal: case RowOp::Choose: case RowOp::Join: case RowOp::Product:
        return 2;
      case RowOp::Select:
        return 3;
      default:
        return 1;
    }
  }
  static bool differentiates(RowOp op) {
    switch (op) {
      case RowOp::Constant: case RowOp::Sign: case RowOp::Greater: case RowOp::GreaterEqual:
      case RowOp::Equal: case RowOp::Stop:
        return false;
      default:
        return true;
    }
  }
  bool changes(const RowStep& s) const {
    if (reads_parameters(s.op)) return true;
    if (!differentiates(s.op)) return false;
    const int n = operands(s.op);
    return (s.op != RowOp::Select && varies(s.a)) ||
           (n > 1 && s.op != RowOp::Choose && varies(s.b)) || (n > 2 && varies(s.c));
  }

  // A parameter has one shape for all products and sums that read it; a bias is [1][n].
  bool has_shape(int parameter, i64 rows, i64 columns) {
    auto& shape = shapes_[size_t(parameter)];
    if (!shape[0]) shape = {rows, columns};
    return shape[0] == rows && shape[1] == columns;
  }

  static bool counts(double x, double y) {
    constexpr double most = 1 << 20;
    return x >= 1 && y >= 1 && x <= most && y <= most && x * y <= most;
  }

  void check(const RowStep& s, const std::vector<i64>& parameters) {
    require(s.width > 0 && s.width <= (i64(1) << 20), "a row's width is out of range");
    const int n = operands(s.op);
    require((n < 1 || known(s.a)) && (n < 2 || known(s.b)) && (n < 3 || known(s.c)),
            "a step reads a row that is not there yet");
    const auto fits = [&](int row) { return width(row) == 1 || width(row) == s.width; };
    const auto holds = [&](int parameter, i64 numbers) {
      return parameter >= 0 && parameter < int(parameters.size()) &&
             parameters[size_t(parameter)] == numbers;
    };
    switch (s.op) {
      case RowOp::Constant:
        return;
      case RowOp::Parameter:
        return require(holds(s.b, s.width), "a row is not as long as its parameter");
      case RowOp::Linear: {
        const i64 parts = i64(s.y);
        require(parts > 0 && width(s.a) % parts == 0 && s.width % parts == 0,
                "a product's parts are not of one length");
        const i64 in = width(s.a) / parts, out = s.width / parts;
        const bool bias = s.c == -1 || (holds(s.c, out) && has_shape(s.c, 1, out));
        return require(holds(s.b, in * out) && bias &&
                           has_shape(s.b, s.x != 0 ? in : out, s.x != 0 ? out : in),
                       "a product does not fit its parameters");
      }
      case RowOp::Activate:
        require(s.c >= 0 && s.c < activation_kinds, "there is no such activation");
        break;
      case RowOp::Slice:
        return require(s.x >= 0 && s.x + double(s.width) <= double(width(s.a)),
                       "a slice is out of range");
      case RowOp::Join:
        return require(width(s.a) + width(s.b) == s.width, "rows side by side are as long as both");
      case RowOp::Sum: case RowOp::LogSumExp:
        return require(width(s.a) % s.width == 0, "a sum's parts are not of one length");
      case RowOp::Turn:
        return require(width(s.a) == s.width && counts(s.x, s.y) && s.c > 0 && s.c <= s.width &&
                           s.width % (i64(s.x) * i64(s.y) * s.c) == 0,
                       "what is turned is no matrix");
      case RowOp::Repeat:
        return require(counts(s.x, 1) && width(s.a) % i64(s.x) == 0 && s.width % width(s.a) == 0,
                       "what is repeated does not fit");
      case RowOp::Product: {
        require(counts(s.x, s.y) && (s.c == 0 || s.c == 1), "a product is of matrices");
        const i64 count = i64(s.x), rows = count * i64(s.y);
        require(width(s.a) % rows == 0 && s.width % rows == 0, "a product's matrices are not alike");
        return require(width(s.b) == count * (width(s.a) / rows) * (s.width / rows),
                       "a product's matrices do not fit");
      }
      case RowOp::Choose:
        return require(s.width == 1 && width(s.b) == 1, "a label chooses one number");
      default:
        break;
    }
    require((n < 1 || fits(s.a)) && (n < 2 || fits(s.b)) && (n < 3 || fits(s.c)), "widths differ");
  }

  std::vector<std::array<i64, 2>> shapes_;  // of the parameters that were read
  std::vector<RowStep> rows_;
  std::vector<unsigned char> varies_;
  size_t given_ = 0;
  i64 size_ = 0, task_size_ = 0;
};

}  // namespace fastmeta
