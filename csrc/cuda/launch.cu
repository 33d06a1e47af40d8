// The kernels and their launches.
#include "compiled.h"

#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <utility>

#include "room.h"
#include "run.cuh"

namespace fastmeta::cuda {

namespace {

// Blocks that live on a processor together share its registers.
template <class R, bool own_losses>
__global__ void __launch_bounds__(most_threads, 2) run_kernel(const __grid_constant__ Run<R> run) {
  extern __shared__ __align__(16) unsigned char memory[];
  run_block<own_losses>(run, reinterpret_cast<R*>(memory));
}
template <class R>
auto kernel_of(const Program<R>& program) {
  return program.has_own_loss() ? run_kernel<R, true> : run_kernel<R, false>;
}

template <class R>
__global__ void __launch_bounds__(most_sum_threads)
    sum_runs_kernel(const __grid_constant__ SumOver<R> sum) {
  extern __shared__ __align__(16) unsigned char memory[];
  sum_block(sum, reinterpret_cast<R*>(memory));
}

// A block of a cluster has a processor to itself.
template <class Team>
__global__ void __launch_bounds__(most_threads, 1)
    forward_kernel(const __grid_constant__ ForwardArguments<Team> arguments) {
  extern __shared__ __align__(16) unsigned char memory[];
  if constexpr (clusters) forward_block(arguments, reinterpret_cast<typename Team::Real*>(memory));
}

template <class Team>
__global__ void __launch_bounds__(most_threads, 1)
    backward_kernel(const __grid_constant__ BackwardArguments<Team> arguments) {
  extern __shared__ __align__(16) unsigned char memory[];
  if constexpr (clusters) backward_block(arguments, reinterpret_cast<typename Team::Real*>(memory));
}

template <class Team>
__global__ void __launch_bounds__(sum_threads)
    sum_kernel(const __grid_constant__ BackwardArguments<Team> arguments) {
  extern __shared__ __align__(16) unsigned char memory[];
  if constexpr (clusters) sum_block(arguments, reinterpret_cast<typename Team::Real*>(memory));
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

// Which virtual architecture's code serves the device in use, as machine code or as PTX that the
// driver can compile; 0: none.
template <class Arguments>
int code_for_device(void (*kernel)(Arguments)) {
  cudaFuncAttributes found;
  const cudaError_t error = cudaFuncGetAttributes(&found, kernel);
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction ||
      error == cudaErrorUnsupportedPtxVersion) {
    cudaGetLastError();
    return 0;
  }
  check(error, "asking for the kernels");
  return found.ptxVersion;
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

// A launch of blocks, in clusters where `sharing` is more than one.
class Configuration {
 public:
  Configuration(i64 blocks, int threads, i64 shared, int sharing, void* stream = nullptr) {
    cluster_.id = cudaLaunchAttributeClusterDimension;
    cluster_.val.clusterDim.x = unsigned(sharing);
    cluster_.val.clusterDim.y = cluster_.val.clusterDim.z = 1;
    config_.gridDim = dim3(unsigned(blocks));
    config_.blockDim = dim3(unsigned(threads));
    config_.dynamicSmemBytes = size_t(shared);
    config_.stream = static_cast<cudaStream_t>(stream);
    config_.attrs = &cluster_;
    config_.numAttrs = sharing > 1;
  }
  Configuration(const Configuration&) = delete;
  Configuration& operator=(const Configuration&) = delete;
  void layers(i64 n) { config_.gridDim.y = unsigned(n); }
  const cudaLaunchConfig_t* get() const { return &config_; }

 private:
  cudaLaunchAttribute cluster_{};
  cudaLaunchConfig_t config_{};
};

template <class Arguments>
void launch(void (*kernel)(Arguments), const Arguments& arguments, const Configuration& how,
            const char* what) {
  check(cudaLaunchKernelEx(how.get(), kernel, arguments),
        std::string(what) + " with " + std::to_string(how.get()->dynamicSmemBytes) +
            " bytes of shared memory");
}

template <class Team>
i64 clusters_at_once(const Configuration& how) {
  int clusters = 0;
  const cudaError_t error =
      cudaOccupancyMaxActiveClusters(&clusters, backward_kernel<Team>, how.get());
  if (error == cudaErrorInvalidClusterSize) {
    cudaGetLastError();
    return 0;
  }
  check(error, "asking for the clusters at once");
  return clusters;
}

// Of `blocks` blocks with all the shared memory of a processor each; 0: the device has no clusters,
// or no code for them. Asked once.
template <class R>
i64 clusters_at_once(int device, int blocks) {
  static std::mutex mutex;
  static std::map<std::pair<int, int>, i64> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find({device, blocks});
  if (found != known.end()) return found->second;
  i64 clusters = 0;
  if (attribute(cudaDevAttrClusterLaunch, device) &&
      code_for_device(backward_kernel<Cluster<R>>) >= 90) {
    allow_shared(backward_kernel<Cluster<R>>, device);
    clusters = clusters_at_once<Cluster<R>>(
        Configuration(blocks, most_threads, shared_limit(device), blocks));
  }
  return known[{device, blocks}] = clusters;
}

template <class R>
int blocks_on(const InnerLoop<R>& loop, int device) {
  return blocks_of_task(loop, shared_limit(device),
                        [&](int blocks) { return clusters_at_once<R>(device, blocks); });
}

// A wave of tasks: fewer partial sums.
template <class Team>
i64 runs_of(const Plan<Team>& plan, int threads) {
  const i64 at_once = clusters_at_once<Team>(
      Configuration(plan.blocks, threads, shared_bytes(plan), plan.blocks));
  return smaller(plan.loop.tasks, larger(1, at_once));
}

// How backward runs: decided once for the size of its workspace and again for the launch, alike.
template <class Team>
struct BackwardLaunch {
  Plan<Team> plan;
  int threads;
  i64 runs, run_size;

  template <class R>
  BackwardLaunch(const InnerLoop<R>& loop, int blocks, bool rates, int device)
      : plan(loop, backward_room<Team>(loop, rates, shared_limit(device), blocks)) {
    const i64 processors = attribute(cudaDevAttrMultiProcessorCount, device);
    threads = threads_for(plan, processors);
    allow_shared(backward_kernel<Team>, device);
    runs = runs_of(plan, threads);
    run_size = plan.theta_size * (1 + (rates ? plan.rate_steps : 0));
  }
};

// A grid's width is at most 2^31 - 1 blocks.
constexpr i64 most_tasks = i64(1) << 27;

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
  const auto capability = [&] {
    return std::to_string(attribute(cudaDevAttrComputeCapabilityMajor, device)) + "." +
           std::to_string(attribute(cudaDevAttrComputeCapabilityMinor, device));
  };
  if (!code_for_device(run_kernel<R, false>))
    return "the CUDA kernels were not compiled for a GPU of compute capability " + capability();
  if (blocks_on(loop, device)) return "";
  const std::string limit = ", and the device has " + std::to_string(shared_limit(device));
  if (!has_own_loss(loop) && clusters_at_once<R>(device, 2))
    return "the network needs " +
           std::to_string(least_bytes<Cluster<R>>(loop, most_blocks)) +
           " bytes of shared memory in each block of a cluster of " + std::to_string(most_blocks) +
           limit;
  const std::string needed =
      "the network needs " + std::to_string(least_bytes<Recorder<R>>(loop) + beside_scratch) +
      " bytes of shared memory a block" + limit;
  if (has_own_loss(loop))
    return needed + " (blocks share no task whose loss is a function)";
  return needed + " (blocks that share a task need compute capability 9.0 or later and code for it; this is " +
         capability() + ")";
}

template <class R>
int blocks_of(const InnerLoop<R>& loop, int device) {
  use(device);
  return blocks_on(loop, device);
}

template <class R>
Sizes<R> sizes(const InnerLoop<R>& loop, bool with_rates, int device) {
  use(device);
  const int blocks = blocks_on(loop, device);
  const BackwardLaunch<Cluster<R>> how(loop, blocks, with_rates, device);
  return {loop.tasks * loop.steps * how.plan.theta_size * blocks,
          how.runs * how.run_size * blocks};
}

template <class R>
void forward(const InnerLoop<R>& loop, const ForwardOut<R>& out, Place place) {
  using Team = Cluster<R>;
  use(place.device);
  const int blocks = blocks_on(loop, place.device);
  allow_shared(forward_kernel<Team>, place.device);
  const cuda::Plan<Team> plan(loop, forward_room<Team>(loop, shared_limit(place.device), blocks));
  const i64 processors = attribute(cudaDevAttrMultiProcessorCount, place.device);
  const ForwardArguments<Team> arguments{plan, out.record, out.predictions, out.loss,
                                         addresses(out.fast, loop.network.n_parameters)};
  launch(forward_kernel<Team>, arguments,
         Configuration(smaller(loop.tasks, most_tasks) * blocks, threads_for(plan, processors),
                       shared_bytes(plan), blocks, place.stream),
         "the forward kernel");
}

template <class R>
void backward(const InnerLoop<R>& loop, const BackwardIn<R>& in, const BackwardOut<R>& out,
              R* workspace, Place place) {
  using Team = Cluster<R>;
  use(place.device);
  const int blocks = blocks_on(loop, place.device), n = loop.network.n_parameters;
  const BackwardLaunch<Team> how(loop, blocks, out.rates != nullptr, place.device);
  const BackwardArguments<Team> arguments{
      how.plan, in.record, in.grad_loss, in.grad_predictions, addresses(in.grad_fast, n),
      addresses(out.parameters, n), addresses(out.rates, n), out.support_x, out.query_x,
      workspace, how.runs, how.run_size};
  launch(backward_kernel<Team>, arguments,
         Configuration(how.runs * blocks, how.threads, shared_bytes(how.plan), blocks, place.stream),
         "the gradient kernel");
  launch(sum_kernel<Team>, arguments,
         Configuration(ceil_div(how.run_size * blocks, sum_columns), sum_threads,
                       i64(sizeof(R)) * sum_threads, 1, place.stream),
         "the sum kernel");
}

// ---- programs -------------------------------------------------------------------------------------

template <class R>
Program<R> record_for(const InnerLoop<R>& loop, const Wanted& wanted, bool backward, int device) {
  use(device);
  const i64 processors = attribute(cudaDevAttrMultiProcessorCount, device);
  Program<R> program = record_program(loop, wanted, backward, shared_limit(device), processors);
  const auto kernel = kernel_of(program);
  allow_shared(kernel, device);
  int resident = 1;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, program.threads,
                                                      size_t(program.shared)),
        "asking for the occupancy");
  program.run.runs = smaller(loop.tasks, larger(1, resident * processors));
  return program;
}

template <class R>
Run<R> bound(const Program<R>& program, const InnerLoop<R>& loop) {
  Run<R> run = program.run;
  const auto put = [&](int slot, const R* p) { run.tensors[slot].base = const_cast<R*>(p); };
  for (int p = 0; p < loop.network.n_parameters; ++p) {
    put(first_parameter + p, loop.parameters[p].data);
    put(first_rate + p, loop.rates[p].data);
  }
  int slot = support_x;
  for (const Samples<R>* samples : {&loop.support, &loop.query}) {
    put(slot++, samples->x), put(slot++, samples->y);
    put(slot++, reinterpret_cast<const R*>(samples->labels));
    put(slot++, samples->weight);
  }
  return run;
}

template <class R, class Pointer>
void put_all(Run<R>& run, int slot, Pointer const* list, int n) {
  for (int p = 0; p < n && list; ++p) run.tensors[slot + p].base = const_cast<R*>(list[p]);
}

template <class R>
void launch(const Program<R>& program, const Run<R>& run, Place place, const char* what) {
  if (program.code)
    return launch_code(program.code, &run, run.runs, program.threads, program.shared, place.stream);
  const Configuration how(run.runs, program.threads, program.shared, 1, place.stream);
  launch(kernel_of(program), run, how, what);
}

template <class R>
void forward(const Program<R>& program, const InnerLoop<R>& loop, const ForwardOut<R>& out,
             Place place) {
  use(place.device);
  Run<R> run = bound(program, loop);
  run.tensors[Slot::record].base = out.record;
  run.tensors[predictions].base = out.predictions, run.tensors[loss].base = out.loss;
  put_all(run, first_fast, out.fast, loop.network.n_parameters);
  launch(program, run, place, "the forward kernel");
}

template <class R>
void backward(const Program<R>& program, const InnerLoop<R>& loop, const BackwardIn<R>& in,
              const BackwardOut<R>& out, R* workspace, Place place) {
  use(place.device);
  const int n = loop.network.n_parameters;
  Run<R> run = bound(program, loop);
  run.tensors[Slot::record].base = const_cast<R*>(in.record);
  run.tensors[grad_loss].base = const_cast<R*>(in.grad_loss);
  run.tensors[grad_predictions].base = const_cast<R*>(in.grad_predictions);
  run.tensors[out_support_x].base = out.support_x, run.tensors[out_query_x].base = out.query_x;
  run.tensors[sums].base = workspace;
  put_all(run, first_grad_fast, in.grad_fast, n);
  put_all(run, first_out, out.parameters, n);
  launch(program, run, place, "the gradient kernel");

  SumOver<R> sum = sum_over(program, static_cast<const R*>(workspace), run.runs);
  for (int i = 0; i < sum.n_parts; ++i) {
    const int p = sum.parts[i].rates_slot - first_rate;
    if (sum.parts[i].slot != no_slot) sum.out[i] = out.parameters[p];
    if (out.rates) sum.rates[i] = out.rates[p];
  }
  Configuration grid(ceil_div(program.theta_size, sum_columns), most_sum_threads,
                     i64(sizeof(R)) * most_sum_threads, 1, place.stream);
  grid.layers(run.run_size / program.theta_size);
  launch(sum_runs_kernel<R>, sum, grid, "the sum kernel");
}

#define FASTMETA_INSTANTIATE(R)                                                                  \
  template std::string unfit<R>(const InnerLoop<R>&, int);                                       \
  template int blocks_of<R>(const InnerLoop<R>&, int);                                           \
  template Sizes<R> sizes<R>(const InnerLoop<R>&, bool, int);                                    \
  template void forward<R>(const InnerLoop<R>&, const ForwardOut<R>&, Place);                    \
  template void backward<R>(const InnerLoop<R>&, const BackwardIn<R>&, const BackwardOut<R>&, R*, \
                            Place);                                                              \
  template Program<R> record_for<R>(const InnerLoop<R>&, const Wanted&, bool, int);              \
  template void forward<R>(const Program<R>&, const InnerLoop<R>&, const ForwardOut<R>&, Place); \
  template void backward<R>(const Program<R>&, const InnerLoop<R>&, const BackwardIn<R>&,        \
                            const BackwardOut<R>&, R*, Place);
FASTMETA_INSTANTIATE(FASTMETA_REAL)

}  // namespace fastmeta::cuda
