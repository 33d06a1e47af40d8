// Activations as (value, first, second derivative). What the derivatives cannot be computed from the
// value alone is kept by apply() in s1 and s2.
#pragma once

namespace fastmeta::FASTMETA_ISA {

// Defaults: nothing is kept and the second derivative is zero.
struct PiecewiseLinear {
  static constexpr bool keeps_s1 = false, keeps_s2 = false, curved = false;
  template <class V>
  FASTMETA_INLINE V second(V value, V, V) const { return value - value; }
};

template <class R>
struct ReLU : PiecewiseLinear {
  FASTMETA_INLINE Vec<R> apply(Vec<R> z, Vec<R>&, Vec<R>&) const {
    return select(z <= R(0), Vec<R>{}, z);  // NaN passes through
  }
  FASTMETA_INLINE Vec<R> first(Vec<R> value, Vec<R>) const {
    return select(value > R(0), splat(R(1)), Vec<R>{});
  }
};

// The sign of the value tells the branch only for a slope of at least 0; others are refused above.
template <class R>
struct LeakyReLU : PiecewiseLinear {
  R slope;
  FASTMETA_INLINE Vec<R> apply(Vec<R> z, Vec<R>&, Vec<R>&) const {
    return select(z > R(0), z, z * slope);
  }
  FASTMETA_INLINE Vec<R> first(Vec<R> value, Vec<R>) const {
    return select(value > R(0), splat(R(1)), splat(slope));
  }
};

template <class R>
struct Clamp : PiecewiseLinear {
  R least, most;
  FASTMETA_INLINE Vec<R> apply(Vec<R> z, Vec<R>&, Vec<R>&) const {
    const Vec<R> below = select(z > most, splat(most), z);  // NaN passes through
    return select(z < least, splat(least), below);
  }
  FASTMETA_INLINE Vec<R> first(Vec<R> value, Vec<R>) const {
    return select(value > least, select(value < most, splat(R(1)), Vec<R>{}), Vec<R>{});
  }
};

// scale z + shift
template <class R>
struct Affine : PiecewiseLinear {
  R scale, shift;
  FASTMETA_INLINE Vec<R> apply(Vec<R> z, Vec<R>&, Vec<R>&) const { return scale * z + shift; }
  FASTMETA_INLINE Vec<R> first(Vec<R>, Vec<R>) const { return splat(scale); }
};

template <class R>
struct Tanh {
  static constexpr bool keeps_s1 = false, keeps_s2 = false, curved = true;
  FASTMETA_INLINE Vec<R> apply(Vec<R> z, Vec<R>&, Vec<R>&) const { return tanh(z); }
  FASTMETA_INLINE Vec<R> first(Vec<R> value, Vec<R>) const { return 1 - value * value; }
  FASTMETA_INLINE Vec<R> second(Vec<R> value, Vec<R>, Vec<R>) const {
    return -2 * value * (1 - value * value);
  }
};

template <class R>
struct Sigmoid {
  static constexpr bool keeps_s1 = false, keeps_s2 = false, curved = true;
  FASTMETA_INLINE Vec<R> apply(Vec<R> z, Vec<R>&, Vec<R>&) const { return sigmoid(z); }
  FASTMETA_INLINE Vec<R> first(Vec<R> value, Vec<R>) const { return value * (1 - value); }
  FASTMETA_INLINE Vec<R> second(Vec<R> value, Vec<R>, Vec<R>) const {
    return value * (1 - value) * (1 - 2 * value);
  }
};

// sin(frequency z)
template <class R>
struct Sine {
  static constexpr bool keeps_s1 = true, keeps_s2 = false, curved = true;
  R frequency;
  FASTMETA_INLINE Vec<R> apply(Vec<R> z, Vec<R>& s1, Vec<R>&) const {
    Vec<R> s, c;
    sincos(frequency * z, s, c);
    s1 = frequency * c;
    return s;
  }
  FASTMETA_INLINE Vec<R> first(Vec<R>, Vec<R> s1) const { return s1; }
  FASTMETA_INLINE Vec<R> second(Vec<R> value, Vec<R>, Vec<R>) const {
    return -frequency * frequency * value;
  }
};

// z Phi(z)
template <class R>
struct GELU {
  static constexpr bool keeps_s1 = true, keeps_s2 = true, curved = true;
  FASTMETA_INLINE Vec<R> apply(Vec<R> z, Vec<R>& s1, Vec<R>& s2) const {
    const Vec<R> cdf = R(0.5) * (1 + erf(z * R(0.70710678118654752440)));
    const Vec<R> pdf = R(0.39894228040143267794) * exp(R(-0.5) * z * z);
    s1 = cdf + z * pdf;
    s2 = pdf * (2 - z * z);
    return z * cdf;
  }
  FASTMETA_INLINE Vec<R> first(Vec<R>, Vec<R> s1) const { return s1; }
  FASTMETA_INLINE Vec<R> second(Vec<R>, Vec<R>, Vec<R> s2) const { return s2; }
};

// z/2 (1 + tanh(u)), u = sqrt(2/pi) (z + 0.044715 z^3)
template <class R>
struct GELUTanh {
  static constexpr bool keeps_s1 = true, keeps_s2 = true, curved = true;
  FASTMETA_INLINE Vec<R> apply(Vec<R> z, Vec<R>& s1, Vec<R>& s2) const {
    constexpr R k = R(0.79788456080286535588), cubic = R(0.044715);
    const Vec<R> t = tanh(k * (z + cubic * z * z * z));
    const Vec<R> u1 = k * (1 + 3 * cubic * z * z);
    const Vec<R> u2 = k * 6 * cubic * z;
    const Vec<R> t1 = (1 - t * t) * u1;
    const Vec<R> t2 = (1 - t * t) * u2 - 2 * t * t1 * u1;
    s1 = R(0.5) * (1 + t + z * t1);
    s2 = t1 + R(0.5) * z * t2;
    return R(0.5) * z * (1 + t);
  }
  FASTMETA_INLINE Vec<R> first(Vec<R>, Vec<R> s1) const { return s1; }
  FASTMETA_INLINE Vec<R> second(Vec<R>, Vec<R>, Vec<R> s2) const { return s2; }
};

// log(1 + exp(beta z)) / beta, and z itself where beta z is past the threshold
template <class R>
struct Softplus {
  static constexpr bool keeps_s1 = true, keeps_s2 = true, curved = true;
  R beta, threshold;
  FASTMETA_INLINE Vec<R> apply(Vec<R> z, Vec<R>& s1, Vec<R>& s2) const {
    const Vec<R> u = beta * z;
    const auto linear = u > threshold;
    const Vec<R> p = sigmoid(u);
    s1 = select(linear, splat(R(1)), p);
    s2 = select(linear, Vec<R>{}, beta * p * (1 - p));
    const Vec<R> soft = (vmax(u, Vec<R>{}) + log1p(exp(-absolute<R>(u)))) / beta;
    return select(linear, z, soft);
  }
  FASTMETA_INLINE Vec<R> first(Vec<R>, Vec<R> s1) const { return s1; }
  FASTMETA_INLINE Vec<R> second(Vec<R>, Vec<R>, Vec<R> s2) const { return s2; }
};

// z sigmoid(z)
template <class R>
struct SiLU {
  static constexpr bool keeps_s1 = true, keeps_s2 = true, curved = true;
  FASTMETA_INLINE Vec<R> apply(Vec<R> z, Vec<R>& s1, Vec<R>& s2) const {
    const Vec<R> p = sigmoid(z);
    s1 = p * (1 + z * (1 - p));
    s2 = p * (1 - p) * (2 + z * (1 - 2 * p));
    return z * p;
  }
  FASTMETA_INLINE Vec<R> first(Vec<R>, Vec<R> s1) const { return s1; }
  FASTMETA_INLINE Vec<R> second(Vec<R>, Vec<R>, Vec<R> s2) const { return s2; }
};

// slope z above 0, alpha (exp(z) - 1) below. As for LeakyReLU, the sign of the value tells which: alpha is
// at least 0.
template <class R>
struct ELU {
  static constexpr bool keeps_s1 = true, keeps_s2 = false, curved = true;
  R alpha, slope;
  FASTMETA_INLINE Vec<R> apply(Vec<R> z, Vec<R>& s1, Vec<R>&) const {
    const Vec<R> t = tanh(R(0.5) * z);  // exp(z) - 1 = 2 t / (1 - t), to the last digits
    s1 = select(z > R(0), splat(slope), alpha * exp(z));
    return select(z > R(0), slope * z, alpha * (2 * t / (1 - t)));
  }
  FASTMETA_INLINE Vec<R> first(Vec<R>, Vec<R> s1) const { return s1; }
  FASTMETA_INLINE Vec<R> second(Vec<R> value, Vec<R> s1, Vec<R>) const {
    return select(value > R(0), Vec<R>{}, s1);
  }
};

// z tanh(softplus(z)) = z n / (n + 2), n = exp(z) (exp(z) + 2)
template <class R>
struct Mish {
  static constexpr bool keeps_s1 = true, keeps_s2 = true, curved = true;
  FASTMETA_INLINE Vec<R> apply(Vec<R> z, Vec<R>& s1, Vec<R>& s2) const {
    const auto linear = z > R(20);  // where 1 - t^2 is below the last digit of 1, whatever it is times
    const Vec<R> e = exp(select(linear, splat(R(20)), z)), n = e * (e + 2);
    const Vec<R> t = n / (n + 2), p = e / (1 + e);
    const Vec<R> t1 = select(linear, Vec<R>{}, 4 * (n + 1) / ((n + 2) * (n + 2)) * p);
    s1 = t + z * t1;
    s2 = t1 * (2 + z * (1 - p - 2 * t * p));
    return z * t;
  }
  FASTMETA_INLINE Vec<R> first(Vec<R>, Vec<R> s1) const { return s1; }
  FASTMETA_INLINE Vec<R> second(Vec<R>, Vec<R>, Vec<R> s2) const { return s2; }
};

template <ActivationKind kind, class R>
FASTMETA_INLINE_BOTH auto activation_of([[maybe_unused]] const Node& node) {
  if constexpr (kind == ActivationKind::ReLU) {
    return ReLU<R>{};
  } else if constexpr (kind == ActivationKind::LeakyReLU) {
    LeakyReLU<R> leaky;
    leaky.slope = R(node.a);
    return leaky;
  } else if constexpr (kind == ActivationKind::Tanh) {
    return Tanh<R>{};
  } else if constexpr (kind == ActivationKind::Sigmoid) {
    return Sigmoid<R>{};
  } else if constexpr (kind == ActivationKind::Sine) {
    return Sine<R>{R(node.a)};
  } else if constexpr (kind == ActivationKind::GELU) {
    return GELU<R>{};
  } else if constexpr (kind == ActivationKind::GELUTanh) {
    return GELUTanh<R>{};
  } else if constexpr (kind == ActivationKind::Softplus) {
    return Softplus<R>{R(node.a), R(node.b)};
  } else if constexpr (kind == ActivationKind::SiLU) {
    return SiLU<R>{};
  } else if constexpr (kind == ActivationKind::ELU) {
    return ELU<R>{R(node.a), R(node.b)};
  } else if constexpr (kind == ActivationKind::Clamp) {
    Clamp<R> clamp;
    clamp.least = R(node.a), clamp.most = R(node.b);
    return clamp;
  } else if constexpr (kind == ActivationKind::Affine) {
    Affine<R> affine;
    affine.scale = R(node.a), affine.shift = R(node.b);
    return affine;
  } else {
    return Mish<R>{};
  }
}

// Calls f with the activation of a node, its type known to the compiler.
FASTMETA_ANY_CALLER
template <class R, class F>
FASTMETA_INLINE_BOTH auto with_activation(const Node& node, F&& f) {
  using Kind = ActivationKind;
  switch (node.activation) {
    case Kind::ReLU:
      return f(activation_of<Kind::ReLU, R>(node));
    case Kind::LeakyReLU:
      return f(activation_of<Kind::LeakyReLU, R>(node));
    case Kind::Tanh:
      return f(activation_of<Kind::Tanh, R>(node));
    case Kind::Sigmoid:
      return f(activation_of<Kind::Sigmoid, R>(node));
    case Kind::Sine:
      return f(activation_of<Kind::Sine, R>(node));
    case Kind::GELU:
      return f(activation_of<Kind::GELU, R>(node));
    case Kind::GELUTanh:
      return f(activation_of<Kind::GELUTanh, R>(node));
    case Kind::Softplus:
      return f(activation_of<Kind::Softplus, R>(node));
    case Kind::SiLU:
      return f(activation_of<Kind::SiLU, R>(node));
    case Kind::ELU:
      return f(activation_of<Kind::ELU, R>(node));
    case Kind::Clamp:
      return f(activation_of<Kind::Clamp, R>(node));
    case Kind::Affine:
      return f(activation_of<Kind::Affine, R>(node));
    case Kind::Mish:
      return f(activation_of<Kind::Mish, R>(node));
  }
  __builtin_unreachable();
}

}  // namespace fastmeta::FASTMETA_ISA
