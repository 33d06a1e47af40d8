// What the binding calls: no CUDA header here. Nothing waits for the device.
#pragma once

#include <string>

#include "recorded.h"

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
// backward. Of clusters; a program tells its own.
template <class R>
struct Sizes {
  i64 record, workspace;
};

// Why a device cannot run this loop, or an empty string.
template <class R>
std::string unfit(const InnerLoop<R>& loop, int device);

// The program of forward, or of the gradient; record.cpp
template <class R>
Program<R> record_program(const InnerLoop<R>& loop, const Wanted& wanted, bool backward,
                          i64 most_shared, i64 processors);

// The same for a device, with the runs that are resident there at once. Its operations are to be
// copied there.
template <class R>
Program<R> record_for(const InnerLoop<R>& loop, const Wanted& wanted, bool backward, int device);

// With the operations of the program on the device.
template <class R>
void forward(const Program<R>& program, const InnerLoop<R>& loop, const ForwardOut<R>& out,
             Place place);
template <class R>
void backward(const Program<R>& program, const InnerLoop<R>& loop, const BackwardIn<R>& in,
              const BackwardOut<R>& out, R* workspace, Place place);

// How many blocks share a task there: more than one is a cluster.
template <class R>
int blocks_of(const InnerLoop<R>& loop, int device);

template <class R>
Sizes<R> sizes(const InnerLoop<R>& loop, bool with_rates, int device);

// By clusters of blocks.
template <class R>
void forward(const InnerLoop<R>& loop, const ForwardOut<R>& out, Place place);
template <class R>
void backward(const InnerLoop<R>& loop, const BackwardIn<R>& in, const BackwardOut<R>& out,
              R* workspace, Place place);

}  // namespace fastmeta::cuda
