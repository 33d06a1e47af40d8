#include "compiled.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>

#include "print.h"

extern const char* const fastmeta_kernel_text;  // run.cuh and all it includes; tools/build_native.py

namespace fastmeta::cuda {

namespace {

// Of the standard library, what the kernels' text uses.
constexpr const char* before = R"(#define FASTMETA_COMPILED
#define FASTMETA_CONSTANT __constant__
#define INFINITY __int_as_float(0x7f800000)
#define NAN __int_as_float(0x7fffffff)
namespace std {
using int64_t = long;
using uint8_t = unsigned char;
template <class T>
struct common_type { using type = T; };
template <class T>
using common_type_t = typename common_type<T>::type;
}
)";

constexpr const char* after = R"(
fastmeta_program(const __grid_constant__ fastmeta::cuda::Run<fastmeta::cuda::Real> run) {
  using namespace fastmeta::cuda;
  extern __shared__ __align__(16) unsigned char memory[];
  __builtin_assume(blockDim.x == threads);
  run_tasks(run, reinterpret_cast<Real*>(memory),
            [](const Here<Real>& here, int i) { perform(here, i); });
}
)";

// The driver's functions, from the library that the CUDA runtime has loaded: this module is linked without
// it, so that it can be imported where there is none.
class Driver {
 public:
  static const Driver& get() {
    static const Driver driver;
    return driver;
  }
  decltype(&cuModuleLoadData) load;
  decltype(&cuModuleGetFunction) function;
  decltype(&cuFuncSetAttribute) set_attribute;
  decltype(&cuOccupancyMaxActiveBlocksPerMultiprocessor) occupancy;
  decltype(&cuLaunchKernel) launch;
  decltype(&cuGetErrorString) error_string;

 private:
  Driver() {
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) throw Failure{"the CUDA driver's library libcuda.so.1 cannot be loaded"};
    find(library, "cuModuleLoadData", load), find(library, "cuModuleGetFunction", function);
    find(library, "cuFuncSetAttribute", set_attribute);
    find(library, "cuOccupancyMaxActiveBlocksPerMultiprocessor", occupancy);
    find(library, "cuLaunchKernel", launch), find(library, "cuGetErrorString", error_string);
  }
  template <class F>
  static void find(void* library, const char* name, F& function) {
    function = reinterpret_cast<F>(dlsym(library, name));
    if (!function) throw Failure{std::string("the CUDA driver has no ") + name};
  }
};

void check(CUresult result, const char* doing) {
  if (result == CUDA_SUCCESS) return;
  const char* what = nullptr;
  Driver::get().error_string(result, &what);
  throw Failure{std::string(doing) + ": " + (what ? what : "unknown error")};
}

}  // namespace

template <class R>
std::string source_of(const Program<R>& program) {
  const Printer printer(program);
  if (!printer.fits()) return "";
  const std::string threads = std::to_string(program.threads);
  return before + std::string(fastmeta_kernel_text) + "\n" + printer.text() + "constexpr int threads = " +
         threads + ";\nextern \"C\" __global__ void __launch_bounds__(threads, " +
         std::to_string(program.together) + ")" + after;
}

// The module is never unloaded: CUDA graphs may launch its kernel for as long as they live.
template <class R>
void use_code(Program<R>& program, const std::string& machine_code, int device) {
  const Driver& driver = Driver::get();
  CUmodule loaded;
  CUfunction kernel;
  check(driver.load(&loaded, machine_code.data()), "loading a compiled program");
  check(driver.function(&kernel, loaded, "fastmeta_program"), "finding its kernel");
  check(driver.set_attribute(kernel, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                             int(program.shared)),
        "raising its limit of shared memory");
  int together = 0, processors = 0;
  check(driver.occupancy(&together, kernel, program.threads, std::size_t(program.shared)),
        "asking for its occupancy");
  if (cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess)
    throw Failure{"asking for the device's processors failed"};
  program.run.runs = std::min(program.run.tasks, std::max(i64(1), i64(together) * processors));
  program.code = kernel;
}

void launch_code(void* code, const void* arguments, i64 blocks, int threads, i64 shared,
                 void* stream) {
  void* list[] = {const_cast<void*>(arguments)};
  check(Driver::get().launch(static_cast<CUfunction>(code), unsigned(blocks), 1, 1,
                             unsigned(threads), 1, 1, unsigned(shared),
                             static_cast<CUstream>(stream), list, nullptr),
        "launching a compiled program");
}

#define FASTMETA_INSTANTIATE(R)                          \
  template std::string source_of(const Program<R>&);     \
  template void use_code(Program<R>&, const std::string&, int);
FASTMETA_INSTANTIATE(float)
FASTMETA_INSTANTIATE(double)

}  // namespace fastmeta::cuda
