// Losses as Python hands them over: a name, labels at places, or the program of a user's own.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

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

  // Cross-entropy at the places of a sample.
  Loss(const LabelPlaces& places, const std::vector<double>& weights)
      : kind_(LossKind::CrossEntropyAtPlaces), places_(places), weights_(weights) {
    constexpr i64 most = i64(1) << 24;
    require(places.classes > 0 && places.classes <= most && places.count > 0 && places.count <= most,
            "classes and places must be positive, and at most 2^24");
    require(weights.empty() || i64(weights.size()) == places.classes, "a weight a class");
  }

  LossKind kind() const { return kind_; }
  RowProgram program() const { return rows_.program(adds_); }
  LabelPlaces places() const {
    LabelPlaces places = places_;
    places.weights = weights_.empty() ? nullptr : weights_.data();
    return places;
  }
  void check_predictions(i64 outputs) const {
    require(rows_.empty() || rows_.width(0) == outputs,
            "the program's predictions are not those of the network");
    require(places_.count == 0 || places_.classes * places_.count == outputs,
            "the classes of all places are not the network's predictions");
  }

 private:
  static LossKind kind_of(const std::string& name) {
    if (name == "mse") return LossKind::MeanSquaredError;
    if (name == "cross_entropy") return LossKind::CrossEntropy;
    if (name == "bce") return LossKind::BinaryCrossEntropy;
    throw std::invalid_argument("unknown loss: " + name);
  }
  LossKind kind_;
  LabelPlaces places_{};
  std::vector<double> weights_;  // of its classes
  Rows rows_;
  bool adds_ = false;
};

// A name is taken for the loss of that name. Each module has a class of its own: both may be loaded.
inline void bind_loss(py::module_& m) {
  py::class_<Loss>(m, "Loss", py::module_local())
      .def(py::init<const std::string&>())
      .def(py::init<i64, i64, bool, const RowSteps&>())
      .def(py::init([](i64 classes, i64 places, i64 ignored, bool classes_last,
                       const std::vector<double>& weights) {
        return Loss({classes, places, ignored, classes_last, nullptr}, weights);
      }));
  py::implicitly_convertible<py::str, Loss>();
}

}  // namespace fastmeta
