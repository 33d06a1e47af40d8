// How many rows of the samples come at once, and how many threads work on them. Plain arithmetic, on
// the host.
#pragma once

#include "loop.h"
//
#include "../network/product.h"
//
#include "../network/activation.h"
#include "../network/plan.h"

namespace fastmeta::cuda {

// Bytes of a block's shared memory behind the scratch of its plan: the sum of the losses.
constexpr i64 beside_scratch = 64;

template <class Team>
i64 shared_bytes(const Plan<Team>& plan) {
  return plan.scratch_size * i64(sizeof(typename Team::Real));
}

// What the rates' gradient needs beyond what is in `room`: only with several parts.
inline Room with_rows(Room room, i64 rows, i64 all, bool rates) {
  room.rows = rows;
  room.keeps_lambda = rates && room.r_pass && rows < all;
  return room;
}

template <class R>
i64 most_samples(const InnerLoop<R>& loop) {
  return larger(loop.support.n, loop.query.n);
}

// Leaves in room.rows what fits into `most` bytes, in parts of nearly equal size, else 0.
template <class Team, class R>
Room fit(const InnerLoop<R>& loop, Room room, bool rates, i64 most) {
  const i64 all = most_samples(loop);
  const auto bytes = [&](i64 rows) {
    return shared_bytes(Plan<Team>(loop, with_rows(room, rows, all, rates)));
  };
  if (bytes(all) <= most) return with_rows(room, all, all, rates);
  i64 fits = 0, too_many = all;  // the largest that fits, by halves
  while (too_many - fits > 1) {
    const i64 middle = fits + (too_many - fits) / 2;
    (bytes(middle) <= most ? fits : too_many) = middle;
  }
  if (!fits) return with_rows(room, 0, all, false);
  return with_rows(room, ceil_div(all, ceil_div(all, fits)), all, rates);
}

template <class Team, class R>
Room forward_room(const InnerLoop<R>& loop, i64 most, int blocks = 1) {
  return fit<Team>(loop, Room{-1, true, false, false, false, blocks}, false, most);
}
template <class Team, class R>
Room backward_room(const InnerLoop<R>& loop, bool rates, i64 most, int blocks = 1) {
  return fit<Team>(loop, Room{-1, false, true, loop.order == 2, false, blocks}, rates, most);
}

// The least that either kernel needs: the parameters' copies and one row.
template <class Team, class R>
i64 least_bytes(const InnerLoop<R>& loop, int blocks = 1) {
  const Room backward{1, false, true, loop.order == 2, true, blocks};
  const Room forward{1, true, false, false, false, blocks};
  return larger(shared_bytes(Plan<Team>(loop, backward)), shared_bytes(Plan<Team>(loop, forward)));
}

// ---- threads and blocks ---------------------------------------------------------------------------

// 2 blocks of 256 threads, or 8 of 64, keep an SM's registers busy: 128 a thread.
constexpr int most_threads = 256;

// Tiles of 4 x 4 of the widest product.
template <class Nodes>
i64 most_tiles(const Nodes& nodes, int n, i64 rows) {
  i64 tiles = 0;
  for (int l = 0; l < n; ++l)
    if (nodes[l].kind == NodeKind::Linear)
      tiles = larger(tiles, ceil_div(nodes[l].out, 4) * ceil_div(larger(nodes[l].in, rows), 4));
  return tiles;
}

// As many threads as the widest product has tiles; fewer where the tasks fill the machine anyway,
// since larger tiles read less.
template <class Team>
int threads_for(const Plan<Team>& plan, i64 processors) {
  const i64 tiles = most_tiles(plan.loop.network.nodes, plan.n_nodes, plan.part);
  const i64 most = plan.loop.tasks > 4 * processors ? 64 : most_threads;
  i64 threads = 32;
  while (threads < most && threads < tiles) threads *= 2;
  return int(threads);
}

// Blocks on a processor at once, as many as there are tasks for and as its memory holds (228 KB since
// compute capability 9.0, 1 of them lost to a block), and few enough for 128 registers a thread.
template <class Team>
i64 blocks_together(const Plan<Team>& plan, int threads, i64 shared, i64 processors) {
  constexpr i64 kilobyte = 1024, memory = 228 * kilobyte, registers = 65536;
  const i64 fit = smaller(memory / (shared + kilobyte), registers / (128 * threads));
  return larger(1, smaller(fit, ceil_div(plan.loop.tasks, processors)));
}

}  // namespace fastmeta::cuda
