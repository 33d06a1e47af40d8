// The Python module fastmeta._cuda. Nothing is allocated here and nothing waits for the device.
#include <cuda_runtime_api.h>

#include "../call.h"
#include "launch.h"

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

// Bytes of (what forward leaves for backward, the workspace of backward).
template <class R>
std::pair<i64, i64> sizes(const Call<R>& call, bool rates, int device) {
  const auto found = cuda::sizes<R>(Unbound<R>(call).bound.loop, rates, device);
  return {found.record * i64(sizeof(R)), found.workspace * i64(sizeof(R))};
}

template <class R>
void forward(const Call<R>& call, const PlaceArgument& where, const Addresses& addresses,
             std::uintptr_t record, std::uintptr_t predictions, std::uintptr_t loss,
             const Addresses& fast) {
  const typename Call<R>::Bound bound(call, 1, addresses);
  const auto fast_out = pointers<R>(fast, call.n_parameters(), "fast: one a parameter");
  cuda::forward<R>(bound.loop, {pointer<R>(record), pointer<R>(predictions), pointer<R>(loss),
                                data_or_null(fast_out)},
                   place(where));
}

template <class R>
void backward(const Call<R>& call, const PlaceArgument& where, const Addresses& addresses,
              std::uintptr_t record, std::uintptr_t workspace, std::uintptr_t grad_loss,
              std::uintptr_t grad_predictions, const Addresses& grad_fast,
              const Addresses& out_parameters, const Addresses& out_rates,
              std::uintptr_t out_support_x, std::uintptr_t out_query_x) {
  const typename Call<R>::Bound bound(call, 1, addresses);
  const size_t n = call.n_parameters();
  const auto fast = pointers<const R>(grad_fast, n, "grad_fast: one a parameter");
  const auto parameters = pointers<R>(out_parameters, n, "out_parameters: one a parameter");
  require(!parameters.empty() && workspace, "out_parameters or the workspace is missing");
  const auto rates = pointers<R>(out_rates, n, "out_rates: one a parameter");
  cuda::backward<R>(bound.loop,
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
  m.def(name("sizes_").c_str(), &sizes<R>);
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
