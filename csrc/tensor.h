// A tensor that Python hands over: where it lies, its shape and what it holds, read through DLPack where
// that is at hand (looks.h) and by its attributes elsewhere. Its layout has been checked in Python.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <type_traits>

#include "looks.h"

namespace fastmeta {

class TensorArgument {
 public:
  // None: nothing is given.
  explicit TensorArgument(py::handle tensor) {
    if (tensor.is_none()) return;
    dlpack::Tensor t;
    if (looker.view(tensor.ptr(), t)) {
      data_ = static_cast<char*>(t.data) + t.byte_offset;
      take_shape(t.ndim, [&](int i) { return t.shape[i]; });
      if (t.ndim) first_stride_ = t.strides ? t.strides[0] : elements_ / (t.shape[0] ? t.shape[0] : 1);
      kind_ = t.dtype.code, bits_ = t.dtype.bits;
      on_cpu_ = t.device.type == dlpack::cpu;
    } else {
      data_ = reinterpret_cast<void*>(tensor.attr("data_ptr")().cast<std::uintptr_t>());
      const py::tuple shape = tensor.attr("shape");
      take_shape(int(shape.size()), [&](int i) { return shape[size_t(i)].cast<std::int64_t>(); });
      if (ndim_) first_stride_ = tensor.attr("stride")(0).cast<std::int64_t>();
      const auto dtype = py::str(tensor.attr("dtype")).cast<std::string>();
      kind_ = dtype == "torch.int64" ? dlpack::integer : dtype == "torch.bfloat16" ? dlpack::bfloat : dlpack::real;
      bits_ = 8 * tensor.attr("element_size")().cast<int>();
      on_cpu_ = tensor.attr("is_cpu").cast<bool>();
    }
  }

  bool given() const { return data_; }
  int ndim() const { return ndim_; }
  std::int64_t elements() const { return elements_; }
  std::int64_t first_stride() const { return first_stride_; }
  std::int64_t size(int dimension) const { return shape_[size_t(dimension)]; }
  bool has_shape(std::initializer_list<std::int64_t> shape) const {
    return int(shape.size()) == ndim_ && std::equal(shape.begin(), shape.end(), shape_.begin());
  }
  template <class T>
  T* data() const { return static_cast<T*>(data_); }
  // Is it of T, and where this code can read it?
  template <class T>
  bool holds() const {
    return on_cpu_ && kind_ == (std::is_floating_point_v<T> ? dlpack::real : dlpack::integer) &&
           bits_ == 8 * int(sizeof(T));
  }
  bool holds_halves() const { return on_cpu_ && (is_bfloat16() || is_float16()); }
  bool is_bfloat16() const { return kind_ == dlpack::bfloat; }
  bool is_float16() const { return kind_ == dlpack::real && bits_ == 16; }

 private:
  static constexpr int most_dimensions = 4;  // that are asked for

  template <class Size>
  void take_shape(int ndim, Size size) {
    ndim_ = ndim;
    for (int i = 0; i < ndim; ++i) {
      elements_ *= size(i);
      if (i < most_dimensions) shape_[size_t(i)] = size(i);
    }
  }

  void* data_ = nullptr;
  int ndim_ = 0;
  std::int64_t elements_ = 1, first_stride_ = 1;
  std::array<std::int64_t, most_dimensions> shape_{};
  int kind_ = dlpack::real, bits_ = 0;
  bool on_cpu_ = false;
};

}  // namespace fastmeta
