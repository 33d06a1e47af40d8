// The nearest prototypes of a bank, exactly, without the distances to all of it in memory.
//
// Products of matrices give every distance with some error; whoever is within that error of the k-th
// best so far is a candidate, whose distance is then taken directly, as `pairs` takes it. So the
// result is that of the direct distances, to the last bit, at the speed of the products.
// docs/notes/prototype-kernels.md proves the bound (`threshold`).
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "prototypes.h"
#include "runtime.h"

#include "prototype_kernels.h"
#include "prototype_rows.h"
//
#include "product.h"

namespace fastmeta::FASTMETA_ISA {

namespace {

using Real = FASTMETA_REAL;
using Bank = Nearest<Real>;
constexpr int W = lanes<Real>;
constexpr i64 panel = 3 * W;  // prototypes that meet all queries while in the first-level cache
constexpr i64 rows_at_once = 64;

bool of_differences(Metric metric) { return metric == Metric::SquaredEuclidean; }

bool any(Mask<Real> mask) {
#if FASTMETA_VECTOR_BYTES == 64 && defined(__AVX512F__)
  return _mm512_test_epi64_mask((__m512i)mask, (__m512i)mask) != 0;
#elif FASTMETA_VECTOR_BYTES == 32 && defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
  bool found = false;
  for (int l = 0; l < W; ++l) found |= mask[l] != 0;
  return found;
#endif
}

// ---- the best so far ----------------------------------------------------------------------------

// A NaN counts as the largest value.
bool before(Real a, i64 at, Real b, i64 bt) {
  if (a != a || b != b) return a == a || (b != b && at < bt);
  return a < b || (a == b && at < bt);
}

// A heap of k with the worst on top; what is not there yet is worse than anything.
struct Best {
  Real* value;
  i64* index;
  i64 k;

  void clear() const {
    for (i64 i = 0; i < k; ++i) {
      value[i] = std::numeric_limits<Real>::quiet_NaN();
      index[i] = std::numeric_limits<i64>::max();
    }
  }
  bool offer(Real v, i64 i) const {  // whether it is one of them
    const bool better = before(v, i, value[0], index[0]);
    if (better) put(v, i, k);
    return better;
  }
  // Best first.
  void sort() const {
    for (i64 n = k - 1; n > 0; --n) {
      const Real v = value[n];
      const i64 i = index[n];
      value[n] = value[0], index[n] = index[0];
      put(v, i, n);
    }
  }

 private:
  // In place of the top of the first n.
  void put(Real v, i64 i, i64 n) const {
    i64 at = 0;
    for (i64 below; (below = 2 * at + 1) < n; at = below) {
      if (below + 1 < n &&
          before(value[below], index[below], value[below + 1], index[below + 1]))
        ++below;
      if (!before(v, i, value[below], index[below])) break;
      value[at] = value[below], index[at] = index[below];
    }
    value[at] = v, index[at] = i;
  }
};

// ---- distances ----------------------------------------------------------------------------------

Real direct(const Bank& p, const Real* x, const Real* y) {
  if (of_differences(p.metric)) return pair_sum<SquaredDifference>(x, y, p.features);
  const Real product = pair_sum<Multiplied>(x, y, p.features);
  return p.metric == Metric::Cosine ? 1 - product : -product;
}

// Below this a score x.y - |y|^2/2 (of differences from the centre) or x.y belongs to a prototype
// that is certainly farther than `worst`. x and y: norms of the query and, at most, of the prototype.
Real threshold(const Bank& p, Real worst, Real x, Real y) {
  using Limits = std::numeric_limits<Real>;
  if (!(worst < Limits::infinity())) return -Limits::infinity();
  const Real gamma = Real(p.features + 16) * Limits::epsilon();
  const Real least = Real(p.features) * Limits::min();  // of underflow
  if (of_differences(p.metric)) {
    const Real reach = std::sqrt(worst) * (1 + gamma) + 2 * Limits::epsilon() * (x + y) + least;
    return (x * x - reach * reach) / 2 - gamma * (x * x + reach * reach + x * y + y * y) - least;
  }
  const Real product = p.metric == Metric::Cosine ? 1 - worst : -worst;
  return product - gamma * (2 * x * y + std::fabs(worst) + 1 * (p.metric == Metric::Cosine)) - least;
}

// ---- one part of a bank, some queries -------------------------------------------------------------

// A worker's scratch.
struct Scratch {
  Real *queries, *norms, *limits, *centre, *packed, *row, *scores;
  Real *x, *y;  // of half precision: the queries as numbers, a prototype
  i64 size = 0;

  Scratch(const Bank& p, i64 group, Real* memory) {
    const auto take = [&](i64 n) {
      Real* at = memory ? memory + size : nullptr;
      size += round_up(n, 64);
      return at;
    };
    queries = take(group * p.features), norms = take(group), limits = take(group);
    centre = take(p.features);
    packed = take(p.features * panel), row = take(panel), scores = take(rows_at_once * panel);
    x = take(p.x_storage == Storage::Whole ? 0 : group * p.features), y = take(p.features);
  }
};

// Prototype i of all tasks' banks.
const Real* prototype(const Bank& p, i64 i, Real* scratch) {
  return read_features(p.y, p.y_storage, i * p.features, p.features, scratch);
}

// Anything will do for a centre; the nearer to all of the bank, the fewer candidates.
void put_centre(const Bank& p, i64 t, const Scratch& s) {
  const i64 sampled = smaller(64, p.classes);
  std::memset(s.centre, 0, sizeof(Real) * size_t(p.features));
  if (!of_differences(p.metric)) return;
  const Real* origin = prototype(p, t * p.classes, s.packed);  // free until `pack`
  for (i64 i = 0; i < sampled; ++i)
    add_difference(s.centre, prototype(p, t * p.classes + p.classes * i / sampled, s.y), origin,
                   1 / Real(sampled), p.features);
  for (i64 d = 0; d < p.features; ++d) s.centre[d] += origin[d];
}

void put_queries(const Bank& p, const Real* x, i64 n, const Scratch& s) {
  for (i64 q = 0; q < n; ++q) {
    Real *to = s.queries + q * p.features, square = 0;
    for (i64 d = 0; d < p.features; ++d) {
      to[d] = x[q * p.features + d] - s.centre[d];
      square += to[d] * to[d];
    }
    s.norms[q] = std::sqrt(square);
  }
}

// n prototypes from `first` of all on as columns, zeros past the last, and what their scores begin
// with; the largest norm.
Real pack(const Bank& p, i64 first, i64 n, const Scratch& s) {
  const bool differences = of_differences(p.metric);
  Real squares[panel] = {};
  for (i64 l = 0; l < panel; ++l) {
    const Real* y = prototype(p, first + smaller(l, n - 1), s.y);
    for (i64 d = 0; d < p.features; ++d) s.packed[d * panel + l] = l < n ? y[d] - s.centre[d] : 0;
  }
  for (i64 d = 0; d < p.features; ++d)
    for (i64 l = 0; l < panel; ++l) squares[l] += s.packed[d * panel + l] * s.packed[d * panel + l];
  Real most = 0;
  for (i64 l = 0; l < panel; ++l) {
    s.row[l] = differences ? -squares[l] / 2 : Real(0);
    most = squares[l] <= most ? most : squares[l];  // a NaN stays
  }
  return std::sqrt(most);
}

// Whether none of a panel is a candidate.
FASTMETA_INLINE bool all_far(const Real* scores, Real least) {
  const Vec<Real> limit = splat(least);
  Mask<Real> far = load(scores) < limit;
  for (i64 v = 1; v < 3; ++v) far &= load(scores + v * W) < limit;
  return !any(~far);
}

// Prototypes [first, first + n) of a task. Whether one of them is among the best now.
bool offer_candidates(const Bank& p, const Real* x, i64 t, i64 first, i64 n, const Real* scores,
                      Real least, Real* scratch, const Best& best) {
  const Vec<Real> limit = splat(least);
  bool better = false;
  for (i64 v = 0; v < 3; ++v) {
    const Mask<Real> far = load(scores + v * W) < limit;
    if (!any(~far)) continue;
    for (i64 l = v * W; l < smaller(n, (v + 1) * W); ++l)
      if (!(scores[l] < least))
        better |= best.offer(direct(p, x, prototype(p, t * p.classes + first + l, scratch)), first + l);
  }
  return better;
}

// A query's k-th best value in some part of its bank: the parts that come later begin with it. Threads
// read and write as they come; an older one lets more candidates through, and changes no result.
using Bound = std::atomic<Real>;

void lower(Bound& bound, Real value) {
  if (value < bound.load(std::memory_order_relaxed)) bound.store(value, std::memory_order_relaxed);
}

// Prototypes [begin, end) of a task for n of its queries from q on, and what is known of those.
void search(const Bank& p, i64 t, i64 begin, i64 end, i64 q, i64 n, const Scratch& s,
            const Best& best_of_first, Bound* bounds) {
  const Real* x = read_features(p.x, p.x_storage, (t * p.queries + q) * p.features, n * p.features, s.x);
  put_centre(p, t, s);
  put_queries(p, x, n, s);
  const auto best = [&](i64 i) {
    return Best{best_of_first.value + i * p.k, best_of_first.index + i * p.k, p.k};
  };
  for (i64 i = 0; i < n; ++i) best(i).clear();
  const auto limit = [&](i64 i, Real most) {
    const Real own = best(i).value[0], bound = bounds[i].load(std::memory_order_relaxed);
    return threshold(p, own < bound ? own : bound, s.norms[i], most);
  };
  Real usual = -1;  // limits are for prototypes of at most this norm, and kept until the best change
  for (i64 first = begin; first < end; first += panel) {
    const i64 here = smaller(panel, end - first);
    const Real most = pack(p, t * p.classes + first, here, s);
    if (!(most <= usual && usual <= 8 * most)) {
      usual = 2 * most;
      for (i64 i = 0; i < n; ++i) s.limits[i] = limit(i, usual);
    }
    for (i64 q0 = 0; q0 < n; q0 += rows_at_once) {
      const i64 rows = smaller(rows_at_once, n - q0);
      const Term<Real> term{s.queries + q0 * p.features, p.features, 1, s.packed, panel, W,
                            p.features};
      Target<Real> target{s.scores, panel};
      target.finish = Finish::Bias;
      target.row = s.row;
      product<Broadcast>(&term, 1, target, rows, 3);
      for (i64 i = q0; i < q0 + rows; ++i) {
        const Real* scores = s.scores + (i - q0) * panel;
        if (all_far(scores, s.limits[i])) continue;
        if (offer_candidates(p, x + i * p.features, t, first, here, scores, s.limits[i], s.y, best(i)))
          s.limits[i] = limit(i, usual);
      }
    }
  }
  for (i64 i = 0; i < n; ++i) lower(bounds[i], best(i).value[0]);
}

// Whole panels, and as many parts of a bank as there is work for.
struct Parts {
  i64 count, length, group, groups;

  explicit Parts(const Bank& p) {
    constexpr i64 least = 4096, queries_at_once = 1024;
    count = larger(1, smaller(4 * p.threads, p.classes / least));
    length = round_up(ceil_div(p.classes, count), panel);
    count = ceil_div(p.classes, length);
    group = count > 1 ? queries_at_once
                      : larger(rows_at_once, ceil_div(p.queries, 4 * p.threads));
    group = smaller(smaller(group, queries_at_once), p.queries);
    groups = ceil_div(p.queries, group);
  }
};

}  // namespace

void nearest(const Bank& p) {
  const Parts parts(p);
  const i64 threads =
      threads_for(double(p.tasks * p.queries) * double(p.classes * p.features), p.threads);
  const i64 results = p.tasks * p.queries * p.k, size = Scratch(p, parts.group, nullptr).size;
  const Memory scratch(i64(sizeof(Real)) * size * threads);
  // Those of the first part are in the results themselves.
  const Memory values(i64(sizeof(Real)) * results * (parts.count - 1));
  const Memory indices(i64(sizeof(i64)) * results * (parts.count - 1));
  const Memory bounds_memory(i64(sizeof(Bound)) * p.tasks * p.queries);
  Bound* bounds = static_cast<Bound*>(bounds_memory.data());
  for (i64 i = 0; i < p.tasks * p.queries; ++i)
    new (bounds + i) Bound(std::numeric_limits<Real>::infinity());
  const auto best = [&](i64 part, i64 t, i64 q) {
    const i64 at = (t * p.queries + q) * p.k;
    if (part == 0) return Best{p.values + at, p.indices + at, p.k};
    return Best{static_cast<Real*>(values.data()) + (part - 1) * results + at,
                static_cast<i64*>(indices.data()) + (part - 1) * results + at, p.k};
  };
  parallel(p.tasks * parts.groups * parts.count, threads, [&](i64 worker, i64 i) {
    const i64 part = i % parts.count, group = i / parts.count % parts.groups;
    const i64 t = i / parts.count / parts.groups, q = group * parts.group;
    search(p, t, part * parts.length, smaller(p.classes, (part + 1) * parts.length),
           q, smaller(parts.group, p.queries - q),
           Scratch(p, parts.group, static_cast<Real*>(scratch.data()) + worker * size),
           best(part, t, q), bounds + t * p.queries + q);
  });
  parallel(p.tasks * p.queries, threads, [&](i64, i64 i) {
    const Best first = best(0, i / p.queries, i % p.queries);
    for (i64 part = 1; part < parts.count; ++part) {
      const Best other = best(part, i / p.queries, i % p.queries);
      for (i64 j = 0; j < p.k; ++j) first.offer(other.value[j], other.index[j]);
    }
    first.sort();
  });
}

}  // namespace fastmeta::FASTMETA_ISA
