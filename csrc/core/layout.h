// Sizes and offsets of the plan and workspace buffers: functions of PlanConfig alone, never of lengths.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "core/kernel_table.h"
#include "varattn/plan.h"

namespace varattn {

// Longer sequences and windows are clamped to this, so that sums of three of them fit 32 bits.
inline constexpr int32_t kMaxLength = 1 << 29;

// Capacities that make_plan_config accepts, so that every count and index of the planner fits 32 bits, and every sum of
// costs (times the number of CTAs or of KV heads) 63 bits.
inline constexpr int32_t kMaxHeads = 1 << 16;
inline constexpr int32_t kMaxSms = 1 << 12;
inline constexpr int32_t kMaxSeqs = 1 << 24;
inline constexpr int32_t kMaxPackedRows = 1 << 29;  // max_total_q * group size
inline constexpr int64_t kMaxTasks = 1 << 29;       // work items times KV heads

// Arrival counters of split tiles, a counter for each KV head. Their number and place are the same for every config, and
// launches leave them at zero: a workspace that is large enough serves any config, in any order.
inline constexpr int32_t kArrivalCounters = 1 << 14;

// With batch_invariant, partial results are per segment: as many keys, from a multiple of as many.
inline constexpr int32_t kSegmentKeys = 4096;

// Whether every result is folded over segments, so that its bits do not depend on whether its tile is split.
VARATTN_HD constexpr bool folds_segments(const PlanConfig& c) { return c.batch_invariant && c.num_splits > 1; }

// Slots for the partial results of split tiles, prefill or decode: bounded by the size of the GPU, not by the batch. A piece
// takes one (with batch_invariant: one for each of its segments). Pieces of at least half a fair share are no more than
// four for each CTA, so the bound is hardly ever met.
VARATTN_HD constexpr int32_t max_slots(const PlanConfig& c, bool decode) {
    if (c.num_splits == 1 || (decode && c.tile_rows_decode == 0)) return 0;
    const int32_t for_each_cta = decode && c.batch_invariant ? 16 : 4;
    return min_of(max_of(ceil_div(for_each_cta * c.num_ctas, c.num_heads_kv), 2), kArrivalCounters / c.num_heads_kv);
}

// Packed rows of a prefill tile: whole tokens, or, for groups larger than the tile, a part of one token's heads.
VARATTN_HD constexpr int32_t rows_per_tile(const PlanConfig& c) {
    int32_t group = c.num_heads_q / c.num_heads_kv;
    return group <= c.tile_rows ? c.tile_rows / group * group : c.tile_rows;
}

// At most total_rows / rows_per_tile + one partly filled tile for each sequence.
VARATTN_HD constexpr int32_t max_tiles(const PlanConfig& c) {
    int64_t rows = int64_t{c.max_total_q} * (c.num_heads_q / c.num_heads_kv);
    return static_cast<int32_t>(rows / rows_per_tile(c)) + c.max_seqs;
}

VARATTN_HD constexpr int32_t max_items(const PlanConfig& c) {
    return max_tiles(c) + max_slots(c, false) + max_slots(c, true);
}

VARATTN_HD constexpr int64_t max_tasks(const PlanConfig& c) { return int64_t{max_items(c)} * c.num_heads_kv; }

// Words of planner scratch: for each sequence, for each tile (see cuda/planner_kernel.cuh).
inline constexpr int kSeqScratchWords = 5, kTileScratchWords = 2;

struct PlanLayout {
    int64_t items;  // WorkItem[max_items]
    int64_t seqs;   // scratch: int32 (max_seqs, 4), int32 (max_seqs)
    int64_t tiles;  // scratch: int32 (max_tiles, kTileScratchWords)
    int64_t bytes;
};

VARATTN_HD constexpr PlanLayout plan_layout(const PlanConfig& c) {
    PlanLayout l{};
    l.items = sizeof(PlanHeader);
    l.seqs = l.items + int64_t{max_items(c)} * static_cast<int64_t>(sizeof(WorkItem));
    l.tiles = l.seqs + round_up<int64_t>(int64_t{kSeqScratchWords} * c.max_seqs * 4, 64);
    l.bytes = l.tiles + round_up<int64_t>(int64_t{kTileScratchWords} * max_tiles(c) * 4, 64);
    return l;
}

inline constexpr int kMaxSeats = 256;  // of CTAs that take a number by their SM, see sm90/queue.cuh

// The state of the work queue. Zero between launches: the last CTA to leave restores it.
struct alignas(128) QueueState {
    unsigned long long popped;  // low 32 bits: tasks popped from the front; high 32 bits: from the back
    uint32_t num_done;          // CTAs that have left
    uint32_t seats[kMaxSeats];  // 1: the number is taken
};

// Floats of a row that a CTA keeps: as many as the kernel pads the head dim to, and 8 for its LSE, which is there four times.
VARATTN_HD constexpr int32_t kept_row_floats(const PlanConfig& c) {
    return (c.kernel == kKernelSm90D64 ? 64 : c.kernel == kKernelSm90D128 ? 128 : 256) + 8;
}

struct WorkspaceLayout {
    int64_t arrivals;      // uint32 (split tiles, num_heads_kv): splits that have arrived; zero between launches
    int64_t partial_lse;   // float (num_heads_kv, partial_rows): natural log
    int64_t partial_out;   // float (num_heads_kv, partial_rows, head_dim_v): normalised partial outputs
    int64_t partial_rows;  // per KV head
    int64_t kept;  // float (num_ctas, kept_floats): what a CTA has folded of a whole tile, see sm90/prefill_output.cuh
    int64_t kept_floats;
    int64_t bytes;
};

VARATTN_HD constexpr WorkspaceLayout workspace_layout(const PlanConfig& c) {
    WorkspaceLayout l{};
    l.partial_rows = int64_t{max_slots(c, false)} * c.tile_rows + int64_t{max_slots(c, true)} * c.tile_rows_decode;
    l.arrivals = sizeof(QueueState);
    l.partial_lse = l.arrivals + int64_t{kArrivalCounters} * 4;
    l.partial_out = l.partial_lse + round_up<int64_t>(l.partial_rows * c.num_heads_kv * 4, 128);
    l.kept = l.partial_out + round_up<int64_t>(l.partial_rows * c.num_heads_kv * c.head_dim_v * 4, 128);
    l.kept_floats = folds_segments(c) ? int64_t{c.tile_rows} * kept_row_floats(c) : 0;
    l.bytes = l.kept + l.kept_floats * c.num_ctas * 4;
    return l;
}

}  // namespace varattn
