// Which taps of a convolution meet in an input pixel.
#pragma once

namespace fastmeta::FASTMETA_ISA {

// One residue of the input pixels modulo the stride: the gradient of its pixels is a correlation of
// the output's gradient with some of the taps, in reverse order.
struct Phase {
  i64 taps;   // 0: these pixels reach no output
  i64 tap0;   // the taps are tap0, tap0 + step, ...
  i64 step;
  i64 apart;  // output pixels from one of these taps to the next
  i64 first;  // output pixel that the last tap takes to the first input pixel
  i64 count;  // input pixels
};

// An output y gives to the input pixels y stride - before + tap dilation.
inline Phase phase_of(const Stage& s, int axis, i64 residue) {
  const i64 stride = s.stride[axis], dilation = s.dilation[axis], size = axis ? s.in_w : s.in_h;
  const i64 common = std::gcd(stride, dilation), at = residue + s.before[axis];
  Phase p;
  p.step = stride / common, p.apart = dilation / common;
  for (p.tap0 = 0; p.tap0 < p.step && (at - p.tap0 * dilation) % stride; ++p.tap0) {}
  const bool any = p.tap0 < smaller(p.step, s.kernel[axis]);
  p.taps = any ? ceil_div(s.kernel[axis] - p.tap0, p.step) : 0;
  p.first = any ? (at - p.tap0 * dilation) / stride - (p.taps - 1) * p.apart : 0;
  p.count = residue < size ? ceil_div(size - residue, stride) : 0;
  return p;
}

}  // namespace fastmeta::FASTMETA_ISA
