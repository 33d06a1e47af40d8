// Class means, and the sums over pairs of a query and a prototype that distances are made of.
#include <atomic>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "dispatch.h"
#include "prototypes.h"
#include "runtime.h"

#include "prototype_kernels.h"
#include "prototype_rows.h"

namespace fastmeta::FASTMETA_ISA {

namespace {

using Real = FASTMETA_REAL;
constexpr int W = lanes<Real>;

bool class_means(const ClassMeans<Real>& c) {
  const i64 ld = round_up(c.features, W), size = c.classes * ld;
  const double work = double(c.tasks * c.samples) * double(c.features);
  const i64 workers = smaller(threads_for(work, c.threads), c.tasks);
  const Memory scratch(i64(sizeof(Real)) * workers * (2 * size + c.classes));
  std::atomic<bool> fits{true};
  parallel(c.tasks, workers, [&](i64 worker, i64 t) {
    Real* means = static_cast<Real*>(scratch.data()) + worker * (2 * size + c.classes);
    Real *differences = means + size, *inverse = differences + size;
    const Support<Real> support{c.x, Storage::Whole, t * c.samples, c.labels + t * c.samples,
                                c.weight ? c.weight + t * c.samples : nullptr, c.samples,
                                c.features};
    const bool ok = class_means_of<Real>(support, c.classes, means, ld, inverse, differences, nullptr);
    if (!ok) return fits.store(false, std::memory_order_relaxed);
    Real* out = c.out + t * c.classes * c.features;
    for (i64 n = 0; n < c.classes; ++n)
      std::memcpy(out + n * c.features, means + n * ld, sizeof(Real) * size_t(c.features));
  });
  return fits;
}

// ---- pairs --------------------------------------------------------------------------------------

constexpr i64 rows_at_once = 32, columns_at_once = 512;

// What one worker needs for a block of rows: rows of x and of a as whole vectors, and sums, of which
// `store_group` may write some past the last.
struct PairScratch {
  i64 rows, group, size;

  explicit PairScratch(const Pairs<Real>& p)
      : rows(rows_at_once * round_up(p.features, W)),
        group(W * round_up(smaller(p.classes, columns_at_once), W)),
        size(2 * rows + 2 * group + W) {}
};

template <class Op>
void sums_of_block(const Pairs<Real>& p, const Real* y, i64 t, i64 begin, i64 n, Real* scratch) {
  const i64 ld = round_up(p.features, W);
  const PairScratch sizes(p);
  const Real* x = whole_rows(p.x + t * p.x_task, Storage::Whole, begin, n, p.features, scratch);
  const Real* a = nullptr;
  if constexpr (Op::has_a)
    a = whole_rows(p.a + t * p.a_task, Storage::Whole, begin, n, p.features, scratch + sizes.rows);
  Real *sums = scratch + 2 * sizes.rows, *turned = sums + sizes.group;
  for (i64 q = 0; q < n; q += W)
    for (i64 c = 0; c < p.classes; c += columns_at_once) {
      const i64 columns = smaller(columns_at_once, p.classes - c), rows = smaller(W, n - q);
      const Group<Real> x_rows(x + q * ld, ld, rows), a_rows(a ? a + q * ld : x, ld, rows);
      group_sums<Op>(x_rows.row, y + c * ld, ld, columns, a_rows.row, ld,
                     reinterpret_cast<Vec<Real>*>(sums));
      store_group(reinterpret_cast<const Vec<Real>*>(sums), columns, turned);
      for (i64 r = 0; r < rows; ++r)
        std::memcpy(p.out + (t * p.queries + begin + q + r) * p.classes + c, turned + r * columns,
                    sizeof(Real) * size_t(columns));
    }
}

void pull_block(const Pairs<Real>& p, const Real* y, i64 t, i64 begin, i64 n, Real* scratch) {
  constexpr int V = most_vectors;
  const i64 ld = round_up(p.features, W);
  const Real* x = whole_rows(p.x + t * p.x_task, Storage::Whole, begin, n, p.features, scratch);
  Real* row = scratch + PairScratch(p).rows;
  for (i64 q = 0; q < n; ++q) {
    const Real* h = p.h + t * p.h_task + (begin + q) * p.h_query;
    i64 d = 0;
    for (; d + V * W <= ld; d += V * W)
      pull_row<V>(x + q * ld + d, y + d, ld, p.classes, h, p.h_class, row + d);
    for (; d < ld; d += W) pull_row<1>(x + q * ld + d, y + d, ld, p.classes, h, p.h_class, row + d);
    std::memcpy(p.out + (t * p.queries + begin + q) * p.features, row,
                sizeof(Real) * size_t(p.features));
  }
}

void run_block(const Pairs<Real>& p, const Real* y, i64 t, i64 begin, i64 n, Real* scratch) {
  switch (p.sum) {
    case PairSum::Squared:
      return sums_of_block<SquaredDifference>(p, y, t, begin, n, scratch);
    case PairSum::Project:
      return sums_of_block<ProjectedDifference>(p, y, t, begin, n, scratch);
    case PairSum::Pull:
      return pull_block(p, y, t, begin, n, scratch);
  }
}

void pairs(const Pairs<Real>& p) {
  const i64 ld = round_up(p.features, W);
  const i64 threads =
      threads_for(double(p.tasks * p.queries) * double(p.classes * p.features), p.threads);
  const bool copies = ld != p.features;
  const i64 y_tasks = p.y_task ? p.tasks : 1;  // one that all tasks share is copied once
  const Memory copied(i64(sizeof(Real)) * (copies ? y_tasks * p.classes * ld : 0));
  const auto copy_of = [&](i64 t) { return static_cast<Real*>(copied.data()) + t * p.classes * ld; };
  if (copies)
    parallel(y_tasks, threads, [&](i64, i64 t) {
      whole_rows(p.y + t * p.y_task, Storage::Whole, 0, p.classes, p.features, copy_of(t));
    });
  const i64 blocks = ceil_div(p.queries, rows_at_once), size = PairScratch(p).size;
  const Memory scratch(i64(sizeof(Real)) * size * threads);
  parallel(p.tasks * blocks, threads, [&](i64 worker, i64 i) {
    const i64 t = i / blocks, begin = i % blocks * rows_at_once;
    const Real* y = copies ? copy_of(p.y_task ? t : 0) : p.y + t * p.y_task;
    run_block(p, y, t, begin, smaller(rows_at_once, p.queries - begin),
              static_cast<Real*>(scratch.data()) + worker * size);
  });
}

}  // namespace

#define FASTMETA_JOIN_(a, b) a##b
#define FASTMETA_JOIN(a, b) FASTMETA_JOIN_(a, b)
extern const PrototypeKernels<Real> FASTMETA_JOIN(prototype_kernels_, FASTMETA_REAL);
const PrototypeKernels<Real> FASTMETA_JOIN(prototype_kernels_, FASTMETA_REAL) = {
    class_means, pairs, prototype_record_size, prototype_loss, prototype_loss_backward, nearest};

}  // namespace fastmeta::FASTMETA_ISA
