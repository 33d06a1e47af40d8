// The Python module fastmeta._native: takes pointers and sizes, checks that they fit together, and
// calls the kernels without the GIL. Shapes, dtypes and values have been checked in Python, which asks
// here whether tensors and modules look like those that it has checked (looks.h, unchanged.h).
#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bind_prototypes.h"
#include "call.h"
#include "cpu/dispatch.h"
#include "cpu/runtime.h"
#include "empty.h"
#include "looks.h"
#include "network/spec.h"
#include "tensor.h"
#include "unchanged.h"

using namespace fastmeta;

namespace {

// What a forward leaves for its backward, in the layout of the kernels that wrote it.
struct Record {
  explicit Record(i64 bytes) : memory(bytes), bytes(bytes) {}
  Memory memory;
  i64 bytes;
};

const Variant* running = find_variant(nullptr);

std::string none_runs() {
  std::string names;
  for (const Variant* v = variants(); v->name; ++v) names += std::string(v == variants() ? "" : ", ") + v->name;
  return "they were compiled for other processors (" + names + "): build fastmeta again on this one";
}

template <class R>
const Kernels<R>& kernels();
template <>
const Kernels<float>& kernels<float>() { return *running->f32; }
template <>
const Kernels<double>& kernels<double>() { return *running->f64; }

// What the kernels may rely on: see InnerLoop.
template <class R>
void check_weights_stay(const InnerLoop<R>& loop,
                        std::initializer_list<const Addresses*> of_weights) {
  for (const Addresses* one : of_weights)
    require(one->empty() || !loop.weights_stay,
            "with a query and one rate there are no fast weights and no gradients of rates");
}

// Outputs by address, 0 where one is not wanted; fast: one a parameter; moments: one a stage.
template <class R>
std::unique_ptr<Record> forward(const Call<R>& call, int threads, const Addresses& addresses,
                                bool keep, std::uintptr_t predictions, std::uintptr_t loss,
                                const Addresses& fast, const Addresses& moments) {
  const typename Call<R>::Bound bound(call, threads, addresses);
  check_weights_stay(bound.loop, {&fast});
  const auto fast_out = pointers<R>(fast, call.n_parameters(), "fast: one a parameter");
  const auto moments_out = pointers<R>(moments, call.n_stages(), "moments: one a stage");
  ForwardOut<R> out{nullptr, pointer<R>(predictions), pointer<R>(loss), data_or_null(fast_out),
                    data_or_null(moments_out)};
  const py::gil_scoped_release release;
  std::unique_ptr<Record> kept;
  if (keep) {
    kept = std::make_unique<Record>(i64(sizeof(R)) * kernels<R>().record_size(bound.loop));
    out.record = static_cast<R*>(kept->memory.data());
  }
  kernels<R>().forward(bound.loop, out);
  return kept;
}

// gradients of the outputs, then of the inputs, by address, 0 where there is none or none is wanted.
template <class R>
void backward(const Call<R>& call, int threads, const Addresses& addresses, const Record& record,
              std::uintptr_t grad_loss, std::uintptr_t grad_predictions,
              const Addresses& grad_fast, const Addresses& out_parameters,
              const Addresses& out_rates, std::uintptr_t out_support_x,
              std::uintptr_t out_query_x) {
  const typename Call<R>::Bound bound(call, threads, addresses);
  const size_t n = call.n_parameters();
  require(record.bytes == i64(sizeof(R)) * kernels<R>().record_size(bound.loop),
          "the record is that of another call");
  check_weights_stay(bound.loop, {&grad_fast, &out_rates});
  const auto fast = pointers<const R>(grad_fast, n, "grad_fast: one a parameter");
  const auto parameter_gradients =
      pointers<R>(out_parameters, n, "out_parameters: one a parameter");
  require(!parameter_gradients.empty(), "out_parameters: one a parameter");
  const auto rate_gradients = pointers<R>(out_rates, n, "out_rates: one a parameter");
  const BackwardIn<R> in{static_cast<const R*>(record.memory.data()), pointer<const R>(grad_loss),
                         pointer<const R>(grad_predictions), data_or_null(fast)};
  const BackwardOut<R> out{parameter_gradients.data(), data_or_null(rate_gradients),
                           pointer<R>(out_support_x), pointer<R>(out_query_x)};
  const py::gil_scoped_release release;
  kernels<R>().backward(bound.loop, in, out);
}

// Where tensors lie, one a parameter, None where there is nothing; an empty list where there is none at all.
template <class R>
std::vector<R*> data_of(const py::sequence& tensors, size_t n) {
  require(tensors.size() == 0 || tensors.size() == n, "gradients: one a parameter");
  std::vector<R*> out;
  for (const py::handle tensor : tensors) out.push_back(TensorArgument(tensor).data<R>());
  return out;
}

// Outputs are tensors, of parameters and rates one a parameter, None where one is not wanted.
template <class R>
void step(const Call<R>& call, int threads, const Addresses& addresses, py::handle predictions,
          py::handle loss, const py::sequence& out_parameters, const py::sequence& out_rates, R factor) {
  const typename Call<R>::Bound bound(call, threads, addresses);
  require(bound.loop.query.n > 0, "without a query there is no loss");
  require(out_rates.size() == 0 || !bound.loop.weights_stay,
          "with a query and one rate there are no gradients of rates");
  const auto parameter_gradients = data_of<R>(out_parameters, call.n_parameters());
  require(!parameter_gradients.empty(), "out_parameters: one a parameter");
  const auto rate_gradients = data_of<R>(out_rates, call.n_parameters());
  const ForwardOut<R> out{nullptr, TensorArgument(predictions).data<R>(),
                          TensorArgument(loss).data<R>(), nullptr};
  const BackwardOut<R> gradients{parameter_gradients.data(), data_or_null(rate_gradients), nullptr,
                                 nullptr};
  const py::gil_scoped_release release;
  kernels<R>().step(bound.loop, out, gradients, factor);
}

// The number that all of a tensor [n], of any stride, are, bit for bit but for the sign of zero, or None.
template <class R>
std::optional<R> common_value(py::handle tensor) {
  const TensorArgument x(tensor);
  if (!x.given()) return std::nullopt;  // PyTorch knows zeros that lie nowhere
  require(x.ndim() <= 1 && x.holds<R>(), "common_value: a tensor [n] or []");
  const R* at = x.data<R>();
  const i64 stride = x.first_stride(), n = stride ? x.size(0) : 1;
  for (i64 i = 1; i < n; ++i)
    if (!(at[i * stride] == at[0])) return std::nullopt;
  return *at;
}

// Multiplies tensors in place, those that are there.
template <class R>
void scale(const py::sequence& tensors, R factor, int threads) {
  std::vector<std::pair<R*, i64>> all;
  for (const py::handle tensor : tensors)
    if (const TensorArgument x(tensor); x.given()) all.emplace_back(x.data<R>(), x.elements());
  const py::gil_scoped_release release;
  for (const auto& [at, n] : all) multiply(at, n, factor, threads);
}

// shape: (T, S, C, H, W, O, kh, kw); window: stride, padding and dilation, two of each; x and y:
// (address, five strides); weight and bias: (address, task_stride).
template <class R>
void convolve(int form, const std::array<i64, 8>& shape, const std::array<i64, 6>& window, int threads,
              const std::pair<std::uintptr_t, std::array<i64, 5>>& x,
              const std::pair<std::uintptr_t, std::array<i64, 5>>& y,
              const std::pair<std::uintptr_t, i64>& weight,
              const std::optional<std::pair<std::uintptr_t, i64>>& bias) {
  const auto [T, S, C, H, W, O, kh, kw] = shape;
  require(form >= 0 && form < 3 && T > 0 && S > 0 && threads > 0, "convolve: bad arguments");
  Stage s{};
  s.product = ProductKind::Dense;
  s.in_c = C, s.in_h = H, s.in_w = W, s.c = O;
  s.kernel[0] = kh, s.kernel[1] = kw;
  for (int axis = 0; axis < 2; ++axis) {
    s.stride[axis] = window[axis], s.dilation[axis] = window[4 + axis];
    s.before[axis] = s.behind[axis] = window[2 + axis];
    s.window[axis] = s.pool_stride[axis] = 1;
    require(s.stride[axis] > 0, "a stride must be positive");
  }
  s.h = s.out_h = pixels_of_product(s, 0, H), s.w = s.out_w = pixels_of_product(s, 1, W);
  check_geometry(s);
  widen_strides(s);
  const auto batch = [](const auto& b) {
    const auto& [task, sample, channel, row, pixel] = b.second;
    return Batch<R>{reinterpret_cast<R*>(b.first), task, sample, channel, row, pixel};
  };
  const Convolution<R> c{ConvolutionForm(form), s, T, S, threads, batch(x), batch(y),
                         reinterpret_cast<R*>(weight.first), weight.second,
                         bias ? reinterpret_cast<const R*>(bias->first) : nullptr,
                         bias ? bias->second : 0};
  const py::gil_scoped_release release;
  kernels<R>().convolve(c);
}

using Strided = std::optional<std::pair<std::uintptr_t, std::array<i64, 5>>>;
using Channelwise = std::optional<std::pair<std::uintptr_t, i64>>;

// An image of h x w pixels; strides of sizes of 1 may be anything.
template <class R>
Batch<R> batch(const Strided& b, i64 channels, i64 h, i64 w, bool along_pixels) {
  if (!b) return {};
  const auto& [task, sample, channel, row, pixel] = b->second;
  const bool fits = along_pixels ? (w == 1 || pixel == 1) && (h == 1 || row == w)
                                 : channels == 1 || channel == 1;
  require(fits, "what must lie side by side does not");
  return {reinterpret_cast<R*>(b->first), task, sample, channel, along_pixels ? w : row,
          along_pixels ? 1 : pixel};
}

// shape: (T, S, C, H, W); images: x, y, a, for_x, for_y; channelwise: weight, bias, mean, rstd, u, v,
// for_weight, for_bias, (address, task stride) of each. What a form does not need is None.
template <class R>
void norm(int form, const std::array<i64, 5>& shape, i64 pool, double eps, double slope,
          bool along_pixels, int threads, const std::array<Strided, 5>& images,
          const std::array<Channelwise, 8>& channelwise) {
  const auto [T, S, C, H, W] = shape;
  require(form >= 0 && form < 3 && threads > 0, "norm: bad arguments");
  require(T > 0 && S > 0 && C > 0 && H > 0 && W > 0, "a norm's sizes must be positive");
  require((pool == 1 || pool == 2) && pool <= H && pool <= W, "a norm's pool must be 1 or 2");
  const bool needed[3][13] = {{1, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0},
                              {1, 1, 0, 1, 0, 0, 0, 1, 1, 0, 0, 1, 1},
                              {1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0}};
  for (int i = 0; i < 13; ++i)
    require(!needed[form][i] || (i < 5 ? images[i].has_value() : channelwise[i - 5].has_value()),
            "norm: a tensor is missing");
  const auto image = [&](int i, i64 side) {
    return batch<R>(images[i], C, H / side, W / side, along_pixels);
  };
  const auto per_channel = [&](int i) {
    const Channelwise& p = channelwise[i];
    return p ? PerChannel<R>{reinterpret_cast<R*>(p->first), p->second} : PerChannel<R>{};
  };
  const Norm<R> call{NormForm(form), T, S, C, H, W, pool, eps, slope, threads, along_pixels,
                     image(0, 1), image(1, pool), image(2, 1), image(3, 1), image(4, pool),
                     per_channel(0), per_channel(1), per_channel(2), per_channel(3),
                     per_channel(4), per_channel(5), per_channel(6), per_channel(7)};
  const py::gil_scoped_release release;
  kernels<R>().norm(call);
}

// shape: (T, S, C, H, W); x; y and at, of half the height and width.
template <class R>
void max_pool(int form, const std::array<i64, 5>& shape, bool along_pixels, int threads,
              const Strided& x, const Strided& y, const Strided& at) {
  const auto [T, S, C, H, W] = shape;
  require(form >= 0 && form < 3 && threads > 0 && x && y && at, "max_pool: bad arguments");
  require(T > 0 && S > 0 && C > 0 && H > 1 && W > 1, "a pool's sizes must be positive");
  const MaxPool<R> call{PoolForm(form), T, S, C, H, W, threads, along_pixels,
                        batch<R>(x, C, H, W, along_pixels),
                        batch<R>(y, C, H / 2, W / 2, along_pixels),
                        batch<R>(at, C, H / 2, W / 2, along_pixels)};
  const py::gil_scoped_release release;
  kernels<R>().max_pool(call);
}

// Rows in range are the caller's to check.
template <class R>
void take_pixels(std::uintptr_t images, std::uintptr_t rows, i64 n, i64 channels, i64 area,
                 std::uintptr_t factor, std::uintptr_t shift, std::uintptr_t out, int threads) {
  require(n >= 0 && channels > 0 && area > 0 && threads > 0, "take_pixels: bad arguments");
  const Pixels<R> pixels{reinterpret_cast<const std::uint8_t*>(images),
                         reinterpret_cast<const i64*>(rows), n, channels, area,
                         reinterpret_cast<const R*>(factor), reinterpret_cast<const R*>(shift),
                         reinterpret_cast<R*>(out), threads};
  const py::gil_scoped_release release;
  kernels<R>().take_pixels(pixels);
}

// The prototypes' kernels of the build that runs.
template <class R>
const PrototypeKernels<R>& prototype_kernels() { return *kernels<R>().prototypes; }

template <class R>
void bind_real(py::module_& m, const char* suffix) {
  const auto name = [&](const char* stem) { return std::string(stem) + suffix; };
  bind_call<R>(m, name("call_").c_str());
  m.def(name("forward_").c_str(), &forward<R>, py::arg("call"), py::arg("threads"), py::arg("addresses"),
        py::arg("keep"), py::arg("predictions"), py::arg("loss"), py::arg("fast"),
        py::arg("moments") = Addresses{});
  m.def(name("backward_").c_str(), &backward<R>);
  m.def(name("step_").c_str(), &step<R>);
  m.def(name("common_value_").c_str(), &common_value<R>);
  m.def(name("scale_").c_str(), &scale<R>);
  m.def(name("convolve_").c_str(), &convolve<R>);
  m.def(name("norm_").c_str(), &norm<R>);
  m.def(name("max_pool_").c_str(), &max_pool<R>);
  m.def(name("take_pixels_").c_str(), &take_pixels<R>);
  bind_prototypes<R>(m, suffix, prototype_kernels<R>);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  if (!running) throw py::import_error(none_runs());
  m.doc() = "The native kernels of fastmeta. Internal: call them through fastmeta.";
  bind_chain(m);
  py::class_<Record>(m, "Record", py::buffer_protocol())
      .def_readonly("bytes", &Record::bytes)
      .def_buffer([](Record& record) {
        return py::buffer_info(static_cast<unsigned char*>(record.memory.data()), record.bytes);
      });
  bind_real<float>(m, "float32");
  bind_real<double>(m, "float64");
  m.def("variants", [] {
    py::dict found;
    for (const Variant* v = variants(); v->name; ++v) found[v->name] = v->runs_here();
    return found;
  });
  m.def("variant", [] { return running->name; });
  m.def("use_variant", [](const std::string& name) {
    const Variant* wanted = find_variant(name.c_str());
    if (!wanted) throw std::invalid_argument("not built, or not for this processor: " + name);
    running = wanted;
  });
  bind_looks(m);
  bind_empty(m);
  bind_unchanged(m);
  m.def("thread_runtime", &thread_runtime);
  m.def("release_memory", &release_memory);
}
