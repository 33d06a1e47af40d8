// The prototypes' part of the Python module: addresses and sizes in, checked to fit together.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "cpu/prototypes.h"
#include "cpu/runtime.h"

namespace fastmeta {

using Address = std::uintptr_t;  // 0 where there is nothing

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

inline void check_sizes(std::initializer_list<i64> sizes, int threads) {
  for (const i64 size : sizes)
    if (size <= 0) throw std::invalid_argument("prototypes: a size must be positive");
  if (threads <= 0) throw std::invalid_argument("prototypes: threads must be positive");
}
inline Metric metric_of(int metric) {
  if (metric < 0 || metric > 3) throw std::invalid_argument("prototypes: no such metric");
  return Metric(metric);
}

template <class R>
Storage storage_of(int storage) {
  constexpr bool halves = std::is_same_v<R, float>;
  if (storage < 0 || storage > 2 || (storage > 0 && !halves))
    throw std::invalid_argument("prototypes: no such storage");
  return Storage(storage);
}

// Memory that a tensor may lie in, for tensors so large that fresh pages would cost as much as what
// is written to them.
struct Buffer {
  explicit Buffer(i64 bytes) : memory(bytes), bytes(bytes) {}
  Memory memory;
  i64 bytes;

  static void bind(pybind11::module_& m) {
    namespace py = pybind11;
    py::class_<Buffer>(m, "Buffer", py::buffer_protocol())
        .def(py::init<i64>())
        .def_buffer([](Buffer& b) {
          return py::buffer_info(static_cast<std::uint8_t*>(b.memory.data()), b.bytes);
        });
  }
};

// What the forward pass of a loss leaves for its backward pass.
template <class R>
struct LossRecord {
  const PrototypeKernels<R>& kernels;  // that made it
  PrototypeLoss<R> loss;
  Memory memory;
  bool differentiable;
};

template <class R>
using PrototypesOf = const PrototypeKernels<R>& (*)();  // of the build that runs

// sizes (T, S, N, D); false where a label or a weight is not as it must be
template <class R>
void bind_means(pybind11::module_& m, const std::string& suffix, PrototypesOf<R> kernels) {
  namespace py = pybind11;
  m.def(("class_means_" + suffix).c_str(),
        [kernels](const std::array<i64, 4>& sizes, int threads, Address x, Address labels,
                  Address weight, Address out) {
          const auto [T, S, N, D] = sizes;
          check_sizes({T, S, N, D}, threads);
          const ClassMeans<R> c{T, S, N, D, threads, at<R>(x), at<i64>(labels), at<R>(weight),
                                at<R>(out)};
          const py::gil_scoped_release release;
          return kernels().class_means(c);
        });
}

// sizes (T, Q, N, D); x, y, a: (address, task stride); h: (address, three strides)
template <class R>
void bind_pairs(pybind11::module_& m, const std::string& suffix, PrototypesOf<R> kernels) {
  namespace py = pybind11;
  m.def(("pairs_" + suffix).c_str(),
        [kernels](int sum, const std::array<i64, 4>& sizes, int threads,
                  const std::pair<Address, i64>& x, const std::pair<Address, i64>& y,
                  const std::pair<Address, i64>& a, const std::array<i64, 4>& h, Address out) {
          const auto [T, Q, N, D] = sizes;
          check_sizes({T, Q, N, D}, threads);
          const auto kind = PairSum(sum);
          if (sum < 0 || sum > 2 || (kind == PairSum::Project) != (a.first != 0) ||
              (kind == PairSum::Pull) != (h[0] != 0))
            throw std::invalid_argument("pairs: bad arguments");
          const Pairs<R> p{kind, T, Q, N, D, threads, at<R>(x.first), x.second, at<R>(y.first),
                           y.second, at<R>(a.first), a.second, at<R>(Address(h[0])), h[1], h[2],
                           h[3], at<R>(out)};
          const py::gil_scoped_release release;
          kernels().pairs(p);
        });
}

template <class R>
void bind_loss(pybind11::module_& m, const std::string& suffix, PrototypesOf<R> kernels) {
  namespace py = pybind11;
  py::class_<LossRecord<R>>(m, ("PrototypeRecord_" + suffix).c_str());

  // sizes (T, S, Q, N, D); storages of support and query; temperatures: (address, task stride);
  // results: loss, logits, accuracy or 0. None where a label, a weight or a temperature is not as
  // it must be.
  m.def(("prototype_loss_" + suffix).c_str(),
        [kernels](const std::array<i64, 5>& sizes, int metric, int threads,
                  const std::array<Address, 6>& data, const std::array<int, 2>& storages,
                  double temperature, const std::pair<Address, i64>& temperatures,
                  const std::array<Address, 3>& results,
                  bool differentiable) -> std::unique_ptr<LossRecord<R>> {
          const auto [T, S, Q, N, D] = sizes;
          check_sizes({T, S, Q, N, D}, threads);
          const auto [support, support_y, support_weight, query, query_y, query_weight] = data;
          const PrototypeLoss<R> p{
              T, S, Q, N, D, metric_of(metric), threads,
              at<void>(support), storage_of<R>(storages[0]), at<i64>(support_y),
              at<R>(support_weight),
              at<void>(query), storage_of<R>(storages[1]), at<i64>(query_y), at<R>(query_weight),
              temperature, at<R>(temperatures.first), temperatures.second};
          const py::gil_scoped_release release;
          const PrototypeKernels<R>& run = kernels();
          std::unique_ptr<LossRecord<R>> record(new LossRecord<R>{
              run, p, Memory(i64(sizeof(R)) * run.record_size(p)), differentiable});
          const auto [loss, logits, accuracy] = results;
          const bool fits = run.loss(p, {at<R>(loss), at<R>(logits), at<R>(accuracy)},
                                     static_cast<R*>(record->memory.data()), differentiable);
          return fits ? std::move(record) : nullptr;
        });

  // The same data again: by now it may lie somewhere else.
  m.def(("prototype_loss_backward_" + suffix).c_str(),
        [](const LossRecord<R>& record, int threads, const std::array<Address, 6>& data,
             const std::pair<Address, i64>& loss, Address support, Address query,
             Address temperature) {
          check_sizes({}, threads);
          if (!loss.first || !data[0] || !data[1] || !data[3])
            throw std::invalid_argument("prototype_loss: an address is missing");
          if (!record.differentiable)
            throw std::invalid_argument("prototype_loss: nothing was kept for backward");
          PrototypeLoss<R> p = record.loss;
          p.threads = threads;
          p.support = at<void>(data[0]), p.support_y = at<i64>(data[1]);
          p.support_weight = at<R>(data[2]), p.query = at<void>(data[3]);
          p.query_y = at<i64>(data[4]), p.query_weight = at<R>(data[5]);
          const PrototypeGradients<R> g{at<R>(loss.first), loss.second, at<void>(support),
                                        at<void>(query), at<R>(temperature)};
          const py::gil_scoped_release release;
          record.kernels.loss_backward(p, static_cast<const R*>(record.memory.data()), g);
        });
}

// sizes (T, Q, N, D); storages of x and y
template <class R>
void bind_nearest(pybind11::module_& m, const std::string& suffix, PrototypesOf<R> kernels) {
  namespace py = pybind11;
  m.def(("nearest_" + suffix).c_str(),
        [kernels](const std::array<i64, 4>& sizes, i64 k, int metric, int threads, Address x,
                  Address y, const std::array<int, 2>& storages, Address values,
                  Address indices) {
          const auto [T, Q, N, D] = sizes;
          check_sizes({T, Q, N, D, k, N - k + 1}, threads);
          if (metric_of(metric) == Metric::Euclidean)
            throw std::invalid_argument("nearest: squared distances have the same order");
          const Nearest<R> p{T, Q, N, D, k, metric_of(metric), threads, at<void>(x),
                             storage_of<R>(storages[0]), at<void>(y), storage_of<R>(storages[1]),
                             at<R>(values), at<i64>(indices)};
          const py::gil_scoped_release release;
          kernels().nearest(p);
        });
}

template <class R>
void bind_prototypes(pybind11::module_& m, const std::string& suffix, PrototypesOf<R> kernels) {
  bind_means<R>(m, suffix, kernels);
  bind_pairs<R>(m, suffix, kernels);
  bind_loss<R>(m, suffix, kernels);
  bind_nearest<R>(m, suffix, kernels);
}

}  // namespace fastmeta
