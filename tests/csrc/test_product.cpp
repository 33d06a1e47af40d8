// Products of several terms, of any depth each, against sums in double.
#define FASTMETA_ISA portable_product
#define FASTMETA_VECTOR_BYTES 16

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cpu/product_tiles.h"
#include "expect.h"
#include "random_case.h"

namespace {

namespace simd = fastmeta::FASTMETA_ISA;
using fastmeta::i64;
using fastmeta::test::Random;
using R = double;
constexpr i64 W = simd::lanes<R>;

// Exactly as large as asked, so that AddressSanitizer sees what is read outside.
struct Buffer {
  explicit Buffer(const std::vector<R>& values) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, sizeof(R) * values.size())) std::abort();
    std::memcpy(memory, values.data(), sizeof(R) * values.size());
    data.reset(static_cast<R*>(memory));
  }
  struct Free {
    void operator()(R* p) const { std::free(p); }
  };
  std::unique_ptr<R, Free> data;
};

// A(m, k) and B(k, n) of a term as Lane has them: vectors, or numbers that all lanes share.
template <class Lane>
void check(Random& random, i64 m, i64 n, const std::vector<i64>& depths, bool adds) {
  const i64 a_width = Lane::a_is_vector ? W : 1, b_width = Lane::template b_width<R>;
  std::vector<R> right(size_t(m * n * W), 0);
  std::vector<Buffer> buffers;
  std::vector<simd::Term<R>> terms;
  const std::vector<R> start = random.reals<R>(m * n * W, -1, 1);
  if (adds) right = start;
  for (const i64 depth : depths) {
    const auto a = random.reals<R>(m * depth * a_width, -1, 1);
    const auto b = random.reals<R>(depth * n * b_width, -1, 1);
    for (i64 i = 0; i < m; ++i)
      for (i64 j = 0; j < n; ++j)
        for (i64 lane = 0; lane < W; ++lane)
          for (i64 k = 0; k < depth; ++k)
            right[size_t((i * n + j) * W + lane)] +=
                a[size_t((i * depth + k) * a_width + lane % a_width)] *
                b[size_t((k * n + j) * b_width + lane % b_width)];
    buffers.emplace_back(a), buffers.emplace_back(b);
    const R* of_b = buffers.back().data.get();
    const R* of_a = buffers[buffers.size() - 2].data.get();
    terms.push_back({of_a, depth * a_width, a_width, of_b, n * b_width, b_width, depth});
  }
  const Buffer out(start);
  simd::Target<R> target{out.data.get(), n * W, adds ? simd::Finish::Add : simd::Finish::Store};
  target.c_n = W;
  simd::product<Lane>(terms.data(), int(terms.size()), target, m, n);
  double worst = 0;
  for (size_t i = 0; i < right.size(); ++i)
    worst = std::max(worst, std::fabs(out.data.get()[i] - right[i]));
  std::string where = std::to_string(m) + " x " + std::to_string(n) + ", depths";
  for (const i64 depth : depths) where += " " + std::to_string(depth);
  fastmeta::test::expect(worst < 1e-11, where, "another sum");
}

template <class Lane>
void check_all() {
  Random random(7);
  for (const i64 m : {1, 3, 9})
    for (const i64 n : {1, 4})
      for (const bool adds : {false, true})
        for (const auto& depths : std::vector<std::vector<i64>>{
                 {5}, {700}, {5, 300}, {300, 5}, {513, 257}, {300, 7, 5}, {4, 9, 600}, {1, 2, 3, 400}})
          check<Lane>(random, m, n, depths, adds);
}

}  // namespace

int main() {
  check_all<simd::Broadcast>();
  check_all<simd::Apart>();
  check_all<simd::Direct>();
  check_all<simd::Shared>();
  if (!fastmeta::test::failures) std::printf("products agree\n");
  return fastmeta::test::failures != 0;
}
