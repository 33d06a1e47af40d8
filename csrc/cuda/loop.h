// An inner loop with all it points to on the host side: what is left are addresses on the device.
#pragma once

#include "program.h"
#include "scalar.cuh"

namespace fastmeta::cuda {

struct Slice {
  i64 first, tasks;
};

struct Crew {
  int threads = 0;
};

template <class R>
struct HeldLoop {
  struct {
    Node nodes[max_nodes];
    int n_nodes, n_parameters;
    LossKind loss;
  } network;
  i64 tasks, steps;
  int order;
  Parameter<R> parameters[max_parameters];
  Rate<R> rates[max_parameters];
  Samples<R> support, query;

  explicit HeldLoop(const InnerLoop<R>& l)
      : tasks(l.tasks), steps(l.steps), order(l.order), support(l.support), query(l.query) {
    network.n_nodes = l.network.n_nodes, network.n_parameters = l.network.n_parameters;
    network.loss = l.network.loss;
    for (int i = 0; i < l.network.n_nodes; ++i) network.nodes[i] = l.network.nodes[i];
    for (int p = 0; p < l.network.n_parameters; ++p)
      parameters[p] = l.parameters[p], rates[p] = l.rates[p];
  }
};

}  // namespace fastmeta::cuda
