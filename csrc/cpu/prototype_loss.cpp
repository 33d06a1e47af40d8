// The loss of a prototypical network in one pass over the queries, and its gradient.
//
// With r = w (softmax(s) - onehot), the gradient of the loss in the scores s [Q, N], every metric's
// gradients are sums of weighted rows:
//     for a query         sum over n of u_qn (y_n - c) + v_q (x_q - c)
//     for a prototype     sum over q of u_qn (x_q - c), corrected at the end (`finish`)
// u and v follow from r (`Scores`). The second sum is made while the queries are in cache, so that
// backward reads no features where v is 0. c is the mean of the prototypes for differences, and 0 for
// products. docs/notes/prototype-kernels.md has the derivation and the bounds.
//
// Tasks are cut into chunks of queries by shape alone, so threads do not change the bits.
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "prototypes.h"
#include "runtime.h"

#include "prototype_kernels.h"
#include "prototype_rows.h"
#include "simd_math.h"

namespace fastmeta::FASTMETA_ISA {

namespace {

using Real = FASTMETA_REAL;
using V = Vec<Real>;
using Loss = PrototypeLoss<Real>;
constexpr int W = lanes<Real>;

bool of_differences(Metric metric) {
  return metric == Metric::SquaredEuclidean || metric == Metric::Euclidean;
}
bool has_own_term(Metric metric) {
  return metric == Metric::Euclidean || metric == Metric::Cosine;
}

// ---- what forward leaves for backward -----------------------------------------------------------

struct Record {
  i64 ld, columns, chunks, block;
  Real *means, *centre, *inverse, *norms, *weights;  // a task
  Real *pulled, *columns_sum, *loss, *slope;         // a chunk
  Real *u, *v, *query_norms;                         // a query
  i64 size = 0;

  Record(const Loss& p, Real* memory) {
    ld = round_up(p.features, W), columns = round_up(p.classes, W);
    // Enough work for many threads in few tasks, and enough queries to be worth a thread.
    chunks = larger(1, smaller(64 / p.tasks, p.queries / 32));
    block = larger(4, smaller(64, (i64(64) << 10) / (ld * i64(sizeof(Real))) / 4 * 4));
    const auto take = [&](i64 n) {
      Real* at = memory ? memory + size : nullptr;
      size += round_up(n, 64);
      return at;
    };
    const i64 T = p.tasks, N = p.classes;
    means = take(T * N * ld), centre = take(T * ld), inverse = take(T * N), norms = take(T * N);
    weights = take(T);
    pulled = take(T * chunks * N * ld), columns_sum = take(T * chunks * columns);
    loss = take(T * chunks), slope = take(T * chunks);
    u = take(T * p.queries * columns), v = take(T * p.queries);
    query_norms = take(T * p.queries);
  }
};

i64 first_query(const Loss& p, const Record& r, i64 chunk) { return p.queries * chunk / r.chunks; }

const Real* query_weight(const Loss& p, i64 t) {
  return p.query_weight ? p.query_weight + t * p.queries : nullptr;
}
Real temperature_of(const Loss& p, i64 t) {
  return p.temperatures ? p.temperatures[t * p.temperature_task] : Real(p.temperature);
}

// ---- prototypes ---------------------------------------------------------------------------------

// 1 / |x|, and 0 for a vector of zeros or of denormal numbers, whose norm has no finite inverse.
// Only where squares leave the range they are scaled.
Real inverse_norm(const Real* x, i64 ld) {
  const Real square = pair_sum<Multiplied>(x, x, ld);
  constexpr Real tiny = std::numeric_limits<Real>::min() / std::numeric_limits<Real>::epsilon();
  if (square > tiny && square < std::numeric_limits<Real>::max()) return 1 / std::sqrt(square);
  Real scale = 0, sum = 0;
  for (i64 d = 0; d < ld; ++d) scale = std::fabs(x[d]) > scale ? std::fabs(x[d]) : scale;
  if (scale < std::numeric_limits<Real>::min()) return square;  // 0, or NaN
  for (i64 d = 0; d < ld; ++d) sum += (x[d] / scale) * (x[d] / scale);
  return 1 / std::sqrt(sum) / scale;
}

void put_centre(Real* centre, const Real* means, i64 ld, i64 classes) {
  const Real share = Real(1) / Real(classes);
  std::memset(centre, 0, sizeof(Real) * size_t(ld));
  for (i64 n = 0; n < classes; ++n) add_difference(centre, means + n * ld, means, share, ld);
  for (i64 d = 0; d < ld; ++d) centre[d] += means[d];
}

bool prepare(const Loss& p, const Record& r, i64 t) {
  Real *means = r.means + t * p.classes * r.ld, *norms = r.norms + t * p.classes;
  if (!check_labels(p.query_y + t * p.queries, query_weight(p, t), p.queries, p.classes,
                    r.weights + t) ||
      !class_means_of(p.support + t * p.support_n * p.features, p.support_y + t * p.support_n,
                      p.support_weight ? p.support_weight + t * p.support_n : nullptr, p.support_n,
                      p.classes, p.features, means, r.ld, r.inverse + t * p.classes))
    return false;
  if (of_differences(p.metric)) put_centre(r.centre + t * r.ld, means, r.ld, p.classes);
  if (p.metric == Metric::Cosine)
    for (i64 n = 0; n < p.classes; ++n) {
      norms[n] = inverse_norm(means + n * r.ld, r.ld);
      for (i64 d = 0; d < r.ld; ++d) means[n * r.ld + d] *= norms[n];
    }
  return true;
}

// ---- scores -------------------------------------------------------------------------------------

// One row of sums over pairs (squared distances or products) into its logits, and with u into what
// backward needs. `norm` is 1 / |x_q| under cosine.
template <Metric metric>
struct Scores {
  i64 classes;
  Real inverse_temperature;

  FASTMETA_INLINE V score(V sum, Real norm) const {
    if (metric == Metric::SquaredEuclidean) return -sum * inverse_temperature;
    if (metric == Metric::Euclidean) return -root(sum) * inverse_temperature;
    if (metric == Metric::Cosine) return (sum * norm - 1) * inverse_temperature;
    return sum * inverse_temperature;
  }
  // du / dr
  FASTMETA_INLINE V factor(V sum, Real norm) const {
    if (metric == Metric::SquaredEuclidean) return splat(2 * inverse_temperature);
    if (metric == Metric::Euclidean)
      return select(sum > 0, inverse_temperature / root(sum), V{});
    if (metric == Metric::Cosine) return splat(norm * inverse_temperature);
    return splat(inverse_temperature);
  }
  static FASTMETA_INLINE V root(V x) {
    Real a[W];
    store_anywhere(a, x);
    for (int l = 0; l < W; ++l) a[l] = std::sqrt(a[l]);
    return load_anywhere(a);
  }
  FASTMETA_INLINE auto valid(i64 n) const { return iota<Real>() < Real(classes - n); }

  // logits replaces sums; returns the largest, and in `total` the sum of exp(logit - largest), whose
  // terms are in `powers`.
  FASTMETA_INLINE Real softmax(const Real* sums, Real norm, Real* logits, Real* powers,
                               Real* total) const {
    V most = splat(-Real(INFINITY));
    for (i64 n = 0; n < classes; n += W) {
      const V s = select(valid(n), score(load(sums + n), norm), splat(-Real(INFINITY)));
      store(logits + n, s);
      most = vmax(s, most);
    }
    const Real largest = max_everywhere<Real>(most)[0];
    V sum{};
    for (i64 n = 0; n < classes; n += W) {
      const V e = select(valid(n), exp(load(logits + n) - largest), V{});
      store(powers + n, e);
      sum += e;
    }
    *total = sum_everywhere<Real>(sum)[0];
    return largest;
  }

  struct Own {
    Real v, slope;
  };
  // u of a row, added to columns_sum too; what the row adds to the gradient of the temperature.
  FASTMETA_INLINE Own residual(const Real* sums, Real norm, const Real* logits, const Real* powers,
                               Real largest, Real total, i64 label, Real weight, Real* u,
                               Real* columns_sum) const {
    const Real scale = weight / total;
    V slope{}, own{};
    for (i64 n = 0; n < classes; n += W) {
      const auto here = iota<Real>() == Real(label - n);
      const V r = load(powers + n) * scale - select(here, splat(weight), V{});
      const V weighted = select(valid(n), r * factor(load(sums + n), norm), V{});
      store(u + n, weighted);
      store(columns_sum + n, load(columns_sum + n) + weighted);
      // r adds up to 0, so that any shift of the scores is allowed.
      slope += select(valid(n), r * (load(logits + n) - largest), V{});
      if (metric == Metric::Euclidean) own -= weighted;
    }
    const Real sum = sum_everywhere<Real>(slope)[0];
    return {metric == Metric::Euclidean ? sum_everywhere<Real>(own)[0] : -sum * norm,
            -sum * inverse_temperature};
  }
};

// ---- forward ------------------------------------------------------------------------------------

// A worker's scratch for a block of queries.
struct Block {
  Real *x, *sums, *logits, *powers, *norms, *totals, *gaps;
  i64 size = 0;

  Block(const Record& r, Real* memory) {
    const auto take = [&](i64 n) {
      Real* at = memory ? memory + size : nullptr;
      size += round_up(n, 64);
      return at;
    };
    x = take(r.block * r.ld), sums = take(r.block * r.columns), logits = take(r.columns);
    powers = take(r.columns), norms = take(r.block), totals = take(r.block), gaps = take(r.block);
  }
};

// The queries of a block as whole vectors, zeros for those of weight 0, which may hold anything.
const Real* rows_of_block(const Loss& p, i64 t, i64 begin, i64 n, i64 ld, Real* scratch) {
  const Real* x = p.query + (t * p.queries + begin) * p.features;
  const Real* weight = query_weight(p, t);
  bool padding = false;
  for (i64 q = 0; weight && q < n; ++q) padding |= weight[begin + q] == 0;
  if (!padding) return whole_rows(x, n, p.features, scratch);
  for (i64 q = 0; q < n; ++q) {
    const i64 kept = weight[begin + q] == 0 ? 0 : p.features;
    std::memcpy(scratch + q * ld, x + q * p.features, sizeof(Real) * size_t(kept));
    std::memset(scratch + q * ld + kept, 0, sizeof(Real) * size_t(ld - kept));
  }
  return scratch;
}

// sum of w (log(total) + gap) over a block
double block_loss(const Block& b, const Real* weight, i64 n) {
  double sum = 0;
  for (i64 q = n; q < round_up(n, W); ++q) b.totals[q] = 1;
  for (i64 q = 0; q < n; q += W) store(b.totals + q, log(load(b.totals + q)));
  for (i64 q = 0; q < n; ++q)
    if (const Real w = weight_of(weight, q); w != 0) sum += double(w) * double(b.totals[q] + b.gaps[q]);
  return sum;
}

template <Metric metric>
double forward_block(const Loss& p, const Record& r, i64 t, i64 chunk, i64 begin, i64 n,
                     const Block& b, Real* logits_out, bool differentiable) {
  const i64 N = p.classes, ld = r.ld, at = t * p.queries + begin, part = t * r.chunks + chunk;
  const Real *means = r.means + t * N * ld, *x = rows_of_block(p, t, begin, n, ld, b.x);
  const Real* weight = query_weight(p, t);
  const Real* none = nullptr;
  using Op = std::conditional_t<metric == Metric::SquaredEuclidean || metric == Metric::Euclidean,
                                SquaredDifference, Multiplied>;
  pair_sums<Op>(x, ld, n, means, ld, N, none, 0, ld, b.sums, r.columns);
  const Scores<metric> scores{N, 1 / temperature_of(p, t)};
  const Real share = 1 / r.weights[t];
  for (i64 q = 0; q < n; ++q) {
    const Real norm = metric == Metric::Cosine ? inverse_norm(x + q * ld, ld) : Real(1);
    const Real w = weight_of(weight, begin + q);
    const Real* sums = b.sums + q * r.columns;
    const Real largest = scores.softmax(sums, norm, b.logits, b.powers, b.totals + q);
    std::memcpy(logits_out + (at + q) * N, b.logits, sizeof(Real) * size_t(N));
    const i64 label = w == 0 ? 0 : p.query_y[at + q];
    b.gaps[q] = largest - b.logits[label];
    if (!differentiable) continue;
    const auto own = scores.residual(sums, norm, b.logits, b.powers, largest, b.totals[q], label,
                                     w * share, r.u + (at + q) * r.columns,
                                     r.columns_sum + part * r.columns);
    r.v[at + q] = own.v, r.query_norms[at + q] = norm;
    r.slope[part] += own.slope;
  }
  if (differentiable) {
    const Real* centre = of_differences(metric) ? r.centre + t * ld : nullptr;
    combine(Combination<Real>{r.u + at * r.columns, 1, r.columns, x, ld, n, centre, 1,
                              r.pulled + part * N * ld, ld, true},
            N, ld);
  }
  return block_loss(b, weight ? weight + begin : nullptr, n);
}

template <Metric metric>
void forward_chunk(const Loss& p, const Record& r, i64 t, i64 chunk, const Block& b, Real* logits,
                   bool differentiable) {
  const i64 part = t * r.chunks + chunk, end = first_query(p, r, chunk + 1);
  double loss = 0;
  r.slope[part] = 0;
  std::memset(r.columns_sum + part * r.columns, 0, sizeof(Real) * size_t(r.columns));
  if (differentiable)
    std::memset(r.pulled + part * p.classes * r.ld, 0, sizeof(Real) * size_t(p.classes * r.ld));
  for (i64 begin = first_query(p, r, chunk); begin < end; begin += r.block)
    loss += forward_block<metric>(p, r, t, chunk, begin, smaller(r.block, end - begin), b, logits,
                                  differentiable);
  r.loss[part] = Real(loss / double(r.weights[t]));
}

// Sums over chunks, and what the sum over queries still lacks to be the gradient for a prototype:
//   differences   - sum over q of u_qn (y_n - c)
//   cosine        what lies along y_n itself goes, and the norm divides
void finish(const Loss& p, const Record& r, i64 t) {
  const i64 N = p.classes, ld = r.ld, size = N * ld, first = t * r.chunks;
  Real *pulled = r.pulled + first * size, *columns = r.columns_sum + first * r.columns;
  for (i64 chunk = 1; chunk < r.chunks; ++chunk) {
    for (i64 i = 0; i < size; ++i) pulled[i] += pulled[chunk * size + i];
    for (i64 n = 0; n < N; ++n) columns[n] += columns[chunk * r.columns + n];
    r.slope[first] += r.slope[first + chunk];
  }
  const Real *means = r.means + t * size, *centre = r.centre + t * ld;
  for (i64 n = 0; n < N; ++n, pulled += ld, means += ld) {
    if (of_differences(p.metric)) {
      add_difference(pulled, means, centre, -columns[n], ld);
    } else if (p.metric == Metric::Cosine) {
      const Real norm = r.norms[t * N + n], along = pair_sum<Multiplied>(pulled, means, ld);
      for (i64 d = 0; d < ld; ++d) pulled[d] = (pulled[d] - along * means[d]) * norm;
    }
  }
}

i64 threads_of(const Loss& p) {
  return threads_for(double(p.tasks * p.queries) * double(p.classes * p.features), p.threads);
}

template <Metric metric>
void forward(const Loss& p, const Record& r, Real* loss, Real* logits, bool differentiable) {
  const i64 size = Block(r, nullptr).size, threads = threads_of(p);
  const Memory scratch(i64(sizeof(Real)) * size * threads);
  parallel(p.tasks * r.chunks, threads, [&](i64 worker, i64 i) {
    const Block b(r, static_cast<Real*>(scratch.data()) + worker * size);
    forward_chunk<metric>(p, r, i / r.chunks, i % r.chunks, b, logits, differentiable);
  });
  for (i64 t = 0; t < p.tasks; ++t) {
    loss[t] = r.loss[t * r.chunks];
    for (i64 chunk = 1; chunk < r.chunks; ++chunk) loss[t] += r.loss[t * r.chunks + chunk];
  }
  if (differentiable) parallel(p.tasks, threads, [&](i64, i64 t) { finish(p, r, t); });
}

// ---- backward -----------------------------------------------------------------------------------

void query_gradient(const Loss& p, const Record& r, i64 t, i64 begin, i64 n, Real grad, Real* scratch,
                    Real* out) {
  const i64 ld = r.ld, at = t * p.queries + begin;
  Real* to = ld == p.features ? out + at * ld : scratch;
  const Real* centre = of_differences(p.metric) ? r.centre + t * ld : nullptr;
  combine(Combination<Real>{r.u + at * r.columns, r.columns, 1, r.means + t * p.classes * ld, ld,
                            p.classes, centre, grad, to, ld, false},
          n, ld);
  for (i64 q = 0; q < n; ++q) {
    const Real own = r.v[at + q] * grad;
    if (has_own_term(p.metric) && own != 0) {
      const Real* x = p.query + (at + q) * p.features;
      // The norm's square may leave the range.
      const Real norm = r.query_norms[at + q];
      for (i64 d = 0; d < p.features; ++d)
        to[q * ld + d] += own * ((x[d] - (centre ? centre[d] : 0)) * norm);
    }
    if (to == scratch)
      std::memcpy(out + (at + q) * p.features, to + q * ld, sizeof(Real) * size_t(p.features));
  }
}

void support_gradient(const Loss& p, const Record& r, i64 t, Real grad, Real* out) {
  const Real* pulled = r.pulled + t * r.chunks * p.classes * r.ld;
  for (i64 s = t * p.support_n; s < (t + 1) * p.support_n; ++s) {
    Real* to = out + s * p.features;
    const Real w = weight_of(p.support_weight, s);
    if (w == 0) {
      std::memset(to, 0, sizeof(Real) * size_t(p.features));
      continue;
    }
    const i64 n = p.support_y[s];
    const Real factor = grad * w * r.inverse[t * p.classes + n];
    for (i64 d = 0; d < p.features; ++d) to[d] = factor * pulled[n * r.ld + d];
  }
}

}  // namespace

i64 prototype_record_size(const Loss& p) { return Record(p, nullptr).size; }

bool prototype_loss(const Loss& p, Real* loss, Real* logits, Real* record, bool differentiable) {
  const Record r(p, record);
  const i64 threads = threads_of(p);
  std::atomic<bool> fits{true};
  parallel(p.tasks, threads, [&](i64, i64 t) {
    if (!prepare(p, r, t)) fits.store(false, std::memory_order_relaxed);
  });
  if (!fits) return false;
  switch (p.metric) {
    case Metric::SquaredEuclidean:
      forward<Metric::SquaredEuclidean>(p, r, loss, logits, differentiable);
      break;
    case Metric::Euclidean:
      forward<Metric::Euclidean>(p, r, loss, logits, differentiable);
      break;
    case Metric::Cosine:
      forward<Metric::Cosine>(p, r, loss, logits, differentiable);
      break;
    case Metric::Dot:
      forward<Metric::Dot>(p, r, loss, logits, differentiable);
      break;
  }
  return true;
}

void prototype_loss_backward(const Loss& p, const Real* record, const PrototypeGradients<Real>& g) {
  const Record r(p, const_cast<Real*>(record));
  const i64 threads = threads_of(p);
  const i64 size = r.block * r.ld, queries = g.query ? p.tasks * r.chunks : 0;
  const Memory scratch(i64(sizeof(Real)) * size * threads);
  parallel(queries + (g.support ? p.tasks : 0), threads, [&](i64 worker, i64 i) {
    const bool of_query = i < queries;
    const i64 t = of_query ? i / r.chunks : i - queries;
    const Real grad = g.loss[t * g.loss_task];
    if (!of_query) return support_gradient(p, r, t, grad, g.support);
    const i64 end = first_query(p, r, i % r.chunks + 1);
    for (i64 q = first_query(p, r, i % r.chunks); q < end; q += r.block)
      query_gradient(p, r, t, q, smaller(r.block, end - q), grad,
                     static_cast<Real*>(scratch.data()) + worker * size, g.query);
  });
  for (i64 t = 0; g.temperature && t < p.tasks; ++t)
    g.temperature[t] = g.loss[t * g.loss_task] * r.slope[t * r.chunks];
}

}  // namespace fastmeta::FASTMETA_ISA
