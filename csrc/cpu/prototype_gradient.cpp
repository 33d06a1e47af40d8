// The backward of the loss of a prototypical network, for the gradients that its forward has not made.
#include <cstdint>
#include <cstring>

#include "prototypes.h"
#include "runtime.h"

#include "prototype_kernels.h"
#include "prototype_gradient.h"

namespace fastmeta::FASTMETA_ISA {

namespace {

// Labels choose what is read.
bool labels_are_in_range(const Loss& p) {
  Real total;
  for (i64 t = 0; t < p.tasks; ++t)
    if (!check_labels(p.support_y + t * p.support_n,
                      p.support_weight ? p.support_weight + t * p.support_n : nullptr, p.support_n,
                      p.classes, &total))
      return false;
  return true;
}

}  // namespace

bool prototype_loss_backward(const Loss& p, const Real* record, const PrototypeGradients<Real>& g) {
  if (!labels_are_in_range(p)) return false;
  const Record r(p, const_cast<Real*>(record));
  const i64 threads = threads_of(p), chunks = g.query ? p.tasks * r.chunks : 0;
  const i64 size = GradientScratch(p, r, nullptr).size;
  const Memory memory(i64(sizeof(Real)) * size * threads);
  parallel(chunks + (g.support ? p.tasks : 0), threads, [&](i64 worker, i64 i) {
    const GradientScratch scratch(p, r, static_cast<Real*>(memory.data()) + worker * size);
    if (i < chunks)
      query_gradients(p, r, Chunk(p, r, i), g, scratch);
    else
      support_gradient(p, r, i - chunks, g, scratch.row);
  });
  for (i64 t = 0; g.temperature && t < p.tasks; ++t)
    g.temperature[t] = g.loss[t * g.loss_task] * r.slope[t * r.chunks];
  return true;
}

}  // namespace fastmeta::FASTMETA_ISA
