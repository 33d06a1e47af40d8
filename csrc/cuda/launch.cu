// The kernels and their launches.
#include "launch.h"

#include <cuda_runtime.h>

#include <cstdint>

#include "room.h"

namespace fastmeta::cuda {

namespace {

// 2 blocks of 256 threads, or 8 of 64, keep an SM's registers busy: 128 a thread.
constexpr int most_threads = 256;

template <class R>
__global__ void __launch_bounds__(most_threads)
    forward_kernel(const __grid_constant__ ForwardArguments<R> arguments) {
  extern __shared__ __align__(16) unsigned char memory[];
  forward_block(arguments, reinterpret_cast<R*>(memory));
}

template <class R>
__global__ void __launch_bounds__(most_threads)
    backward_kernel(const __grid_constant__ BackwardArguments<R> arguments) {
  extern __shared__ __align__(16) unsigned char memory[];
  backward_block(arguments, reinterpret_cast<R*>(memory));
}

template <class R>
__global__ void __launch_bounds__(sum_threads)
    sum_kernel(const __grid_constant__ BackwardArguments<R> arguments) {
  extern __shared__ __align__(16) unsigned char memory[];
  sum_block(arguments, reinterpret_cast<R*>(memory));
}

void check(cudaError_t error, const std::string& doing) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that it is not reported once more, by somebody else's next call
  throw Failure{doing + ": " + cudaGetErrorString(error)};
}

// The caller has made it PyTorch's current device, and gives PyTorch back the one before: two copies
// of the CUDA runtime must not disagree about which it is.
void use(int device) { check(cudaSetDevice(device), "device " + std::to_string(device)); }

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, device), "asking what the device has");
  return value;
}

// Machine code, or PTX that the driver can compile, for the device in use.
template <class Arguments>
bool has_code(void (*kernel)(Arguments)) {
  cudaFuncAttributes found;
  const cudaError_t error = cudaFuncGetAttributes(&found, kernel);
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction ||
      error == cudaErrorUnsupportedPtxVersion) {
    cudaGetLastError();
    return false;
  }
  check(error, "asking for the kernels");
  return true;
}

i64 shared_limit(int device) {
  return attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}

// Always all that the device has: another thread may be about to launch the same kernel.
template <class Arguments>
void allow_shared(void (*kernel)(Arguments), int device) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             int(shared_limit(device))),
        "raising the limit of shared memory");
}

template <class Arguments>
void launch(void (*kernel)(Arguments), const Arguments& arguments, i64 blocks, int threads,
            i64 shared, void* stream, const char* what) {
  kernel<<<dim3(unsigned(blocks)), dim3(unsigned(threads)), size_t(shared),
           static_cast<cudaStream_t>(stream)>>>(arguments);
  check(cudaGetLastError(),
        std::string(what) + " with " + std::to_string(shared) + " bytes of shared memory");
}

// A wave of blocks or two: fewer partial sums, and no block too many in the last wave.
template <class R>
i64 runs_of(const BlockPlan<R>& plan, int threads, i64 processors) {
  int resident = 1;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, backward_kernel<R>, threads,
                                                      size_t(shared_bytes(plan))),
        "asking for the occupancy");
  return smaller(plan.loop.tasks, larger(1, resident) * processors);
}

// How backward runs: decided once for the size of its workspace and again for the launch, alike.
template <class R>
struct BackwardLaunch {
  BlockPlan<R> plan;
  int threads;
  i64 runs, run_size;

  BackwardLaunch(const InnerLoop<R>& loop, bool rates, int device)
      : plan(loop, backward_room(loop, rates, shared_limit(device))) {
    const i64 processors = attribute(cudaDevAttrMultiProcessorCount, device);
    threads = threads_for(plan, processors);
    allow_shared(backward_kernel<R>, device);
    runs = runs_of(plan, threads, processors);
    run_size = plan.theta_size * (1 + (rates ? plan.rate_steps : 0));
  }
};

template <class R>
Addresses<R> addresses(R* const* list, int n) {
  Addresses<R> out{};
  out.given = list != nullptr;
  for (int p = 0; p < n && list; ++p) out.of[p] = list[p];
  return out;
}

}  // namespace

template <class R>
std::string unfit(const InnerLoop<R>& loop, int device) {
  if (loop.network.n_nodes > max_nodes)
    return "the CUDA kernels take chains of " + std::to_string(max_nodes) + " layers, and this has " +
           std::to_string(loop.network.n_nodes);
  if (loop.network.n_parameters > max_parameters)
    return "the CUDA kernels take " + std::to_string(max_parameters) + " parameters, and this has " +
           std::to_string(loop.network.n_parameters);
  use(device);
  if (!has_code(forward_kernel<R>))
    return "the CUDA kernels were not compiled for a GPU of compute capability " +
           std::to_string(attribute(cudaDevAttrComputeCapabilityMajor, device)) + "." +
           std::to_string(attribute(cudaDevAttrComputeCapabilityMinor, device));
  const i64 needed = least_bytes(loop), limit = shared_limit(device);
  if (needed > limit)
    return "the network needs " + std::to_string(needed) +
           " bytes of shared memory a block, and the device has " + std::to_string(limit);
  return "";
}

template <class R>
Sizes<R> sizes(const InnerLoop<R>& loop, bool with_rates, int device) {
  use(device);
  const BackwardLaunch<R> launch(loop, with_rates, device);
  return {loop.tasks * loop.steps * launch.plan.theta_size, launch.runs * launch.run_size};
}

template <class R>
void forward(const InnerLoop<R>& loop, const ForwardOut<R>& out, Place place) {
  use(place.device);
  allow_shared(forward_kernel<R>, place.device);
  const BlockPlan<R> plan(loop, forward_room(loop, shared_limit(place.device)));
  const i64 processors = attribute(cudaDevAttrMultiProcessorCount, place.device);
  const ForwardArguments<R> arguments{plan, out.record, out.predictions, out.loss,
                                      addresses(out.fast, loop.network.n_parameters)};
  launch(forward_kernel<R>, arguments, smaller(loop.tasks, i64(1) << 30),
         threads_for(plan, processors), shared_bytes(plan), place.stream, "the forward kernel");
}

template <class R>
void backward(const InnerLoop<R>& loop, const BackwardIn<R>& in, const BackwardOut<R>& out,
              R* workspace, Place place) {
  use(place.device);
  const BackwardLaunch<R> how(loop, out.rates != nullptr, place.device);
  const int n = loop.network.n_parameters;
  const BackwardArguments<R> arguments{
      how.plan, in.record, in.grad_loss, in.grad_predictions, addresses(in.grad_fast, n),
      addresses(out.parameters, n), addresses(out.rates, n), out.support_x, out.query_x,
      workspace, how.runs, how.run_size};
  launch(backward_kernel<R>, arguments, how.runs, how.threads, shared_bytes(how.plan),
         place.stream, "the gradient kernel");
  launch(sum_kernel<R>, arguments, ceil_div(how.run_size, sum_columns), sum_threads,
         i64(sizeof(R)) * sum_threads, place.stream, "the sum kernel");
}

#define FASTMETA_INSTANTIATE(R)                                                                  \
  template std::string unfit<R>(const InnerLoop<R>&, int);                                       \
  template Sizes<R> sizes<R>(const InnerLoop<R>&, bool, int);                                    \
  template void forward<R>(const InnerLoop<R>&, const ForwardOut<R>&, Place);                    \
  template void backward<R>(const InnerLoop<R>&, const BackwardIn<R>&, const BackwardOut<R>&, R*, \
                            Place);
FASTMETA_INSTANTIATE(FASTMETA_REAL)

}  // namespace fastmeta::cuda
