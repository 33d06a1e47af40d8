// What tensors look like, and where they are, read through DLPack's exchange API: a tenth of a
// microsecond a tensor, where Python's attributes take one. No header of PyTorch is needed.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>
#include <string>

namespace fastmeta {

namespace py = pybind11;

// The part of dlpack.h (version 1) that is used here.
namespace dlpack {
constexpr int integer = 0, real = 2, bfloat = 4;  // codes of a DataType
constexpr std::int32_t cpu = 1;      // a type of Device
struct Device {
  std::int32_t type, id;
};
struct DataType {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};
struct Tensor {
  void* data;
  Device device;
  std::int32_t ndim;
  DataType dtype;
  std::int64_t *shape, *strides;
  std::uint64_t byte_offset;
};
struct ManagedTensor {
  std::uint32_t major, minor;
  void* context;
  void (*release)(ManagedTensor*);
  std::uint64_t flags;
  Tensor tensor;
};
struct ExchangeApi {
  std::uint32_t major, minor;
  ExchangeApi* previous;
  void *allocate, *export_owning;
  int (*import)(ManagedTensor* owned, void** object);  // takes it over
  int (*view)(void* object, Tensor* out);  // borrows shape and strides
  void* current_stream;
};
}  // namespace dlpack

// Looks at tensors of exactly these types; whatever else there is, Python looks at.
class Looker {
 public:
  bool learn(py::capsule api, py::handle tensor, py::handle parameter) {
    if (std::strcmp(api.name(), "dlpack_exchange_api") != 0) return false;
    const auto* found = api.get_pointer<const dlpack::ExchangeApi>();
    if (found->major != 1 || !found->view) return false;
    view_ = found->view, import_ = found->import;
    tensor_ = reinterpret_cast<PyTypeObject*>(tensor.inc_ref().ptr());
    parameter_ = reinterpret_cast<PyTypeObject*>(parameter.inc_ref().ptr());
    requires_grad_ = PyUnicode_InternFromString("requires_grad");
    is_leaf_ = PyUnicode_InternFromString("is_leaf");
    grad_ = PyUnicode_InternFromString("grad");
    hooks_ = PyUnicode_InternFromString("_backward_hooks");
    more_hooks_ = PyUnicode_InternFromString("_post_accumulate_grad_hooks");
    dtype_ = PyUnicode_InternFromString("dtype");
    has_grad_dtype_ = PyObject_HasAttrString(tensor.ptr(), "grad_dtype");
    grad_dtype_ = PyUnicode_InternFromString("grad_dtype");
    is_neg_ = py::object(tensor.attr("is_neg")).release().ptr();
    return true;
  }

  // Shape, dtype and where it lies; false if the tensor is another kind.
  bool view(PyObject* object, dlpack::Tensor& t) const {
    if (!view_ || (Py_TYPE(object) != tensor_ && Py_TYPE(object) != parameter_)) return false;
    if (view_(object, &t) == 0) return true;
    PyErr_Clear();  // no dense tensor
    return false;
  }

  // Appends shape, dtype, device and whether it is plain and contiguous; false, perhaps with a Python
  // error, if the tensor is another kind.
  bool look(PyObject* object, std::string& key, dlpack::Tensor& t) const {
    if (!view(object, t)) return false;
    const int turned = turned_sign(object);
    if (turned < 0) return false;
    const Head head{t.ndim, t.device.type, t.device.id, t.dtype, contiguous(t) && !turned};
    append(key, &head, sizeof head);
    append(key, t.shape, sizeof(std::int64_t) * std::size_t(t.ndim));
    return true;
  }

  // A tensor that takes over `owned`; nullptr with a Python error. Only where `learn` was true.
  PyObject* adopt(dlpack::ManagedTensor* owned) const {
    void* object = nullptr;
    return import_(owned, &object) == 0 ? static_cast<PyObject*>(object) : nullptr;
  }

  // Appends whether it requires grad; false with a Python error.
  bool look_at_grad(PyObject* object, std::string& key) const {
    const int requires = requires_grad(object);
    if (requires < 0) return false;
    key.push_back(char(requires));
    return true;
  }

  // 1 if it requires grad, 0 if not, -1 with a Python error.
  int requires_grad(PyObject* object) const {
    const auto flag = py::reinterpret_steal<py::object>(PyObject_GetAttr(object, requires_grad_));
    return flag ? flag.ptr() == Py_True : -1;
  }

  // Is it a leaf without hooks that has no gradient yet and wants one of its own dtype? False too with a
  // Python error.
  bool is_fresh_leaf(PyObject* object) const {
    if (Py_TYPE(object) != tensor_ && Py_TYPE(object) != parameter_) return false;
    if (!is(object, is_leaf_, Py_True) || !is(object, hooks_, Py_None) ||
        !is(object, more_hooks_, Py_None) || !is(object, grad_, Py_None))
      return false;
    if (!has_grad_dtype_) return true;
    const auto dtype = py::reinterpret_steal<py::object>(PyObject_GetAttr(object, dtype_));
    return dtype && is(object, grad_dtype_, dtype.ptr());
  }

  // 1 if it had no gradient and this becomes it, 0 if it has one or cannot be told, -1 with a Python error.
  int give_first_grad(PyObject* tensor, PyObject* gradient) const {
    if (Py_TYPE(tensor) != tensor_ && Py_TYPE(tensor) != parameter_) return 0;
    const auto now = py::reinterpret_steal<py::object>(PyObject_GetAttr(tensor, grad_));
    if (!now) return -1;
    if (!now.is_none()) return 0;
    return PyObject_SetAttr(tensor, grad_, gradient) == 0 ? 1 : -1;
  }

 private:
  static bool is(PyObject* object, PyObject* name, PyObject* value) {
    return py::reinterpret_steal<py::object>(PyObject_GetAttr(object, name)).ptr() == value;
  }

  struct Head {
    std::int32_t ndim, device_type, device_id;
    dlpack::DataType dtype;
    std::int32_t contiguous;
  };
  static_assert(sizeof(Head) == 20, "a key has no padding");

  // Whether it is a view that stands for minus what is in memory, which DLPack does not tell.
  int turned_sign(PyObject* object) const {
    const auto flag = py::reinterpret_steal<py::object>(
        PyObject_Vectorcall(is_neg_, &object, 1, nullptr));
    return flag ? flag.ptr() == Py_True : -1;
  }

  static bool contiguous(const dlpack::Tensor& t) {
    std::int64_t expected = 1;
    bool dense = true;
    for (int i = t.ndim - 1; i >= 0; --i) {
      if (t.shape[i] == 0) return true;
      dense = dense && (t.shape[i] == 1 || !t.strides || t.strides[i] == expected);
      expected *= t.shape[i];
    }
    return dense;
  }
  static void append(std::string& key, const void* from, std::size_t bytes) {
    key.append(static_cast<const char*>(from), bytes);
  }

  int (*view_)(void*, dlpack::Tensor*) = nullptr;
  int (*import_)(dlpack::ManagedTensor*, void**) = nullptr;
  PyTypeObject *tensor_ = nullptr, *parameter_ = nullptr;
  PyObject *requires_grad_ = nullptr, *is_neg_ = nullptr, *is_leaf_ = nullptr, *grad_ = nullptr;
  PyObject *hooks_ = nullptr, *more_hooks_ = nullptr, *dtype_ = nullptr, *grad_dtype_ = nullptr;
  bool has_grad_dtype_ = false;
};

inline Looker looker;

template <class F>
bool each_item(PyObject* list, F f) {
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); ++i)
    if (!f(PyList_GET_ITEM(list, i))) return false;
  return true;
}

inline PyObject* none_or_error() { return PyErr_Occurred() ? nullptr : Py_NewRef(Py_None); }

inline PyObject* as_bytes(const std::string& key) {
  return PyBytes_FromStringAndSize(key.data(), Py_ssize_t(key.size()));
}

// (list of tensors) -> a key of what they look like and whether they require grad, or None.
inline PyObject* looks(PyObject*, PyObject* tensors) {
  if (!PyList_CheckExact(tensors)) return Py_NewRef(Py_None);
  std::string key;
  key.reserve(64 * std::size_t(PyList_GET_SIZE(tensors)));
  const bool all = each_item(tensors, [&](PyObject* item) {
    dlpack::Tensor t;
    return looker.look(item, key, t) && looker.look_at_grad(item, key);
  });
  return all ? as_bytes(key) : none_or_error();
}

// (list of tensors) -> (a key of what they look like, their addresses), or None.
inline PyObject* looks_and_addresses(PyObject*, PyObject* tensors) {
  if (!PyList_CheckExact(tensors)) return Py_NewRef(Py_None);
  std::string key;
  key.reserve(64 * std::size_t(PyList_GET_SIZE(tensors)));
  py::list addresses(std::size_t(PyList_GET_SIZE(tensors)));
  Py_ssize_t n = 0;
  const bool all = each_item(tensors, [&](PyObject* item) {
    dlpack::Tensor t;
    if (!looker.look(item, key, t)) return false;
    PyObject* address = PyLong_FromVoidPtr(static_cast<char*>(t.data) + t.byte_offset);
    if (!address) return false;
    PyList_SET_ITEM(addresses.ptr(), n++, address);
    return true;
  });
  if (!all) return none_or_error();
  PyObject* bytes = as_bytes(key);
  return bytes ? Py_BuildValue("(NO)", bytes, addresses.ptr()) : nullptr;
}

// Without pybind11's dispatch, which would take as long as the function itself.
inline void bind_looks(py::module_& m) {
  static PyMethodDef methods[] = {
      {"looks", looks, METH_O, nullptr},
      {"looks_and_addresses", looks_and_addresses, METH_O, nullptr},
      {nullptr, nullptr, 0, nullptr}};
  if (PyModule_AddFunctions(m.ptr(), methods) != 0) throw py::error_already_set();
  m.def("learn_tensors", [](py::capsule api, py::handle tensor, py::handle parameter) {
    return looker.learn(api, tensor, parameter);
  });
}

}  // namespace fastmeta
