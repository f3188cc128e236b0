// Tile shapes, shared memory and launch arguments of the Hopper kernel. One row of the kernel table each.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "core/layout.h"
#include "varattn/params.h"

namespace varattn::sm90 {

inline constexpr int kProducerWarps = 4;  // a warpgroup: copiers of K and V, one that writes padding, the scheduler
inline constexpr int kMaxCopyWarps = 2, kPaddingWarp = 2, kSchedulerWarp = 3;
inline constexpr int kDecodeRows = 16;  // decode: one mma.sync row tile
inline constexpr int kDecodeWarps = 8;  // two warpgroups, which share the keys
inline constexpr int kPartDims = 64;    // a 128-byte line of shared memory holds 64 elements
inline constexpr int kUnitKeys = 8;     // of K and V: whose lines the tensor cores want side by side
inline constexpr int kSmallPage = 16;   // tokens of the smallest pages in common use

// Producers have loops of their own for blocks of one box, and for pages of kSmallPage tokens; with three consumer
// warpgroups their registers would spill.
VARATTN_HD constexpr bool has_own_loops(int32_t kernel_dim) { return kernel_dim > 64; }

// kDim_: head dim, 64, 128 or 256; smaller ones are zero-filled by the copy engine. kFoldsSegments_: of plans that fold
// segments (core/layout.h): the scheduler takes items segment by segment, and there is no decode mode.
template <class T_, int kDim_, bool kFoldsSegments_ = false>
struct Config {
    using T = T_;
    static constexpr int kDim = kDim_;
    static constexpr bool kFoldsSegments = kFoldsSegments_;
    static constexpr int kConsumerWarpgroups = kDim == 64 ? 3 : 2;  // for three, more accumulators leave no registers
    static constexpr int kConsumerWarps = 4 * kConsumerWarpgroups;
    static constexpr int kThreads = 32 * (kConsumerWarps + kProducerWarps);
    static constexpr int kTileRows = 64 * kConsumerWarpgroups;  // prefill: 64 rows a warpgroup
    static constexpr int kBlockN = kDim == 256 ? 64 : 128;
    // Of prefill's loop, as measured (docs/performance.md): whether warpgroups take turns at issuing products, how many of a
    // thread's scores become probabilities before the product with the last values has ended, and whether blocks without
    // masks have a loop of their own. With other head dims that one spills.
    static constexpr bool kTakeTurns = kDim != 64;
    static constexpr int kEarlyScores = kDim == 64 ? 8 : kDim == 128 ? 32 : 16;
    static constexpr bool kWholeLoop = kDim == 128;
    static constexpr int kParts = kDim / kPartDims;
    static constexpr int kQPartBytes = kTileRows * 128;  // the same rows, 64 dims further on
    static constexpr int kKvPartBytes = kBlockN * 128;
    static constexpr int kQBytes = kParts * kQPartBytes;
    static constexpr int kStageBytes = kParts * kKvPartBytes;  // a K or a V block
    static constexpr int kQSlots = kDim == 256 ? 1 : 2;
    static constexpr int kStages = kDim == 64 ? 10 : 5;  // 160 KiB of K and V in flight
    static constexpr bool kHasDecode = kDim != 256 && !kFoldsSegments;
    // Registers of a thread: the accumulators of the consumers need nearly all that the CTA is launched with. If the 32 of
    // a producer do not suffice, the assembler spills in every role, in the loop of prefill too.
    static constexpr int kLaunchRegisters = 65536 / kThreads / 8 * 8;
    static constexpr int kProducerRegisters = kConsumerWarpgroups == 3 ? 32 : 56;
    static constexpr int kConsumerRegisters = kConsumerWarpgroups == 3 ? 160 : 224;
    static constexpr int kPaddingLoads = kConsumerWarpgroups == 3 ? 1 : 8;  // in flight: as many as fit in
    static_assert(kProducerWarps * kProducerRegisters + kConsumerWarps * kConsumerRegisters <=
                  (kProducerWarps + kConsumerWarps) * kLaunchRegisters);
};

inline constexpr int kItemSlots = 4;

// A task on its way from the scheduler warp to everyone else: a work item for one KV head, or a segment of it, clipped to the
// buffers of this launch.
struct Work {
    WorkItem item;                  // its blocks: those of the segment
    int32_t item_index;             // in the plan
    int32_t head_kv;                // -1: no more work
    int32_t q_row;                  // row of q of packed row 0 of the tile
    int32_t num_rows;               // packed rows, of tokens that exist in this launch
    int32_t diagonal;               // key on the diagonal of packed row 0
    int32_t key_begin, key_end;     // keys that any of the sequence's rows may see: outside, memory may hold anything
    int32_t block_end, num_blocks;  // blocks are visited downwards: block_end - 1 first
    int32_t whole_begin[3], whole_end[3];  // of each warpgroup: blocks outside hold keys that some row does not see
    bool first_is_dirty, last_is_dirty;    // that block holds keys outside [key_begin, key_end)
    bool decode;
    int32_t decode_row_tiles;  // of 8 rows, of a decode with keys and rows; else 0
    bool chained;              // one of a chain of prefill items, see prefill.cuh
    // If the kernel folds segments:
    bool opens, closes;  // it is the first, the last segment of its item
    int32_t segment;     // of its tile, from 0
    uint64_t begin_ns;   // of a trace: when the item was published
};

// Of a row of a decode task, over a warp's keys: what probabilities are relative to, a raw score, and their sum.
struct alignas(8) DecodeRow {
    float top, sum;
};

template <class C>
struct alignas(1024) SharedMemory {
    uint8_t q[C::kQSlots][C::kQBytes];  // later the warps' partial outputs in decode mode
    uint8_t kv[C::kStages][C::kStageBytes];
    Work work[kItemSlots];
    DecodeRow decode_rows[2][4][kDecodeRows];  // of each warpgroup's warps
    int32_t is_last_split;
    bool no_more_tasks;  // for this CTA
    uint64_t q_full[C::kQSlots], q_empty[C::kQSlots];
    uint64_t kv_full[C::kStages], kv_empty[C::kStages];
    uint64_t item_full[kItemSlots], item_empty[kItemSlots];
    uint64_t item_ends[kItemSlots];  // its last blocks are being copied: time to take the next task
};

// Copy-engine views of K or V. `whole`, if LaunchParams::has_whole: (64, keys, head_dim / 64, num_heads_kv, units), boxes of
// box_rows keys with all 64-dim parts, a unit of one part, of the next, the next unit. `small`: the same in boxes of a unit, if
// one_box; else (head_dim, page_size, num_heads_kv, num_pages), boxes of box_rows keys of one part.
struct KvMaps {
    CUtensorMap whole, small;
    int32_t page_units;  // from a page to the next
};

struct LaunchParams {
    AttentionParams a;
    CUtensorMap q_prefill, q_decode;  // (head_dim, num_heads_q, total_q)
    KvMaps k, v;
    int32_t has_whole;  // boxes are whole: head dims are the kernel's own, pages whole units
    int32_t box_rows;   // keys of a KV box: a power of two that divides the page size
    int32_t one_box;    // a block is one whole box, or, if its keys end before it does, one for each kUnitKeys of them
    int32_t num_copy_warps;     // warps that copy K and V
    int32_t boxes, boxes_log2;  // of a block, for each of these warps: a power of two up to 64
    // Of a stage, in units of 16 bytes: from 64 dims to the next, and from kUnitKeys keys to the next.
    uint32_t part_step, unit_step;
    uint64_t kv_descriptor;     // of a stage as an operand of prefill, but for the address
    int32_t page_shift;         // log2(page_size), or -1
    int32_t q_box_rows[2];      // packed rows of a q box: prefill, decode
    int32_t group;              // query heads of a KV head
    uint32_t group_reciprocal;  // ceil(2^16 / group): divides the rows of a tile by the group size
    float scale_log2;           // exponent of 2 of a score unit
    float score_scale;          // softcap: scores are tanh(score * score_scale) first; 0: no softcap
    WorkspaceLayout workspace;  // this and the next follow from the configuration, by divisions
    uint32_t max_items;         // 0: there is no key to be brought in
};

// Launches the instance that serves params.config on the stream. The params are checked.
void launch(const AttentionParams& params, CUstream_st* stream);

// One instance, in a file of its own: instances/.
template <class T, int kDim, bool kFoldsSegments>
void launch_instance(const LaunchParams& params, CUstream_st* stream);

}  // namespace varattn::sm90
