// The Python module fastmeta._cuda. Nothing is allocated here and nothing waits for the device.
#include <cuda_runtime_api.h>

#include "../call.h"
#include "compiled.h"

using namespace fastmeta;

namespace {

using cuda::Failure;
using cuda::Place;

// (device, stream)
using PlaceArgument = std::pair<int, std::uintptr_t>;

Place place(const PlaceArgument& argument) {
  return {argument.first, reinterpret_cast<void*>(argument.second)};
}

// How many devices the driver has; raises RuntimeError with its complaint.
int devices() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) throw Failure{cudaGetErrorString(error)};
  return count;
}

// An inner loop before there are tensors: addresses that nobody follows.
template <class R>
struct Unbound {
  std::vector<std::uintptr_t> addresses;
  typename Call<R>::Bound bound;
  explicit Unbound(const Call<R>& call)
      : addresses(call.n_addresses(), 64), bound(call, 1, addresses) {}
};

template <class R>
std::string unfit(const Call<R>& call, int device) {
  return cuda::unfit<R>(Unbound<R>(call).bound.loop, device);
}

template <class R>
int blocks(const Call<R>& call, int device) {
  return cuda::blocks_of<R>(Unbound<R>(call).bound.loop, device);
}

template <class R>
cuda::Wanted wanted(const Call<R>& call, bool fast, bool rates, bool support_x, bool query_x,
                    bool grad_loss, bool grad_predictions, bool grad_fast) {
  return {fast, rates, support_x, query_x, grad_loss, grad_predictions, grad_fast, call.one_rate()};
}

// The source of a program for a device with so much shared memory a block and so many processors, which
// need not be here.
template <class R>
std::string source(const Call<R>& call, bool backward, bool fast, bool rates, bool support_x,
                   bool query_x, bool grad_loss, bool grad_predictions, bool grad_fast,
                   i64 most_shared, i64 processors) {
  const Unbound<R> unbound(call);
  const cuda::Wanted asked = wanted(call, fast, rates, support_x, query_x, grad_loss,
                                    grad_predictions, grad_fast);
  return cuda::source_of(
      cuda::record_program(unbound.bound.loop, asked, backward, most_shared, processors));
}

// What a call runs: a program, whose operations Python keeps on the device, or clusters of blocks.
template <class R>
class Plan {
 public:
  Plan(const Call<R>& call, bool backward, bool fast, bool rates, bool support_x, bool query_x,
       bool grad_loss, bool grad_predictions, bool grad_fast, int device) {
    const Unbound<R> unbound(call);
    const InnerLoop<R>& loop = unbound.bound.loop;
    clusters_ = cuda::blocks_of<R>(loop, device) > 1;
    if (clusters_) {
      const auto found = cuda::sizes<R>(loop, rates, device);
      record_ = found.record, workspace_ = found.workspace;
      return;
    }
    const cuda::Wanted asked = wanted(call, fast, rates, support_x, query_x, grad_loss,
                                      grad_predictions, grad_fast);
    program_ = cuda::record_for<R>(loop, asked, backward, device);
    record_ = program_.record_size(), workspace_ = program_.sums_size();
  }

  // Nothing, of clusters.
  py::bytes operations() const { return program_.operations(); }
  void put_operations(std::uintptr_t address) {
    program_.put_operations(pointer<const char>(address));
  }
  // What a compiler makes a kernel of for this program alone; nothing, of clusters and of long programs.
  // To be asked for before the operations are put elsewhere.
  std::string source() const { return clusters_ ? "" : cuda::source_of(program_); }
  void put_code(const py::bytes& machine_code, int device) {
    cuda::use_code(program_, machine_code, device);
    workspace_ = program_.sums_size();
  }
  i64 record_bytes() const { return record_ * i64(sizeof(R)); }
  i64 workspace_bytes() const { return workspace_ * i64(sizeof(R)); }

  void forward(const InnerLoop<R>& loop, const ForwardOut<R>& out, const Place& place) const {
    if (clusters_) return cuda::forward<R>(loop, out, place);
    require(program_.run.ops, "the operations are not on the device");
    cuda::forward<R>(program_, loop, out, place);
  }
  void backward(const InnerLoop<R>& loop, const BackwardIn<R>& in, const BackwardOut<R>& out,
                R* workspace, const Place& place) const {
    if (clusters_) return cuda::backward<R>(loop, in, out, workspace, place);
    require(program_.run.ops, "the operations are not on the device");
    cuda::backward<R>(program_, loop, in, out, workspace, place);
  }

 private:
  bool clusters_ = false;
  i64 record_ = 0, workspace_ = 0;
  cuda::Program<R> program_;
};

template <class R>
void forward(const Call<R>& call, const Plan<R>& plan, const PlaceArgument& where,
             const Addresses& addresses, std::uintptr_t record, std::uintptr_t predictions,
             std::uintptr_t loss, const Addresses& fast) {
  const typename Call<R>::Bound bound(call, 1, addresses);
  const auto fast_out = pointers<R>(fast, call.n_parameters(), "fast: one a parameter");
  plan.forward(bound.loop,
               {pointer<R>(record), pointer<R>(predictions), pointer<R>(loss),
                data_or_null(fast_out)},
               place(where));
}

template <class R>
void backward(const Call<R>& call, const Plan<R>& plan, const PlaceArgument& where,
              const Addresses& addresses, std::uintptr_t record, std::uintptr_t workspace,
              std::uintptr_t grad_loss, std::uintptr_t grad_predictions,
              const Addresses& grad_fast, const Addresses& out_parameters,
              const Addresses& out_rates, std::uintptr_t out_support_x,
              std::uintptr_t out_query_x) {
  const typename Call<R>::Bound bound(call, 1, addresses);
  const size_t n = call.n_parameters();
  const auto fast = pointers<const R>(grad_fast, n, "grad_fast: one a parameter");
  const auto parameters = pointers<R>(out_parameters, n, "out_parameters: one a parameter");
  require(!parameters.empty() && workspace, "out_parameters or the workspace is missing");
  const auto rates = pointers<R>(out_rates, n, "out_rates: one a parameter");
  plan.backward(bound.loop,
                {pointer<const R>(record), pointer<const R>(grad_loss),
                 pointer<const R>(grad_predictions), data_or_null(fast)},
                {parameters.data(), data_or_null(rates), pointer<R>(out_support_x),
                 pointer<R>(out_query_x)},
                pointer<R>(workspace), place(where));
}

template <class R>
void bind_real(py::module_& m, const char* suffix) {
  const auto name = [&](const char* stem) { return std::string(stem) + suffix; };
  bind_call<R>(m, name("call_").c_str());
  m.def(name("unfit_").c_str(), &unfit<R>);
  m.def(name("blocks_").c_str(), &blocks<R>);
  py::class_<Plan<R>>(m, name("plan_").c_str(), py::module_local())
      .def(py::init<const Call<R>&, bool, bool, bool, bool, bool, bool, bool, bool, int>())
      .def("operations", &Plan<R>::operations)
      .def("put_operations", &Plan<R>::put_operations)
      .def("source", &Plan<R>::source)
      .def("put_code", &Plan<R>::put_code)
      .def_property_readonly("record_bytes", &Plan<R>::record_bytes)
      .def_property_readonly("workspace_bytes", &Plan<R>::workspace_bytes);
  m.def(name("source_").c_str(), &source<R>);
  m.def(name("forward_").c_str(), &forward<R>);
  m.def(name("backward_").c_str(), &backward<R>);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "The CUDA kernels of fastmeta. Internal: call them through fastmeta.";
  py::register_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const Failure& failure) {
      PyErr_SetString(PyExc_RuntimeError, failure.what.c_str());
    }
  });
  bind_chain(m);
  bind_real<float>(m, "float32");
  bind_real<double>(m, "float64");
  m.def("devices", &devices);
}
