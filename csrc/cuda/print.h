// Prints a program as text for a compiler. Operations that differ in places alone are one shape there,
// with all the rest as constants; run.cuh, compiled with that text, carries the shapes out.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "recorded.h"

namespace fastmeta::cuda {

// Of what varies within a shape: a kernel has 64 KB of constants.
constexpr std::size_t most_places = 15000;

// One field of an operation. A place may vary within a shape, unless one operation has it and another
// has none (-1).
struct Field {
  i64 value;
  bool is_place = false;
  const char* type = "";
};

// In the order of struct Op.
inline std::vector<Field> fields_of(const Op& op) {
  const auto place = [](i64 value) { return Field{value, true}; };
  const auto shape = [](i64 value, const char* type = "") { return Field{value, false, type}; };
  // `value` of a weight gradient is how far a rate is from the next.
  const bool counts = op.code == Do::WeightGradient;
  return {shape(int(op.code), "Do"), shape(op.meets), shape(op.rows), shape(op.columns),
          place(op.to), shape(op.to_row), place(op.from), shape(op.from_row),
          place(op.a[0]), place(op.a[1]), place(op.b[0]), place(op.b[1]),
          shape(op.a_row), shape(op.b_row), shape(op.depth), shape(op.terms),
          shape(op.tile_rows), shape(op.across), shape(op.tiles), shape(op.activation),
          shape(op.across_inverse, "unsigned"), place(op.bias), place(op.s1), place(op.s2),
          counts ? shape(op.value) : place(op.value), shape(op.value_row), place(op.r_to),
          place(op.rz), shape(op.pad), shape(op.bias_row), shape(int(op.then), "Then"),
          shape(op.slot), shape(op.bias_slot), place(op.offset), place(op.bias_offset),
          shape(op.row_step), shape(op.column_step)};
}

inline std::string printed(i64 value) {
  const std::string text = std::to_string(value);
  return value == int(value) ? text : text + "ll";
}
inline std::string printed(double value) {
  if (std::isinf(value)) return value < 0 ? "-INFINITY" : "INFINITY";
  char text[40];
  std::snprintf(text, sizeof text, "%.17g", value);
  return text;
}

class Printer {
 public:
  template <class R>
  explicit Printer(const Program<R>& program)
      : Printer(program.ops, program.run.known, sizeof(R) == sizeof(float) ? "float" : "double") {}

  // Whether its places are few and small enough for constants.
  bool fits() const {
    bool small = all_.size() * width_ <= most_places;
    for (std::size_t i = 0; i < all_.size(); ++i)
      for (std::size_t f : shapes_[shape_of_[i]].varying)
        small &= all_[i][f].value == int(all_[i][f].value);
    return small;
  }

  // Defines Real, Compiled<Real> and perform(here, i), which carries out the i-th operation.
  std::string text() const {
    std::string out = "namespace fastmeta::cuda {\n\nusing Real = " + real_ + ";\n\n";
    out += text_of_known() + text_of_places();
    out += "FASTMETA_INLINE void perform(const Here<Real>& here, int i) {\n"
           "  const int(&at)[" + std::to_string(width_) + "] = places[i];\n  switch (at[0]) {\n";
    for (std::size_t n = 0; n < shapes_.size(); ++n)
      out += "    case " + std::to_string(n) + ":\n" + text_of(shapes_[n]) + "      break;\n";
    return out + "  }\n}\n\n}  // namespace fastmeta::cuda\n";
  }

 private:
  struct Shape {
    Op first;
    std::vector<Field> fields;  // of the first
    std::vector<std::size_t> varying;
  };

  Printer(const std::vector<Op>& ops, const Known& known_to_all, const char* real)
      : known_(known_to_all), real_(real) {
    std::map<std::vector<i64>, std::size_t> known;
    for (const Op& op : ops) {
      all_.push_back(fields_of(op));
      const auto found = known.try_emplace(key(all_.back()), shapes_.size());
      if (found.second) shapes_.push_back({op, all_.back(), {}});
      shape_of_.push_back(found.first->second);
    }
    for (std::size_t f = 0; f < fields_of(Op{}).size(); ++f) find_varying(f);
    for (const Shape& shape : shapes_) width_ = std::max(width_, shape.varying.size() + 1);
  }

  static std::vector<i64> key(const std::vector<Field>& fields) {
    std::vector<i64> key;
    for (const Field& field : fields) key.push_back(field.is_place ? field.value < 0 : field.value);
    return key;
  }

  void find_varying(std::size_t field) {
    std::vector<bool> varies(shapes_.size());
    for (std::size_t i = 0; i < all_.size(); ++i)
      if (all_[i][field].value != shapes_[shape_of_[i]].fields[field].value)
        varies[shape_of_[i]] = true;
    for (std::size_t n = 0; n < shapes_.size(); ++n)
      if (varies[n]) shapes_[n].varying.push_back(field);
  }

  std::string text_of_known() const {
    std::string nodes;
    for (int l = 0; l < known_.n_nodes; ++l) {
      const Node& node = known_.nodes[l];
      nodes += (l ? ", {" : "{") + listed("NodeKind(", i64(node.kind)) + "), " +
               listed("ActivationKind(", i64(node.activation)) + "), " + printed(node.a) + ", " +
               printed(node.b) + listed(", ", node.in) + listed(", ", node.out) +
               listed(", ", node.weight) + listed(", ", node.bias) + "}";
    }
    const Known& of = known_;
    return "template <>\nstruct Compiled<Real> {\n"
           "  FASTMETA_INLINE static constexpr Known known() {\n    return {" +
           listed("", of.n_nodes) + listed(", LossKind(", i64(of.loss)) + "), {" + nodes + "}" +
           listed(", ", of.targets_at) + listed(", ", of.target_row) +
           listed(", ", of.coefficient_at) + listed(", ", of.curvature_at) +
           listed(", ", of.loss_at) + listed(", ", of.own_at) + listed(", ", of.own_row) +
           "};\n  }\n" + text_of_activations() + "};\n\n";
  }
  static std::string listed(const char* before, i64 value) { return before + printed(value); }

  // Of those that the network has alone: each is copied wherever it is used.
  std::string text_of_activations() const {
    std::set<int> kinds;
    for (int l = 0; l < known_.n_nodes; ++l)
      if (known_.nodes[l].kind == NodeKind::Activation)
        kinds.insert(int(known_.nodes[l].activation));
    std::string cases;
    for (const int kind : kinds) {
      const std::string name = "ActivationKind(" + std::to_string(kind) + ")";
      cases += "      case " + name + ":\n        return f(activation_of<" + name +
               ", Real>(node));\n";
    }
    return "  template <class F>\n  FASTMETA_INLINE static void with_activation(const Node& node, F f) {\n"
           "    switch (node.activation) {\n" + cases +
           "      default:\n        __builtin_unreachable();\n    }\n  }\n";
  }

  // A line an operation: its shape, and what varies within that.
  std::string text_of_places() const {
    std::string out = "FASTMETA_CONSTANT int places[][" + std::to_string(width_) + "] = {\n";
    for (std::size_t i = 0; i < all_.size(); ++i) {
      out += "    {" + std::to_string(shape_of_[i]);
      for (std::size_t f : shapes_[shape_of_[i]].varying) out += ", " + printed(all_[i][f].value);
      out += "},\n";
    }
    return out + "};\n\n";
  }

  static std::string text_of(const Shape& shape) {
    std::string op;
    std::size_t place = 1;
    for (std::size_t f = 0; f < shape.fields.size(); ++f) {
      const Field& field = shape.fields[f];
      const bool varies = std::count(shape.varying.begin(), shape.varying.end(), f);
      const std::string value = varies ? "at[" + std::to_string(place++) + "]" : printed(field.value);
      op += (f ? ", " : "") + (*field.type ? field.type + ("(" + value + ")") : value);
    }
    const Op& first = shape.first;
    return "      carry_out<Do(" + std::to_string(int(first.code)) + "), " +
           std::to_string(std::max(1, first.tile_rows)) + ">(here, Op{" + op + "});\n" +
           (first.meets ? "      __syncthreads();\n" : "");
  }

  const Known& known_;
  std::string real_;
  std::vector<std::vector<Field>> all_;
  std::vector<std::size_t> shape_of_;  // of each operation
  std::vector<Shape> shapes_;
  std::size_t width_ = 1;
};

}  // namespace fastmeta::cuda
