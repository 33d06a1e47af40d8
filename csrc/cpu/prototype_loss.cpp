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
#include "prototype_gradient.h"
#include "prototype_record.h"
#include "prototype_scores.h"
#include "prototype_turned.h"

namespace fastmeta::FASTMETA_ISA {

namespace {

using Result = PrototypeResult<Real>;

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

// The mean of prototypes [begin, end), as one of them and the mean difference to it.
void put_mean(Real* mean, const Real* means, i64 ld, i64 begin, i64 end) {
  const Real* origin = means + begin * ld;
  std::memset(mean, 0, sizeof(Real) * size_t(ld));
  for (i64 n = begin + 1; n < end; ++n)
    add_difference(mean, means + n * ld, origin, Real(1) / Real(end - begin), ld);
  for (i64 d = 0; d < ld; ++d) mean[d] += origin[d];
}

// Where one is NaN, one of the others: that is why the arguments come in this order.
V median(V a, V b, V c) { return vmax(vmin(vmax(a, b), c), vmin(a, b)); }
V median(V a, V b, V c, V d, V e) {
  return median(vmax(vmin(a, b), vmin(c, d)), vmin(vmax(a, b), vmax(c, d)), e);
}

// Each feature's median of the means of five fifths of the prototypes. Sums of weighted rows are of rows less
// this, and lose what they are far from it: two prototypes far from all others do not count, nor one of
// three or four. scratch: five rows, or as many as there are classes
void put_centre(Real* centre, const Real* means, i64 ld, i64 classes, Real* scratch) {
  const i64 groups = classes < 3 ? 1 : classes < 5 ? 3 : 5;
  if (groups == 1) return put_mean(centre, means, ld, 0, classes);
  for (i64 i = 0; groups < classes && i < groups; ++i)
    put_mean(scratch + i * ld, means, ld, classes * i / groups, classes * (i + 1) / groups);
  const Real* means_of_groups = groups < classes ? scratch : means;
  const auto mean = [&](i64 i, i64 d) { return load_anywhere(means_of_groups + i * ld + d); };
  for (i64 d = 0; d < ld; d += W)
    store(centre + d, groups == 3 ? median(mean(0, d), mean(1, d), mean(2, d))
                                  : median(mean(0, d), mean(1, d), mean(2, d), mean(3, d), mean(4, d)));
}

bool prepare(const Loss& p, const Record& r, i64 t) {
  Real *means = r.means + t * p.classes * r.ld, *norms = r.norms + t * p.classes;
  const Real temperature = temperature_of(p, t);
  if (!(temperature > 0 && temperature <= std::numeric_limits<Real>::max())) return false;
  const Support<Real> support{p.support, p.support_storage, t * p.support_n,
                              p.support_y + t * p.support_n,
                              p.support_weight ? p.support_weight + t * p.support_n : nullptr,
                              p.support_n, p.features};
  // What is not written yet is scratch.
  Real* scratch = r.pulled + t * r.chunks * p.classes * r.ld;
  if (!check_labels(p.query_y + t * p.queries, query_weight(p, t), p.queries, p.classes,
                    r.weights + t) ||
      !class_means_of(support, p.classes, means, r.ld, r.inverse + t * p.classes,
                      scratch, r.centre + t * r.ld))
    return false;
  if (of_differences(p.metric)) put_centre(r.centre + t * r.ld, means, r.ld, p.classes, scratch);
  if (p.metric == Metric::Cosine)
    for (i64 n = 0; n < p.classes; ++n) {
      norms[n] = inverse_norm(means + n * r.ld, r.ld);
      for (i64 d = 0; d < r.ld; ++d) means[n * r.ld + d] *= norms[n];
    }
  return true;
}

// ---- forward ------------------------------------------------------------------------------------

// A worker's scratch. Of a block of queries: x their rows, `turned` the same with queries as lanes (or
// nullptr), sums those with all prototypes. The rest is of W queries, a vector a class.
struct Scratch {
  Real *x, *rows;
  V *sums, *logits, *powers, *columns_sum, *turned;
  i64 size = 0;

  Scratch(const Loss& p, const Record& r, Real* memory) {
    const auto take = [&](i64 n) {
      Real* at = memory ? memory + size : nullptr;
      size += round_up(n, 64);
      return at;
    };
    const auto vectors = [&](i64 n) { return reinterpret_cast<V*>(take(n * W)); };
    const i64 N = p.classes, groups = r.block / W;
    x = take(r.block * r.ld), rows = take(N * W + W);  // `store_group` writes past the last
    sums = vectors(groups * N), logits = vectors(N), powers = vectors(N), columns_sum = vectors(N);
    turned = is_worth_turning<Real>(N, r.ld) ? vectors(groups * r.ld) : nullptr;
  }
};

// The queries of a block as whole vectors, zeros for those of weight 0, which may hold anything.
const Real* rows_of_block(const Loss& p, i64 t, i64 begin, i64 n, i64 ld, Real* scratch) {
  const i64 first = t * p.queries + begin;
  const Real* weight = query_weight(p, t);
  bool padding = false;
  for (i64 q = 0; weight && q < n; ++q) padding |= weight[begin + q] == 0;
  if (!padding) return whole_rows(p.query, p.query_storage, first, n, p.features, scratch);
  for (i64 q = 0; q < n; ++q) {
    Real* to = scratch + q * ld;
    std::memset(to, 0, sizeof(Real) * size_t(ld));
    if (weight[begin + q] == 0) continue;
    const Real* row =
        read_features(p.query, p.query_storage, (first + q) * p.features, p.features, to);
    if (row != to) std::memcpy(to, row, sizeof(Real) * size_t(p.features));
  }
  return scratch;
}

// W queries, or those that are left, a lane each. Those of weight 0 may have any label.
struct Lanes {
  i64 count;
  Mask<Real> label{};
  V weight{};

  Lanes(const Loss& p, i64 t, i64 begin, i64 end) : count(smaller(W, end - begin)) {
    const Real* weights = query_weight(p, t);
    const i64* labels = p.query_y + t * p.queries + begin;
    typename Simd<Real>::Int label_of[W] = {};
    Real weight_of_lane[W] = {};
    if (count == W && !weights) {  // loops that are vectors
      for (i64 l = 0; l < W; ++l) label_of[l] = typename Simd<Real>::Int(labels[l]);
      for (i64 l = 0; l < W; ++l) weight_of_lane[l] = 1;
    } else {
      for (i64 l = 0; l < count; ++l) label_of[l] = typename Simd<Real>::Int(labels[l]);
      for (i64 l = 0; l < count; ++l) weight_of_lane[l] = weight_of(weights, begin + l);
    }
    std::memcpy(&label, label_of, sizeof label);
    std::memcpy(&weight, weight_of_lane, sizeof weight);
  }
};

V norms_of(const Real* x, i64 ld, i64 count) {
  V norms{};
  for (i64 l = 0; l < W; ++l) norms[l] = inverse_norm(x + smaller(l, count - 1) * ld, ld);
  return norms;
}

// sums[group][n], lane r: the sum of row r of a group and prototype n.
template <class Op>
void sums_of_pairs(const Real* x, i64 n, const Real* means, i64 ld, i64 classes, const Scratch& b) {
  const i64 groups = ceil_div(n, W);
  for (i64 g = 0; g < groups; ++g) {
    const Group<Real> rows(x + g * W * ld, ld, smaller(W, n - g * W));
    if (b.turned)
      turn_group(rows.row, ld, b.turned + g * ld);
    else
      group_sums<Op>(rows.row, means, ld, classes, rows.row, ld, b.sums + g * classes);
  }
  if (!b.turned) return;
  i64 g = 0;
  for (; g + 2 <= groups; g += 2)
    turned_sums<Op, 2>(b.turned + g * ld, means, ld, classes, ld, b.sums + g * classes);
  if (g < groups) turned_sums<Op, 1>(b.turned + g * ld, means, ld, classes, ld, b.sums + g * classes);
}

// Over a chunk, a query a lane. Not in the record: chunks are neighbours there, and their threads would share
// lines.
struct Total {
  double loss[W] = {};
  V slope{}, hits{};
};

// Adds w (log(total) - (logit of the label - largest)).
template <class Softmax>
void add_loss(const Lanes& lanes, const Softmax& s, Total& total) {
  const V loss = select(lanes.weight > 0, log(s.total) + (s.largest - s.of_label), V{});
  Real losses[W], weights[W];
  std::memcpy(losses, &loss, sizeof loss);
  std::memcpy(weights, &lanes.weight, sizeof loss);
  for (i64 l = 0; l < W; ++l) total.loss[l] += double(weights[l]) * double(losses[l]);
}

// [count][N]; through scratch where what `store_group` writes past the last would be another's.
void put_logits(const Scratch& b, i64 classes, i64 count, Real* out) {
  if (count == W && classes >= W) return store_group(b.logits, classes, out);
  store_group(b.logits, classes, b.rows);
  std::memcpy(out, b.rows, sizeof(Real) * size_t(count * classes));
}

// The queries [begin, ...) of a task, whose rows are at x: at most W of them.
template <Metric metric>
void forward_group(const Loss& p, const Record& r, const Chunk& c, i64 begin, const Real* x,
                   const V* sums, const Scratch& b, const Result& out, bool differentiable,
                   Total& total) {
  const i64 N = p.classes, ld = r.ld, kept = c.part * r.longest + begin - c.begin;
  const Lanes lanes(p, c.task, begin, c.end);
  const Scores<metric, Real> scores{N, 1 / temperature_of(p, c.task)};
  const V norm = metric == Metric::Cosine ? norms_of(x, ld, lanes.count) : splat(Real(1));
  const auto softmax = scores.softmax(sums, norm, lanes.label, b.logits, b.powers);
  put_logits(b, N, lanes.count, out.logits + (c.task * p.queries + begin) * N);
  if (differentiable) {
    const auto own = scores.residual(sums, norm, b.logits, b.powers, softmax, lanes.label,
                                     lanes.weight / r.weights[c.task],
                                     r.u + c.part * N * r.longest + begin - c.begin, r.longest,
                                     b.columns_sum);
    store(r.v + kept, own.v), store(r.query_norms + kept, norm);
    total.slope += own.slope;
  }
  if (out.accuracy)
    total.hits += select(scores.hits(b.logits, softmax.largest, lanes.label), lanes.weight, V{});
  add_loss(lanes, softmax, total);
}

template <Metric metric>
void forward_block(const Loss& p, const Record& r, const Chunk& c, i64 begin, i64 n, const Scratch& b,
                   const Result& out, bool differentiable, Total& total) {
  const i64 N = p.classes, ld = r.ld;
  using Op = std::conditional_t<metric == Metric::SquaredEuclidean || metric == Metric::Euclidean,
                                SquaredDifference, Multiplied>;
  const Real* x = rows_of_block(p, c.task, begin, n, ld, b.x);
  sums_of_pairs<Op>(x, n, r.means + c.task * N * ld, ld, N, b);
  for (i64 q = 0; q < n; q += W)
    forward_group<metric>(p, r, c, begin + q, x + q * ld, b.sums + q / W * N, b, out, differentiable, total);
  if (differentiable)
    combine(Combination<Real>{r.u + c.part * N * r.longest + begin - c.begin, r.longest, 1, x, ld, n,
                              of_differences(metric) ? r.centre + c.task * ld : nullptr, 1,
                              r.pulled + c.part * N * ld, ld, begin > c.begin},
            N, ld);
}

template <Metric metric>
void forward_chunk(const Loss& p, const Record& r, const Chunk& c, const Scratch& b,
                   const Result& out, bool differentiable) {
  Total total;
  for (i64 n = 0; n < p.classes; ++n) b.columns_sum[n] = V{};
  for (i64 begin = c.begin; begin < c.end; begin += r.block)
    forward_block<metric>(p, r, c, begin, smaller(r.block, c.end - begin), b, out, differentiable,
                          total);
  for (i64 n = 0; n < p.classes; ++n)
    r.columns_sum[c.part * p.classes + n] = horizontal_sum<Real>(b.columns_sum[n]);
  r.slope[c.part] = horizontal_sum<Real>(total.slope);
  r.hits[c.part] = horizontal_sum<Real>(total.hits);
  double loss = 0;
  for (const double of_lane : total.loss) loss += of_lane;
  r.loss[c.part] = Real(loss / double(r.weights[c.task]));
}

// Sums over chunks, and what the sum over queries still lacks to be the gradient for a prototype:
//   differences   - sum over q of u_qn (y_n - c)
//   cosine        what lies along y_n itself goes, and the norm divides
void finish(const Loss& p, const Record& r, i64 t) {
  const i64 N = p.classes, ld = r.ld, size = N * ld, first = t * r.chunks;
  Real *pulled = r.pulled + first * size, *columns = r.columns_sum + first * N;
  for (i64 chunk = 1; chunk < r.chunks; ++chunk) {
    for (i64 i = 0; i < size; ++i) pulled[i] += pulled[chunk * size + i];
    for (i64 n = 0; n < N; ++n) columns[n] += columns[chunk * N + n];
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

void put_result(const Loss& p, const Record& r, const Result& out) {
  for (i64 t = 0; t < p.tasks; ++t) {
    Real loss = 0, hits = 0;
    for (i64 part = t * r.chunks; part < (t + 1) * r.chunks; ++part)
      loss += r.loss[part], hits += r.hits[part];
    out.loss[t] = loss;
    if (out.accuracy) out.accuracy[t] = hits / r.weights[t];
  }
}

template <Metric metric>
bool forward(const Loss& p, const Record& r, const Result& out, bool differentiable,
             const PrototypeGradients<Real>* at_once) {
  const i64 own_size = Scratch(p, r, nullptr).size, threads = threads_of(p);
  const i64 size = own_size + (at_once ? GradientScratch(p, r, nullptr).size : 0);
  const Memory scratch(i64(sizeof(Real)) * size * threads);
  const auto scratch_of = [&](i64 worker) { return static_cast<Real*>(scratch.data()) + worker * size; };
  std::atomic<bool> fits{true};
  const auto begin = [&](i64 t) {
    const bool fit = prepare(p, r, t);
    if (!fit) fits.store(false, std::memory_order_relaxed);
    return fit;
  };
  const auto run = [&](i64 worker, i64 i) {
    Real* memory = scratch_of(worker);
    const Chunk chunk(p, r, i);
    forward_chunk<metric>(p, r, chunk, Scratch(p, r, memory), out, differentiable);
    if (at_once && at_once->query)
      query_gradients(p, r, chunk, *at_once, GradientScratch(p, r, memory + own_size));
  };
  const auto end = [&](i64 worker, i64 t) {
    if (differentiable) finish(p, r, t);
    if (at_once && at_once->support)
      support_gradient(p, r, t, *at_once, GradientScratch(p, r, scratch_of(worker) + own_size).row);
  };
  if (r.chunks == 1) {  // all of a task while it is in cache
    parallel(p.tasks, threads, [&](i64 worker, i64 t) {
      if (begin(t)) run(worker, t), end(worker, t);
    });
  } else {
    parallel(p.tasks, threads, [&](i64, i64 t) { begin(t); });
    if (fits) parallel(p.tasks * r.chunks, threads, run);
    if (fits) parallel(p.tasks, threads, end);
  }
  if (fits) put_result(p, r, out);
  return fits;
}

}  // namespace

i64 prototype_record_size(const Loss& p) { return Record(p, nullptr).size; }

bool prototype_loss(const Loss& p, const Result& out, Real* record, bool differentiable,
                    const PrototypeGradients<Real>* at_once) {
  const Record r(p, record);
  switch (p.metric) {
    case Metric::SquaredEuclidean:
      return forward<Metric::SquaredEuclidean>(p, r, out, differentiable, at_once);
    case Metric::Euclidean:
      return forward<Metric::Euclidean>(p, r, out, differentiable, at_once);
    case Metric::Cosine:
      return forward<Metric::Cosine>(p, r, out, differentiable, at_once);
    case Metric::Dot:
      break;
  }
  return forward<Metric::Dot>(p, r, out, differentiable, at_once);
}

}  // namespace fastmeta::FASTMETA_ISA
