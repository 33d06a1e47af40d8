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
    RowProgram program;  // on the host
  } network;
  i64 tasks, steps;
  int order;
  Parameter<R> parameters[max_parameters];
  Rate<R> rates[max_parameters];
  Samples<R> support, query;

  explicit HeldLoop(const InnerLoop<R>& l)
      : tasks(l.tasks), steps(l.steps), order(l.order), support(l.support), query(l.query) {
    network.n_nodes = l.network.n_nodes, network.n_parameters = l.network.n_parameters;
    network.loss = l.network.loss, network.program = l.network.program;
    for (int i = 0; i < l.network.n_nodes; ++i) network.nodes[i] = l.network.nodes[i];
    for (int p = 0; p < l.network.n_parameters; ++p)
      parameters[p] = l.parameters[p], rates[p] = l.rates[p];
  }
};

// What is the same for whoever works on one task with the layout of a block.
template <class R>
struct BlockLayout {
  using Real = R;
  using Loop = HeldLoop<R>;
  using RateBase = i64;  // the step
  static constexpr int W = 1, max_nodes = cuda::max_nodes, max_pieces = max_parameters;
  static constexpr i64 tasks = 1, element = 1;
  static constexpr bool transposes = false, reads_shared = false, shared_layout = false;
  static constexpr bool splits = true, keeps_away = true, keeps_values = false;
  static constexpr bool sums_in_output = true, sums_in_place = true, runs_programs = false, takes_places = false;
};

}  // namespace fastmeta::cuda
