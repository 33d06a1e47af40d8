// The Python module fastmeta._native: takes pointers and sizes, checks that they fit together, and
// calls the kernels without the GIL. Shapes, dtypes and values have been checked in Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bind_prototypes.h"
#include "cpu/dispatch.h"
#include "cpu/runtime.h"
#include "network/spec.h"

namespace py = pybind11;
using namespace fastmeta;

namespace {

template <class T>
T* pointer(const py::handle& address) {
  return address.is_none() ? nullptr : reinterpret_cast<T*>(address.cast<std::uintptr_t>());
}

void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(what);
}

// What keeps the kernels of a stage inside their tensors.
void check_geometry(const Stage& s) {
  const i64 in[2] = {s.in_h, s.in_w}, z[2] = {s.h, s.w}, out[2] = {s.out_h, s.out_w};
  require(s.in_c > 0 && s.c > 0, "a stage's channels must be positive");
  for (int axis = 0; axis < 2; ++axis) {
    require(in[axis] > 0 && z[axis] > 0 && out[axis] > 0, "a stage's sizes must be positive");
    if (s.product)
      require(s.kernel[axis] > 0 && s.stride[axis] > 0 && s.padding[axis] >= 0 &&
                  z[axis] == (in[axis] + 2 * s.padding[axis] - s.kernel[axis]) / s.stride[axis] + 1 &&
                  in[axis] + 2 * s.padding[axis] >= s.kernel[axis],
              "a product's geometry is not that of its sizes");
    else
      require(z[axis] == in[axis] && s.c == s.in_c, "without a product the shape stays");
    require(s.window[axis] > 0 && s.pool_stride[axis] >= s.window[axis] &&
                z[axis] >= s.window[axis] &&
                out[axis] == (z[axis] - s.window[axis]) / s.pool_stride[axis] + 1,
            "a pool's geometry is not that of its sizes");
    require(s.pool != PoolKind::None || out[axis] == z[axis], "without a pool the size stays");
  }
}

// What a forward leaves for its backward, in the layout of the kernels that wrote it.
struct Record {
  explicit Record(i64 bytes) : memory(bytes), bytes(bytes) {}
  Memory memory;
  i64 bytes;
};

class Chain {
 public:
  // nodes: (kind, activation, a, b, in, out, weight, bias)
  Chain(const std::vector<std::tuple<std::string, std::string, double, double, i64, i64, int, int>>&
            nodes,
        const std::string& loss, int n_parameters)
      : loss_(loss_kind(loss)), n_parameters_(n_parameters) {
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
  }

  // A network of stages, each a dict of the fields of Stage.
  Chain(const std::vector<py::dict>& stages, const std::string& loss, int n_parameters)
      : loss_(loss_kind(loss)), n_parameters_(n_parameters) {
    require(!stages.empty() && stages.size() <= 256, "a network has 1 to 256 stages");
    for (const py::dict& fields : stages) {
      const Stage s = stage(fields);
      require(stages_.empty() || follows(stages_.back(), s), "neighbouring stages' shapes differ");
      check_stage(s);
      stages_.push_back(s);
    }
    require(stages_.back().out_h == 1 && stages_.back().out_w == 1,
            "the last stage must leave one pixel");
  }

  Network network() const {
    return {nodes_.data(), int(nodes_.size()), stages_.data(), int(stages_.size()), n_parameters_,
            loss_};
  }
  int n_parameters() const { return n_parameters_; }

 private:
  static LossKind loss_kind(const std::string& name) {
    if (name == "mse") return LossKind::MeanSquaredError;
    if (name == "cross_entropy") return LossKind::CrossEntropy;
    if (name == "bce") return LossKind::BinaryCrossEntropy;
    throw std::invalid_argument("unknown loss: " + name);
  }
  static ActivationKind activation_kind(const std::string& name) {
    static const std::pair<const char*, ActivationKind> known[] = {
        {"relu", ActivationKind::ReLU},     {"leaky_relu", ActivationKind::LeakyReLU},
        {"tanh", ActivationKind::Tanh},     {"sigmoid", ActivationKind::Sigmoid},
        {"sine", ActivationKind::Sine},     {"gelu", ActivationKind::GELU},
        {"gelu_tanh", ActivationKind::GELUTanh}, {"softplus", ActivationKind::Softplus}};
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
    s.in_c = number("in_c"), s.in_h = number("in_h"), s.in_w = number("in_w");
    s.product = fields["product"].cast<bool>();
    s.weight = int(number("weight")), s.bias = int(number("bias"));
    pair("kernel", s.kernel), pair("stride", s.stride), pair("padding", s.padding);
    s.c = number("c"), s.h = number("h"), s.w = number("w");
    s.norm = NormKind(one_of(fields["norm"], {"none", "batch", "group"}));
    s.groups = number("groups");
    s.eps = fields["eps"].cast<double>();
    s.gamma = int(number("gamma")), s.beta = int(number("beta"));
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

  static bool follows(const Stage& below, const Stage& s) {
    return below.c == s.in_c && below.out_h == s.in_h && below.out_w == s.in_w;
  }

  void check_stage(const Stage& s) const {
    check_geometry(s);
    const auto parameter = [&](int index, bool optional) {
      return index < n_parameters_ && index >= (optional ? -1 : 0);
    };
    require(parameter(s.weight, !s.product) && parameter(s.bias, true) &&
                parameter(s.gamma, true) && parameter(s.beta, true),
            "a parameter's index is out of range");
    require(s.norm != NormKind::Group || (s.groups > 0 && s.c % s.groups == 0),
            "groups must divide the channels");
  }

  std::vector<Stage> stages_;
  std::vector<Node> nodes_;
  LossKind loss_;
  int n_parameters_;
};

// The arguments that forward and backward share, unpacked from Python.
template <class R>
struct Call {
  std::vector<Parameter<R>> parameters;
  std::vector<Rate<R>> rates;
  InnerLoop<R> loop{};

  Call(const Chain& chain, i64 tasks, i64 steps, int order, int threads,
       const py::sequence& parameters_in, const py::sequence& rates_in, const py::tuple& support,
       const py::object& query) {
    const size_t n = size_t(chain.n_parameters());
    require(parameters_in.size() == n, "parameters: one (address, task_stride) a parameter");
    require(rates_in.size() == n, "rates: one (address, step_stride, n) or None a parameter");
    require(tasks > 0 && steps >= 0 && (order == 1 || order == 2) && threads > 0,
            "tasks, steps, order or threads out of range");
    bool adapts = false;
    for (size_t p = 0; p < n; ++p) {
      const py::tuple parameter = parameters_in[p];
      parameters.push_back({pointer<const R>(parameter[0]), parameter[1].cast<i64>()});
      require(parameters.back().data, "a parameter's address is missing");
      rates.push_back({nullptr, 0, 0});
      if (py::object(rates_in[p]).is_none()) continue;
      const py::tuple rate = rates_in[p];
      rates.back() = {pointer<const R>(rate[0]), rate[1].cast<i64>(), rate[2].cast<i64>()};
      adapts = true;
    }
    loop.network = chain.network();
    loop.tasks = tasks;
    loop.steps = adapts ? steps : 0;
    loop.order = order;
    loop.threads = threads;
    loop.support = samples(support);
    if (!query.is_none()) loop.query = samples(query.cast<py::tuple>());
    loop.parameters = parameters.data();
    loop.rates = rates.data();
  }

  // (n, x, y, labels, weight)
  static Samples<R> samples(const py::tuple& t) {
    require(t.size() == 5, "samples: (n, x, y, labels, weight)");
    const Samples<R> s{t[0].cast<i64>(), pointer<const R>(t[1]), pointer<const R>(t[2]),
                       pointer<const i64>(t[3]), pointer<const R>(t[4])};
    require(s.n > 0 && s.x, "samples: n must be positive and x given");
    return s;
  }
};

template <class R>
std::vector<R*> pointers(const py::object& list, size_t n, const char* what) {
  std::vector<R*> out;
  if (list.is_none()) return out;
  const py::sequence addresses = list;
  require(addresses.size() == n, what);
  for (size_t i = 0; i < n; ++i) out.push_back(pointer<R>(py::object(addresses[i])));
  return out;
}

template <class R>
R* const* data_or_null(const std::vector<R*>& v) {
  return v.empty() ? nullptr : v.data();
}

const Variant* running = find_variant(nullptr);

template <class R>
const Kernels<R>& kernels();
template <>
const Kernels<float>& kernels<float>() { return *running->f32; }
template <>
const Kernels<double>& kernels<double>() { return *running->f64; }

template <class R>
std::unique_ptr<Record> forward(const Chain& chain, i64 tasks, i64 steps, int order,
                                     int threads, const py::sequence& parameters,
                                     const py::sequence& rates, const py::tuple& support,
                                     const py::object& query, bool keep,
                                     const py::object& predictions, const py::object& loss,
                                     const py::object& fast) {
  Call<R> call(chain, tasks, steps, order, threads, parameters, rates, support, query);
  const auto fast_out = pointers<R>(fast, size_t(chain.n_parameters()), "fast: one a parameter");
  ForwardOut<R> out{nullptr, pointer<R>(predictions), pointer<R>(loss), data_or_null(fast_out)};
  const py::gil_scoped_release release;
  std::unique_ptr<Record> kept;
  if (keep) {
    kept = std::make_unique<Record>(i64(sizeof(R)) * kernels<R>().record_size(call.loop));
    out.record = static_cast<R*>(kept->memory.data());
  }
  kernels<R>().forward(call.loop, out);
  return kept;
}

template <class R>
void backward(const Chain& chain, i64 tasks, i64 steps, int order, int threads,
              const py::sequence& parameters, const py::sequence& rates, const py::tuple& support,
              const py::object& query, const Record& record,
              const py::object& grad_loss, const py::object& grad_predictions,
              const py::object& grad_fast, const py::object& out_parameters,
              const py::object& out_rates, const py::object& out_support_x,
              const py::object& out_query_x) {
  Call<R> call(chain, tasks, steps, order, threads, parameters, rates, support, query);
  const size_t n = size_t(chain.n_parameters());
  require(record.bytes ==
              i64(sizeof(R)) * kernels<R>().record_size(call.loop),
          "the record is that of another call");
  const auto fast = pointers<R>(grad_fast, n, "grad_fast: one a parameter");
  auto parameter_gradients = pointers<R>(out_parameters, n, "out_parameters: one a parameter");
  if (parameter_gradients.empty()) parameter_gradients.assign(n, nullptr);
  const auto rate_gradients = pointers<R>(out_rates, n, "out_rates: one a parameter");
  const std::vector<const R*> fast_in(fast.begin(), fast.end());
  const BackwardIn<R> in{static_cast<const R*>(record.memory.data()),
                         pointer<const R>(grad_loss), pointer<const R>(grad_predictions),
                         fast_in.empty() ? nullptr : fast_in.data()};
  const BackwardOut<R> out{parameter_gradients.data(), data_or_null(rate_gradients),
                           pointer<R>(out_support_x), pointer<R>(out_query_x)};
  const py::gil_scoped_release release;
  kernels<R>().backward(call.loop, in, out);
}

template <class R>
const char* team(const Chain& chain, i64 tasks) {
  InnerLoop<R> loop{};
  loop.network = chain.network();
  loop.tasks = tasks;
  return kernels<R>().team(loop);
}

// shape: (T, S, C, H, W, O, kh, kw, stride, stride, padding, padding); x and y: (address, five
// strides); weight and bias: (address, task_stride).
template <class R>
void convolve(int form, const std::array<i64, 12>& shape, int threads,
              const std::pair<std::uintptr_t, std::array<i64, 5>>& x,
              const std::pair<std::uintptr_t, std::array<i64, 5>>& y,
              const std::pair<std::uintptr_t, i64>& weight,
              const std::optional<std::pair<std::uintptr_t, i64>>& bias) {
  const auto [T, S, C, H, W, O, kh, kw, stride_h, stride_w, padding_h, padding_w] = shape;
  require(form >= 0 && form < 3 && T > 0 && S > 0 && threads > 0, "convolve: bad arguments");
  require(stride_h > 0 && stride_w > 0, "a stride must be positive");
  Stage s{};
  s.product = true;
  s.in_c = C, s.in_h = H, s.in_w = W, s.c = O;
  s.kernel[0] = kh, s.kernel[1] = kw;
  s.stride[0] = stride_h, s.stride[1] = stride_w;
  s.padding[0] = padding_h, s.padding[1] = padding_w;
  s.h = s.out_h = (H + 2 * padding_h - kh) / stride_h + 1;
  s.w = s.out_w = (W + 2 * padding_w - kw) / stride_w + 1;
  for (int axis = 0; axis < 2; ++axis) s.window[axis] = s.pool_stride[axis] = 1;
  check_geometry(s);
  const auto batch = [](const auto& b) {
    const auto& [task, sample, channel, row, pixel] = b.second;
    return Batch<R>{reinterpret_cast<R*>(b.first), task, sample, channel, row, pixel};
  };
  const Convolution<R> c{ConvolutionForm(form), s, T, S, threads, batch(x), batch(y),
                         reinterpret_cast<R*>(weight.first), weight.second,
                         bias ? reinterpret_cast<const R*>(bias->first) : nullptr,
                         bias ? bias->second : 0};
  const py::gil_scoped_release release;
  kernels<R>().convolve(c);
}

// Rows in range are the caller's to check.
template <class R>
void take_pixels(std::uintptr_t images, std::uintptr_t rows, i64 n, i64 channels, i64 area,
                 std::uintptr_t factor, std::uintptr_t shift, std::uintptr_t out, int threads) {
  require(n >= 0 && channels > 0 && area > 0 && threads > 0, "take_pixels: bad arguments");
  const Pixels<R> pixels{reinterpret_cast<const std::uint8_t*>(images),
                         reinterpret_cast<const i64*>(rows), n, channels, area,
                         reinterpret_cast<const R*>(factor), reinterpret_cast<const R*>(shift),
                         reinterpret_cast<R*>(out), threads};
  const py::gil_scoped_release release;
  kernels<R>().take_pixels(pixels);
}

// The prototypes' kernels of the build that runs.
template <class R>
const PrototypeKernels<R>& prototype_kernels() { return *kernels<R>().prototypes; }

template <class R>
void bind_real(py::module_& m, const char* suffix) {
  const auto name = [&](const char* stem) { return std::string(stem) + suffix; };
  m.def(name("forward_").c_str(), &forward<R>);
  m.def(name("backward_").c_str(), &backward<R>);
  m.def(name("team_").c_str(), &team<R>);
  m.def(name("convolve_").c_str(), &convolve<R>);
  m.def(name("take_pixels_").c_str(), &take_pixels<R>);
  bind_prototypes<R>(m, suffix, prototype_kernels<R>);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "The native kernels of fastmeta. Internal: call them through fastmeta.";
  py::class_<Chain>(m, "Chain")
      .def(py::init<const std::vector<std::tuple<std::string, std::string, double, double, i64, i64,
                                                 int, int>>&,
                    const std::string&, int>())
      .def(py::init<const std::vector<py::dict>&, const std::string&, int>());
  py::class_<Record>(m, "Record").def_readonly("bytes", &Record::bytes);
  Buffer::bind(m);
  bind_real<float>(m, "float32");
  bind_real<double>(m, "float64");
  m.def("variants", [] {
    py::dict found;
    for (const Variant* v = variants(); v->name; ++v) found[v->name] = v->runs_here();
    return found;
  });
  m.def("variant", [] { return running->name; });
  m.def("use_variant", [](const std::string& name) {
    const Variant* wanted = find_variant(name.c_str());
    if (!wanted) throw std::invalid_argument("not built, or not for this processor: " + name);
    running = wanted;
  });
  m.def("thread_runtime", &thread_runtime);
  m.def("release_memory", &release_memory);
}
