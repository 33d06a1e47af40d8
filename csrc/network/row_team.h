// How a team has samples, where that is not how it has parameters.
#pragma once

namespace fastmeta::FASTMETA_ISA {

template <class Team>
struct RowTeamOf {
  using Rows = Team;
  static constexpr i64 samples = 1;  // to a row
};
template <class Team>
using RowTeam = typename RowTeamOf<Team>::Rows;
template <class Team>
constexpr i64 samples_a_row = RowTeamOf<Team>::samples;
template <class Team>
FASTMETA_BOTH constexpr i64 rows_of(i64 samples) { return ceil_div(samples, samples_a_row<Team>); }

}  // namespace fastmeta::FASTMETA_ISA
