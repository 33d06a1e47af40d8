// What the forward pass of a loss leaves for its backward pass, and where: both read it.
#pragma once

#include "prototype_rows.h"
#include "prototypes.h"

namespace fastmeta::FASTMETA_ISA {

namespace {  // Real is another type in each object file

using Real = FASTMETA_REAL;
using V = Vec<Real>;
using Loss = PrototypeLoss<Real>;
constexpr int W = lanes<Real>;
constexpr i64 block_bytes = 256 << 10;  // of queries

bool of_differences(Metric metric) {
  return metric == Metric::SquaredEuclidean || metric == Metric::Euclidean;
}

struct Record {
  i64 ld, chunks, longest, block;
  Real *means, *centre, *inverse, *norms, *weights;         // a task
  Real *pulled, *columns_sum, *loss, *slope, *hits;         // a chunk
  Real *u, *v, *query_norms;                                // a query of a chunk: u [N][longest]
  i64 size = 0;

  Record(const Loss& p, Real* memory) {
    ld = round_up(p.features, W);
    // Enough work for many threads in few tasks, and enough queries for what a chunk leaves to be added up.
    const i64 worth = larger(smaller(2, p.queries / 32), p.queries / 48);
    chunks = larger(1, smaller(32 / p.tasks, worth));
    longest = ceil_div(ceil_div(p.queries, W), chunks) * W;
    block = larger(W, smaller(64, (block_bytes / (ld * i64(sizeof(Real)))) / W * W));
    const auto take = [&](i64 n) {
      Real* at = memory ? memory + size : nullptr;
      size += round_up(n, 64);
      return at;
    };
    const i64 T = p.tasks, N = p.classes;
    means = take(T * N * ld), centre = take(T * ld), inverse = take(T * N), norms = take(T * N);
    weights = take(T);
    pulled = take(T * chunks * N * ld), columns_sum = take(T * chunks * N);
    loss = take(T * chunks), slope = take(T * chunks), hits = take(T * chunks);
    u = take(T * chunks * N * longest), v = take(T * chunks * longest);
    query_norms = take(T * chunks * longest);
  }
};

// Where in a task a chunk of queries lies, and where what is kept of it: whole groups of W, which take as
// long if there are fewer in them.
struct Chunk {
  i64 task, part, begin, end;

  Chunk(const Loss& p, const Record& r, i64 i)
      : task(i / r.chunks), part(i), begin(begin_of(p, r, i % r.chunks)),
        end(begin_of(p, r, i % r.chunks + 1)) {}

 private:
  static i64 begin_of(const Loss& p, const Record& r, i64 i) {
    return smaller(p.queries, ceil_div(p.queries, W) * i / r.chunks * W);
  }
};

i64 threads_of(const Loss& p) {
  return threads_for(double(p.tasks * p.queries) * double(p.classes * p.features), p.threads);
}

}  // namespace

}  // namespace fastmeta::FASTMETA_ISA
