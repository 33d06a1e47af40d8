// Carries out a program: what the threads of a block do, task after task. The same text runs on the
// host, one thread a CUDA thread (tests/csrc/test_cuda_blocks.cpp).
#pragma once

#include "run_product.cuh"
//
#include "../network/activation.h"

namespace fastmeta::cuda {

// Where a block is: its shared memory, its task, and what it was given.
template <class R>
struct Here {
  const Run<R>& run;
  R* shared;
  i64 task, block;

  FASTMETA_INLINE R* at(int place) const { return shared + place; }
  FASTMETA_INLINE bool has(int slot) const { return run.tensors[slot].base; }
  // An element of a tensor, of the present task or, of sums, of the block.
  FASTMETA_INLINE R* tensor(int slot, i64 offset) const {
    const i64 first = slot == sums ? block * run.run_size : task * run.tensors[slot].task_stride;
    return run.tensors[slot].base + first + offset;
  }
};

// f(i) for i in [0, n)
template <class F>
FASTMETA_INLINE void each(int n, F f) {
  for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) f(i);
}

// f(row, column), neighbouring threads along the columns, or down a column.
template <class F>
FASTMETA_INLINE void each_element(int rows, int columns, bool down, F f) {
  const int side = down ? rows : columns;
  each(rows * columns, [&](int i) {
    const int far = int(unsigned(i) / unsigned(side)), near = i - far * side;
    f(down ? near : far, down ? far : near);
  });
}

// ---- between tensors and shared memory ------------------------------------------------------------

template <class R>
FASTMETA_INLINE void gather(const Here<R>& here, const Op& op) {
  const R* from = here.has(op.slot) ? here.tensor(op.slot, op.offset) : nullptr;
  R* to = here.at(op.to);
  each_element(op.rows, op.columns, op.row_step < op.column_step, [&](int r, int c) {
    to[r * op.to_row + c] = from ? from[r * op.row_step + c * op.column_step] : R(0);
  });
}

template <class R>
FASTMETA_INLINE void gather_labels(const Here<R>& here, const Op& op) {
  const auto& labels = here.run.tensors[op.slot];
  const i64* from = reinterpret_cast<const i64*>(labels.base) + here.task * labels.task_stride +
                    op.offset;
  R* to = here.at(op.to);
  each(op.rows, [&](int s) { to[s] = R(from[s]); });
}

template <class R, class F>
FASTMETA_INLINE void scatter(const Here<R>& here, const Op& op, F put) {
  if (!here.has(op.slot)) return;
  R* to = here.tensor(op.slot, op.offset);
  const R* from = here.at(op.from);
  each_element(op.rows, op.columns, op.row_step < op.column_step, [&](int r, int c) {
    put(to[r * op.row_step + c * op.column_step], from[r * op.from_row + c]);
  });
}

template <class R>
FASTMETA_INLINE void scatter_subtract(const Here<R>& here, const Op& op) {
  const R rate = op.bias_slot == no_slot ? R(1) : *here.tensor(op.bias_slot, op.bias_offset);
  scatter(here, op, [&](R& to, R from) { to -= rate * from; });
}

// Whole quads, as theta lies.
template <class R>
FASTMETA_INLINE void move(R* to, const R* from, int n) {
  each(n / 4, [&](int i) { put_quad(to + 4 * i, quad(from + 4 * i)); });
}

template <class R>
FASTMETA_INLINE void times_rates(const Here<R>& here, const Op& op) {
  const R* rate = here.tensor(op.slot, op.offset);
  each_element(op.rows, op.columns, op.row_step < op.column_step, [&](int r, int c) {
    const R alpha = rate[r * op.row_step + c * op.column_step];
    here.at(op.to)[r * op.to_row + c] = alpha * here.at(op.from)[r * op.from_row + c];
  });
}

// ---- the loss -------------------------------------------------------------------------------------

template <class R>
FASTMETA_INLINE void put_coefficients(const Here<R>& here, const Op& op) {
  R* to = here.at(op.to);
  if (op.slot == no_slot) {
    each(op.rows, [&](int s) { to[s] = R(1) / R(op.depth); });
    return;
  }
  const R* weight = here.tensor(op.slot, 0);
  R sum = 0;
  for (int s = 0; s < op.depth; ++s) sum += weight[s];
  const R scale = sum > R(0) ? R(1) / sum : R(0);
  each(op.rows, [&](int s) { to[s] = weight[op.from + s] * scale; });
}

template <class R>
struct Sample {
  const R* prediction;
  const R* target;  // as many numbers as predictions, or the label
  R coefficient;
};

template <class R>
FASTMETA_INLINE Sample<R> sample(const Here<R>& here, const Op& op, int s) {
  const Run<R>& run = here.run;
  return {here.at(op.from) + s * op.from_row, here.at(run.targets_at) + s * run.target_row,
          *here.at(run.coefficient_at + s)};
}

template <class R>
FASTMETA_INLINE R largest_of(const R* y, int n) {
  R most = -INFINITY;
  for (int c = 0; c < n; ++c) most = y[c] > most ? y[c] : most;
  return most;
}

template <class R>
FASTMETA_INLINE R loss_of(const Sample<R>& of, LossKind kind, int n) {
  const R* y = of.prediction;
  const R* t = of.target;
  R sum = 0;
  if (kind == LossKind::MeanSquaredError) {
    for (int c = 0; c < n; ++c) sum += (y[c] - t[c]) * (y[c] - t[c]);
    return sum / R(n);
  }
  if (kind == LossKind::BinaryCrossEntropy) {
    for (int c = 0; c < n; ++c)
      sum += (y[c] > R(0) ? y[c] : R(0)) - y[c] * t[c] + log1p(exp(-absolute(y[c])));
    return sum / R(n);
  }
  const R most = largest_of(y, n);
  R chosen = 0;
  for (int c = 0; c < n; ++c) {
    sum += exp(y[c] - most);
    chosen += R(c) == *t ? y[c] - most : R(0);
  }
  return log(sum) - chosen;
}

// The samples' losses wait in `to`; one thread adds them up, in their order.
template <class R>
FASTMETA_INLINE void add_losses(const Here<R>& here, const Op& op) {
  R* each_loss = here.at(op.to);
  each(op.rows, [&](int s) {
    const Sample<R> of = sample(here, op, s);
    each_loss[s] = of.coefficient * loss_of(of, here.run.loss, op.columns);
  });
  __syncthreads();
  if (threadIdx.x) return;
  R sum = op.depth ? R(0) : *here.at(here.run.loss_at);
  R part = 0;
  for (int s = 0; s < op.rows; ++s) part += each_loss[s];
  *here.at(here.run.loss_at) = sum + part;
}

// g, and what r_gradient needs: softmax, or the derivative of sigmoid.
template <class R>
FASTMETA_INLINE void loss_gradient(const Here<R>& here, const Op& op) {
  const LossKind kind = here.run.loss;
  const int n = op.columns;
  each(op.rows, [&](int s) {
    const Sample<R> of = sample(here, op, s);
    const R* y = of.prediction;
    R* g = here.at(op.to) + s * op.to_row;
    R* curvature = here.at(here.run.curvature_at) + s * op.to_row;
    if (kind == LossKind::MeanSquaredError) {
      const R scale = of.coefficient * (R(2) / R(n));
      for (int c = 0; c < n; ++c) g[c] = scale * (y[c] - of.target[c]);
    } else if (kind == LossKind::BinaryCrossEntropy) {
      const R scale = of.coefficient / R(n);
      for (int c = 0; c < n; ++c) {
        const R p = sigmoid(y[c]);
        curvature[c] = p * (R(1) - p);
        g[c] = scale * (p - of.target[c]);
      }
    } else {
      const R most = largest_of(y, n), label = *of.target;
      R sum = 0;
      for (int c = 0; c < n; ++c) {
        curvature[c] = exp(y[c] - most);
        sum += curvature[c];
      }
      const R scale = R(1) / sum;
      for (int c = 0; c < n; ++c) {
        const R p = curvature[c] * scale;
        curvature[c] = p;
        g[c] = of.coefficient * (p - (R(c) == label ? R(1) : R(0)));
      }
    }
  });
}

template <class R>
FASTMETA_INLINE void loss_r_gradient(const Here<R>& here, const Op& op) {
  const LossKind kind = here.run.loss;
  const int n = op.columns;
  each(op.rows, [&](int s) {
    const R coefficient = *here.at(here.run.coefficient_at + s);
    const R* ry = here.at(op.value) + s * op.to_row;
    const R* curvature = here.at(here.run.curvature_at) + s * op.to_row;
    R* rg = here.at(op.to) + s * op.to_row;
    if (kind == LossKind::MeanSquaredError) {
      const R scale = coefficient * (R(2) / R(n));
      for (int c = 0; c < n; ++c) rg[c] = scale * ry[c];
    } else if (kind == LossKind::BinaryCrossEntropy) {
      const R scale = coefficient / R(n);
      for (int c = 0; c < n; ++c) rg[c] = scale * curvature[c] * ry[c];
    } else {
      R mean = 0;
      for (int c = 0; c < n; ++c) mean += curvature[c] * ry[c];
      for (int c = 0; c < n; ++c) rg[c] = coefficient * curvature[c] * (ry[c] - mean);
    }
  });
}

// ---- activations ----------------------------------------------------------------------------------

// What an activation leaves.
template <class R>
struct LeftBy {
  const R *value, *s1, *s2;
};
template <class R>
struct LeftOf {
  R *value, *s1, *s2;
};

// Functions that are not inlined get numbers and addresses of shared memory, nothing of the kernel's
// parameters.
template <class R>
struct Activation {
  ActivationKind kind;
  R a, b;
};

template <class R, class F>
FASTMETA_INLINE void with_kind(const Activation<R> of, F f) {
  Node node{};
  node.activation = of.kind, node.a = double(of.a), node.b = double(of.b);
  with_activation<R>(node, f);
}

template <class R>
FASTMETA_INLINE Activation<R> activation(const Here<R>& here, const Op& op) {
  const Node& node = here.run.nodes[op.activation];
  return {node.activation, R(node.a), R(node.b)};
}

template <class R>
FASTMETA_INLINE LeftBy<R> left(const Here<R>& here, const Op& op) {
  return {here.at(op.value), here.at(op.s1), here.at(op.s2)};
}

// Up to four numbers of a row, at places `step` apart, read before any is written.
template <class R>
FASTMETA_INLINE Quad<R> some(const R* p, int step, int n) {
  Quad<R> out;
#pragma unroll
  for (int j = 0; j < 4; ++j) out.v[j] = j < n ? p[j * step] : R(0);
  return out;
}
template <class R>
FASTMETA_INLINE void put_some(R* p, const Quad<R>& q, int step, int n) {
#pragma unroll
  for (int j = 0; j < 4; ++j)
    if (j < n) p[j * step] = q.v[j];
}

// What an activation left of these.
template <class R>
struct SomeLeft {
  Quad<R> value, s1, s2;
  template <class F>
  FASTMETA_INLINE void take(const F& f, const LeftBy<R>& from, int first, int step, int n) {
    value = some(from.value + first, step, n);
    if (f.keeps_s1) s1 = some(from.s1 + first, step, n);
    if (f.keeps_s2) s2 = some(from.s2 + first, step, n);
  }
  template <class F>
  FASTMETA_INLINE R first(const F& f, int j) const {
    return f.first(value.v[j], f.keeps_s1 ? s1.v[j] : R(0));
  }
  template <class F>
  FASTMETA_INLINE R second(const F& f, int j) const {
    return f.second(value.v[j], f.keeps_s1 ? s1.v[j] : R(0), f.keeps_s2 ? s2.v[j] : R(0));
  }
};

// value = f(z), and what the derivatives need beside
template <class R>
__device__ __noinline__ void activate_some(const Activation<R> of, const R* from, const LeftOf<R> to,
                                           int n) {
  with_kind(of, [&](auto f) {
    const Quad<R> z = some(from, 1, n);
    Quad<R> value, first{}, second{};
#pragma unroll
    for (int j = 0; j < 4; ++j) value.v[j] = f.apply(z.v[j], first.v[j], second.v[j]);
    put_some(to.value, value, 1, n);
    if (f.keeps_s1) put_some(to.s1, first, 1, n);
    if (f.keeps_s2) put_some(to.s2, second, 1, n);
  });
}

// g = g f'
template <class R>
__device__ __noinline__ void backward_some(const Activation<R> of, R* g, const LeftBy<R> from, int first,
                                           int step, int n) {
  with_kind(of, [&](auto f) {
    SomeLeft<R> left;
    left.take(f, from, first, step, n);
    Quad<R> out = some(g + first, step, n);
#pragma unroll
    for (int j = 0; j < 4; ++j) out.v[j] *= left.first(f, j);
    put_some(g + first, out, step, n);
  });
}

// r = f' rz
template <class R>
__device__ __noinline__ void r_activate_some(const Activation<R> of, R* r, const R* rz,
                                             const LeftBy<R> from, int first, int n) {
  with_kind(of, [&](auto f) {
    SomeLeft<R> left;
    left.take(f, from, first, 1, n);
    Quad<R> out = some(rz + first, 1, n);
#pragma unroll
    for (int j = 0; j < 4; ++j) out.v[j] *= left.first(f, j);
    put_some(r + first, out, 1, n);
  });
}

// rg = rg f' + g f'' rz, g = g f'; without g or rz as far as there is a derivative
template <class R>
__device__ __noinline__ void r_backward_some(const Activation<R> of, R* g, R* rg, const R* rz,
                                             const LeftBy<R> from, int first, int step, int n) {
  with_kind(of, [&](auto f) {
    SomeLeft<R> left;
    left.take(f, from, first, step, n);
    const Quad<R> above = g ? some(g + first, step, n) : Quad<R>{};
    Quad<R> r = some(rg + first, step, n), through = above;
    const Quad<R> below = f.curved && rz ? some(rz + first, step, n) : Quad<R>{};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const R slope = left.first(f, j);
      r.v[j] *= slope;
      if (f.curved && rz) r.v[j] += above.v[j] * left.second(f, j) * below.v[j];
      through.v[j] *= slope;
    }
    put_some(rg + first, r, step, n);
    if (g) put_some(g + first, through, step, n);
  });
}

template <class R>
FASTMETA_INLINE LeftOf<R> left_of(const Here<R>& here, const Op& op, int place) {
  return {here.at(op.to) + place, here.at(op.s1) + place, here.at(op.s2) + place};
}

template <class R, class F>
FASTMETA_INLINE void each_row_piece(const Op& op, F f) {
  const int pieces = (op.columns + 3) / 4;
  each_element(op.rows, pieces, false,
               [&](int r, int p) { f(r, 4 * p, lesser(4, op.columns - 4 * p)); });
}

template <class R>
FASTMETA_INLINE void activation_alone(const Here<R>& here, const Op& op) {
  const Activation<R> node = activation(here, op);
  each_row_piece<R>(op, [&](int r, int c, int n) {
    const int first = r * op.to_row + c;
    const R* rz = op.rz >= 0 ? here.at(op.rz) : nullptr;
    switch (op.code) {
      case Do::Activate:
        activate_some(node, here.at(op.from) + first, left_of(here, op, first), n);
        break;
      case Do::ActivationBackward:
        backward_some(node, here.at(op.to), left(here, op), first, 1, n);
        break;
      case Do::RActivate:
        r_activate_some(node, here.at(op.to), rz, left(here, op), first, n);
        break;
      default:
        r_backward_some(node, here.at(op.to), here.at(op.r_to), rz, left(here, op), first, 1, n);
    }
  });
}

// ---- products -------------------------------------------------------------------------------------

// The tile that a thread has of a product, or n of them.
template <class F>
FASTMETA_INLINE void each_tile(const Op& op, int rows, F f) {
  for (int tile = int(threadIdx.x); tile < op.tiles; tile += int(blockDim.x)) {
    const int down = op.across_inverse ? int(__umulhi(unsigned(tile), op.across_inverse)) : tile;
    f(down * rows, tile - down * op.across);
  }
}

enum class Fused { No, ReLU, Other };

template <class R>
FASTMETA_INLINE Fused fused(const Here<R>& here, const Op& op) {
  if (op.activation < 0) return Fused::No;
  return here.run.nodes[op.activation].activation == ActivationKind::ReLU ? Fused::ReLU
                                                                          : Fused::Other;
}

template <class R>
FASTMETA_INLINE R relu(R z) { return z <= R(0) ? R(0) : z; }  // NaN passes through

// x w + bias, and its activation
template <int M, class R>
FASTMETA_INLINE void forward_tiles(const Here<R>& here, const Op& given) {
  const Op op = given;  // read once: what is written might be the program, for all that the compiler knows
  const Fused how = fused(here, op);
  each_tile(op, M, [&](int m, int across) {
    const int n = 4 * across;
    Tile<M, R> acc{};
    if (op.bias >= 0) set(acc, quad(in_shared(here.at(op.bias)) + n));
    for (int t = 0; t < op.terms; ++t) {
      const RowsOf<M, R> a(in_shared(here.at(t ? op.a[1] : op.a[0])), op.a_row, m, op.rows);
      const R* b = in_shared(here.at(t ? op.b[1] : op.b[0])) + n;
      add_in_pieces(acc, op.depth, [&](Tile<M, R>& sums, int begin, int end) {
        add_along(sums, a, b, op.b_row, begin, end);
      });
    }
    const bool r = op.code == Do::RForward;
#pragma unroll
    for (int i = 0; i < M; ++i) {
      if (m + i >= op.rows) break;
      const int place = (m + i) * op.to_row + n;
      Quad<R> z;
#pragma unroll
      for (int j = 0; j < 4; ++j) z.v[j] = acc.v[i][j];
      if (r && how == Fused::ReLU) {
        const Quad<R> value = quad(here.at(op.value) + place);
#pragma unroll
        for (int j = 0; j < 4; ++j) z.v[j] *= value.v[j] > R(0) ? R(1) : R(0);
      } else if (how == Fused::ReLU) {
#pragma unroll
        for (int j = 0; j < 4; ++j) z.v[j] = relu(z.v[j]);
      }
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (n + j >= op.columns) z.v[j] = n + j == op.columns ? R(op.pad) : R(0);
      put_quad(here.at(r ? op.rz : op.to) + place, z);
    }
    if (how != Fused::Other) return;
    const int width = lesser(4, op.columns - n);
#pragma unroll 1
    for (int i = 0; i < M && m + i < op.rows; ++i) {
      const int place = (m + i) * op.to_row + n;
      if (r)
        r_activate_some(activation(here, op), here.at(op.to), here.at(op.rz), left(here, op), place,
                        width);
      else
        activate_some(activation(here, op), here.at(op.to) + place, left_of(here, op, place),
                      width);
    }
  });
}

// The rate of a row's four columns.
template <class R>
struct RatesOf {
  const R* first;
  i64 step;
  FASTMETA_INLINE R operator[](int j) const { return first[j * step]; }
};

template <class R>
FASTMETA_INLINE RatesOf<R> rates_of(const Here<R>& here, const Op& op, int row, int column) {
  if (row == op.bias_row)
    return {here.tensor(op.bias_slot, op.bias_offset + column * op.value), op.value};
  return {here.tensor(op.slot, op.offset + row * op.row_step + column * op.column_step),
          op.column_step};
}

template <class R>
FASTMETA_INLINE void put_gradient(const Here<R>& here, const Op& op, int row, int n,
                                  const R (&acc)[4]) {
  const int place = row * op.to_row + n, width = lesser(4, op.columns - n);
  if (op.then == Then::RateGrad) {
    R* c = here.tensor(op.slot, op.offset + place);
    const R* from = in_shared(here.at(op.from)) + place;
    for (int j = 0; j < width; ++j) c[j] -= from[j] * acc[j];
    return;
  }
  Quad<R> out;
  if (op.then == Then::Store) {
#pragma unroll
    for (int j = 0; j < 4; ++j) out.v[j] = acc[j];
  } else if (op.then == Then::Step) {
    const RatesOf<R> rate = rates_of(here, op, row, n);
    const Quad<R> from = quad(in_shared(here.at(op.from)) + place);
    if (rate.step) {
#pragma unroll
      for (int j = 0; j < 4; ++j) out.v[j] = j < width ? from.v[j] - rate[j] * acc[j] : R(0);
    } else {
      const R one = rate[0];
#pragma unroll
      for (int j = 0; j < 4; ++j) out.v[j] = from.v[j] - one * acc[j];
    }
  } else {
    const Quad<R> c = quad(in_shared(here.at(op.to)) + place);
    const R sign = op.then == Then::Add ? R(1) : R(-1);
#pragma unroll
    for (int j = 0; j < 4; ++j) out.v[j] = c.v[j] + sign * acc[j];
  }
  put_quad(here.at(op.to) + place, out);
}

// Sums over samples: x^T g
template <int M, class R>
FASTMETA_INLINE void weight_gradient_tiles(const Here<R>& here, const Op& given) {
  const Op op = given;  // read once: what is written might be the program, for all that the compiler knows
  each_tile(op, M, [&](int m, int across) {
    const int n = 4 * across;
    Tile<M, R> acc{};
    for (int t = 0; t < op.terms; ++t)
      add_down(acc, in_shared(here.at(t ? op.a[1] : op.a[0])) + m, op.a_row,
               in_shared(here.at(t ? op.b[1] : op.b[0])) + n, op.b_row, op.depth);
#pragma unroll
    for (int i = 0; i < M; ++i) {
      if (m + i >= op.rows) break;
      put_gradient(here, op, m + i, n, acc.v[i]);
    }
  });
}

// g w^T, and times the slope of the activation below
template <int M, class R>
FASTMETA_INLINE void input_gradient_tiles(const Here<R>& here, const Op& given) {
  const Op op = given;  // read once: what is written might be the program, for all that the compiler knows
  const Fused how = fused(here, op);
  each_tile(op, M, [&](int m, int first) {
    const RowsOf<M, R> a(in_shared(here.at(op.a[0])), op.a_row, m, op.rows);
    const R* w = in_shared(here.at(op.b[0]));
    RowsOf<4, R> b(w, op.b_row, 0, 1);
#pragma unroll
    for (int j = 0; j < 4; ++j) b.p[j] = w + lesser(first + j * op.across, op.columns - 1) * op.b_row;
    Tile<M, R> acc{};
    add_in_pieces(acc, op.depth, [&](Tile<M, R>& sums, int begin, int end) {
      add_far(sums, a, b, begin, end);
    });
    const R* value = in_shared(here.at(op.value));
#pragma unroll
    for (int i = 0; i < M; ++i) {
      if (m + i >= op.rows) break;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int column = first + j * op.across;
        if (column >= op.columns) break;
        const int place = (m + i) * op.to_row + column;
        const R slope = how != Fused::ReLU || value[place] > R(0) ? R(1) : R(0);
        here.at(op.to)[place] = slope * acc.v[i][j];
      }
    }
    if (how != Fused::Other) return;
#pragma unroll 1
    for (int i = 0; i < M && m + i < op.rows; ++i)
      backward_some(activation(here, op), here.at(op.to), left(here, op),
                   (m + i) * op.to_row + first, op.across,
                   (op.columns - first + op.across - 1) / op.across);
  });
}

// Both g w^T and its derivative, rg w^T + g v^T, and through the activation below
template <int M, class R>
FASTMETA_INLINE void r_input_gradient_tiles(const Here<R>& here, const Op& given) {
  const Op op = given;  // read once: what is written might be the program, for all that the compiler knows
  const Fused how = fused(here, op);
  const bool with_g = op.to >= 0, with_v = op.b[1] >= 0;
  each_tile(op, M, [&](int m, int first) {
    const RowsOf<M, R> rg(in_shared(here.at(op.a[0])), op.a_row, m, op.rows);
    const RowsOf<M, R> g(in_shared(here.at(op.a[1])), op.a_row, m, op.rows);
    const R* weights = in_shared(here.at(op.b[0]));
    RowsOf<4, R> w(weights, op.b_row, 0, 1), v(weights, op.b_row, 0, 1);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int row = lesser(first + j * op.across, op.columns - 1) * op.b_row;
      w.p[j] = weights + row;
      v.p[j] = in_shared(here.at(with_v ? op.b[1] : op.b[0])) + row;
    }
    Tile<M, R> acc{}, r_acc{};
    add_in_pieces(r_acc, op.depth, [&](Tile<M, R>& sums, int begin, int end) {
      add_far(sums, rg, w, begin, end);
    });
    if (with_v)
      add_in_pieces(r_acc, op.depth, [&](Tile<M, R>& sums, int begin, int end) {
        add_far(sums, g, v, begin, end);
      });
    if (with_g)
      add_in_pieces(acc, op.depth, [&](Tile<M, R>& sums, int begin, int end) {
        add_far(sums, g, w, begin, end);
      });
    const R* value = in_shared(here.at(op.value));
#pragma unroll
    for (int i = 0; i < M; ++i) {
      if (m + i >= op.rows) break;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int column = first + j * op.across;
        if (column >= op.columns) break;
        const int place = (m + i) * op.to_row + column;
        const R slope = how != Fused::ReLU || value[place] > R(0) ? R(1) : R(0);
        if (with_g) here.at(op.to)[place] = slope * acc.v[i][j];
        here.at(op.r_to)[place] = slope * r_acc.v[i][j];
      }
    }
    if (how != Fused::Other) return;
#pragma unroll 1
    for (int i = 0; i < M && m + i < op.rows; ++i)
      r_backward_some(activation(here, op), with_g ? here.at(op.to) : nullptr,
                     here.at(op.r_to), op.rz >= 0 ? here.at(op.rz) : nullptr, left(here, op),
                     (m + i) * op.to_row + first, op.across,
                     (op.columns - first + op.across - 1) / op.across);
  });
}

template <class R, class F>
FASTMETA_INLINE void by_tile(const Op& op, F run) {
  if (op.tile_rows == 4)
    run(std::integral_constant<int, 4>{});
  else if (op.tile_rows == 2)
    run(std::integral_constant<int, 2>{});
  else
    run(std::integral_constant<int, 1>{});
}

// ---- a program ------------------------------------------------------------------------------------

template <class R>
FASTMETA_INLINE void carry_out(const Here<R>& here, const Op& op) {
  switch (op.code) {
    case Do::Gather:
      return gather(here, op);
    case Do::GatherLabels:
      return gather_labels(here, op);
    case Do::Scatter:
      return scatter(here, op, [](R& to, R from) { to = from; });
    case Do::ScatterSubtract:
      return scatter_subtract(here, op);
    case Do::ScatterAdd:
      return scatter(here, op, [](R& to, R from) { to += from; });
    case Do::ZeroTensor: {
      if (!here.has(op.slot)) return;
      R* to = here.tensor(op.slot, op.offset);
      return each(op.columns, [&](int i) { to[i] = 0; });
    }
    case Do::Load:
      return move(here.at(op.to), here.tensor(op.slot, op.offset), op.columns);
    case Do::Keep:
      if (here.has(op.slot)) move(here.tensor(op.slot, op.offset), here.at(op.from), op.columns);
      return;
    case Do::Zero:
      return each(op.columns, [&](int i) { here.at(op.to)[i] = 0; });
    case Do::Copy:
      return each(op.columns, [&](int i) { here.at(op.to)[i] = here.at(op.from)[i]; });
    case Do::Add:
      return each(op.columns, [&](int i) { here.at(op.to)[i] += here.at(op.from)[i]; });
    case Do::PadColumn:
      return each(op.rows, [&](int s) { here.at(op.to)[s * op.to_row] = R(op.pad); });
    case Do::TimesRates:
      return times_rates(here, op);
    case Do::Coefficients:
      return put_coefficients(here, op);
    case Do::ScaleCoefficients: {
      const R factor = *here.tensor(op.slot, 0);
      return each(op.rows, [&](int s) { here.at(op.to)[s] *= factor; });
    }
    case Do::Loss:
      return add_losses(here, op);
    case Do::PutLoss:
      if (threadIdx.x == 0 && here.has(op.slot))
        *here.tensor(op.slot, 0) = *here.at(here.run.loss_at);
      return;
    case Do::LossGradient:
      return loss_gradient(here, op);
    case Do::LossRGradient:
      return loss_r_gradient(here, op);
    case Do::Forward:
    case Do::RForward:
      return by_tile<R>(op, [&](auto rows) { forward_tiles<rows.value>(here, op); });
    case Do::WeightGradient:
      return by_tile<R>(op, [&](auto rows) { weight_gradient_tiles<rows.value>(here, op); });
    case Do::InputGradient:
      return by_tile<R>(op, [&](auto rows) { input_gradient_tiles<rows.value>(here, op); });
    case Do::RInputGradient:
      if (op.tile_rows == 2) return r_input_gradient_tiles<2>(here, op);
      return r_input_gradient_tiles<1>(here, op);
    case Do::Activate:
    case Do::ActivationBackward:
    case Do::RActivate:
    case Do::RActivationBackward:
      return activation_alone(here, op);
  }
}

// Where the i-th of `parts` nearly equal pieces of n begins.
FASTMETA_INLINE i64 piece_of(i64 n, i64 parts, i64 i) { return n * i / parts; }

// Brings a program into the first-level cache, all of it at once instead of a line at a time.
FASTMETA_INLINE void touch([[maybe_unused]] const Op* ops, [[maybe_unused]] int n) {
#ifdef __CUDA_ARCH__
  const char* line = reinterpret_cast<const char*>(ops);
  each(int(n * sizeof(Op) / 128), [&](int i) {
    [[maybe_unused]] int word;
    asm volatile("ld.global.ca.u32 %0, [%1];" : "=r"(word) : "l"(line + 128 * i));
  });
#endif
}

// A block has a run of consecutive tasks.
template <class R>
FASTMETA_INLINE void run_block(const Run<R>& run, R* shared) {
  Here<R> here{run, shared, 0, i64(blockIdx.x)};
  if (here.has(sums)) {
    R* mine = here.tensor(sums, 0);
    for (i64 i = threadIdx.x; i < run.run_size; i += blockDim.x) mine[i] = 0;
  }
  touch(run.ops, run.n_ops);
  for (int i = 0; i < run.n_once; ++i) carry_out(here, run.ops[i]);
  __syncthreads();
  const i64 end = piece_of(run.tasks, run.runs, here.block + 1);
  for (here.task = piece_of(run.tasks, run.runs, here.block); here.task < end; ++here.task) {
    for (int i = run.n_once; i < run.n_ops; ++i) {
      const Op& op = run.ops[i];
      carry_out(here, op);
      if (op.meets) __syncthreads();
    }
  }
}

// ---- sums over runs -------------------------------------------------------------------------------

// blockIdx.x: 32 elements of theta; blockIdx.y: the parameters, or the rates of a step. A column of
// threads adds up every n-th run, then the first of them their sums. The order never changes.
template <class R>
FASTMETA_INLINE void sum_block(const SumOver<R>& a, R* shared) {
  const int column = int(threadIdx.x) % sum_columns, row = int(threadIdx.x) / sum_columns;
  const int rows = int(blockDim.x) / sum_columns;
  const i64 at = i64(blockIdx.x) * sum_columns + column, step = i64(blockIdx.y) - 1;
  R* place = nullptr;
  for (int n = 0; n < a.n_parts; ++n) {
    const Part& p = a.parts[n];
    const i64 inside = at - p.at;
    if (inside < 0 || inside >= p.rows * p.row) continue;
    const unsigned r = unsigned(inside) / unsigned(p.row), c = unsigned(inside) - r * unsigned(p.row);
    R* out = step < 0 ? a.out[n] : a.rates[n];
    if (c < p.columns && out)
      place = out + larger(step, 0) * p.elements + r * p.row_step + c * p.column_step;
  }
  R sum = 0;
  const R* mine = a.sums + (step + 1) * a.theta_size + at;
  if (place)
    for (i64 run = row; run < a.runs; run += rows) sum += mine[run * a.run_size];
  shared[threadIdx.x] = sum;
  __syncthreads();
  if (row > 0 || !place) return;
  for (int other = 1; other < rows; ++other) sum += shared[other * sum_columns + column];
  *place = sum;
}

}  // namespace fastmeta::cuda
