// Prototypes of many tasks: what the calls are about, and the table of one build's kernels.
// Compiled once per instruction set, so it holds no code.
//
// T tasks, S support samples, Q queries, N classes, D features. Rows of D are contiguous; `_task`
// strides may be 0 where all tasks share a tensor.
#pragma once

#include "../network/spec.h"

namespace fastmeta {

enum class Metric { SquaredEuclidean, Euclidean, Cosine, Dot };

// How features lie in memory: as the kernels' type R, or (for float) as half of it.
enum class Storage { Whole, BFloat16, Float16 };

// out [T, N, D] = the mean of each class; weight [T, S] may be null.
template <class R>
struct ClassMeans {
  i64 tasks, samples, classes, features;
  int threads;
  const R* x;
  const i64* labels;
  const R* weight;
  R* out;
};

enum class PairSum {
  Squared,  // out [T, Q, N] = |x_q - y_n|^2
  Project,  // out [T, Q, N] = a_q . (x_q - y_n)
  Pull,     // out [T, Q, D] = sum over n of h_qn (x_q - y_n)
};

template <class R>
struct Pairs {
  PairSum sum;
  i64 tasks, queries, classes, features;
  int threads;
  const R* x;  // [T, Q, D]
  i64 x_task;
  const R* y;  // [T, N, D]
  i64 y_task;
  const R* a;  // [T, Q, D], of Project
  i64 a_task;
  const R* h;  // [T, Q, N] of any strides, of Pull
  i64 h_task, h_query, h_class;
  R* out;
};

// All of a prototypical network behind its encoder. Weights may be null, and so may `temperatures`
// (a number a task, or one for all with stride 0), for which `temperature` stands otherwise. Features
// are of R where they are stored whole.
template <class R>
struct PrototypeLoss {
  i64 tasks, support_n, queries, classes, features;
  Metric metric;
  int threads;
  const void* support;
  Storage support_storage;
  const i64* support_y;
  const R* support_weight;
  const void* query;
  Storage query_storage;
  const i64* query_y;
  const R* query_weight;
  double temperature;
  const R* temperatures;
  i64 temperature_task;
};

// [T], [T, Q, N], and [T], the share of queries whose largest logit is their label's, or null.
template <class R>
struct PrototypeResult {
  R *loss, *logits, *accuracy;
};

// Gradients that nobody wants are null; those of features are stored as these.
template <class R>
struct PrototypeGradients {
  const R* loss;  // [T], of any stride
  i64 loss_task;
  void *support, *query;
  R* temperature;
};

// The k nearest of each query's prototypes: the least values, and of equal ones the lowest indices.
// Not Metric::Euclidean; with Metric::Cosine, x and y are unit vectors.
template <class R>
struct Nearest {
  i64 tasks, queries, classes, features, k;
  Metric metric;
  int threads;
  const void* x;  // [T, Q, D]
  Storage x_storage;
  const void* y;  // [T, N, D]
  Storage y_storage;
  R* values;  // [T, Q, k]
  i64* indices;
};

template <class R>
struct PrototypeKernels {
  // False, and nothing of meaning, where a label, weight or temperature is not as it must be.
  bool (*class_means)(const ClassMeans<R>&);
  void (*pairs)(const Pairs<R>&);
  i64 (*record_size)(const PrototypeLoss<R>&);  // elements
  // The record is for backward, scratch where there is none. at_once: gradients that are wanted now, or
  // null; only of what is differentiable, and not of temperatures. False as above.
  bool (*loss)(const PrototypeLoss<R>&, const PrototypeResult<R>&, R* record, bool differentiable,
               const PrototypeGradients<R>* at_once);
  // False, and nothing of meaning, where a label of the support is out of range by now.
  bool (*loss_backward)(const PrototypeLoss<R>&, const R* record, const PrototypeGradients<R>&);
  void (*nearest)(const Nearest<R>&);
};

}  // namespace fastmeta
