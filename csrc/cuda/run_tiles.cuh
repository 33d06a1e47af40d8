// What the products of a network are made of: tiles, and what becomes of them.
#pragma once

#include "run_activation.cuh"
#include "run_product.cuh"

namespace fastmeta::cuda {

// The tile that a thread has of a product, or n of them.
template <class F>
FASTMETA_INLINE void each_tile(const Op& op, int rows, F f) {
#pragma unroll 1
  for (int tile = int(threadIdx.x); tile < op.tiles; tile += int(blockDim.x)) {
    const int down = op.across_inverse ? int(__umulhi(unsigned(tile), op.across_inverse)) : tile;
    f(down * rows, tile - down * op.across);
  }
}

enum class Fused { No, ReLU, Other };

template <class R>
FASTMETA_INLINE Fused fused(const Here<R>& here, const Op& op) {
  if (op.activation < 0) return Fused::No;
  return here.known().nodes[op.activation].activation == ActivationKind::ReLU ? Fused::ReLU
                                                                          : Fused::Other;
}

template <class R>
FASTMETA_INLINE R relu(R z) { return z <= R(0) ? R(0) : z; }  // NaN passes through

// x w + bias, and its activation
template <int M, class R>
FASTMETA_INLINE void forward_tiles(const Here<R>& here, const Op& given) {
  const Op op = given;  // read once
  const Fused known = fused(here, op);
  each_tile(op, M, [&](int m, int across) {
    const Fused how = Fused(opaque(int(known)));
    const bool r = opaque(int(op.code)) == int(Do::RForward);
    const int n = 4 * across, bias = opaque(op.bias), terms = opaque(op.terms);
    Tile<M, R> acc{};
    if (bias >= 0) set(acc, quad(here.at(bias) + n));
#pragma unroll(terms_ahead)
    for (int t = 0; t < terms; ++t) {
      const RowsOf<M, R> a(here.at(t ? op.a[1] : op.a[0]), op.a_row, m, op.rows);
      const R* b = here.at(t ? op.b[1] : op.b[0]) + n;
      add_in_pieces(acc, op.depth, [&](Tile<M, R>& sums, int begin, int end) {
        add_along(sums, a, b, op.b_row, begin, end);
      });
    }
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
FASTMETA_INLINE void put_gradient(const Here<R>& here, const Op& op, Then then, int row, int n,
                                  const R (&acc)[4]) {
  const int place = row * op.to_row + n, width = lesser(4, op.columns - n);
  if (then == Then::RateGrad) {
    R* c = here.tensor(op.slot, op.offset + place);
    const R* from = here.at(op.from) + place;
    for (int j = 0; j < width; ++j) c[j] -= from[j] * acc[j];
    return;
  }
  Quad<R> out;
  if (then == Then::Store) {
#pragma unroll
    for (int j = 0; j < 4; ++j) out.v[j] = acc[j];
  } else if (then == Then::Step) {
    const RatesOf<R> rate = rates_of(here, op, row, n);
    const Quad<R> from = quad(here.at(op.from) + place);
    if (rate.step) {
#pragma unroll
      for (int j = 0; j < 4; ++j) out.v[j] = j < width ? from.v[j] - rate[j] * acc[j] : R(0);
    } else {
      const R one = rate[0];
#pragma unroll
      for (int j = 0; j < 4; ++j) out.v[j] = from.v[j] - one * acc[j];
    }
  } else {
    const Quad<R> c = quad(here.at(op.to) + place);
    const R sign = then == Then::Add ? R(1) : R(-1);
#pragma unroll
    for (int j = 0; j < 4; ++j) out.v[j] = c.v[j] + sign * acc[j];
  }
  put_quad(here.at(op.to) + place, out);
}

// Sums over samples: x^T g
template <int M, class R>
FASTMETA_INLINE void weight_gradient_tiles(const Here<R>& here, const Op& given) {
  const Op op = given;  // read once
  each_tile(op, M, [&](int m, int across) {
    const int n = 4 * across, terms = opaque(op.terms);
    const Then then = Then(opaque(int(op.then)));
    Tile<M, R> acc{};
#pragma unroll(terms_ahead)
    for (int t = 0; t < terms; ++t) {
      const R* a = here.at(t ? op.a[1] : op.a[0]) + m;
      const R* b = here.at(t ? op.b[1] : op.b[0]) + n;
      add_in_pieces(acc, op.depth, [&](Tile<M, R>& sums, int begin, int end) {
        add_down(sums, a + begin * op.a_row, op.a_row, b + begin * op.b_row, op.b_row, end - begin);
      });
    }
#pragma unroll
    for (int i = 0; i < M; ++i) {
      if (m + i >= op.rows) break;
      put_gradient(here, op, then, m + i, n, acc.v[i]);
    }
  });
}

// The four rows of w^T that a tile's columns are.
template <class R>
FASTMETA_INLINE RowsOf<4, R> far_rows(const Here<R>& here, const Op& op, int matrix, int first) {
  const R* w = here.at(matrix);
  RowsOf<4, R> rows(w, op.b_row, 0, 1);
#pragma unroll
  for (int j = 0; j < 4; ++j)
    rows.p[j] = w + lesser(first + j * op.across, op.columns - 1) * op.b_row;
  return rows;
}

// g w^T, and times the slope of the activation below
template <int M, class R>
FASTMETA_INLINE void input_gradient_tiles(const Here<R>& here, const Op& given) {
  const Op op = given;  // read once
  const Fused known = fused(here, op);
  each_tile(op, M, [&](int m, int first) {
    const Fused how = Fused(opaque(int(known)));
    const RowsOf<M, R> a(here.at(op.a[0]), op.a_row, m, op.rows);
    const RowsOf<4, R> b = far_rows(here, op, op.b[0], first);
    Tile<M, R> acc{};
    add_in_pieces(acc, op.depth, [&](Tile<M, R>& sums, int begin, int end) {
      add_far(sums, a, b, begin, end);
    });
    const R* value = here.at(op.value);
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
  const Op op = given;  // read once
  const Fused known = fused(here, op);
  each_tile(op, M, [&](int m, int first) {
    const Fused how = Fused(opaque(int(known)));
    const bool with_g = opaque(op.to) >= 0;
    const int terms = opaque(op.b[1]) >= 0 ? 2 : 1;
    Tile<M, R> acc{}, r_acc{};
#pragma unroll(terms_ahead)
    for (int t = 0; t < terms; ++t) {  // rg w^T, g v^T
      const RowsOf<M, R> left(here.at(t ? op.a[1] : op.a[0]), op.a_row, m, op.rows);
      const RowsOf<4, R> right = far_rows(here, op, t ? op.b[1] : op.b[0], first);
      add_in_pieces(r_acc, op.depth, [&](Tile<M, R>& sums, int begin, int end) {
        add_far(sums, left, right, begin, end);
      });
    }
    if (with_g) {
      const RowsOf<M, R> left(here.at(op.a[1]), op.a_row, m, op.rows);
      const RowsOf<4, R> right = far_rows(here, op, op.b[0], first);
      add_in_pieces(acc, op.depth, [&](Tile<M, R>& sums, int begin, int end) {
        add_far(sums, left, right, begin, end);
      });
    }
    const R* value = here.at(op.value);
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

}  // namespace fastmeta::cuda
