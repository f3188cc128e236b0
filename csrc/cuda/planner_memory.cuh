// What the device planner keeps, in shared memory or in the plan's scratch.
#pragma once

#include "cuda/planner_order.cuh"

namespace varattn::planner {

struct alignas(8) PlannedTile {
    uint32_t seq : 24, key : 8;  // order key; of a decode from kNumOrderKeys / 2
    // Blocks (of the most possible, 2^24, one is left out: it moves no cost, target or key); once splits are chosen, the
    // first slot of a split tile.
    uint32_t blocks_or_slot : 24, more_splits : 8;
    __device__ bool is_decode() const { return key >= kNumOrderKeys / 2; }
    __device__ int32_t num_splits() const { return static_cast<int32_t>(more_splits) + 1; }
};
static_assert(sizeof(PlannedTile) == kTileScratchWords * 4);
static_assert(kMaxSeqs <= 1 << 24 && kMaxNumSplits <= 256 && kArrivalCounters < 1 << 24 && kNumOrderKeys == 256);
constexpr int32_t kMaxTileBlocks = (1 << 24) - 1;

// Up to here, lists are kept in shared memory.
constexpr int kSharedSeqs = kChunkSeqs, kSharedTiles = kSortedTiles;

struct PlannerParams {
    PlanConfig config;
    CostModel costs;
    TileShape shape;
    SequenceLengths lengths;
    PlanLayout layout;
    char* plan;
    int32_t num_ctas;
};

// CTAs of the launch: so many that each warp has few items to write.
inline int32_t num_ctas(const PlanConfig& c) {
    if (c.max_seqs > kSharedSeqs) return 1;
    return max_tiles(c) <= 1024 ? 4 : max_tiles(c) <= 2048 ? 8 : 16;
}

constexpr int kItemParts = sizeof(WorkItem) / sizeof(uint4);
constexpr int kWriters = 8;  // warps of a CTA that write items

struct SharedMemory {
    SequenceShape shapes[kSharedSeqs];
    int32_t first_tiles[kSharedSeqs];
    union {
        PlannedTile tiles[kSharedTiles];
        uint4 large_staging[kWarps][32][kItemParts];  // if tiles are elsewhere, every warp writes items
    };
    ItemCounts counts;
    uint4 staging[kWriters][32][kItemParts];  // a warp's items on their way to the plan
    int32_t next_item[kNumOrderKeys];         // position of the key's next item
    BlockScan<kWarps>::Buffer scan;
    uint32_t sums[5][kWarps];                 // see Totals
    int32_t wave_pieces[2][kNumWaveTargets];  // pieces that each target would make
    PlanHeader header;
};
static_assert(sizeof(SharedMemory) <= 98 * 1024, "compute capability 8.6 has 99 KiB for a CTA");

template <bool kIsShared>  // whether in shared memory
struct Lists {
    SequenceShape* shapes;
    int32_t* first_tiles;  // of each sequence
    PlannedTile* tiles;
    int32_t num_tiles = 0;  // the same in every thread

    __device__ Lists(const PlannerParams& p, SharedMemory& s) {
        if constexpr (kIsShared) {
            shapes = s.shapes;
            first_tiles = s.first_tiles;
            tiles = s.tiles;
        } else {
            shapes = reinterpret_cast<SequenceShape*>(p.plan + p.layout.seqs);
            first_tiles = reinterpret_cast<int32_t*>(shapes + p.config.max_seqs);
            tiles = reinterpret_cast<PlannedTile*>(p.plan + p.layout.tiles);
        }
    }
};

}  // namespace varattn::planner
