// What the binding calls: no CUDA header here. Nothing waits for the device.
#pragma once

#include <string>

#include "../network/spec.h"

namespace fastmeta::cuda {

// Raised with the sentence that CUDA gives for an error.
struct Failure {
  std::string what;
};

struct Place {
  int device;
  void* stream;
};

// Elements that the caller allocates on the device: what forward leaves for backward, and scratch of
// backward.
template <class R>
struct Sizes {
  i64 record, workspace;
};

// Why a device cannot run this loop, or an empty string.
template <class R>
std::string unfit(const InnerLoop<R>& loop, int device);

// How many blocks share a task there: more than one is a cluster.
template <class R>
int blocks_of(const InnerLoop<R>& loop, int device);

template <class R>
Sizes<R> sizes(const InnerLoop<R>& loop, bool with_rates, int device);

template <class R>
void forward(const InnerLoop<R>& loop, const ForwardOut<R>& out, Place place);

template <class R>
void backward(const InnerLoop<R>& loop, const BackwardIn<R>& in, const BackwardOut<R>& out,
              R* workspace, Place place);

}  // namespace fastmeta::cuda
