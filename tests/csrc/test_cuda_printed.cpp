// Programs printed for a compiler (csrc/cuda/print.h): this compiler makes them code, which gives the same
// bits as the programs carried out as they are.
#include <dlfcn.h>
#include <unistd.h>

#include <fstream>

#include "cuda_programs.h"
//
#include "cuda/print.h"

namespace {

using namespace fastmeta;
using namespace fastmeta::test;

using Entry = void (*)(const void* run, char* shared, OneCluster* block, unsigned thread,
                       unsigned threads, unsigned block_index);

// Around the text of a program: one thread of one block.
constexpr const char* before = R"(
#define FASTMETA_COMPILED
#define FASTMETA_CONSTANT static const
#include "cuda_on_host.h"
#include "cuda/run.cuh"
)";
constexpr const char* after = R"(
extern "C" __attribute__((visibility("default"))) void entry(
    const void* run, char* shared, OneCluster* block, unsigned thread, unsigned threads,
    unsigned block_index) {
  using namespace fastmeta::cuda;
  cluster = block, threadIdx.x = thread, blockDim.x = threads, blockIdx.x = block_index;
  run_tasks(*static_cast<const Run<Real>*>(run), reinterpret_cast<Real*>(shared),
            [](const Here<Real>& here, int i) { perform(here, i); });
}
)";

// Under a sanitizer the compiler takes longer, and a few programs tell.
#ifdef __SANITIZE_ADDRESS__
constexpr const char* sanitizers = " -fsanitize=address,undefined -fno-sanitize-recover=all";
constexpr int every = 5;
#else
constexpr const char* sanitizers = "";
constexpr int every = 1;
#endif

// A folder for the length of the test.
class Folder {
 public:
  Folder() {
    char name[] = "/tmp/fastmeta-printed-XXXXXX";
    if (!mkdtemp(name)) std::abort();
    path_ = name;
  }
  ~Folder() { run("rm -rf " + path_); }
  std::string file(const std::string& name) const { return path_ + "/" + name; }
  static bool run(const std::string& command) { return std::system(command.c_str()) == 0; }

 private:
  std::string path_;
};

// Compiled text, loaded.
class Code {
 public:
  Code(const std::string& text, const std::string& path) {
    std::ofstream(path + ".cpp") << before << text << after;
    const std::string here = __FILE__, tests = here.substr(0, here.rfind('/'));
    const char* compiler = std::getenv("CXX");
    const std::string command = std::string(compiler ? compiler : "c++") +
                                " -std=c++17 -O1 -w -shared -fPIC -fvisibility=hidden" +
                                sanitizers + " -I" + tests +
                                " -I" + tests + "/../../csrc " + path + ".cpp -o " + path + ".so";
    if (!Folder::run(command)) std::abort();
    library_ = dlopen((path + ".so").c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library_) std::abort();
  }
  ~Code() { dlclose(library_); }
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;
  Entry entry() const { return reinterpret_cast<Entry>(dlsym(library_, "entry")); }

 private:
  void* library_;
};

template <class R>
void run_compiled(const cuda::Program<R>& program, unsigned threads, const Folder& folder) {
  static int count = 0;
  const cuda::Printer printer(program);
  if (!printer.fits()) std::abort();
  const Code code(printer.text(), folder.file(std::to_string(count++)));
  const Entry entry = code.entry();
  const auto [run, operations] = on_host(program);
  const auto* argument = &run;
  const Memories<R> memory(1, program.shared);
  launch_on_host(unsigned(program.run.runs), memory.data(), memory.bytes(), threads,
                 [&](char* shared) {
                   entry(argument, shared, cluster, threadIdx.x, threads, blockIdx.x);
                 });
}

template <class R>
void check(const Case<R>& c, const How& how, const Folder& folder, const std::string& where) {
  const auto expected = by_programs(c, how, Wanted::All, [](const auto& program, unsigned threads) {
    interpret(program, threads);
  });
  const auto out = by_programs(c, how, Wanted::All, [&](const auto& program, unsigned threads) {
    run_compiled(program, threads, folder);
  });
  expect(same_bits(out, expected), where, "the printed program gives other bits");
}

// Every activation and loss in turn, with one rate and with many, all samples at once and some.
void check_chains(const Folder& folder) {
  unsigned seed = 1;
  for (int kind = 0; kind < activation_kinds; kind += every, seed += every) {
    const auto c = make_chain(seed, ActivationKind(kind), LossKind(kind % 4), 1 + seed % 3);
    const std::string where = "cuda, printed, seed " + std::to_string(seed);
    if (seed % 2) {
      check(with_one_rate(c), {4, plenty, 2, 1, true}, folder, where);
    } else {
      check(in_float(c), {8}, folder, where);
      check(c, {4, tight(c), 3}, folder, where + ", part by part");
    }
  }
}

}  // namespace

int main() {
  const Folder folder;
  check_chains(folder);
  if (!failures) std::printf("printed programs agree\n");
  return failures != 0;
}
