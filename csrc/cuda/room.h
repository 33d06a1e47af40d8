// How much of the samples a block takes at once: all, or as many rows as its shared memory holds.
#pragma once

#include "block.cuh"

namespace fastmeta::cuda {

template <class R>
i64 shared_bytes(const BlockPlan<R>& plan) {
  return plan.scratch_size * i64(sizeof(R));
}

// What the rates' gradient needs beyond what is in `room`: only with several parts.
inline Room with_rows(Room room, i64 rows, i64 all, bool rates) {
  room.rows = rows;
  room.keeps_lambda = rates && room.r_pass && rows < all;
  return room;
}

// Leaves in room.rows what fits into `most` bytes, in parts of nearly equal size, else 0.
template <class R>
Room fit(const InnerLoop<R>& loop, Room room, bool rates, i64 most) {
  const i64 all = larger(loop.support.n, loop.query.n);
  const auto bytes = [&](i64 rows) {
    return shared_bytes(BlockPlan<R>(loop, with_rows(room, rows, all, rates)));
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

template <class R>
Room forward_room(const InnerLoop<R>& loop, i64 most) {
  return fit(loop, Room{-1, true, false, false, false}, false, most);
}
template <class R>
Room backward_room(const InnerLoop<R>& loop, bool rates, i64 most) {
  return fit(loop, Room{-1, false, true, loop.order == 2, false}, rates, most);
}

// The least that either kernel needs: the parameters' copies and one row.
template <class R>
i64 least_bytes(const InnerLoop<R>& loop) {
  const Room room{1, false, true, loop.order == 2, true};
  const i64 backward = shared_bytes(BlockPlan<R>(loop, room));
  return larger(backward, shared_bytes(BlockPlan<R>(loop, Room{1, true, false, false, false})));
}

// As many threads as the widest product has tiles of 4 x 4; fewer where the tasks fill the machine
// anyway, since larger tiles read less.
template <class R>
int threads_for(const BlockPlan<R>& plan, i64 processors) {
  i64 tiles = 8;
  for (int l = 0; l < plan.n_nodes; ++l) {
    if (!plan.linear(l)) continue;
    const i64 across = ceil_div(plan.out(l), 4);
    tiles = larger(tiles, across * ceil_div(larger(plan.in(l), plan.part), 4));
  }
  const i64 most = plan.loop.tasks > 16 * processors ? 64 : 256;
  i64 threads = 32;
  while (threads < most && threads < tiles) threads *= 2;
  return int(threads);
}

}  // namespace fastmeta::cuda
