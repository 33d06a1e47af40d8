// What a call is about: plain data shared by the bindings, the dispatcher and every team.
// Compiled once per instruction set, so it holds no code.
#pragma once

#include <cstdint>

namespace fastmeta {

using i64 = std::int64_t;

enum class NodeKind { Linear, Activation };
enum class ActivationKind {
  ReLU, LeakyReLU, Tanh, Sigmoid, Sine, GELU, GELUTanh, Softplus, SiLU, ELU, Clamp, Mish,
  Affine
};
constexpr int activation_kinds = int(ActivationKind::Affine) + 1;
enum class LossKind { MeanSquaredError, CrossEntropy, BinaryCrossEntropy, Program, CrossEntropyAtPlaces };

// One step of a chain. A Linear owns up to two parameter tensors: weight [O, I] and bias [O].
struct Node {
  NodeKind kind;
  ActivationKind activation;
  double a;       // leaky slope | sine frequency | softplus beta | ELU alpha | least | scale
  double b;       // softplus threshold | ELU slope | most | shift
  i64 in, out;    // widths
  int weight;     // index into the parameter list, -1 where there is none
  int bias;
};

// Running: by a mean and a variance that are given, as batch norm has them outside of training.
enum class NormKind { None, Batch, Group, Running };
// Dense: a convolution, or a linear layer, whose kernel is as large as its input. Transposed: what takes a
// gradient for the output of one to that for its input; kernel, stride and zeros are those of that one.
// Grouped: a convolution of each group of channels by itself. The others are scales, what a layer norm over images
// multiplies with: a weight and a bias for every element of a sample, or for every pixel, whatever the channel.
// Spread: a linear layer whose outputs are an image, which is Transposed of a single pixel, by weights [O, I]
// and with a bias for every element.
enum class ProductKind { None, Dense, Transposed, Grouped, Elements, Pixels, Spread };
// What a stage without a product makes of two others: the sum or the product of their numbers, where
// `other` may have one channel, row or column for all; or the channels of both, side by side. Or of one
// alone: each pixel again and again; or its channels from `other_c` on, as many as there is room for.
enum class JoinKind { None, Sum, Multiply, Channels, Repeat, Pick };
enum class PoolKind { None, Average, Max };
constexpr int no_stage = -2;

// One stage of a network of images: a product, then norm, activation and pool, each of which may be
// missing.
struct Stage {
  int input;               // the earlier stage whose output it takes, -1: the network's input
  JoinKind join;
  int other;               // the stage that is joined to it; or no_stage
  i64 in_c, in_h, in_w;
  i64 other_c, other_h, other_w;
  ProductKind product;     // None: the input goes straight into what follows
  int weight, bias;        // parameter indices, -1 where there is none
  i64 product_groups;      // of channels, for Grouped and Transposed
  // Of height and width; zeros lie before and behind each line, neighbouring taps `dilation` pixels apart.
  i64 kernel[2], stride[2], dilation[2], before[2], behind[2];
  i64 c, h, w;             // after the product
  NormKind norm;
  i64 groups;              // of channels, for Group: statistics a sample and group
  double eps;
  int gamma, beta;
  int mean, variance;      // of Running; constants, which get no gradient
  bool activates;
  Node activation;
  PoolKind pool;
  i64 window[2], pool_stride[2];
  i64 pool_before[2], pool_behind[2];  // pixels around each line that count as none; or, < 0, are left out
  i64 out_h, out_w;
};

// What an instruction of a row program makes of earlier rows a, b and c, number by number unless it says
// more. A row of one number stands for as many as are needed.
enum class RowOp {
  Constant,                                          // x
  Add, Subtract, Multiply, Divide, Larger, Smaller,  // a and b
  Negative, Absolute, Sign, Exp, Log, Log1p, Sqrt, Sine, Cosine, Tanh, Sigmoid, Softplus,  // a
  Activate,                                          // a, by the activation c with constants x and y
  Clamp,                                             // a between x and y
  Greater, GreaterEqual, Equal,                      // a and b: 1 or 0
  Select,                                            // b where a is not 0, else c
  Stop,                                              // a, without a derivative
  Slice,                                             // `width` numbers of a from the x-th on
  Join,                                              // the numbers of a, then those of b
  Sum, LogSumExp,                                    // of each of `width` parts of a: a number
  Choose,                                            // of a, the number that b, a label, names
  Turn,     // a [.., x, y, c], c numbers in the last dimension, as [.., y, x, c]
  Repeat,   // a [.., x] as [.., n, x], n times the same
  Product,  // x matrices of y rows each, a, times as many matrices, b, which are transposed where c is 1
  // Of networks alone; b and c are parameters.
  Linear,     // weight b times each of the y parts of a, plus bias c unless that is -1; x: the weight is
              // [I, O], not [O, I]
  Parameter,  // b
};
constexpr int row_ops = int(RowOp::Parameter) + 1;

// `at` is where its row begins, in numbers behind the first one of a record.
struct RowStep {
  RowOp op;
  int a, b, c;  // rows, those that are given first, then one a step
  double x, y;
  i64 width, at;
  // What a backward asks: whether the adjoint goes on to a, b and c, and comes there before anywhere else.
  bool goes_to[3], first[3];
  bool of_task;  // the same for all its samples: the row is in a record of its own
  bool adds_up;  // such a row that samples read: its adjoint begins with 0
};

constexpr int most_row_steps = 4096;

// Of one sample: the last row is what it comes to, of a loss a number.
struct RowProgram {
  const RowStep* rows;  // the first are given: of a loss predictions and targets, of a network its input
  const unsigned char* varies;  // whether a row has an adjoint: the last one depends on it, and it changes
  int n_rows;
  i64 size;   // numbers in all rows of a sample
  i64 task_size;  // and in those of the task
  bool adds;  // of a loss: whether the samples' losses are summed instead of averaged
};

// A label at each of `count` places of a sample, whose predictions are [classes, count], or [count, classes]
// where the classes come last. Places whose label is `ignored` do not count; the others count by the weights
// of their classes, or all alike.
struct LabelPlaces {
  i64 classes, count, ignored;
  bool classes_last;
  const double* weights;  // or nullptr
  double weight(i64 label) const {
    return label == ignored ? 0 : weights && 0 <= label && label < classes ? weights[label] : 1;
  }
};

// A chain of nodes; with n_stages > 0 stages, each of which but the last has a reader; with written.n_rows
// > 0 a forward that was written as arithmetic on rows, with both of what the last stage makes.
struct Network {
  const Node* nodes;
  int n_nodes;
  const Stage* stages;
  int n_stages;
  RowProgram written;
  int n_parameters;
  LossKind loss;
  RowProgram program;  // where that is the loss
  LabelPlaces places;  // where the loss has any
};

// A tensor in PyTorch's layout. task_stride 0: shared by all tasks.
template <class R>
struct Parameter {
  const R* data;
  i64 task_stride;
};

// Inner rates of one parameter: [steps or 1, n] with n = 1 (one rate a tensor) or all elements.
// A parameter that does not adapt has data == nullptr.
template <class R>
struct Rate {
  const R* data;
  i64 step_stride;  // 0: the same rate at every step
  i64 n;
};

template <class R>
struct Samples {
  i64 n;              // samples a task
  const R* x;         // [T, n, I] or [T, n, C, H, W]
  const R* y;         // [T, n, O], or nullptr for class labels
  const i64* labels;  // [T, n], or nullptr
  const R* weight;    // [T, n], or nullptr
};

template <class R>
struct InnerLoop {
  Network network;
  i64 tasks, steps;
  int order;
  int threads;
  const Parameter<R>* parameters;
  const Rate<R>* rates;
  Samples<R> support, query;  // query.n == 0: adaptation only
  // Nobody asks for fast weights, for gradients of theirs, or for gradients of the rates.
  bool weights_stay;
};

template <class R>
struct ForwardOut {
  R* record;        // what backward will need, or nullptr
  R* predictions;   // [T, Q, O] or nullptr
  R* loss;          // [T] or nullptr
  R* const* fast;   // by parameter, [T, ...], or nullptr (entries may be nullptr)
  // By stage, [T, 2, C], or nullptr (entries may be nullptr): mean and variance of a batch norm over the query.
  R* const* moments = nullptr;
};

template <class R>
struct BackwardIn {
  const R* record;
  const R* grad_loss;         // [T] or nullptr
  const R* grad_predictions;  // [T, Q, O] or nullptr
  const R* const* grad_fast;  // by parameter, [T, ...], or nullptr (entries may be nullptr)
};

template <class R>
struct BackwardOut {
  R* const* parameters;  // by parameter: the shape it came in; entries may be nullptr
  R* const* rates;       // by parameter: [steps or 1, all elements]; entries may be nullptr
  R* support_x;          // [T, S, I] or nullptr
  R* query_x;            // [T, Q, I] or nullptr
};

// A tensor [T, n, C, H, W] by its strides; task 0: shared by all tasks.
template <class R>
struct Batch {
  R* data;
  i64 task, sample, channel, row, pixel;
};

enum class ConvolutionForm { Forward, InputGradient, WeightGradient };

// y = x * weight + bias, or one of its two transposes; the one that is asked for is written.
// weight [T, O, C, kh, kw] and bias [T, O] are contiguous; task_stride 0: shared by all tasks.
template <class R>
struct Convolution {
  ConvolutionForm form;
  Stage shape;  // a product and nothing else
  i64 tasks, samples;
  int threads;
  Batch<R> x, y;
  R* weight;
  i64 weight_task;
  const R* bias;
  i64 bias_task;
};

enum class NormForm { Forward, Backward, SecondBackward };

// [T, C], channels side by side; task 0: shared by all tasks.
template <class R>
struct PerChannel {
  R* data;
  i64 task;
};

// Norm of channels over samples and pixels, then max(z, slope z), then the largest of pool x pool
// pixels; or the backward of that, or the backward's. What a form does not need is nullptr.
template <class R>
struct Norm {
  NormForm form;
  i64 tasks, samples, channels, height, width, pool;
  double eps, slope;
  int threads;
  bool along_pixels;      // side by side in memory are the pixels of a channel's image, else channels
  Batch<R> x, y;          // y: what Forward writes; of the others the gradient for it
  Batch<R> a;             // the gradient for what Backward returns for x
  Batch<R> for_x, for_y;  // written: gradients for x, and for the gradient for y
  PerChannel<R> weight, bias;          // nullptr: 1 and 0
  PerChannel<R> mean, rstd;            // what Forward writes and the others read
  PerChannel<R> u, v;                  // the gradients for what Backward returns for weight and bias
  PerChannel<R> for_weight, for_bias;  // written
};

enum class PoolForm { Largest, Gather, Scatter };

// The largest of 2 x 2 pixels without overlap, and which of the four it is, 0 to 3; or the pixels that
// were the largest; or the transpose of that, an image with zeros everywhere else.
template <class R>
struct MaxPool {
  PoolForm form;
  i64 tasks, samples, channels, height, width;
  int threads;
  bool along_pixels;  // as for Norm
  Batch<R> x, y, at;
};

// Bytes of chosen images as real numbers: out = byte * factor[c] + shift[c].
template <class R>
struct Pixels {
  const std::uint8_t* images;  // [images][channels][area]
  const i64* rows;             // [n], which images
  i64 n, channels, area;
  const R *factor, *shift;     // [channels]
  R* out;                      // [n][channels][area]
  int threads;
};

template <class R>
struct PrototypeKernels;  // cpu/prototypes.h

// One build of the kernels for one instruction set and one real type.
template <class R>
struct Kernels {
  i64 (*record_size)(const InnerLoop<R>&);  // elements
  void (*forward)(const InnerLoop<R>&, const ForwardOut<R>&);
  void (*backward)(const InnerLoop<R>&, const BackwardIn<R>&, const BackwardOut<R>&);
  // Both at once, out.record aside: the gradients are those of the sum of the tasks' losses.
  // factor: what the gradients are multiplied by at the end
  void (*step)(const InnerLoop<R>&, const ForwardOut<R>& out, const BackwardOut<R>& gradients, R factor);
  const char* (*team)(const InnerLoop<R>&);
  void (*convolve)(const Convolution<R>&);
  void (*norm)(const Norm<R>&);
  void (*max_pool)(const MaxPool<R>&);
  void (*take_pixels)(const Pixels<R>&);
  const PrototypeKernels<R>* prototypes;
};

}  // namespace fastmeta
