// Whether Python objects are still what they were: a hundred small comparisons in one call. Nothing
// is kept here, so the garbage collector sees all references where they are, in Python.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <vector>

namespace fastmeta {

namespace py = pybind11;

using Items = PyObject* const*;  // in a flat tuple: fewer lines of cache than tuples in a tuple

// 1 if test(items) is for each `stride` items of a tuple, 0 if not, -1 with a Python error.
template <class Test>
int all_of(PyObject* tuple, Py_ssize_t stride, Test test) {
  if (!PyTuple_CheckExact(tuple) || PyTuple_GET_SIZE(tuple) % stride) {
    PyErr_SetString(PyExc_TypeError, "expected a flat tuple of groups");
    return -1;
  }
  Items items = reinterpret_cast<PyTupleObject*>(tuple)->ob_item;
  for (Items end = items + PyTuple_GET_SIZE(tuple); items != end; items += stride)
    if (const int holds = test(items); holds != 1) return holds;
  return 1;
}

// object, its type, its very __dict__
inline int has_type_and_dict(Items i) {
  if (reinterpret_cast<PyObject*>(Py_TYPE(i[0])) != i[1]) return 0;
  const auto own = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(i[0], nullptr));
  return own ? own.ptr() == i[2] : -1;
}

// dict, its length
inline int has_length(Items i) {
  const Py_ssize_t length = PyObject_Size(i[0]);
  return length < 0 ? -1 : length == PyLong_AsSsize_t(i[1]);
}

// dict, a tuple of the very values in it, in order
inline int has_values(Items i) {
  const auto values = py::reinterpret_steal<py::object>(PyMapping_Values(i[0]));
  if (!values) return -1;
  const Py_ssize_t n = PyTuple_GET_SIZE(i[1]);
  if (PyList_GET_SIZE(values.ptr()) != n) return 0;
  for (Py_ssize_t j = 0; j < n; ++j)
    if (PyList_GET_ITEM(values.ptr(), j) != PyTuple_GET_ITEM(i[1], j)) return 0;
  return 1;
}

// Whether two plain values are equal. All else is the same only as itself: it may have an == of its
// own, like a tensor's, which is no truth.
inline int is_same(PyObject* x, PyObject* y) {
  if (x == y) return 1;
  if (Py_TYPE(x) != Py_TYPE(y)) return 0;
  if (!PyTuple_CheckExact(x))
    return PyLong_CheckExact(x) || PyFloat_CheckExact(x) || PyUnicode_CheckExact(x)
               ? PyObject_RichCompareBool(x, y, Py_EQ)
               : 0;
  const Py_ssize_t n = PyTuple_GET_SIZE(x);
  if (PyTuple_GET_SIZE(y) != n) return 0;
  if (Py_EnterRecursiveCall(" while comparing attributes")) return -1;
  int same = 1;
  for (Py_ssize_t j = 0; j < n && same == 1; ++j)
    same = is_same(PyTuple_GET_ITEM(x, j), PyTuple_GET_ITEM(y, j));
  Py_LeaveRecursiveCall();
  return same;
}

// dict, key, a value that is the same as what is there
inline int has_item(Items i) {
  PyObject* found = PyDict_GetItemWithError(i[0], i[1]);
  if (!found) return PyErr_Occurred() ? -1 : 0;
  return is_same(found, i[2]);
}

// dict, key, the very object there
inline int has_object(Items i) {
  PyObject* found = PyDict_GetItemWithError(i[0], i[1]);
  if (!found) return PyErr_Occurred() ? -1 : 0;
  return found == i[2];
}

// dict, key, whether it is there
inline int has_key(Items i) {
  const int found = PyDict_Contains(i[0], i[1]);
  return found < 0 ? -1 : found == (i[2] == Py_True);
}

// Flat tuples of the groups above -> bool. fastmeta/inner_loop/reading/snapshot.py makes them.
inline PyObject* unchanged(PyObject*, PyObject* const* groups, Py_ssize_t n) {
  static constexpr struct {
    Py_ssize_t stride;
    int (*test)(Items);
  } kinds[] = {{3, has_type_and_dict}, {3, has_object}, {2, has_length},
               {2, has_values},        {3, has_item},   {3, has_key}};
  if (n != 6) {
    PyErr_SetString(PyExc_TypeError, "unchanged: six tuples");
    return nullptr;
  }
  for (Py_ssize_t i = 0; i < n; ++i) {
    const int holds = all_of(groups[i], kinds[i].stride, kinds[i].test);
    if (holds < 0) return nullptr;
    if (holds == 0) Py_RETURN_FALSE;
  }
  Py_RETURN_TRUE;
}

// Flat tuple of name, dict, key -> {name: what is there}, or None where something is missing, None,
// or the same object twice.
inline PyObject* distinct_items(PyObject*, PyObject* sources) {
  const auto found = py::reinterpret_steal<py::object>(PyDict_New());
  if (!found) return nullptr;
  std::vector<PyObject*> seen;
  const int all = all_of(sources, 3, [&](Items i) {
    PyObject* value = PyDict_GetItemWithError(i[1], i[2]);
    if (!value) return PyErr_Occurred() ? -1 : 0;
    if (value == Py_None) return 0;
    seen.push_back(value);
    return PyDict_SetItem(found.ptr(), i[0], value) == 0 ? 1 : -1;
  });
  if (all < 0) return nullptr;
  std::sort(seen.begin(), seen.end());
  if (all == 0 || std::adjacent_find(seen.begin(), seen.end()) != seen.end()) Py_RETURN_NONE;
  return found.inc_ref().ptr();
}

// Without pybind11's dispatch, which would take as long as the function itself.
inline void bind_unchanged(py::module_& m) {
  static PyMethodDef methods[] = {
      {"unchanged", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(unchanged)),
       METH_FASTCALL, nullptr},
      {"distinct_items", distinct_items, METH_O, nullptr},
      {nullptr, nullptr, 0, nullptr}};
  if (PyModule_AddFunctions(m.ptr(), methods) != 0) throw py::error_already_set();
}

}  // namespace fastmeta
