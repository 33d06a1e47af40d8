// The prototypes' part of the Python module: addresses and sizes in, checked to fit together.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "cpu/prototypes.h"
#include "cpu/runtime.h"
#include "tensor.h"

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

// The tensors of a task, in the order of fastmeta/backends/prototypes.py.
struct TaskArgument {
  TensorArgument support, support_y, support_weight, query, query_y, query_weight;

  explicit TaskArgument(const pybind11::tuple& task)
      : support(task[0]), support_y(task[1]), support_weight(task[2]), query(task[3]), query_y(task[4]),
        query_weight(task[5]) {}
};

template <class R>
Storage storage_of(const TensorArgument& features) {
  return storage_of<R>(features.is_bfloat16() ? 1 : features.is_float16() ? 2 : 0);
}

// What is asked of each task: fits what `loss` says of sizes.
template <class R>
void take_task(PrototypeLoss<R>& loss, const TaskArgument& task) {
  const i64 T = loss.tasks, S = loss.support_n, Q = loss.queries, D = loss.features;
  const auto features = [&](const TensorArgument& x, i64 samples) {
    const bool halves = std::is_same_v<R, float> && x.holds_halves();
    return x.given() && x.has_shape({T, samples, D}) && (halves || x.template holds<R>());
  };
  const auto labels = [&](const TensorArgument& y, i64 samples) {
    return y.given() && y.has_shape({T, samples}) && y.template holds<i64>();
  };
  const auto weights = [&](const TensorArgument& w, i64 samples) {
    return !w.given() || (w.has_shape({T, samples}) && w.template holds<R>());
  };
  if (!features(task.support, S) || !features(task.query, Q) || !labels(task.support_y, S) ||
      !labels(task.query_y, Q) || !weights(task.support_weight, S) || !weights(task.query_weight, Q))
    throw std::invalid_argument("prototype_loss: the tensors of a task do not fit together");
  loss.support = task.support.template data<void>(), loss.query = task.query.template data<void>();
  loss.support_storage = storage_of<R>(task.support), loss.query_storage = storage_of<R>(task.query);
  loss.support_y = task.support_y.template data<i64>();
  loss.query_y = task.query_y.template data<i64>();
  loss.support_weight = task.support_weight.template data<R>();
  loss.query_weight = task.query_weight.template data<R>();
}

template <class R>
PrototypeLoss<R> loss_of(const TaskArgument& task, i64 n_way, int metric, int threads,
                         pybind11::handle temperature) {
  if (task.support.ndim() != 3 || task.query.ndim() != 3)
    throw std::invalid_argument("prototype_loss: features are [T, samples, D]");
  PrototypeLoss<R> p{};
  p.tasks = task.support.size(0), p.support_n = task.support.size(1), p.features = task.support.size(2);
  p.queries = task.query.size(1), p.classes = n_way;
  check_sizes({p.tasks, p.support_n, p.queries, p.classes, p.features}, threads);
  p.metric = metric_of(metric), p.threads = threads;
  take_task(p, task);
  if (PyFloat_Check(temperature.ptr()) || PyLong_Check(temperature.ptr())) {
    p.temperature = temperature.cast<double>();
    return p;
  }
  const TensorArgument numbers(temperature);
  if (!numbers.given() || !numbers.template holds<R>() ||
      !(numbers.has_shape({}) || numbers.has_shape({p.tasks})))
    throw std::invalid_argument("prototype_loss: a temperature is a number, [] or [T]");
  p.temperatures = numbers.template data<R>(), p.temperature_task = numbers.ndim();
  return p;
}

// Gradients for features, None where none is wanted.
template <class R>
PrototypeGradients<R> gradients_of(const PrototypeLoss<R>& p, pybind11::handle support,
                                   pybind11::handle query) {
  const TensorArgument for_support(support), for_query(query);
  if ((for_support.given() && !for_support.has_shape({p.tasks, p.support_n, p.features})) ||
      (for_query.given() && !for_query.has_shape({p.tasks, p.queries, p.features})))
    throw std::invalid_argument("prototype_loss: the gradients do not fit the task");
  return {nullptr, 0, for_support.template data<void>(), for_query.template data<void>(), nullptr};
}

template <class R>
void bind_loss(pybind11::module_& m, const std::string& suffix, PrototypesOf<R> kernels) {
  namespace py = pybind11;
  py::class_<LossRecord<R>>(m, ("PrototypeRecord_" + suffix).c_str());

  // Tensors that are contiguous, None where one is not there. loss: [T], or [] for the sum of the losses
  // times the share. for_support and for_query: the gradients of the sum of the losses times the factor, if
  // they are wanted at once. None where a label, a weight or a temperature is not as it must be.
  m.def(("prototype_loss_" + suffix).c_str(),
        [kernels](const py::tuple& task, i64 n_way, int metric, int threads, py::handle temperature,
                  py::handle loss, double share, py::handle logits, py::handle accuracy,
                  bool differentiable, py::handle for_support, py::handle for_query,
                  R factor) -> std::unique_ptr<LossRecord<R>> {
          const auto p = loss_of<R>(TaskArgument(task), n_way, metric, threads, temperature);
          const TensorArgument losses(loss), scores(logits), shares(accuracy);
          const auto gradients = gradients_of(p, for_support, for_query);
          const bool at_once = gradients.support || gradients.query;
          if (at_once && !differentiable)
            throw std::invalid_argument("prototype_loss: gradients of what is not differentiable");
          const bool reduces = losses.ndim() == 0;
          if (!(reduces || losses.has_shape({p.tasks})) || !scores.has_shape({p.tasks, p.queries, p.classes}) ||
              (shares.given() && !shares.has_shape({p.tasks})))
            throw std::invalid_argument("prototype_loss: the results do not fit the task");
          const py::gil_scoped_release release;
          const PrototypeKernels<R>& run = kernels();
          std::unique_ptr<LossRecord<R>> record(new LossRecord<R>{
              run, p, Memory(i64(sizeof(R)) * run.record_size(p)), differentiable});
          const Memory apart(reduces ? i64(sizeof(R)) * p.tasks : 0);
          R* const to = reduces ? static_cast<R*>(apart.data()) : losses.template data<R>();
          const PrototypeResult<R> out{to, scores.template data<R>(),
                                       shares.template data<R>()};
          PrototypeGradients<R> wanted = gradients;
          wanted.loss = &factor;  // of every task
          const bool fits = run.loss(p, out, static_cast<R*>(record->memory.data()), differentiable,
                                     at_once ? &wanted : nullptr);
          if (fits && reduces) *losses.template data<R>() = R(share * std::accumulate(to, to + p.tasks, 0.0));
          return fits ? std::move(record) : nullptr;
        });

  // The same data again: by now it may lie somewhere else.
  m.def(("prototype_loss_backward_" + suffix).c_str(),
        [](const LossRecord<R>& record, const py::tuple& task, int threads, py::handle loss,
           i64 loss_task, py::handle support, py::handle query, py::handle temperature) {
          check_sizes({}, threads);
          if (!record.differentiable)
            throw std::invalid_argument("prototype_loss: nothing was kept for backward");
          PrototypeLoss<R> p = record.loss;
          p.threads = threads;
          take_task(p, TaskArgument(task));
          if (p.support_storage != record.loss.support_storage ||
              p.query_storage != record.loss.query_storage ||
              bool(p.support_weight) != bool(record.loss.support_weight))
            throw std::invalid_argument("prototype_loss: another task than that of the forward");
          const TensorArgument from(loss), for_temperature(temperature);
          if (!from.given() || !from.has_shape({p.tasks}) ||
              (for_temperature.given() && !for_temperature.has_shape({p.tasks})))
            throw std::invalid_argument("prototype_loss: the gradients do not fit the task");
          PrototypeGradients<R> g = gradients_of(p, support, query);
          g.loss = from.template data<R>(), g.loss_task = loss_task;
          g.temperature = for_temperature.template data<R>();
          const py::gil_scoped_release release;
          if (!record.kernels.loss_backward(p, static_cast<const R*>(record.memory.data()), g))
            throw std::invalid_argument(
                "prototype_loss: support_y or its weight was changed, past autograd, since the forward");
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
