// The largest of 2 x 2 pixels of many tasks' images, and the two maps that its derivatives are made of.
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "dispatch.h"
#include "runtime.h"

#include "simd.h"
//
#include "image_lanes.h"
#include "stages.h"

namespace fastmeta::FASTMETA_ISA {

namespace {

using Real = FASTMETA_REAL;
using V = Vec<Real>;

// As in PyTorch: of equal pixels the first, and of NaNs the last.
template <class Along, class L>
FASTMETA_INLINE void largest(const Along& along, const Image<Real>& x, const Image<Real>& y,
                             const Image<Real>& at, L lanes, i64 i, i64 j) {
  V pixels[4], place{};
  along.load(x, lanes, i, j, pixels);
  V best = pixels[0];
  for (int k = 1; k < 4; ++k) {
    const auto better = (pixels[k] > best) | (pixels[k] != pixels[k]);
    best = select(better, pixels[k], best);
    place = select(better, splat(Real(k)), place);
  }
  lanes.store(y.at(i / 2, j / 2), best);
  lanes.store(at.at(i / 2, j / 2), place);
}

template <class Along, class L>
FASTMETA_INLINE void gather(const Along& along, const Image<Real>& x, const Image<Real>& y,
                            const Image<Real>& at, L lanes, i64 i, i64 j) {
  V pixels[4];
  along.load(x, lanes, i, j, pixels);
  const V place = lanes.load(at.at(i / 2, j / 2));
  V taken = pixels[0];
  for (int k = 1; k < 4; ++k) taken = select(place == splat(Real(k)), pixels[k], taken);
  lanes.store(y.at(i / 2, j / 2), taken);
}

template <class Along, class L>
FASTMETA_INLINE void scatter(const Along& along, const Image<Real>& x, const Image<Real>& y,
                             const Image<Real>& at, L lanes, i64 i, i64 j) {
  const V value = lanes.load(y.at(i / 2, j / 2)), place = lanes.load(at.at(i / 2, j / 2));
  V pixels[4];
  for (int k = 0; k < 4; ++k) pixels[k] = select(place == splat(Real(k)), value, V{});
  along.store(x, lanes, i, j, pixels);
}

template <class Along>
void run(const MaxPool<Real>& call) {
  each_unit<Along>(call, [&](i64 task, i64 channel) {
    const Along along(call.height, call.width,
                      smaller(Along::most_channels, call.channels - channel));
    for (i64 s = 0; s < call.samples; ++s) {
      const Image<Real> x = image_of(call.x, task, s, channel);
      const Image<Real> y = image_of(call.y, task, s, channel);
      const Image<Real> at = image_of(call.at, task, s, channel);
      along.each_window([&](auto lanes, i64 i, i64 j) {
        switch (call.form) {
          case PoolForm::Largest:
            return largest(along, x, y, at, lanes, i, j);
          case PoolForm::Gather:
            return gather(along, x, y, at, lanes, i, j);
          case PoolForm::Scatter:
            return scatter(along, x, y, at, lanes, i, j);
        }
      });
      if (call.form == PoolForm::Scatter)
        along.each_other([&](auto lanes, i64 i, i64 j) { lanes.store(x.at(i, j), V{}); });
    }
  });
}

}  // namespace

void max_pool(const MaxPool<Real>& call) {
  call.along_pixels ? run<AlongPixels<Real, 2>>(call) : run<AlongChannels<Real, 2>>(call);
}

}  // namespace fastmeta::FASTMETA_ISA
