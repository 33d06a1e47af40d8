// What a loss needs room for: plans lay it out without knowing the losses.
#pragma once

#include "spec.h"

namespace fastmeta::FASTMETA_ISA {

// Targets of a sample.
template <class Team, class Network>
FASTMETA_BOTH i64 targets_of(const Network& network, i64 outputs) {
  if constexpr (Team::runs_programs)
    if (network.loss == LossKind::Program) return network.program.rows[1].width;
  if constexpr (Team::takes_places)
    if (network.loss == LossKind::CrossEntropyAtPlaces) return network.places.count;
  return outputs;
}

// Scalars, for so many samples: of a program the rows and their adjoints, each with slopes.
template <class Team, class Network>
i64 loss_scratch(const Network& network, [[maybe_unused]] i64 rows) {
  if constexpr (Team::runs_programs)
    if (network.loss == LossKind::Program) return Team::program_scratch(network.program, rows);
  return 0;
}

}  // namespace fastmeta::FASTMETA_ISA
