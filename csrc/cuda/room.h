// How much of a task a block takes: how many blocks share it, and how much of the samples comes at
// once, all or as many rows as shared memory holds. Plain arithmetic, on the host.
#pragma once

#include "block.cuh"

namespace fastmeta::cuda {

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
  const i64 most = plan.loop.tasks > 16 * processors ? 64 : most_threads;
  i64 threads = 32;
  while (threads < most && threads < tiles) threads *= 2;
  return int(threads);
}

// The most that every GPU with clusters takes. A build with 1 has none.
#ifndef FASTMETA_MOST_BLOCKS
#define FASTMETA_MOST_BLOCKS 8
#endif
constexpr int most_blocks = FASTMETA_MOST_BLOCKS;

// Are few tasks that fit a block each shared among more, for speed? Predicted to pay and not measured:
// until it is, a build with 1 does so (docs/notes/gpu-session.md).
#ifndef FASTMETA_SHARE_FEW_TASKS
#define FASTMETA_SHARE_FEW_TASKS 0
#endif
constexpr bool share_few_tasks = FASTMETA_SHARE_FEW_TASKS;

// With fewer rows a part, weights are read for too little work.
constexpr i64 enough_rows = 16;

template <class R>
bool takes_enough_rows(const InnerLoop<R>& loop, i64 limit, int blocks) {
  const i64 all = most_samples(loop);
  const Room room{-1, false, true, loop.order == 2, false, blocks};
  const auto fits = [&](i64 rows) {
    const Room taken = with_rows(room, rows, all, true);
    return limit >= (blocks > 1 ? shared_bytes(Plan<Cluster<R>>(loop, taken))
                                : shared_bytes(Plan<Block<R>>(loop, taken)));
  };
  return fits(all) || (all > enough_rows && fits(enough_rows));
}

// Multiply-adds a sample of the block that has the most to do.
template <class R>
i64 longest_share(const InnerLoop<R>& loop, int blocks) {
  i64 sum = 0;
  for (int l = 0; l < loop.network.n_nodes; ++l) {
    const Node& node = loop.network.nodes[l];
    if (node.kind == NodeKind::Linear) sum += Cluster<R>::share(node.in, blocks) * node.out;
  }
  return sum;
}

// How many blocks share a task, or 0: it fits into no cluster. One, where a block holds the
// parameters and enough rows, or where the device has no clusters. at_once(blocks): how many clusters
// of that many the device runs at the same time, 0 where it has none.
//
// If asked for, few tasks are shared among more blocks: as long as all tasks still run at once, every thread keeps
// a tile, and the longest share becomes shorter.
template <class R, class AtOnce>
int blocks_of_task(const InnerLoop<R>& loop, i64 limit, AtOnce at_once,
                   bool for_speed = share_few_tasks) {
  const i64 tiles = most_tiles(loop.network.nodes, loop.network.n_nodes, most_samples(loop));
  int blocks = 1;
  while (tiles && blocks < most_blocks && !takes_enough_rows(loop, limit, blocks)) ++blocks;
  if (blocks == 1 || !at_once(blocks)) {
    if (least_bytes<Block<R>>(loop) > limit) return 0;
    blocks = 1;
  } else if (least_bytes<Cluster<R>>(loop, blocks) > limit) {
    return 0;
  }
  if (!for_speed) return blocks;
  i64 least = longest_share(loop, blocks);
  for (int more = blocks + 1; more <= most_blocks && tiles >= more * most_threads; ++more) {
    const i64 share = longest_share(loop, more);
    if (share >= least || loop.tasks > at_once(more)) continue;
    blocks = more, least = share;
  }
  return blocks;
}

}  // namespace fastmeta::cuda
