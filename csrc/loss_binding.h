// Losses as Python hands them over: a name, or the program of a user's own.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "network/spec.h"

namespace fastmeta {

namespace py = pybind11;

inline void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(what);
}

class Loss {
 public:
  explicit Loss(const std::string& name) : kind_(kind_of(name)) {}

  // steps: (op, a, b, c, x, y, width); predictions and targets: numbers in their rows
  Loss(i64 predictions, i64 targets, bool adds,
       const std::vector<std::tuple<std::string, int, int, int, double, double, i64>>& steps)
      : kind_(LossKind::Program), adds_(adds) {
    require(predictions > 0 && targets > 0 && !steps.empty() && steps.size() <= 1024,
            "a program has predictions, targets, and 1 to 1024 steps");
    add({LossOp::Stop, 0, 0, 0, 0, 0, predictions, 0, true});
    add({LossOp::Stop, 0, 0, 0, 0, 0, targets, 0, false});
    for (const auto& [op, a, b, c, x, y, width] : steps) {
      LossStep step{op_of(op), a, b, c, x, y, width, 0, false};
      check(step);
      step.varies = differentiates(step.op) && (varies(a) || varies_too(step));
      add(step);
    }
    require(rows_.back().width == 1, "a loss is one number");
  }

  LossKind kind() const { return kind_; }
  LossProgram program() const { return {rows_.data(), int(rows_.size()), size_, adds_}; }
  void check_predictions(i64 outputs) const {
    require(rows_.empty() || rows_[0].width == outputs,
            "the program's predictions are not those of the network");
  }

 private:
  void add(LossStep step) {
    step.at = size_;
    size_ += step.width;
    rows_.push_back(step);
  }
  bool known(int row) const { return row >= 0 && row < int(rows_.size()); }
  bool varies(int row) const { return rows_[size_t(row)].varies; }
  i64 width(int row) const { return rows_[size_t(row)].width; }

  // Whether b and c are rows, beside a.
  static bool takes_b(LossOp op) {
    switch (op) {
      case LossOp::Add: case LossOp::Subtract: case LossOp::Multiply: case LossOp::Divide:
      case LossOp::Larger: case LossOp::Smaller: case LossOp::Greater: case LossOp::GreaterEqual:
      case LossOp::Equal: case LossOp::Select: case LossOp::Choose:
        return true;
      default:
        return false;
    }
  }
  static bool differentiates(LossOp op) {
    switch (op) {
      case LossOp::Constant: case LossOp::Sign: case LossOp::Greater: case LossOp::GreaterEqual:
      case LossOp::Equal: case LossOp::Stop:
        return false;
      default:
        return true;
    }
  }
  bool varies_too(const LossStep& s) const {
    return (takes_b(s.op) && s.op != LossOp::Choose && varies(s.b)) ||
           (s.op == LossOp::Select && varies(s.c));
  }

  void check(const LossStep& s) const {
    require(s.width > 0 && s.width <= (i64(1) << 20), "a row's width is out of range");
    require(known(s.a) && (!takes_b(s.op) || known(s.b)) && (s.op != LossOp::Select || known(s.c)),
            "a step reads a row that is not there yet");
    const auto fits = [&](int row) { return width(row) == 1 || width(row) == s.width; };
    switch (s.op) {
      case LossOp::Constant:
        return require(s.width == 1, "a constant is one number");
      case LossOp::Slice:
        return require(s.x >= 0 && s.x + double(s.width) <= double(width(s.a)),
                       "a slice is out of range");
      case LossOp::Sum: case LossOp::LogSumExp:
        return require(s.width == 1, "a sum is one number");
      case LossOp::Choose:
        return require(s.width == 1 && width(s.b) == 1, "a label chooses one number");
      case LossOp::Select:
        require(fits(s.c), "widths differ");
        break;
      default:
        break;
    }
    require(fits(s.a) && (!takes_b(s.op) || fits(s.b)), "widths differ");
  }

  static LossKind kind_of(const std::string& name) {
    if (name == "mse") return LossKind::MeanSquaredError;
    if (name == "cross_entropy") return LossKind::CrossEntropy;
    if (name == "bce") return LossKind::BinaryCrossEntropy;
    throw std::invalid_argument("unknown loss: " + name);
  }
  static LossOp op_of(const std::string& name) {
    static const char* const names[loss_ops] = {
        "constant", "add", "subtract", "multiply", "divide", "larger", "smaller", "negative",
        "absolute", "sign", "exp", "log", "log1p", "sqrt", "sine", "cosine", "tanh", "sigmoid",
        "softplus", "clamp", "greater", "greater_equal", "equal", "select", "stop", "slice", "sum",
        "log_sum_exp", "choose"};
    for (int op = 0; op < loss_ops; ++op)
      if (name == names[op]) return LossOp(op);
    throw std::invalid_argument("unknown step of a loss: " + name);
  }

  LossKind kind_;
  std::vector<LossStep> rows_;
  i64 size_ = 0;
  bool adds_ = false;
};

// A name is taken for the loss of that name. Each module has a class of its own: both may be loaded.
inline void bind_loss(py::module_& m) {
  py::class_<Loss>(m, "Loss", py::module_local())
      .def(py::init<const std::string&>())
      .def(py::init<i64, i64, bool,
                    const std::vector<std::tuple<std::string, int, int, int, double, double, i64>>&>());
  py::implicitly_convertible<py::str, Loss>();
}

}  // namespace fastmeta
