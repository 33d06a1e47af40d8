// What the Python modules have in common: networks and calls as the kernels take them, out of what
// Python hands over. Shapes, dtypes and values have been checked in Python.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "loss_binding.h"
#include "network/spec.h"

namespace fastmeta {

namespace py = pybind11;

// Those of height or width that a convolution gives of so many, 0 where its kernel does not fit.
inline i64 pixels_of_product(const Stage& s, int axis, i64 pixels) {
  const i64 in = pixels + s.before[axis] + s.behind[axis];
  const i64 taken = (s.kernel[axis] - 1) * s.dilation[axis] + 1;
  return in < taken ? 0 : (in - taken) / s.stride[axis] + 1;
}

// Along an axis with one pixel of output any stride is the same. With a wide one each input pixel has one tap to
// gradients, which otherwise meet the others' zeros: 48 of them for each number, of a layer over 7 x 7 pixels.
inline void widen_strides(Stage& s) {
  const bool transposes = s.product == ProductKind::Transposed || s.product == ProductKind::Spread;
  if (!transposes && s.product != ProductKind::Dense && s.product != ProductKind::Grouped) return;
  const i64 in[2] = {s.in_h, s.in_w}, z[2] = {s.h, s.w};
  for (int axis = 0; axis < 2; ++axis)
    if ((transposes ? in : z)[axis] == 1)
      s.stride[axis] = std::max(s.stride[axis], (transposes ? z : in)[axis] + s.before[axis] + s.behind[axis]);
}

// Groups of so many inputs and outputs: as the kernels want them, whatever the instruction set.
inline bool are_in_vectors(i64 inputs, i64 outputs) {
  constexpr i64 longest = 16;  // scalars
  const i64 least = std::min(inputs, outputs), most = std::max(inputs, outputs);
  const bool hold_several = longest % most == 0 && (most == least || most == 2 * least);
  return hold_several || (inputs % longest == 0 && outputs % longest == 0);
}

// What keeps the kernels of a stage inside their tensors.
inline void check_geometry(const Stage& s) {
  const i64 in[2] = {s.in_h, s.in_w}, z[2] = {s.h, s.w}, out[2] = {s.out_h, s.out_w};
  require(s.in_c > 0 && s.c > 0, "a stage's channels must be positive");
  for (int axis = 0; axis < 2; ++axis) {
    require(in[axis] > 0 && z[axis] > 0 && out[axis] > 0, "a stage's sizes must be positive");
    const bool spreads = s.product == ProductKind::Spread;
    const bool transposes = s.product == ProductKind::Transposed || spreads;
    require(!spreads || in[axis] == 1, "a single pixel is spread");
    if (transposes || s.product == ProductKind::Dense || s.product == ProductKind::Grouped)
      require(s.kernel[axis] > 0 && s.stride[axis] > 0 && s.dilation[axis] > 0 &&
                  s.before[axis] >= 0 && s.behind[axis] >= 0 &&
                  (transposes ? in : z)[axis] == pixels_of_product(s, axis, (transposes ? z : in)[axis]),
              "a product's geometry is not that of its sizes");
    else if (s.join == JoinKind::Repeat)
      require(z[axis] % in[axis] == 0, "pixels are repeated a whole number of times");
    else
      require(z[axis] == in[axis], "without a product the size stays");
    const i64 before = s.pool_before[axis], behind = s.pool_behind[axis];
    const i64 pooled = z[axis] + before + behind - s.window[axis];
    require(s.window[axis] > 0 && s.pool_stride[axis] > 0 && 2 * before <= s.window[axis] &&
                2 * behind <= s.window[axis] && pooled >= 0 &&
                out[axis] == pooled / s.pool_stride[axis] + 1,
            "a pool's geometry is not that of its sizes");
    require(s.pool != PoolKind::None || out[axis] == z[axis], "without a pool the size stays");
  }
  if (s.join == JoinKind::Pick)
    return require(s.other_c >= 0 && s.other_c <= s.in_c - s.c, "a stage picks channels that are not there");
  const bool grouped = s.product == ProductKind::Grouped || s.product == ProductKind::Transposed;
  const i64 groups = grouped ? s.product_groups : 1;
  require(groups > 0 && s.in_c % groups == 0 && s.c % groups == 0 && (grouped || s.product_groups <= 1),
          "a product's groups must divide its channels");
  require(groups == 1 || are_in_vectors(s.in_c / groups, s.c / groups),
          "a product's groups must fill vectors, or vectors hold several");
  require(grouped || s.product == ProductKind::Dense || s.product == ProductKind::Spread ||
              s.c == s.in_c + (s.join == JoinKind::Channels ? s.other_c : 0),
          "without a dense product the channels stay");
}

class Chain {
 public:
  // nodes: (kind, activation, a, b, in, out, weight, bias); loss: a name, or a program
  Chain(const std::vector<std::tuple<std::string, std::string, double, double, i64, i64, int, int>>&
            nodes,
        const Loss& loss, int n_parameters)
      : loss_(loss), n_parameters_(n_parameters) {
    require(!nodes.empty() && nodes.size() <= 256, "a chain has 1 to 256 nodes");
    for (const auto& [kind, activation, a, b, in, out, weight, bias] : nodes) {
      Node node{};
      node.kind = kind == "linear" ? NodeKind::Linear : NodeKind::Activation;
      if (node.kind == NodeKind::Activation) node.activation = activation_kind(activation);
      node.a = a, node.b = b, node.in = in, node.out = out;
      node.weight = weight, node.bias = bias;
      require(in > 0 && out > 0, "a node's widths must be positive");
      require(nodes_.empty() || nodes_.back().out == in, "neighbouring nodes' widths differ");
      require(node.kind == NodeKind::Linear ? weight >= 0 && weight < n_parameters : in == out,
              "a linear node needs a weight; an activation keeps the width");
      require(bias < n_parameters, "bias index out of range");
      nodes_.push_back(node);
    }
    loss_.check_predictions(nodes_.back().out);
  }

  // A network of stages, each a dict of the fields of Stage.
  Chain(const std::vector<py::dict>& stages, const Loss& loss, int n_parameters)
      : loss_(loss), n_parameters_(n_parameters) {
    take_stages(stages);
    loss_.check_predictions(features());
  }

  // A network of stages, and a forward as steps on rows of what they make; parameters: numbers of each.
  Chain(const std::vector<py::dict>& stages, const RowSteps& steps,
        const std::vector<i64>& parameters, const Loss& loss)
      : loss_(loss), n_parameters_(int(parameters.size())) {
    take_stages(stages);
    write(features(), steps, parameters);
  }

  // A forward as steps on rows, of which the first has `inputs` numbers; parameters: numbers of each.
  Chain(i64 inputs, const RowSteps& steps, const std::vector<i64>& parameters, const Loss& loss)
      : loss_(loss), n_parameters_(int(parameters.size())) {
    write(inputs, steps, parameters);
  }

  Network network() const {
    return {nodes_.data(), int(nodes_.size()), stages_.data(), int(stages_.size()),
            written_.empty() ? RowProgram{} : written_.program(), n_parameters_, loss_.kind(),
            loss_.program(), loss_.places()};
  }
  int n_parameters() const { return n_parameters_; }

 private:
  void take_stages(const std::vector<py::dict>& stages) {
    require(!stages.empty() && stages.size() <= 256, "a network has 1 to 256 stages");
    for (const py::dict& fields : stages) {
      Stage s = stage(fields);
      check_stage(s);
      check_inputs(s);
      widen_strides(s);
      stages_.push_back(s);
    }
    check_readers();
  }

  // Numbers that the last stage makes of a sample.
  i64 features() const {
    const Stage& last = stages_.back();
    return last.c * last.out_h * last.out_w;
  }

  void write(i64 inputs, const RowSteps& steps, const std::vector<i64>& parameters) {
    require(parameters.size() <= 512, "a network has at most 512 parameters");
    require(inputs > 0, "a sample has inputs");
    written_.give(inputs, true);
    written_.add_steps(steps, parameters);
    written_.share();
    written_.finish();
    loss_.check_predictions(written_.last_width());
  }

  static ActivationKind activation_kind(const std::string& name) {
    static const std::pair<const char*, ActivationKind> known[] = {
        {"relu", ActivationKind::ReLU},     {"leaky_relu", ActivationKind::LeakyReLU},
        {"tanh", ActivationKind::Tanh},     {"sigmoid", ActivationKind::Sigmoid},
        {"sine", ActivationKind::Sine},     {"gelu", ActivationKind::GELU},
        {"gelu_tanh", ActivationKind::GELUTanh}, {"softplus", ActivationKind::Softplus},
        {"silu", ActivationKind::SiLU},     {"elu", ActivationKind::ELU},
        {"clamp", ActivationKind::Clamp},   {"mish", ActivationKind::Mish},
        {"affine", ActivationKind::Affine}};
    for (const auto& [known_name, kind] : known)
      if (name == known_name) return kind;
    throw std::invalid_argument("unknown activation: " + name);
  }

  static Stage stage(const py::dict& fields) {
    const auto number = [&](const char* name) { return fields[name].cast<i64>(); };
    const auto pair = [&](const char* name, i64* to) {
      const auto values = fields[name].cast<std::pair<i64, i64>>();
      to[0] = values.first, to[1] = values.second;
    };
    Stage s{};
    s.input = int(number("input")), s.other = int(number("other"));
    s.join = JoinKind(one_of(fields["join"], {"none", "sum", "multiply", "channels", "repeat", "pick"}));
    s.other_c = number("other_c"), s.other_h = number("other_h"), s.other_w = number("other_w");
    s.in_c = number("in_c"), s.in_h = number("in_h"), s.in_w = number("in_w");
    s.product = ProductKind(
        one_of(fields["product"], {"none", "dense", "transposed", "grouped", "elements", "pixels", "spread"}));
    s.product_groups = number("product_groups");
    s.weight = int(number("weight")), s.bias = int(number("bias"));
    pair("kernel", s.kernel), pair("stride", s.stride), pair("dilation", s.dilation);
    pair("before", s.before), pair("behind", s.behind);
    s.c = number("c"), s.h = number("h"), s.w = number("w");
    s.norm = NormKind(one_of(fields["norm"], {"none", "batch", "group", "running"}));
    s.groups = number("groups");
    s.eps = fields["eps"].cast<double>();
    s.gamma = int(number("gamma")), s.beta = int(number("beta"));
    s.mean = int(number("mean")), s.variance = int(number("variance"));
    s.activates = !fields["activation"].is_none();
    if (s.activates) {
      const auto [name, a, b] =
          fields["activation"].cast<std::tuple<std::string, double, double>>();
      s.activation.kind = NodeKind::Activation;
      s.activation.activation = activation_kind(name);
      s.activation.a = a, s.activation.b = b;
    }
    s.pool = PoolKind(one_of(fields["pool"], {"none", "average", "max"}));
    pair("window", s.window), pair("pool_stride", s.pool_stride);
    pair("pool_before", s.pool_before), pair("pool_behind", s.pool_behind);
    s.out_h = number("out_h"), s.out_w = number("out_w");
    return s;
  }

  static int one_of(const py::handle& value, std::initializer_list<const char*> names) {
    const auto wanted = value.cast<std::string>();
    int i = 0;
    for (const char* name : names) {
      if (wanted == name) return i;
      ++i;
    }
    throw std::invalid_argument("unknown: " + wanted);
  }

  // Whether the stage m before s, or the network's input, gives images of that shape.
  bool gives(int m, const Stage& s, i64 c, i64 h, i64 w) const {
    if (m < -1 || m >= int(stages_.size())) return false;
    if (m < 0) {
      const Stage& first = stages_.empty() ? s : stages_.front();
      return first.in_c == c && first.in_h == h && first.in_w == w;
    }
    const Stage& below = stages_[size_t(m)];
    return below.c == c && below.out_h == h && below.out_w == w;
  }

  void check_inputs(const Stage& s) const {
    require(gives(s.input, s, s.in_c, s.in_h, s.in_w),
            "a stage does not take what the one that it reads gives");
    require(s.join == JoinKind::None || s.product == ProductKind::None, "a product joins nothing");
    if (s.join == JoinKind::None || s.join == JoinKind::Repeat || s.join == JoinKind::Pick)
      return require(s.other == no_stage, "a stage joins nothing");
    require(gives(s.other, s, s.other_c, s.other_h, s.other_w),
            "a stage cannot join what the other one gives");
    const bool any_size = s.join != JoinKind::Channels;
    const auto fits = [&](i64 own, i64 others) { return own == others || (any_size && others == 1); };
    require(fits(s.in_h, s.other_h) && fits(s.in_w, s.other_w) &&
                (s.join == JoinKind::Channels || fits(s.in_c, s.other_c)),
            "a stage joins images of other sizes");
  }

  // A gradient comes to each stage from its readers.
  void check_readers() const {
    std::vector<bool> read(stages_.size());
    for (const Stage& s : stages_) {
      if (s.input >= 0) read[size_t(s.input)] = true;
      if (s.other >= 0) read[size_t(s.other)] = true;
    }
    read.back() = true;
    for (const bool one : read) require(one, "nothing reads a stage");
  }

  void check_stage(const Stage& s) const {
    check_geometry(s);
    const auto parameter = [&](int index, bool optional) {
      return index < n_parameters_ && index >= (optional ? -1 : 0);
    };
    require(parameter(s.weight, s.product == ProductKind::None) && parameter(s.bias, true) &&
                parameter(s.gamma, true) && parameter(s.beta, true) &&
                parameter(s.mean, s.norm != NormKind::Running) &&
                parameter(s.variance, s.norm != NormKind::Running),
            "a parameter's index is out of range");
    require(s.norm != NormKind::Group || (s.groups > 0 && s.c % s.groups == 0),
            "groups must divide the channels");
  }

  std::vector<Stage> stages_;
  std::vector<Node> nodes_;
  Rows written_;
  Loss loss_;
  int n_parameters_;
};

// An inner loop on tensors of known shapes: all that their addresses do not tell. Made once for many
// calls, which then hand over nothing but addresses, in this order: the parameters, the rates of
// each that adapts, support x and query x, then support y and weight and query y and weight, as far
// as there are any. One rate for all comes last instead.
template <class R>
class Call {
 public:
  // parameters: the task stride of each; rates: (step_stride, n), or None where it does not adapt;
  // samples of the query: 0 without one.
  Call(const Chain& chain, i64 tasks, i64 steps, int order, const std::vector<i64>& task_strides,
       const std::vector<std::optional<std::pair<i64, i64>>>& rates, bool one_rate,
       std::pair<i64, i64> samples, bool labels, std::pair<bool, bool> weights)
      : one_rate_(one_rate), labels_(labels), weights_(weights) {
    const size_t n = size_t(chain.n_parameters());
    require(task_strides.size() == n && rates.size() == n, "a stride and a rate a parameter");
    require(tasks > 0 && steps >= 0 && (order == 1 || order == 2),
            "tasks, steps or order out of range");
    require(samples.first > 0 && samples.second >= 0, "the number of samples must be positive");
    size_t adapting = 0;
    for (size_t p = 0; p < n; ++p) {
      parameters_.push_back({nullptr, task_strides[p]});
      adapts_.push_back(rates[p].has_value());
      rates_.push_back({nullptr, 0, 0});
      if (!rates[p]) continue;
      rates_.back() = {nullptr, rates[p]->first, rates[p]->second};
      ++adapting;
    }
    loop_.network = chain.network();
    loop_.tasks = tasks;
    loop_.steps = adapting ? steps : 0;
    loop_.order = order;
    loop_.support.n = samples.first;
    loop_.query.n = samples.second;
    loop_.weights_stay = one_rate && samples.second > 0;
    const bool query = samples.second > 0;
    n_addresses_ = n + (one_rate ? 1 : adapting) + (query ? 4 : 2) + weights.first +
                   (query && weights.second);
  }

  size_t n_parameters() const { return parameters_.size(); }
  size_t n_stages() const { return size_t(loop_.network.n_stages); }
  size_t n_addresses() const { return n_addresses_; }
  bool one_rate() const { return one_rate_; }

  // The inner loop on tensors at these addresses, valid as long as this object is.
  class Bound {
   public:
    Bound(const Call& call, int threads, const std::vector<std::uintptr_t>& addresses)
        : parameters_(call.parameters_), rates_(call.rates_), loop(call.loop_) {
      require(addresses.size() == call.n_addresses_, "an address a tensor");
      for (const std::uintptr_t address : addresses) require(address, "an address is missing");
      require(threads > 0, "threads must be positive");
      auto next = addresses.begin();
      for (auto& parameter : parameters_) parameter.data = reinterpret_cast<const R*>(*next++);
      for (size_t p = 0; p < rates_.size(); ++p)
        if (call.adapts_[p])
          rates_[p].data = reinterpret_cast<const R*>(call.one_rate_ ? addresses.back() : *next++);
      const bool query = loop.query.n > 0;
      loop.support.x = reinterpret_cast<const R*>(*next++);
      if (query) loop.query.x = reinterpret_cast<const R*>(*next++);
      const auto take_targets = [&](Samples<R>& samples, bool weighted) {
        if (call.labels_)
          samples.labels = reinterpret_cast<const i64*>(*next++);
        else
          samples.y = reinterpret_cast<const R*>(*next++);
        if (weighted) samples.weight = reinterpret_cast<const R*>(*next++);
      };
      take_targets(loop.support, call.weights_.first);
      if (query) take_targets(loop.query, call.weights_.second);
      loop.threads = threads;
      loop.parameters = parameters_.data();
      loop.rates = rates_.data();
    }
    Bound(const Bound&) = delete;
    Bound& operator=(const Bound&) = delete;

   private:
    std::vector<Parameter<R>> parameters_;
    std::vector<Rate<R>> rates_;

   public:
    InnerLoop<R> loop;
  };

 private:
  std::vector<Parameter<R>> parameters_;
  std::vector<Rate<R>> rates_;
  std::vector<bool> adapts_;
  bool one_rate_, labels_;
  std::pair<bool, bool> weights_;
  size_t n_addresses_;
  InnerLoop<R> loop_{};
};

// An address a parameter, 0 where there is nothing; an empty list where there is none at all.
using Addresses = std::vector<std::uintptr_t>;

template <class R>
std::vector<R*> pointers(const Addresses& addresses, size_t n, const char* what) {
  require(addresses.empty() || addresses.size() == n, what);
  std::vector<R*> out;
  for (const std::uintptr_t address : addresses) out.push_back(reinterpret_cast<R*>(address));
  return out;
}

template <class R>
R* pointer(std::uintptr_t address) {
  return reinterpret_cast<R*>(address);
}

template <class R>
R* const* data_or_null(const std::vector<R*>& v) {
  return v.empty() ? nullptr : v.data();
}

// Each module has classes of its own: both may be loaded.
inline void bind_chain(py::module_& m) {
  bind_loss(m);
  py::class_<Chain>(m, "Chain", py::module_local())
      .def(py::init<const std::vector<std::tuple<std::string, std::string, double, double, i64, i64,
                                                 int, int>>&,
                    const Loss&, int>())
      .def(py::init<const std::vector<py::dict>&, const Loss&, int>())
      .def(py::init<const std::vector<py::dict>&, const RowSteps&, const std::vector<i64>&,
                    const Loss&>())
      .def(py::init<i64, const RowSteps&, const std::vector<i64>&, const Loss&>());
}

template <class R>
void bind_call(py::module_& m, const char* name) {
  py::class_<Call<R>>(m, name, py::module_local())
      .def(py::init<const Chain&, i64, i64, int, const std::vector<i64>&,
                    const std::vector<std::optional<std::pair<i64, i64>>>&, bool,
                    std::pair<i64, i64>, bool, std::pair<bool, bool>>(),
           py::keep_alive<1, 2>());
}

}  // namespace fastmeta
