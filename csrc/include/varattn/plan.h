// The plan: what one step's attention will do, as an explicit list of work items.
//
// Memory layout of a plan buffer (all sizes are functions of PlanConfig, see plan_layout in core/layout.h):
//   PlanHeader | WorkItem[max_items] | planner scratch
// The buffer lives on the device of the attention that it is for. It is read-only for the attention kernel, but for
// `status`, into which errors found on the device are or-ed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace varattn {

// Everything that a plan is made for, known on the host without reading lengths. 32-bit words only: the attention
// kernel compares its own copy with the plan's word by word, and refuses a foreign plan.
struct PlanConfig {
    int32_t kernel;  // KernelId: the row of the kernel table that consumes the plan
    int32_t dtype;   // DType of q, k, v
    int32_t num_heads_q;
    int32_t num_heads_kv;
    int32_t head_dim;          // of q and k
    int32_t head_dim_v;        // of v and out
    int32_t tile_rows;         // packed rows of a prefill tile
    int32_t tile_rows_decode;  // packed rows of a decode tile; 0: the kernel has no decode mode
    int32_t block_n;           // keys of a KV block
    int32_t window_left;       // keys visible to the left of the diagonal, -1: all
    int32_t window_right;      // keys visible to the right of the diagonal, -1: all; causal is 0
    int32_t num_splits;        // upper bound on splits of a tile, resolved (never 0)
    int32_t batch_invariant;   // 0 or 1
    int32_t num_ctas;          // CTAs of the persistent launch (SM budget x CTAs per SM)
    int32_t max_seqs;          // capacity: sequences; equals the batch size of the launch
    int32_t max_total_q;       // capacity: query tokens
};
inline constexpr int kPlanConfigWords = sizeof(PlanConfig) / sizeof(int32_t);
static_assert(kPlanConfigWords == 16);

// Names of the fields of PlanConfig, in order, as messages give them.
inline constexpr const char* kPlanConfigFields[kPlanConfigWords] = {"kernel",
                                                                    "dtype",
                                                                    "num_heads_q",
                                                                    "num_heads_kv",
                                                                    "head_dim",
                                                                    "head_dim_v",
                                                                    "tile_rows",
                                                                    "tile_rows_decode",
                                                                    "block_n",
                                                                    "window_size[0]",
                                                                    "window_size[1] (causal)",
                                                                    "num_splits",
                                                                    "batch_invariant",
                                                                    "sm_margin (number of CTAs)",
                                                                    "max_seqs",
                                                                    "max_total_q"};

// Bits of PlanHeader::status. 0: nothing was wrong.
enum PlanStatus : uint32_t {
    kStatusCuSeqlensQ = 1u << 0,   // an offset was negative, decreasing or past max_total_q, and was clamped
    kStatusCuSeqlensK = 1u << 1,   // likewise in cu_seqlens_k, or a sequence has more than 2^29 keys
    kStatusSequsedK = 1u << 2,     // a length was negative, or larger than its range in cu_seqlens_k
    kStatusKeysPastEnd = 1u << 3,  // keys past the block table or past total_k: they are treated as absent
    kStatusPageId = 1u << 4,       // a page id was out of range: its keys and values were read as zeros
    kStatusRowsPastEnd = 1u << 5,  // the plan covers rows past total_q of the launch: they were skipped
    kStatusForeignPlan = 1u << 6,  // the plan was made for something else; nothing was computed
    // bits 8..23: the fields of PlanConfig that differed, set together with kStatusForeignPlan
    kStatusFirstField = 8,
    kStatusNotAPlan = 1u << 31,  // the buffer holds no plan of this version; nothing was computed
};

inline constexpr uint32_t kPlanMagic = 0x56410002u;  // "VA", plan version 2

struct PlanHeader {
    uint32_t magic;
    uint32_t status;  // PlanStatus
    PlanConfig config;
    int32_t num_items;         // work items; each is done once for every KV head
    int32_t num_front_items;   // the first of them, compute-bound (prefill); the rest is memory-bound (decode)
    int32_t num_front_ctas;    // CTAs that start at the front of the queue; the others start at the back
    int32_t num_split_tiles;   // tiles with more than one split
    int32_t num_partial_rows;  // rows of partial results in use, per KV head
    int32_t q_begin, q_end;    // rows of q that belong to a sequence; all others are padding
    int32_t section_heads;     // Hopper engine: prefills run in sections of so many KV heads, one after the other
    int32_t reserved[38];
};
static_assert(sizeof(PlanHeader) == 256);

enum WorkItemFlags : int32_t {
    kItemDecode = 1,  // decode mode: the tile holds all packed rows of its sequence, at most tile_rows_decode
};

// One (sequence, tile, KV-block range), done once for every KV head. Intervals are half-open.
struct alignas(16) WorkItem {
    int32_t seq;        // index of the sequence (row of block_table)
    int32_t q_begin;    // row of q of its first token
    int32_t q_len;      // its tokens
    int32_t k_begin;    // packed K/V: row of its first key; paged: 0
    int32_t kv_len;     // its keys, as given: the diagonal ends at key kv_len - 1
    int32_t row_begin;  // packed rows of the tile within the sequence: row t * G + g is head-in-group g of token t
    int32_t row_end;
    int32_t block_begin;  // KV blocks of this item; begin == end: nothing is visible, write 0 and -inf
    int32_t block_end;
    int32_t split;        // index of this split
    int32_t num_splits;   // splits of the tile; 1: write the output directly
    int32_t split_tile;   // index of the tile's arrival counters; -1 if num_splits == 1
    int32_t partial_row;  // first row of the tile's partials; split s uses rows [partial_row + s * rows, + rows)
    int32_t flags;        // WorkItemFlags
    int32_t tile;         // index of the tile in its sequence
    int32_t cost;         // planned cost, in the kernel table's unit (about ns)
};
static_assert(sizeof(WorkItem) == 64);

// Lengths of a step, on the device that the plan is made on.
struct SequenceLengths {
    const int32_t* cu_seqlens_q;  // (num_seqs + 1)
    const int32_t* seqused_k;     // (num_seqs) or null
    const int32_t* cu_seqlens_k;  // (num_seqs + 1) or null. One of the two is given; both: first seqused_k[i] keys
};

}  // namespace varattn
