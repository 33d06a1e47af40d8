// New tensors, made through DLPack in half the time that PyTorch takes. Large ones lie in memory that is
// kept when they are gone: fresh pages cost as much as what is written to them.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <vector>

#include "cpu/runtime.h"
#include "looks.h"

namespace fastmeta {

class NewTensor {
 public:
  static constexpr int most_dimensions = 6;

  // [shape] of so many elements; PyTorch calls `release` when nobody needs it any more.
  static dlpack::ManagedTensor* make(dlpack::DataType dtype, int ndim, const i64* shape, i64 elements) {
    const i64 bytes = elements * (dtype.bits / 8);
    const bool kept = bytes >= kept_from;
    void* memory = std::aligned_alloc(alignof(NewTensor), sizeof(NewTensor) + (kept ? 0 : rounded(bytes)));
    if (!memory) throw std::bad_alloc();
    std::unique_ptr<void, void (*)(void*)> unused(memory, std::free);
    auto* made = new (memory) NewTensor(dtype, ndim, shape, kept ? bytes : 0);
    unused.release();
    return &made->managed_;
  }

 private:
  static constexpr i64 kept_from = i64(1) << 17;  // from here on malloc may give pages back

  static i64 rounded(i64 bytes) { return (bytes + 63) / 64 * 64; }

  NewTensor(dlpack::DataType dtype, int ndim, const i64* shape, i64 kept_bytes) {
    if (kept_bytes) kept_.emplace(kept_bytes);
    for (i64 stride = 1, i = ndim - 1; i >= 0; stride *= shape[i--]) shape_[i] = shape[i], strides_[i] = stride;
    managed_.major = 1, managed_.minor = 1;
    managed_.context = this;
    managed_.release = [](dlpack::ManagedTensor* m) {
      auto* self = static_cast<NewTensor*>(m->context);
      self->~NewTensor();
      std::free(self);
    };
    managed_.tensor = {kept_ ? kept_->data() : this + 1, {dlpack::cpu, 0}, ndim, dtype, shape_, strides_, 0};
  }

  alignas(64) dlpack::ManagedTensor managed_{};
  i64 shape_[most_dimensions], strides_[most_dimensions];
  std::optional<Memory> kept_;
};

// A contiguous tensor of this dtype, or None where PyTorch is to make it: of no elements, or of too many.
inline PyObject* make_tensor(const dlpack::Tensor& like, int ndim, const i64* shape) {
  if (ndim > NewTensor::most_dimensions || like.device.type != dlpack::cpu || like.dtype.lanes != 1)
    Py_RETURN_NONE;
  i64 elements = 1;
  for (int i = 0; i < ndim; ++i)
    if (shape[i] <= 0 || __builtin_mul_overflow(elements, shape[i], &elements)) Py_RETURN_NONE;
  if (elements > i64(1) << 56) Py_RETURN_NONE;
  try {
    return looker.adopt(NewTensor::make(like.dtype, ndim, shape, elements));
  } catch (const std::bad_alloc&) {
    Py_RETURN_NONE;  // PyTorch says how much was asked for
  }
}

// (like, shape) -> a tensor of the dtype of `like`, or None as above, or if `like` is not plain.
inline PyObject* new_empty(PyObject*, PyObject* const* arguments, Py_ssize_t n) {
  if (n != 2 || !PyTuple_Check(arguments[1])) {
    PyErr_SetString(PyExc_TypeError, "new_empty: a tensor and a tuple");
    return nullptr;
  }
  dlpack::Tensor like;
  const Py_ssize_t ndim = PyTuple_GET_SIZE(arguments[1]);
  if (ndim > NewTensor::most_dimensions || !looker.view(arguments[0], like)) Py_RETURN_NONE;
  i64 shape[NewTensor::most_dimensions];
  for (Py_ssize_t i = 0; i < ndim; ++i) {
    shape[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(arguments[1], i));
    if (shape[i] == -1 && PyErr_Occurred()) return nullptr;
  }
  return make_tensor(like, int(ndim), shape);
}

// A tensor for the gradient of one, None for what requires none; nullptr, perhaps with a Python error, for
// what is no leaf that only waits for its first gradient.
inline PyObject* fresh_gradient(PyObject* tensor) {
  const int requires = looker.requires_grad(tensor);
  if (requires == 0) return Py_NewRef(Py_None);
  dlpack::Tensor t;
  if (requires < 0 || !looker.is_fresh_leaf(tensor) || !looker.view(tensor, t)) return nullptr;
  PyObject* made = make_tensor(t, t.ndim, t.shape);
  if (made != Py_None) return made;
  Py_DECREF(made);
  return nullptr;
}

// (list of tensors) -> for each that requires grad a tensor to write its gradient to, else None. None
// instead of the list if one is the same as another, or no leaf that only waits for its first gradient.
inline PyObject* fresh_gradients(PyObject*, PyObject* tensors) {
  if (!PyList_CheckExact(tensors)) Py_RETURN_NONE;
  const Py_ssize_t n = PyList_GET_SIZE(tensors);
  py::list gradients{size_t(n)};
  std::vector<PyObject*> seen;
  for (Py_ssize_t i = 0; i < n; ++i) {
    PyObject* tensor = PyList_GET_ITEM(tensors, i);
    PyObject* gradient = fresh_gradient(tensor);
    if (!gradient) return none_or_error();
    PyList_SET_ITEM(gradients.ptr(), i, gradient);
    if (gradient != Py_None) seen.push_back(tensor);
  }
  std::sort(seen.begin(), seen.end());
  if (std::adjacent_find(seen.begin(), seen.end()) != seen.end()) Py_RETURN_NONE;
  return gradients.release().ptr();
}

// (tensors, gradients, None where there is none): each becomes the .grad of a tensor without one. Returns what
// is left, as a list of pairs.
inline PyObject* give_gradients(PyObject*, PyObject* const* lists, Py_ssize_t n_lists) {
  if (n_lists != 2 || !PyList_CheckExact(lists[0]) || !PyList_CheckExact(lists[1]) ||
      PyList_GET_SIZE(lists[0]) != PyList_GET_SIZE(lists[1])) {
    PyErr_SetString(PyExc_TypeError, "give_gradients: two lists of one length");
    return nullptr;
  }
  py::list left;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(lists[0]); ++i) {
    PyObject *tensor = PyList_GET_ITEM(lists[0], i), *gradient = PyList_GET_ITEM(lists[1], i);
    if (gradient == Py_None) continue;
    const int given = looker.give_first_grad(tensor, gradient);
    if (given < 0) return nullptr;
    if (!given) left.append(py::make_tuple(py::handle(tensor), py::handle(gradient)));
  }
  return left.release().ptr();
}

// Without pybind11's dispatch, which would take as long as the function itself.
inline void bind_empty(py::module_& m) {
  static PyMethodDef methods[] = {
      {"new_empty", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(new_empty)), METH_FASTCALL,
       nullptr},
      {"fresh_gradients", fresh_gradients, METH_O, nullptr},
      {"give_gradients", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(give_gradients)),
       METH_FASTCALL, nullptr},
      {nullptr, nullptr, 0, nullptr}};
  if (PyModule_AddFunctions(m.ptr(), methods) != 0) throw py::error_already_set();
}

}  // namespace fastmeta
