// Whether Python objects are still what they were: a hundred small comparisons in one call. Nothing
// is kept here, so the garbage collector sees all references where they are, in Python.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <vector>

namespace fastmeta {

namespace py = pybind11;

// 1 if test(item) is for each item of a tuple, 0 if not, -1 with a Python error.
template <class Test>
int all_of(PyObject* tuple, Test test) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); ++i)
    if (const int holds = test(PyTuple_GET_ITEM(tuple, i)); holds != 1) return holds;
  return 1;
}

// (object, its type)
inline int has_type(PyObject* item) {
  return reinterpret_cast<PyObject*>(Py_TYPE(PyTuple_GET_ITEM(item, 0))) ==
         PyTuple_GET_ITEM(item, 1);
}

// (dict, its length)
inline int has_length(PyObject* item) {
  const Py_ssize_t length = PyObject_Size(PyTuple_GET_ITEM(item, 0));
  return length < 0 ? -1 : length == PyLong_AsSsize_t(PyTuple_GET_ITEM(item, 1));
}

// (dict, the very values in it, in order)
inline int has_values(PyObject* item) {
  const auto values =
      py::reinterpret_steal<py::object>(PyMapping_Values(PyTuple_GET_ITEM(item, 0)));
  if (!values) return -1;
  PyObject* expected = PyTuple_GET_ITEM(item, 1);
  const Py_ssize_t n = PyTuple_GET_SIZE(expected);
  if (PyList_GET_SIZE(values.ptr()) != n) return 0;
  for (Py_ssize_t i = 0; i < n; ++i)
    if (PyList_GET_ITEM(values.ptr(), i) != PyTuple_GET_ITEM(expected, i)) return 0;
  return 1;
}

// (dict, key, a value of the same type and equal to what is there)
inline int has_item(PyObject* item) {
  PyObject* found = PyDict_GetItemWithError(PyTuple_GET_ITEM(item, 0), PyTuple_GET_ITEM(item, 1));
  if (!found) return PyErr_Occurred() ? -1 : 0;
  PyObject* expected = PyTuple_GET_ITEM(item, 2);
  if (found == expected) return 1;
  if (Py_TYPE(found) != Py_TYPE(expected)) return 0;
  const auto held = py::reinterpret_borrow<py::object>(found);
  return PyObject_RichCompareBool(found, expected, Py_EQ);
}

// (dict, key, whether it is there)
inline int has_key(PyObject* item) {
  const int found = PyDict_Contains(PyTuple_GET_ITEM(item, 0), PyTuple_GET_ITEM(item, 1));
  return found < 0 ? -1 : found == (PyTuple_GET_ITEM(item, 2) == Py_True);
}

// Tuples of the tuples above -> bool. fastmeta/inner_loop/snapshot.py makes them.
inline PyObject* unchanged(PyObject*, PyObject* const* groups, Py_ssize_t n) {
  static constexpr int (*tests[])(PyObject*) = {has_type, has_length, has_values, has_item, has_key};
  if (n != 5) {
    PyErr_SetString(PyExc_TypeError, "unchanged: five tuples");
    return nullptr;
  }
  for (Py_ssize_t i = 0; i < n; ++i) {
    const int holds = all_of(groups[i], tests[i]);
    if (holds < 0) return nullptr;
    if (holds == 0) Py_RETURN_FALSE;
  }
  Py_RETURN_TRUE;
}

// Tuple of (name, dict, key) -> {name: what is there}, or None where something is missing, None, or
// the same object twice.
inline PyObject* distinct_items(PyObject*, PyObject* sources) {
  if (!PyTuple_CheckExact(sources)) {
    PyErr_SetString(PyExc_TypeError, "distinct_items: a tuple");
    return nullptr;
  }
  auto found = py::reinterpret_steal<py::object>(PyDict_New());
  if (!found) return nullptr;
  std::vector<PyObject*> seen;
  const int all = all_of(sources, [&](PyObject* source) {
    PyObject* own = PyTuple_GET_ITEM(source, 1);
    PyObject* value = PyDict_GetItemWithError(own, PyTuple_GET_ITEM(source, 2));
    if (!value) return PyErr_Occurred() ? -1 : 0;
    if (value == Py_None) return 0;
    seen.push_back(value);
    return PyDict_SetItem(found.ptr(), PyTuple_GET_ITEM(source, 0), value) == 0 ? 1 : -1;
  });
  if (all < 0) return nullptr;
  std::sort(seen.begin(), seen.end());
  if (all == 0 || std::adjacent_find(seen.begin(), seen.end()) != seen.end()) Py_RETURN_NONE;
  return found.release().ptr();
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
