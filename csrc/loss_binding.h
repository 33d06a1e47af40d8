// Losses as Python hands them over: a name, or the program of a user's own.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "row_program.h"

namespace fastmeta {

namespace py = pybind11;

class Loss {
 public:
  explicit Loss(const std::string& name) : kind_(kind_of(name)) {}

  // steps: as of `Rows`; predictions and targets: numbers in the rows that are given
  Loss(i64 predictions, i64 targets, bool adds, const RowSteps& steps)
      : kind_(LossKind::Program), adds_(adds) {
    require(predictions > 0 && targets > 0, "a loss has predictions and targets");
    rows_.give(predictions, true);
    rows_.give(targets, false);
    rows_.add_steps(steps);
    rows_.finish();
    require(rows_.last_width() == 1, "a loss is one number");
  }

  LossKind kind() const { return kind_; }
  RowProgram program() const { return rows_.program(adds_); }
  void check_predictions(i64 outputs) const {
    require(rows_.empty() || rows_.width(0) == outputs,
            "the program's predictions are not those of the network");
  }

 private:
  static LossKind kind_of(const std::string& name) {
    if (name == "mse") return LossKind::MeanSquaredError;
    if (name == "cross_entropy") return LossKind::CrossEntropy;
    if (name == "bce") return LossKind::BinaryCrossEntropy;
    throw std::invalid_argument("unknown loss: " + name);
  }
  LossKind kind_;
  Rows rows_;
  bool adds_ = false;
};

// A name is taken for the loss of that name. Each module has a class of its own: both may be loaded.
inline void bind_loss(py::module_& m) {
  py::class_<Loss>(m, "Loss", py::module_local())
      .def(py::init<const std::string&>())
      .def(py::init<i64, i64, bool, const RowSteps&>());
  py::implicitly_convertible<py::str, Loss>();
}

}  // namespace fastmeta
