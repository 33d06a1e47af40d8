// The gradient of the loss of a prototypical network: sums of weighted rows, whose weights and whose
// sums over queries the forward pass leaves in its record (prototype_loss.cpp).
#pragma once

#include <cstring>

#include "prototype_record.h"

namespace fastmeta::FASTMETA_ISA {

namespace {

constexpr i64 gradient_rows = 24;

bool has_own_term(Metric metric) {
  return metric == Metric::Euclidean || metric == Metric::Cosine;
}

// A worker's scratch: the prototypes of a task less its centre, rows of gradients, and a row.
struct GradientScratch {
  Real *centred, *rows, *row;
  i64 size;

  GradientScratch(const Loss& p, const Record& r, Real* memory)
      : centred(memory), rows(memory + p.classes * r.ld), row(rows + gradient_rows * r.ld),
        size((p.classes + gradient_rows + 1) * r.ld) {}
};

// The prototypes of a task as its gradients need them.
const Real* centred_means(const Loss& p, const Record& r, i64 t, Real* scratch) {
  const Real *means = r.means + t * p.classes * r.ld, *centre = r.centre + t * r.ld;
  if (!of_differences(p.metric)) return means;
  for (i64 n = 0; n < p.classes; ++n)
    for (i64 d = 0; d < r.ld; ++d) scratch[n * r.ld + d] = means[n * r.ld + d] - centre[d];
  return scratch;
}

// Adds what is proportional to the query itself.
void add_own_term(const Loss& p, const Record& r, i64 t, i64 kept, Real grad, const Real* x, Real* to) {
  const Real* centre = of_differences(p.metric) ? r.centre + t * r.ld : nullptr;
  const Real own = r.v[kept] * grad, norm = r.query_norms[kept];  // whose square may leave the range
  if (own == 0) return;
  for (i64 d = 0; d < p.features; ++d) to[d] += own * ((x[d] - (centre ? centre[d] : 0)) * norm);
}

// Of queries [begin, begin + n); in scratch first where rows are not whole vectors of R.
void query_gradient(const Loss& p, const Record& r, const Chunk& c, i64 begin, i64 n, Real grad,
                    const Real* means, const GradientScratch& b, void* out) {
  const i64 ld = r.ld, in_chunk = begin - c.begin, first = (c.task * p.queries + begin) * p.features;
  const bool direct = p.query_storage == Storage::Whole && ld == p.features;
  Real* to = direct ? static_cast<Real*>(out) + first : b.rows;
  combine(Combination<Real>{r.u + c.part * p.classes * r.longest + in_chunk, 1, r.longest, means, ld,
                            p.classes, nullptr, grad, to, ld, false},
          n, ld);
  for (i64 q = 0; q < n; ++q) {
    const i64 at = first + q * p.features;
    if (has_own_term(p.metric))
      add_own_term(p, r, c.task, c.part * r.longest + in_chunk + q, grad,
                   read_features(p.query, p.query_storage, at, p.features, b.row), to + q * ld);
    if (!direct) write_features(to + q * ld, p.features, out, p.query_storage, at);
  }
}

void put_multiple(Real* __restrict to, Real factor, const Real* __restrict from, i64 n) {
  for (i64 d = 0; d < n; ++d) to[d] = factor * from[d];
}

// For the support of a task.
void support_gradient(const Loss& p, const Record& r, i64 t, const PrototypeGradients<Real>& g,
                      Real* scratch) {
  const i64 D = p.features;
  const Real grad = g.loss[t * g.loss_task];
  void* out = g.support;
  const Real* pulled = r.pulled + t * r.chunks * p.classes * r.ld;
  for (i64 s = t * p.support_n; s < (t + 1) * p.support_n; ++s) {
    const bool direct = p.support_storage == Storage::Whole;
    Real* to = direct ? static_cast<Real*>(out) + s * D : scratch;
    const Real w = weight_of(p.support_weight, s);
    const i64 n = p.support_y[s];  // that of padding may be anything
    if (w == 0)
      std::memset(to, 0, sizeof(Real) * size_t(D));
    else
      put_multiple(to, grad * w * r.inverse[t * p.classes + n], pulled + n * r.ld, D);
    if (!direct) write_features(to, D, out, p.support_storage, s * D);
  }
}

// For the queries of a chunk.
void query_gradients(const Loss& p, const Record& r, const Chunk& c, const PrototypeGradients<Real>& g,
                     const GradientScratch& b) {
  const Real grad = g.loss[c.task * g.loss_task];
  const Real* means = centred_means(p, r, c.task, b.centred);
  for (i64 q = c.begin; q < c.end; q += gradient_rows)
    query_gradient(p, r, c, q, smaller(gradient_rows, c.end - q), grad, means, b, g.query);
}

}  // namespace

}  // namespace fastmeta::FASTMETA_ISA
