// How much of a task a block takes: how many blocks share it, and how much of the samples comes at
// once, all or as many rows as shared memory holds. Plain arithmetic, on the host.
#pragma once

#include "block.cuh"
#include "recorder.h"

namespace fastmeta::cuda {

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
                                : shared_bytes(Plan<Recorder<R>>(loop, taken)) + beside_scratch);
  };
  const i64 least = blocks > 1 ? least_bytes<Cluster<R>>(loop, blocks)
                               : least_bytes<Recorder<R>>(loop) + beside_scratch;
  return least <= limit && (fits(all) || (all > enough_rows && fits(enough_rows)));
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

// Which only a block that has its task to itself can run.
template <class R>
bool has_own_loss(const InnerLoop<R>& loop) {
  return loop.network.loss == LossKind::Program;
}

// How many blocks share a task, or 0: it fits into no cluster. One, where a block holds the
// parameters and enough rows, or where the device has no clusters. at_once(blocks): how many clusters
// of that many the device runs at the same time, 0 where it has none.
//
// If asked for, few tasks are shared among more blocks: as long as all tasks still run at once, every
// thread keeps a tile, and the longest share becomes shorter.
template <class R, class AtOnce>
int blocks_of_task(const InnerLoop<R>& loop, i64 limit, AtOnce at_once,
                   bool for_speed = share_few_tasks) {
  const i64 tiles = most_tiles(loop.network.nodes, loop.network.n_nodes, most_samples(loop));
  int blocks = 1;
  const int most = has_own_loss(loop) ? 1 : most_blocks;
  while (tiles && blocks < most && !takes_enough_rows(loop, limit, blocks)) ++blocks;
  if (blocks == 1 || !at_once(blocks)) {
    if (least_bytes<Recorder<R>>(loop) + beside_scratch > limit) return 0;
    blocks = 1;
  } else if (least_bytes<Cluster<R>>(loop, blocks) > limit) {
    return 0;
  }
  if (!for_speed) return blocks;
  i64 least = longest_share(loop, blocks);
  for (int more = blocks + 1; more <= most && tiles >= more * most_threads; ++more) {
    const i64 share = longest_share(loop, more);
    if (share >= least || loop.tasks > at_once(more)) continue;
    blocks = more, least = share;
  }
  return blocks;
}

}  // namespace fastmeta::cuda
