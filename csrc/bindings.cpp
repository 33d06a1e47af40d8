// The Python module fastmeta._native: takes pointers and sizes, checks that they fit together, and
// calls the kernels without the GIL. Shapes, dtypes and values have been checked in Python.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

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

  Network network() const {
    return {nodes_.data(), int(nodes_.size()), n_parameters_, loss_};
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

template <class R>
void bind_real(py::module_& m, const char* suffix) {
  const auto name = [&](const char* stem) { return std::string(stem) + suffix; };
  m.def(name("forward_").c_str(), &forward<R>);
  m.def(name("backward_").c_str(), &backward<R>);
  m.def(name("team_").c_str(), &team<R>);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "The native kernels of fastmeta. Internal: call them through fastmeta.";
  py::class_<Chain>(m, "Chain")
      .def(py::init<const std::vector<std::tuple<std::string, std::string, double, double, i64, i64,
                                                 int, int>>&,
                    const std::string&, int>());
  py::class_<Record>(m, "Record").def_readonly("bytes", &Record::bytes);
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
